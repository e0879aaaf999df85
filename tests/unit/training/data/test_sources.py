"""Sources: the same crops for the same seed, broken pictures left out by name, empty ones refused."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from op4ksr_core import OptionError, OutputError
from op4ksr_core.files import written_whole
from op4ksr_core.training.config import DataConfig
from op4ksr_core.training.data import shards
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.training.data.pool import procedural_pool
from op4ksr_core.training.data.shards import shard_files, shard_pictures
from op4ksr_core.training.data.sources import HELD_OUT, SHUFFLE, cut, open_source, pictures_in


def write_pictures(folder: Path, count: int = 3, side: int = 80) -> None:
    for i in range(count):
        Image.fromarray(picture(i, side, side + 10 * i)).save(folder / f"p{i}.png")


def test_a_folder_gives_the_same_crops_for_the_same_seed(tmp_path: Path) -> None:
    write_pictures(tmp_path)
    source = open_source(DataConfig("folder", str(tmp_path), shrunk=0.5), 0, tmp_path)
    one, two, other = (source.crops(seed, 5, 32) for seed in ((0, 1), (0, 1), (0, 2)))
    assert one.shape == (5, 3, 32, 32) and float(one.min()) >= 0 and float(one.max()) <= 1
    assert torch.equal(one, two) and not torch.equal(one, other) and not torch.equal(one[0], one[1])


def test_small_pictures_are_enlarged(tmp_path: Path) -> None:
    write_pictures(tmp_path, 1, 40)
    assert open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path).crops((1,), 2, 96).shape == (2, 3, 96, 96)


def test_folders_in_it_and_capital_endings_are_found(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er.png").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.PNG", "deep/er.png/c.JPG")):
        Image.fromarray(np.full((40, 40, 3), 60 * i, np.uint8)).save(tmp_path / name, "PNG")
    (tmp_path / "notes.txt").write_text("no picture")
    crops = open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path).crops((0,), 40, 32)
    assert {round(float(crop.mean()) * 255) for crop in crops} == {0, 60, 120}


def test_crops_are_turned_mirrored_and_in_their_share_shrunk() -> None:
    """A red slope down and a green one across: where each rises tells the turn, by how much the scale."""
    rows, columns = np.indices((128, 128), dtype=np.uint8)
    slopes = np.stack([rows, columns, rows], -1)
    ways: set[tuple[bool, int, int]] = set()
    spans: list[float] = []
    for seed in range(200):
        crop = cut(slopes, np.random.default_rng(seed), 32, 0.25)[0] * 255
        down, across = crop[0, -1, 0] - crop[0, 0, 0], crop[0, 0, -1] - crop[0, 0, 0]
        turned = bool(across.abs() > down.abs())
        green = crop[1, -1, 0] - crop[1, 0, 0] if turned else crop[1, 0, -1] - crop[1, 0, 0]
        ways.add((turned, int((across if turned else down).sign()), int(green.sign())))
        spans.append(float(torch.maximum(across.abs(), down.abs())))
    assert len(ways) == 8
    plain = np.isclose(spans, 31, atol=0.5)
    assert plain.mean() == pytest.approx(0.75, abs=0.1)
    assert all(58 < span < 64 for span in np.array(spans)[~plain])


def test_new_pictures_are_never_those_that_are_held_out(monkeypatch, tmp_path: Path) -> None:
    drawn: list[int] = []

    def recorded(seed: int, height: int, width: int, *, stock_seed: int) -> np.ndarray:
        drawn.append(seed)
        return np.zeros((height, width, 3), np.uint8)

    monkeypatch.setattr("op4ksr_core.training.data.sources.leaves.picture", recorded)
    open_source(DataConfig(pictures=0), 0, tmp_path).crops((0,), 200, 32)
    assert len(set(drawn)) == 200 and HELD_OUT * 0.9 < max(drawn) < HELD_OUT


def test_a_broken_picture_is_left_out_with_its_name_in_one_line(tmp_path: Path, caplog) -> None:
    write_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "p0.png").read_bytes()[:200])
    source = open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path)
    with caplog.at_level(logging.WARNING):
        crops = source.crops((0, 7), 40, 32)
    lines = [record.getMessage() for record in caplog.records if "broken.png" in record.getMessage()]
    assert len(crops) == 40 and len(lines) == 1 and "\n" not in lines[0]


def test_hidden_files_are_no_pictures(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_pictures(tmp_path, 1)
    (tmp_path / "._p0.png").write_bytes(bytes(100))
    assert pictures_in(tmp_path) == [tmp_path / "p0.png"]
    assert len(open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path).crops((0,), 8, 32)) == 8
    assert not caplog.records


def test_an_empty_folder_is_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds no pictures"):
        open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path)
    with pytest.raises(OptionError, match="is no folder"):
        open_source(DataConfig("folder", str(tmp_path / "none")), 0, tmp_path)
    (tmp_path / "only.png").write_bytes(b"nothing")
    with pytest.raises(OptionError, match="none of the 1 pictures"):
        open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path).crops((0,), 1, 32)


def test_procedural_pictures_are_kept_and_found_again(tmp_path: Path) -> None:
    data = DataConfig(pictures=3, picture_side=64)
    told: list[tuple[int, int]] = []
    with written_whole(tmp_path / "any", ".part.npy") as killed:
        killed_runs = killed
    killed_runs.write_bytes(b"half")
    os.utime(killed_runs, (0, 0))
    one = open_source(data, 4, tmp_path, lambda done, total: told.append((done, total))).crops((0, 1), 4, 32)
    assert told == [(1, 3), (2, 3), (3, 3)] and {path.name for path in tmp_path.iterdir()} == {
        "any",
        "leaves1_4_3x64.npy",
    }
    two = open_source(data, 4, tmp_path, lambda done, total: pytest.fail("made again")).crops((0, 1), 4, 32)
    assert torch.equal(one, two)
    source = open_source(data, 4, tmp_path)
    source.crops((0, 1), 1, 32)
    sent = pickle.dumps(source)
    assert len(sent) < 5000 and torch.equal(pickle.loads(sent).crops((0, 1), 4, 32), one)
    fresh = open_source(DataConfig(pictures=0), 4, tmp_path)
    assert torch.equal(fresh.crops((0, 1), 2, 32), fresh.crops((0, 1), 2, 32))


def write_shard(path: Path, numbers: range) -> None:
    with tarfile.open(path, "w") as tar:
        for i in numbers:
            pixels = np.full((40, 40, 3), 5 * i, np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).save(buffer, "PNG")
            content = buffer.getvalue() if i != 3 else b"broken"
            for name, data in ((f"{i:04d}.png", content), (f"{i:04d}.txt", b"a caption")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))


def test_shards_are_read_in_full_and_gone_on_with(tmp_path: Path, caplog) -> None:
    write_shard(tmp_path / "a-000.tar", range(0, 6))
    write_shard(tmp_path / "a-001.tar", range(6, 12))
    data = DataConfig("shards", str(tmp_path / "a-{000..001}.tar"))
    with caplog.at_level(logging.WARNING):
        crops = open_source(data, 0, tmp_path).crops((0,), 22, 32)
    found = (crops[:, 0, 0, 0] * 255 / 5).round().int().tolist()
    assert sorted(found[:11]) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11] == sorted(found[11:])
    assert found[:11] != sorted(found[:11])
    assert any("0003.png" in record.getMessage() for record in caplog.records)
    later = open_source(data, 0, tmp_path)
    later.skip(9)  # type: ignore[attr-defined]
    assert (later.crops((1,), 5, 32)[:, 0, 0, 0] * 255 / 5).round().int().tolist() == found[9:14]
    halves = [open_source(data, 0, tmp_path, share=(i, 2)).crops((0,), 5, 32)[:, 0, 0, 0] for i in (0, 1)]
    assert not set(halves[0].tolist()) & set(halves[1].tolist())


def test_shards_without_pictures_are_refused_and_huge_ones_left_out(tmp_path: Path, monkeypatch, caplog) -> None:
    write_shard(tmp_path / "none.tar", range(3, 4))
    with pytest.raises(OptionError, match="no pictures in the shards"):
        open_source(DataConfig("shards", str(tmp_path / "none.tar")), 0, tmp_path).crops((0,), 1, 32)
    write_shard(tmp_path / "huge.tar", range(0, 1))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OptionError, match="no pictures in the shards"):
        open_source(DataConfig("shards", str(tmp_path / "huge.tar")), 0, tmp_path).crops((0,), 1, 32)
    assert any("0000.png" in record.getMessage() for record in caplog.records)


def test_a_window_of_pictures_is_shuffled_and_no_more(tmp_path: Path) -> None:
    """Each of 200 comes once, and at most 64 places before its own."""
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for i in range(200):
            buffer = io.BytesIO()
            Image.fromarray(np.full((32, 32, 3), i, np.uint8)).save(buffer, "PNG")
            info = tarfile.TarInfo(f"{i:04d}.png")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    crops = open_source(DataConfig("shards", str(tmp_path / "a.tar")), 0, tmp_path).crops((0,), 200, 32)
    found = (crops[:, 0, 0, 0] * 255).round().int().tolist()
    assert sorted(found) == list(range(200))
    ahead = [number - place for place, number in enumerate(found)]
    assert max(ahead) <= SHUFFLE and np.mean(np.abs(ahead)) > SHUFFLE / 4


def test_a_shard_that_is_not_there_is_named_before_any_is_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "a-000.tar", range(0, 1))
    path = tmp_path / "a-{000..999999999}.tar"
    with pytest.raises(OptionError) as caught:
        open_source(DataConfig("shards", str(path)), 0, tmp_path)
    missing = tmp_path / "a-001.tar"
    assert str(caught.value) == f"data.path: {missing}: no such shard; check the path and the numbers in braces"


@pytest.mark.parametrize(
    "path",
    [
        "pipe:touch {marker}",
        "a.tar::pipe:touch {marker}",
        "{{pipe,http}}:touch {marker}",
        "http://127.0.0.1:9/a.tar",
        "file:{marker}",
        "s3://bucket/a.tar",
    ],
)
def test_only_local_files_are_shards(tmp_path: Path, path: str) -> None:
    """Refused in a sentence before anything is opened, run or fetched, whatever the scheme, braces included."""
    marker = tmp_path / "opened"
    with pytest.raises(OptionError, match="^data.path: expected local files, .* got '.*'; copy the shards to"):
        open_source(DataConfig("shards", path.format(marker=marker)), 0, tmp_path)
    assert not marker.exists()


def test_braces_are_ranges_and_choices(tmp_path: Path) -> None:
    names = [f"{folder}/{letter}{i:02d}.tar" for folder in ("x", "y") for letter in "ab" for i in (9, 10, 11)]
    for name in (*names, "odd{name}.tar"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = shard_files(str(tmp_path / "{x,y}/{a,b}{09..11}.tar"))
    assert [file.relative_to(tmp_path).as_posix() for file in found] == names
    assert shard_files(str(tmp_path / "odd{name}.tar")) == [tmp_path / "odd{name}.tar"]


@pytest.mark.parametrize("damage", ["no tar", "cut short"])
def test_a_damaged_shard_is_named_with_the_remedy(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "a.tar"
    write_shard(path, range(0, 2))
    path.write_bytes(b"nothing" * 99 if damage == "no tar" else path.read_bytes()[:700])
    with pytest.raises(OptionError, match=r"^data.path: .*a\.tar: cannot be read as a tar file \(.*\); replace it, or"):
        open_source(DataConfig("shards", str(path)), 0, tmp_path).crops((0,), 1, 32)


def test_a_sample_gives_its_first_picture(tmp_path: Path) -> None:
    """Of members whose names differ in the ending alone, in any folder; compressed shards too."""
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(tarfile.TarInfo("deep"))
        for name, level in (("deep/er/a.JPEG", 20), ("deep/er/a.seg.png", 99), ("deep/er/b.png", 40), ("c/b.png", 60)):
            buffer = io.BytesIO()
            Image.fromarray(np.full((8, 8, 3), level, np.uint8)).save(buffer, "PNG")
            info = tarfile.TarInfo(name)
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    assert [int(pixels[0, 0, 0]) for pixels in shard_pictures([tmp_path / "a.tar.gz"])] == [20, 40, 60]


def test_a_pool_of_older_pictures_is_not_taken_for_todays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = DataConfig(pictures=2, picture_side=64)
    first = procedural_pool(data, 0, tmp_path)
    assert procedural_pool(data, 0, tmp_path) == first
    monkeypatch.setattr("op4ksr_core.training.data.sources.leaves.VERSION", 2)
    second = procedural_pool(data, 0, tmp_path)
    assert second != first and len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("ending", ["finished", "killed"])
def test_runs_that_make_one_pool_at_once_do_not_spoil_it(tmp_path: Path, ending: str) -> None:
    """A second one comes when the first has made two of three pictures, and finishes or is killed before the first."""
    data, killed = DataConfig(pictures=3, picture_side=32), ending == "killed"
    expected = np.load(procedural_pool(data, 0, tmp_path / "alone"))

    def second(done: int, _: int) -> None:
        if killed and done == 1:
            raise KeyboardInterrupt

    def first(done: int, _: int) -> None:
        if done == 2:
            with pytest.raises(KeyboardInterrupt) if killed else contextlib.nullcontext():
                procedural_pool(data, 0, tmp_path / "shared", second)

    path = procedural_pool(data, 0, tmp_path / "shared", first)
    assert np.array_equal(np.load(path), expected) and expected.any(axis=(1, 2, 3)).all()
    assert list(path.parent.iterdir()) == [path]


def test_a_pool_that_cannot_be_written_names_its_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError) as caught:
        procedural_pool(DataConfig(pictures=1, picture_side=32), 0, tmp_path / "file" / "cache")
    told = str(caught.value)
    assert told.startswith(str(tmp_path / "file" / "cache")) and "1x32.npy: cannot be written (" in told
    assert told.endswith("); choose another run folder")


@pytest.mark.parametrize("workers", [0, 1, 2, 5])
def test_processes_make_the_same_file(tmp_path: Path, workers: int) -> None:
    path = procedural_pool(DataConfig(pictures=3, picture_side=32, workers=workers), 7, tmp_path)
    np.save(tmp_path / "expected.npy", np.stack([picture(i, 32, 32, stock_seed=7) for i in range(3)]))
    assert path.read_bytes() == (tmp_path / "expected.npy").read_bytes()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_full_disk_while_pictures_are_made_is_one_sentence(tmp_path: Path, workers: int) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(OutputError, match=r"4x64\.npy: cannot be written \(File too large\); choose another"):
            procedural_pool(DataConfig(pictures=4, picture_side=64, workers=workers), 0, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_range_of_numbers_too_long_to_be_read(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="no such shard; check the path and the numbers in braces"):
        shard_files(str(tmp_path / f"a-{{0..{'9' * 5000}}}.tar"))


def test_a_damaged_pool_is_named_and_never_unpickled(tmp_path: Path) -> None:
    data = DataConfig(pictures=2, picture_side=32)
    path = procedural_pool(data, 0, tmp_path)
    good = path.read_bytes()
    objects = io.BytesIO()
    np.save(objects, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    floats = io.BytesIO()
    np.save(floats, np.zeros((2, 32, 32, 3), np.float32))
    deep = b"\x93NUMPY\x01\x00" + (60_000).to_bytes(2, "little") + b"(" * 60_000
    for content in (b"", good[:-1], b"\0" * len(good), objects.getvalue(), floats.getvalue(), deep):
        path.write_bytes(content)
        with pytest.raises(OptionError, match=r"2x32\.npy: is no file of pictures made beforehand \(.*\); delete it"):
            open_source(data, 0, tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(OptionError, match=r"beforehand \(a folder\); delete it"):
        open_source(data, 0, tmp_path)


def test_a_pool_larger_than_the_disk_is_refused_before_it_is_begun(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="needs 805,306.4 GB, and the disk has .* left; lower data.pictures"):
        procedural_pool(DataConfig(pictures=10**6, picture_side=16384), 0, tmp_path)
    assert not list(tmp_path.iterdir())


def tar_of(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for info, content in members:
            info.size = info.size or len(content)
            tar.addfile(info, io.BytesIO(content))
    return made.getvalue()


def test_shards_of_all_kinds_give_their_pictures_or_one_sentence(tmp_path: Path) -> None:
    """Nothing in one is written anywhere; devices and links are no pictures; a damaged header is no end."""
    shard, picture_file = tmp_path / "a.tar", io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(picture_file, "PNG")
    links = [tarfile.TarInfo(name) for name in ("l.png", "d.png", "f.png")]
    for info, kind in zip(links, (tarfile.SYMTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE), strict=True):
        info.type, info.linkname = kind, "/etc/passwd"
    climbing = tarfile.TarInfo("../../../climbs.png")
    good = tar_of(*[(info, b"") for info in links], (climbing, picture_file.getvalue()))
    shard.write_bytes(good)
    assert len(list(shard_pictures([shard]))) == 1 and list(tmp_path.iterdir()) == [shard]
    two = bytearray(tar_of(*[(tarfile.TarInfo(f"{i}.png"), picture_file.getvalue()) for i in range(2)]))
    two[1024] ^= 1  # the second header's name
    shard.write_bytes(two)
    with pytest.raises(OptionError, match=r"a\.tar: cannot be read as a tar file \(a damaged header"):
        list(shard_pictures([shard]))


def test_a_huge_member_is_left_out_and_a_huge_header_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    shard = tmp_path / "a.tar"
    monkeypatch.setattr("op4ksr_core.training.data.shards.LARGEST", 100)
    shard.write_bytes(tar_of((tarfile.TarInfo("a.png"), b"0" * 1000)))
    assert not list(shard_pictures([shard])) and "left out: a.png in" in caplog.text
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, 2**30
    shard.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(OptionError, match="a header that says 1,073,741,824 bytes"):
        list(shard_pictures([shard]))


def test_braces_that_never_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST_SHARDS", 1_000)
    shard = tmp_path / "a.tar"
    shard.touch()
    many, repeated = "{,}" * 40, "{,,,}" * 15
    for braces, told in ((many, "at most 16 pairs of braces"), (repeated, "names more than 1,000 shards")):
        with pytest.raises(OptionError, match=told):
            shard_files(str(shard) + braces)
