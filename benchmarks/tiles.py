"""Overlapping tiles, as ComfyUI's tiled VAE nodes run them: for comparison only, no upscale uses them.

A host test holds ``three_passes`` to the host's own ``decode_tiled``.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Pass = Callable[[Tensor], Tensor]


def three_passes(x: Tensor, function: Pass, tile: int, overlap: int, scale: float) -> Tensor:
    """The mean of passes with square, tall and wide tiles, faded into each other.

    x (1, C, H, W); function: a tile -> (1, C', h * scale, w * scale); tile and overlap in px of x.
    """
    shapes = ((tile * 2, tile // 2), (tile // 2, tile * 2), (tile, tile))
    return torch.stack([one_pass(x, function, shape, overlap, scale) for shape in shapes]).mean(0)


def one_pass(x: Tensor, function: Pass, tile: tuple[int, int], overlap: int, scale: float) -> Tensor:
    """Tiles of one shape (height, width), faded into each other; ``function`` of x itself where one tile covers it.

    The rest as in ``three_passes``.
    """
    size = x.shape[2], x.shape[3]
    found = places(size, tile, overlap)
    if len(found) == 1:
        return function(x)
    total, weight = torch.zeros(1), torch.zeros(1)
    for top, left, height, width in found:
        part = function(x[:, :, top : top + height, left : left + width])
        if total.ndim == 1:
            full = round(size[0] * scale), round(size[1] * scale)
            total, weight = part.new_zeros(1, part.shape[1], *full), part.new_zeros(1, 1, *full)
        mask = _fade(part, round(overlap * scale))
        place = (slice(None), slice(None), _span(top, part.shape[2], scale), _span(left, part.shape[3], scale))
        total[place] += part * mask
        weight[place] += mask
    return total / weight


def places(size: tuple[int, int], tile: tuple[int, int], overlap: int) -> list[tuple[int, int, int, int]]:
    """Where ``one_pass`` puts its tiles: (top, left, height, width) each; the last of a row or column are smaller."""
    return [
        (top, left, min(tile[0], size[0] - top), min(tile[1], size[1] - left))
        for top in _starts(size[0], tile[0], overlap)
        for left in _starts(size[1], tile[1], overlap)
    ]


def _starts(length: int, tile: int, overlap: int) -> list[int]:
    if length <= tile:
        return [0]
    return [max(0, min(length - overlap, start)) for start in range(0, length - overlap, tile - overlap)]


def _span(start: int, length: int, scale: float) -> slice:
    first = round(start * scale)
    return slice(first, first + length)


def _fade(part: Tensor, width: int) -> Tensor:
    """(1, 1, h, w): rising from every edge to 1 over ``width`` px."""
    mask = part.new_ones(1, 1, *part.shape[2:])
    ramp = torch.arange(1, width + 1, device=part.device, dtype=part.dtype) / max(1, width)
    for axis in (2, 3):
        if width >= part.shape[axis]:
            continue
        view = ramp.view(-1, 1) if axis == 2 else ramp
        mask.narrow(axis, 0, width).mul_(view)
        mask.narrow(axis, part.shape[axis] - width, width).mul_(view.flip(0 if axis == 2 else -1))
    return mask
