"""Sources: the same crops for the same seed, broken pictures left out by name, empty ones refused."""

from __future__ import annotations

import io
import logging
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from op4ksr_core import OptionError
from op4ksr_core.leaves import picture
from op4ksr_core.sources import open_source
from op4ksr_core.train_config import DataConfig


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


def test_a_broken_picture_is_left_out_with_its_name_in_one_line(tmp_path: Path, caplog) -> None:
    write_pictures(tmp_path)
    (tmp_path / "broken.png").write_bytes((tmp_path / "p0.png").read_bytes()[:200])
    source = open_source(DataConfig("folder", str(tmp_path)), 0, tmp_path)
    with caplog.at_level(logging.WARNING):
        crops = source.crops((0, 7), 40, 32)
    lines = [record.getMessage() for record in caplog.records if "broken.png" in record.getMessage()]
    assert len(crops) == 40 and len(lines) == 1 and "\n" not in lines[0]


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
    one = open_source(data, 4, tmp_path, lambda done, total: told.append((done, total))).crops((0, 1), 4, 32)
    assert told == [(1, 3), (2, 3), (3, 3)] and not list(tmp_path.glob("*.part*"))
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
    pytest.importorskip("webdataset")
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


def test_shards_that_are_not_there_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("webdataset")
    with pytest.raises(OptionError, match="data.path"):
        open_source(DataConfig("shards", str(tmp_path / "none.tar")), 0, tmp_path).crops((0,), 1, 32)
