"""LR and HR in pairs, and sets made from HR pictures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.commands import main as cli
from benchmarks.picture_sets import PictureSet, SetRecipe, is_set, load_pair, make_set, open_set
from op4ksr_core import ImageError, OptionError, OutputError
from op4ksr_core.images.io import load_image
from op4ksr_core.training.data.degradation import Degradation, degrade
from op4ksr_core.training.data.leaves import picture


def draw(path: Path, width: int, height: int, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(seed, max(height, 96), max(width, 96))[:height, :width]).save(path)
    return path


def test_pairs_are_found_by_name_whatever_the_ending(tmp_path: Path) -> None:
    lows = [draw(tmp_path / "LR" / name, 8, 8) for name in ("a.png", "b.png")]
    highs = [draw(tmp_path / "HR" / name, 32, 32) for name in ("a.jpg", "b.webp")]
    assert is_set(tmp_path) and not is_set(tmp_path / "LR")
    found = open_set(tmp_path)
    assert found == PictureSet(tmp_path.name, tuple(lows), tuple(highs))
    assert found.first(1).lows == (lows[0],) and found.first(1).highs == (highs[0],) and found.first(None) == found


@pytest.mark.parametrize("there", ["LR", "HR"])
def test_one_half_may_be_missing(tmp_path: Path, there: str) -> None:
    path = draw(tmp_path / there / "a.png", 8, 8)
    found = open_set(tmp_path)
    assert (found.lows, found.highs) == (((path,), ()) if there == "LR" else ((), (path,)))


def test_pictures_without_partner_are_named(tmp_path: Path) -> None:
    for name in ("LR/a.png", "LR/b.png", "HR/a.png", "HR/c.png"):
        draw(tmp_path / name, 8, 8)
    with pytest.raises(OptionError, match=r"2 pictures are in one of LR and HR only \(b, c\); give each"):
        open_set(tmp_path)


def test_one_name_twice_is_told(tmp_path: Path) -> None:
    for name in ("LR/a.png", "LR/a.jpg"):
        draw(tmp_path / name, 8, 8)
    with pytest.raises(OptionError, match=r"a\.png: a\.jpg is there too"):
        open_set(tmp_path)


@pytest.mark.parametrize("size", [(33, 32), (32, 64), (4, 4)])
def test_sizes_must_be_multiples_alike_on_both_axes(tmp_path: Path, size: tuple[int, int]) -> None:
    low, high = draw(tmp_path / "a.png", 8, 8), draw(tmp_path / "b.png", *size)
    with pytest.raises(ImageError, match=f"{size[0]}x{size[1]} px are no whole multiple of .* 8x8 px; cut"):
        load_pair(low, high, 4, 4096)


def test_the_factor_is_the_sizes_and_without_hr_the_one_given(tmp_path: Path) -> None:
    low, high = draw(tmp_path / "a.png", 10, 8), draw(tmp_path / "b.png", 30, 24)
    assert load_pair(low, high, 4, 4096).factor == 3
    alone = load_pair(low, None, 4, 4096)
    assert alone.factor == 4 and alone.high is None and alone.low.shape == (1, 3, 8, 10)


def test_of_larger_pictures_the_middle_is_taken_at_one_place_in_both(tmp_path: Path) -> None:
    pixels = np.zeros((14, 18, 3), np.uint8)
    pixels[4:11, 5:12] = np.random.default_rng(0).integers(1, 255, (7, 7, 3))
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.repeat(3, 0).repeat(3, 1)).save(tmp_path / "b.png")
    pair = load_pair(tmp_path / "a.png", tmp_path / "b.png", 4, 23)
    assert pair.high is not None and pair.low.shape[-2:] == (7, 7) and pair.high.shape[-2:] == (21, 21)
    assert torch.equal(pair.high[..., ::3, ::3], pair.low)
    assert load_pair(tmp_path / "a.png", None, 4, 23).low.shape[-2:] == (5, 5)


def test_a_set_is_cut_made_worse_by_seed_and_name_and_told(tmp_path: Path) -> None:
    sources = [draw(tmp_path / f"{name}.png", 101, 90, seed) for seed, name in enumerate(("x", "y"))]
    words = ["make-set", *map(str, sources), "-o", str(tmp_path / "Syn"), "--side", "66", "--factor", "4"]
    assert cli.main([*words, "--seed", "7"]) == 0
    found = open_set(tmp_path / "Syn")
    pair = load_pair(found.lows[1], found.highs[1], 2, 4096)
    assert pair.factor == 4 and pair.high is not None and pair.high.shape[-2:] == (64, 64)
    assert torch.equal(pair.high, load_image(sources[1]).image[..., 12:76, 18:82])
    made = json.loads((tmp_path / "Syn" / "set.json").read_text("utf-8"))
    assert made["recipe"] == {"side": 66, "factor": 4, "seed": 7, "clean": False}
    assert made["pictures"]["y"]["px"] == [64, 64] and len(made["pictures"]["y"]["steps"]) > 3
    make_set(sources[1:], tmp_path / "alone", SetRecipe(66, 4, 7))
    assert (tmp_path / "alone" / "LR" / "y.png").read_bytes() == found.lows[1].read_bytes()
    make_set(sources[1:], tmp_path / "other", SetRecipe(66, 4, 8))
    assert (tmp_path / "other" / "LR" / "y.png").read_bytes() != found.lows[1].read_bytes()
    assert (tmp_path / "other" / "HR" / "y.png").read_bytes() == found.highs[1].read_bytes()


def test_a_clean_set_is_only_shrunk(tmp_path: Path) -> None:
    make_set([draw(tmp_path / "x.png", 64, 32)], tmp_path / "Syn", SetRecipe(clean=True))
    shrunk = degrade(load_image(tmp_path / "x.png").image, Degradation(clean=1.0), (0,)).low
    assert torch.equal(load_image(tmp_path / "Syn" / "LR" / "x.png").image, shrunk)


def test_a_set_that_is_there_is_never_written_into(tmp_path: Path) -> None:
    source = draw(tmp_path / "x.png", 16, 16)
    draw(tmp_path / "Syn" / "LR" / "old.png", 8, 8)
    with pytest.raises(OutputError, match="holds a set already"):
        make_set([source], tmp_path / "Syn", SetRecipe())
    with pytest.raises(ImageError, match="smaller than 16 px"):
        make_set([draw(tmp_path / "y.png", 16, 15)], tmp_path / "small", SetRecipe(factor=16))
    (tmp_path / "blocked" / "set.json").mkdir(parents=True)
    with pytest.raises(OutputError, match=r"set\.json: cannot be written"):
        make_set([source], tmp_path / "blocked", SetRecipe())


def test_recipes_are_checked() -> None:
    with pytest.raises(OptionError, match="--factor: expected a whole number from 2 to 16, got 1"):
        SetRecipe(factor=1)
    with pytest.raises(OptionError, match="make-set: expected a side"):
        SetRecipe(side=3)
    with pytest.raises(OptionError, match="make-set: expected a side .* and -1; change"):
        SetRecipe(seed=-1)
