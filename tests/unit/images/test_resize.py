"""Sizes to the pixel, padding by mirroring, and Pillow's bicubic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from op4ksr_core import OptionError, Target
from op4ksr_core.images.resize import DEFAULT_CEILING_MEGAPIXELS, MEGAPIXEL, mirror_frame, picture_bytes, resize

# --- target -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "size", "expected"),
    [
        (Target(scale=4), (1024, 1024), (4096, 4096)),
        (Target(scale=4), (33, 57), (132, 228)),
        (Target(scale=1), (33, 57), (33, 57)),
        (Target(scale=1.7), (33, 57), (56, 97)),
        (Target(scale=0.5), (33, 57), (16, 28)),
        (Target(scale=0.001), (33, 57), (1, 1)),
        (Target(long_edge=4096), (3000, 4000), (3072, 4096)),
        (Target(long_edge=4096), (4001, 3001), (4096, 3072)),
        (Target(long_edge=4096), (1, 4093), (1, 4096)),
        (Target(short_edge=2160), (720, 1280), (2160, 3840)),
        (Target(short_edge=101), (37, 23), (162, 101)),
        (Target(megapixels=16), (1024, 1024), (4096, 4096)),
        (Target(megapixels=1), (3000, 4000), (887, 1182)),
    ],
    ids=str,
)
def test_target_size(target: Target, size: tuple[int, int], expected: tuple[int, int]) -> None:
    assert target.size(*size) == expected


@pytest.mark.parametrize("length", [7, 333, 1023, 1999, 3001, 4093])
@pytest.mark.parametrize("edge", [1000, 2160, 4095, 4096])
def test_an_edge_is_met_to_the_pixel(length: int, edge: int) -> None:
    assert Target(long_edge=edge).size(length, 5)[0] == edge
    assert Target(short_edge=edge, ceiling_megapixels=math.inf).size(5000, length)[1] == edge


@pytest.mark.parametrize("size", [(600, 800), (1080, 1920), (4000, 3000), (999, 1001)])
def test_megapixels_are_met_and_the_aspect_kept(size: tuple[int, int]) -> None:
    height, width = Target(megapixels=8).size(*size)
    assert height * width / MEGAPIXEL == pytest.approx(8, rel=1e-3)
    assert height == pytest.approx(width * size[0] / size[1], abs=1)


def test_the_default_ceiling_is_8192_px_square() -> None:
    assert Target(scale=8).size(1024, 1024) == (8192, 8192)
    assert DEFAULT_CEILING_MEGAPIXELS * MEGAPIXEL == 8192 * 8192
    with pytest.raises(OptionError):
        Target(scale=8).size(1024, 1025)


def test_beyond_the_ceiling_names_both_numbers_and_the_remedy() -> None:
    with pytest.raises(OptionError, match=r"3000x2000 px x 4 is 12000x8000 px = 91\.6 MP.*16 MP.*raise the ceiling"):
        Target(scale=4, ceiling_megapixels=16).size(2000, 3000)
    assert Target(scale=4, ceiling_megapixels=92).size(2000, 3000) == (8000, 12000)


@pytest.mark.parametrize(
    "wrong",
    [{}, {"scale": 2, "long_edge": 100}, {"short_edge": 9, "megapixels": 1}, {"scale": 2, "megapixels": 0.0}],
    ids=str,
)
def test_exactly_one_wish(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="exactly one of scale, long_edge, short_edge, megapixels"):
        Target(**wrong)


@pytest.mark.parametrize("name", ["scale", "long_edge", "short_edge", "megapixels"])
@pytest.mark.parametrize("value", [0, -4, math.nan, math.inf])
def test_a_wish_is_a_number_above_zero(name: str, value: float) -> None:
    with pytest.raises(OptionError, match=f"{name}: expected a number above 0"):
        Target(**{name: value})


@pytest.mark.parametrize("ceiling", [0, -1, math.nan])
def test_a_ceiling_is_a_number_above_zero(ceiling: float) -> None:
    with pytest.raises(OptionError, match="ceiling"):
        Target(scale=1, ceiling_megapixels=ceiling)


# --- padding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (7, 4093), (2, 2), (31, 33), (32, 64), (100, 1)], ids=str)
@pytest.mark.parametrize("margin", [0, 32])
def test_padding_mirrors_without_doubling_the_edge(
    generator: torch.Generator, size: tuple[int, int], margin: int
) -> None:
    image = torch.rand(2, 3, *size, generator=generator)
    padded = mirror_frame(image, 32, margin)
    height, width = (-(-side // 32) * 32 for side in size)
    assert padded.shape == (2, 3, height + 2 * margin, width + 2 * margin)
    sides = [(margin, height - size[0] + margin), (margin, width - size[1] + margin)]
    expected = np.pad(image.numpy(), [(0, 0), (0, 0), *sides], mode="reflect")
    assert torch.equal(padded, torch.from_numpy(expected))


def test_whole_sides_are_returned_as_they_are() -> None:
    image = torch.zeros(1, 3, 32, 96)
    assert mirror_frame(image, 32) is image


# --- resampling -------------------------------------------------------------------------------


def pillow_bicubic(image: Tensor, height: int, width: int) -> Tensor:
    planes = [Image.fromarray(plane.numpy(), mode="F") for plane in image[0]]
    resized = [np.asarray(plane.resize((width, height), Image.Resampling.BICUBIC)) for plane in planes]
    return torch.from_numpy(np.stack(resized))[None]


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize(
    "size", [(148, 228), (74, 114), (37, 58), (38, 57), (61, 61), (19, 29), (9, 14), (5, 114), (1, 1)], ids=str
)
def test_resize_is_pillows_bicubic(generator: torch.Generator, size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, 37, 57, generator=generator)
    assert (resize(image, *size) - pillow_bicubic(image, *size)).abs().max() <= 1e-5


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("side", [1, 2, 3, 40])
@pytest.mark.parametrize("other", [1, 2, 7, 57])
def test_sides_of_a_few_pixels_are_right_too(generator: torch.Generator, side: int, other: int) -> None:
    """PyTorch's own is wrong by up to 1 where the output is 1 px wide."""
    for height, width in ((side, other), (other, side)):
        image = torch.rand(1, 3, height, width, generator=generator)
        for size in ((1, 1), (2, 1), (1, 2), (5, 1), (90, 1), (1, 90), (3, 2), (90, 2)):
            found = resize(image, *size)
            assert found.is_contiguous() and (found - pillow_bicubic(image, *size)).abs().max() <= 1e-5, size


def test_a_picture_one_pixel_wide_comes_back(generator: torch.Generator) -> None:
    image = torch.rand(1, 3, 400, 1, generator=generator)
    smooth = resize(resize(image, 40, 1), 400, 1)
    back = resize(resize(smooth, 1600, 4), 400, 1)
    assert (back - smooth).abs().max() < 0.02


def test_resize_to_the_same_size_is_the_input() -> None:
    image = torch.zeros(1, 3, 5, 7)
    assert resize(image, 5, 7) is image


def test_resize_does_not_clamp() -> None:
    step = torch.cat([torch.zeros(1, 1, 8, 8), torch.ones(1, 1, 8, 8)], dim=-1)
    enlarged = resize(step, 32, 64)
    assert enlarged.min() < -0.01 and enlarged.max() > 1.01


def test_bytes_of_pictures_are_those_of_their_tensors() -> None:
    assert picture_bytes(7, 9) == torch.empty(1, 3, 7, 9, dtype=torch.float32).nbytes
    assert picture_bytes(7, 9, 4) == torch.empty(4, 3, 7, 9, dtype=torch.float32).nbytes
