"""``tiles`` on files: names, what it leaves alone, words, JSON, and no traceback."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from op4ksr_core.cli import main as cli
from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.training.data import leaves
from op4ksr_core.training.data.sources import FolderSource


def run(*arguments: object) -> int:
    return cli.main(["tiles", *map(str, arguments)])


SMALL = ("--side", 32, "--shrink", 2, "--least", 0)


@pytest.fixture
def photos(tmp_path: Path, natural) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    save_image(folder / "a.png", Picture(natural(128, 192)))
    save_image(folder / "b.jpg", Picture(natural(64, 64, 5)))
    return folder


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_folder_becomes_squares_that_a_training_reads(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "new" / "tiles"
    assert run(photos, "-o", out, *SMALL, "--procedural", 2) == 0
    squares = [f"a_2_{top}_{left}.png" for top in (0, 32) for left in (0, 32, 64)]
    assert names(out) == [*squares, "b_2_0_0.png", "leaves_0000.png", "leaves_0001.png"]
    words = capsys.readouterr().out.splitlines()
    assert words[0].endswith("a.png: 6 squares (6 at 1/2)") and words[-1].endswith(
        "9 pictures of this run, 2 of them procedural"
    )
    assert FolderSource(out, 0.0).crops((0,), 3, 32).shape == (3, 3, 32, 32)


def test_it_is_deterministic_and_replaces_its_own(photos: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for out in (first, second, second):
        assert run(photos, "-o", out, *SMALL, "--procedural", 1) == 0
    assert {path.name: path.read_bytes() for path in first.iterdir()} == {
        path.name: path.read_bytes() for path in second.iterdir()
    }


def test_json_says_what_was_kept_and_what_was_left_out(tmp_path: Path, natural, capsys) -> None:
    image = torch.full((1, 3, 64, 128), 0.5)
    image[..., 64:] = natural(64, 64)
    save_image(tmp_path / "half.png", Picture(image))
    out = tmp_path / "out"
    assert run(tmp_path / "half.png", "-o", out, "--side", 32, "--shrink", 1.5, 2, 8, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    (photo,) = report["photos"]
    assert photo["size"] == [128, 64] and photo["left_out"]["too_small"] == ["8"] and photo["left_out"]["flat"] >= 3
    assert photo["squares"]["2"] == 1 and photo["squares"]["8"] == 0
    assert sorted(photo["files"]) == names(out) and len(photo["files"]) == sum(photo["squares"].values())
    assert (report["shrink"], report["side"], report["least"], report["others"]) == ([1.5, 2, 8], 32, 3, 0)


def test_photos_are_read_as_by_every_command(tmp_path: Path, natural) -> None:
    """Orientation, transparency, grey and 16 bits."""
    pixels = (natural(128, 64)[0].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    alpha = torch.ones(1, 1, 64, 128)
    alpha[..., :40] = 0
    save_image(tmp_path / "clear.png", Picture(natural(64, 128), alpha))
    Image.fromarray(pixels[:64, :, 0].astype(np.uint16) * 257).save(tmp_path / "deep.png")
    inputs = [tmp_path / f"{name}.png" for name in ("turned", "clear", "deep")]
    assert run(*inputs, "-o", tmp_path / "out", "--side", 64, "--shrink", 1, "--least", 0) == 0
    assert names(tmp_path / "out") == ["clear_1_0_64.png", "deep_1_0_0.png", "turned_1_0_0.png", "turned_1_0_64.png"]
    turned = np.asarray(Image.open(tmp_path / "out" / "turned_1_0_64.png"))
    assert np.array_equal(turned, np.rot90(pixels, -1)[:, 64:])
    deep = np.asarray(Image.open(tmp_path / "out" / "deep_1_0_0.png"))
    assert deep.shape == (64, 64, 3) and np.array_equal(deep[..., 1], pixels[:64, :, 0])


def test_a_bad_photo_costs_no_other(photos: Path, tmp_path: Path, capsys) -> None:
    (photos / "bad.png").write_bytes(b"no picture")
    assert run(photos, "-o", tmp_path / "out", *SMALL) == 1
    out, err = capsys.readouterr()
    assert "bad.png" in err and "1 of 3 pictures failed" in err and "a.png: 6" in out and "b.jpg: 1" in out
    assert run(photos / "bad.png", "-o", tmp_path / "out", *SMALL) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_foreign_pictures_stay(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    foreign = out / "a_2_32_64.png"
    Image.new("RGB", (4, 4)).save(foreign)
    before = foreign.read_bytes()
    assert run(photos, "-o", out, *SMALL) == 1
    err = capsys.readouterr().err
    assert (
        "a_2_32_64.png: is there already, and not from here" in err and "1 pictures that this run did not make" in err
    )
    assert foreign.read_bytes() == before and names(out) == ["a_2_32_64.png", "b_2_0_0.png"]  # of a photo all or none
    assert run(photos, "-o", out, *SMALL, "--overwrite") == 0
    assert foreign.read_bytes() != before and len(names(out)) == 7


def test_squares_of_another_run_are_told(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    assert run(photos, "-o", out, *SMALL) == 0 and not capsys.readouterr().err
    assert run(photos / "b.jpg", "-o", out, *SMALL) == 0
    assert "holds 6 pictures that this run did not make" in capsys.readouterr().err


def test_photos_are_never_overwritten(photos: Path, tmp_path: Path, capsys) -> None:
    before = {path: path.read_bytes() for path in photos.iterdir()}
    assert run(photos, "-o", photos, *SMALL) == 1
    assert "holds the photo a.png" in capsys.readouterr().err
    out = tmp_path / "out"
    out.mkdir()
    (out / "b_2_0_0.png").symlink_to(photos / "a.png")
    assert run(photos, "-o", out, *SMALL, "--overwrite") == 1
    assert "is the input" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in photos.iterdir()} == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("PHOTOS", "-o", "out.png"), "out.png: is the name of a file, but squares need a folder"),
        (("PHOTOS", "-o", "PHOTOS/a.png"), "is the name of a file"),
        (("-o", "out"), "expected photos, or --procedural"),
        (("PHOTOS/missing.png", "-o", "out"), "no such file"),
        (("PHOTOS", "PHOTOS/../a.png", "-o", "out"), "would both become a"),
        (("PHOTOS", "-o", "out", "--shrink", 0.5), "shrink: expected 1 to 64, got 0.5"),
        (("PHOTOS", "-o", "out", "--procedural", -1), "procedural: expected seeds"),
    ],
)
def test_what_cannot_be_is_one_sentence(photos: Path, tmp_path: Path, monkeypatch, capsys, arguments, words) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*(str(value).replace("PHOTOS", str(photos)) for value in arguments)) == 1
    out, err = capsys.readouterr()
    assert words in err and err.count("\n") == 1 and not out


def test_procedural_pictures_need_no_photo(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert run("-o", ".", "--side", 48, "--procedural", 2, "--seed", 12345) == 0
    assert names(tmp_path) == ["leaves_12345.png", "leaves_12346.png"]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "leaves_12346.png")), leaves.picture(12346, 48, 48))


def test_a_place_that_is_taken_costs_no_other_procedural_picture(photos: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    out.mkdir()
    Image.new("RGB", (4, 4)).save(out / "leaves_0001.png")
    assert run(photos, "-o", out, *SMALL, "--procedural", 3, "--json") == 1
    text, err = capsys.readouterr()
    assert "leaves_0001.png: is there already" in err and "1 of 5 pictures failed" in err
    assert json.loads(text)["procedural"] == 2 and {"leaves_0000.png", "leaves_0002.png"} < set(names(out))


def test_pictures_in_folders_inside_are_told_too(photos: Path, tmp_path: Path, capsys) -> None:
    assert run(photos, "-o", tmp_path, *SMALL) == 0
    assert "holds 2 pictures that this run did not make" in capsys.readouterr().err
