"""Colours under transparency: what is hidden is not seen at the edges, and what is seen stays."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from op4ksr_core.images.alpha import shrink_visible, visible_colors
from op4ksr_core.images.resize import resize


def disc(side: int = 33, soft: float = 1.0) -> Tensor:
    """Transparency (1, 1, side, side): a disc with an edge ``soft`` px wide."""
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    far = ((y - side // 2) ** 2 + (x - side // 2) ** 2).sqrt()
    return ((side / 3 - far) / soft + 0.5).clamp(0, 1)[None, None]


def test_opaque_and_empty_pictures_are_themselves() -> None:
    image = torch.rand(1, 3, 5, 6)
    assert visible_colors(image, torch.ones(1, 1, 5, 6)) is image
    assert visible_colors(image, torch.zeros(1, 1, 5, 6)) is image


@pytest.mark.parametrize("soft", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("faint", [0.0, 1 / 255])
def test_what_is_hidden_is_replaced_by_what_is_seen_around(soft: float, faint: float) -> None:
    alpha = disc(soft=soft).clamp(min=faint)
    color = torch.tensor([0.9, 0.6, 0.2]).view(1, 3, 1, 1)
    image = torch.where(alpha > faint, color, torch.rand(1, 3, 33, 33))
    found = visible_colors(image, alpha)
    beside = torch.nn.functional.max_pool2d((alpha > 0.5).float(), 5, 1, 2) > 0
    assert ((found - color).abs() * beside).max() < (1e-5 if faint == 0 else 0.03)


def test_pixels_as_visible_as_their_neighbours_keep_their_colours() -> None:
    image = torch.rand(1, 3, 20, 24)
    half = torch.full((1, 1, 20, 24), 0.5)
    half[..., :4] = 0
    assert torch.equal(visible_colors(image, half)[..., 4:], image[..., 4:])


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (7, 1), (2, 3), (31, 17)])
def test_every_size_is_filled(size: tuple[int, int]) -> None:
    alpha = torch.zeros(1, 1, *size)
    alpha[..., 0, 0] = 1
    image = torch.rand(1, 3, *size)
    found = visible_colors(image, alpha)
    assert found.shape == image.shape and (found - image[..., :1, :1]).abs().max() < 1e-5


@pytest.mark.parametrize("size", [(16, 16), (11, 12), (3, 3), (1, 1)])
def test_smaller_sizes_weigh_colours_by_what_is_seen_of_them(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    alpha = disc(soft=6.0)
    image = torch.rand(1, 3, 33, 33, generator=generator)
    filled = visible_colors(image, alpha)
    found, weight = shrink_visible(image, filled, alpha, *size), resize(alpha, *size).clamp(0, 1)
    wanted = resize(image * alpha, *size)
    clear = weight > 0.05
    assert ((found * weight - wanted).abs() * clear).max() < 0.05
