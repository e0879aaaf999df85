"""Photos cut into squares: the grid, the filter, and what is left out."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from op4ksr_core.errors import OptionError
from op4ksr_core.images.io import Picture
from op4ksr_core.images.resize import resize
from op4ksr_core.training.data.tiles import (
    Square,
    TileSettings,
    leaf_name,
    leaf_numbers,
    mean_gradient,
    squares_of,
    starts,
)

SMALL = TileSettings(side=64, shrink=(2.0,), least=0.0)


@pytest.mark.parametrize(("length", "side"), [(64, 64), (65, 64), (128, 64), (1312, 512), (1000, 37)])
def test_the_grid_covers_the_length_evenly_with_the_fewest_squares(length: int, side: int) -> None:
    found = starts(length, side)
    assert found[0] == 0 and found[-1] == length - side and len(found) == -(-length // side)
    steps = np.diff(found)
    assert not len(steps) or (steps.max() <= side and steps.max() - steps.min() <= 1)


def test_squares_are_the_photo_shrunk_by_our_own_filter(natural) -> None:
    photo = Picture(natural(300, 437))
    for factor in (1.0, 2.0, 2.7):
        height, width = round(300 / factor), round(437 / factor)
        shrunk = resize(photo.image, height, width).clamp(0, 1).mul(255).round()[0].permute(1, 2, 0).numpy()
        covered = np.zeros((height, width), bool)
        for square in squares_of(photo, replace(SMALL, shrink=(factor,))).kept:
            place = slice(square.top, square.top + 64), slice(square.left, square.left + 64)
            covered[place] = True
            assert square.pixels.shape == (64, 64, 3) and square.pixels.dtype == np.uint8
            assert np.abs(square.pixels - shrunk[place]).max() == 0
        assert covered.all()


def test_the_same_photo_gives_the_same_squares(natural) -> None:
    first, second = (squares_of(Picture(natural(200, 200)), SMALL).kept for _ in range(2))
    assert len(first) == len(second) == 4
    assert all(np.array_equal(a.pixels, b.pixels) for a, b in zip(first, second, strict=True))


def test_factors_come_one_after_the_other_and_are_counted(natural) -> None:
    settings = replace(SMALL, shrink=(1.0, 2.0))
    found = squares_of(Picture(natural(128, 192)), settings)
    assert [square.factor for square in found.kept] == [1.0] * 6 + [2.0] * 2
    assert found.by_factor(settings) == {"1": 6, "2": 2}


def test_flat_squares_are_left_out(natural) -> None:
    image = torch.full((1, 3, 128, 256), 0.5)
    image[..., 128:] = natural(128, 128)
    settings = TileSettings(side=64, shrink=(1.0,), least=3.0)
    found = squares_of(Picture(image), settings)
    assert found.flat == 4 and {square.left for square in found.kept} == {128, 192}
    assert squares_of(Picture(image), replace(settings, least=0.0)).flat == 0


def test_the_mean_gradient_is_the_steps_down_and_to_the_right_in_levels() -> None:
    slope = np.broadcast_to(np.arange(32, dtype=np.uint8)[:, None, None] * 3, (32, 32, 3))
    assert mean_gradient(slope) == 3.0
    checkers = np.indices((32, 32)).sum(0)[..., None].repeat(3, 2) % 2 * 255
    assert mean_gradient(checkers.astype(np.uint8)) == 510.0


def test_what_lies_under_transparency_is_in_no_square(natural) -> None:
    image, alpha = natural(128, 256), torch.ones(1, 1, 128, 256)
    settings = TileSettings(side=64, shrink=(2.0,), least=0.0)
    assert len(squares_of(Picture(image, alpha), settings).kept) == 2
    alpha[..., 127:129, 60] = 254 / 255  # within the first square alone
    found = squares_of(Picture(image, alpha), settings)
    assert found.transparent == 1 and [square.left for square in found.kept] == [64]
    alpha[..., 60], alpha[..., 131] = 1.0, 0.0  # in the second, and within the filter's reach of the first
    assert squares_of(Picture(image, alpha), settings).transparent == 2


def test_a_photo_smaller_than_a_square_gives_smaller_ones_or_none(natural) -> None:
    photo = Picture(natural(80, 300))
    found = squares_of(photo, TileSettings(side=64, shrink=(2.0, 3.0), least=0.0))
    assert {square.pixels.shape for square in found.kept} == {(40, 40, 3)} and len(found.kept) == 4
    assert found.too_small == [3.0]
    one = squares_of(Picture(natural(1, 1)), TileSettings(side=32, shrink=(1.0, 64.0)))
    assert not one.kept and one.too_small == [1.0, 64.0]


def test_a_grey_photo_gives_grey_squares(natural) -> None:
    grey = natural(128, 128).mean(1, keepdim=True).expand(1, 3, 128, 128)
    for square in squares_of(Picture(grey), SMALL).kept:
        assert (square.pixels == square.pixels[..., :1]).all()


def test_names_name_the_photo_the_factor_and_the_place() -> None:
    square = Square(2.5, 10, 20, np.zeros((4, 4, 3), np.uint8))
    assert square.name("a photo") == "a photo_2.5_10_20.png"
    assert replace(square, factor=2.0).name("b") == "b_2_10_20.png"


def test_procedural_pictures_have_the_seeds_of_a_run() -> None:
    assert [leaf_name(number) for number in leaf_numbers(2, 3)] == ["leaves_0003.png", "leaves_0004.png"]
    assert not leaf_numbers(0, 0) and leaf_name(123456) == "leaves_123456.png"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"side": 31}, "side: expected 32 to 4096, got 31"),
        ({"shrink": (0.5,)}, "shrink: expected 1 to 64, got 0.5"),
        ({"shrink": (float("nan"),)}, "shrink: expected 1 to 64, got nan"),
        ({"shrink": ()}, "expected 1 to 16 factors, got 0"),
        ({"shrink": (2.0, 3.0, 2.0)}, "shrink: 2 is named twice"),
        ({"least": -1.0}, "least: expected 0 to 510, got -1"),
    ],
)
def test_settings_that_cannot_be_are_refused(options: dict, words: str) -> None:
    with pytest.raises(OptionError, match=words):
        TileSettings(**options)


@pytest.mark.parametrize(("count", "seed"), [(-1, 0), (1, -1), (2, 999_999_999)])
def test_seeds_that_runs_hold_out_are_refused(count: int, seed: int) -> None:
    with pytest.raises(OptionError, match="expected seeds from 0"):
        leaf_numbers(count, seed)
