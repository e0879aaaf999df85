"""Periodic artifacts to inject into clean pictures: what the detector is measured on, and tests use.

The benchmarks and tests call ``inject`` with a name of ``KINDS`` and an amplitude; nothing that users run does.

A fixed random tile repeated over the picture (white or 1/f), the same times local contrast, on a
quarter of the area, with a drifting phase, lines in one direction, and per-token gain and offset.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError
from ..images.resize import resize

#: name -> (shape of the artifact, its period in px).
KINDS: dict[str, tuple[str, float]] = {
    "white32": ("white", 32),
    "white16": ("white", 16),
    "white24": ("white", 24),
    "pink64": ("pink", 64),
    "pink32": ("pink", 32),
    "pink16": ("pink", 16),
    "pink8": ("pink", 8),
    "mult32": ("mult", 32),
    "region32": ("region", 32),
    "drift32": ("drift", 32),
    "comb32": ("comb", 32),
    "block32": ("block", 32),
}


def random_tile(period: int, pink: bool, generator: torch.Generator) -> Tensor:
    """(period, period), mean 0, RMS 1: white noise, or amplitude spectrum 1/f."""
    tile = torch.randn(period, period, generator=generator)
    if pink:
        f = torch.fft.fftfreq(period) * period
        radius = torch.hypot(f[:, None], f[None])
        radius[0, 0] = 1
        tile = torch.fft.ifft2(torch.fft.fft2(tile) / radius).real
    tile = tile - tile.mean()
    return tile / tile.square().mean().sqrt()


def tiled(tile: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """The tile (p, q) repeated without end, at real positions of one shape, bilinear between pixels."""
    height, width = tile.shape
    y, x = rows % height, columns % width
    y0, x0 = y.floor().long() % height, x.floor().long() % width
    y1, x1 = (y0 + 1) % height, (x0 + 1) % width
    v, u = y - y.floor(), x - x.floor()
    top = tile[y0, x0] * (1 - u) + tile[y0, x1] * u
    return top * (1 - v) + (tile[y1, x0] * (1 - u) + tile[y1, x1] * u) * v


def pattern(kind: str, clean: Tensor, seed: int) -> Tensor:
    """(1, 1, H, W) of RMS 1 (of the kind "region": inside the region), for a clean picture (1, 3, H, W).

    Raises OptionError for a kind that is not in ``KINDS``.
    """
    if kind not in KINDS:
        raise OptionError(f"artifact kind {kind!r}: expected one of {', '.join(KINDS)}")
    shape, period = KINDS[kind][0], int(KINDS[kind][1])
    generator = torch.Generator().manual_seed(seed)
    height, width = clean.shape[-2:]
    y = torch.arange(height, dtype=torch.float32)[:, None].expand(height, width)
    x = torch.arange(width, dtype=torch.float32)[None].expand(height, width)
    phase = torch.randint(0, period, (2,), generator=generator)
    y, x = y + phase[0], x + phase[1]
    if shape == "block":
        return _blocks(clean, y, x, period, generator)
    tile = random_tile(period, shape == "pink", generator)
    if shape == "drift":
        turn = torch.rand(2, generator=generator) * 2 * math.pi
        y = y + 6 * torch.sin(2 * math.pi * x / 400 + turn[0])
        x = x + 6 * torch.sin(2 * math.pi * y / 400 + turn[1])
    if shape == "comb":
        line = tile[:1] - tile[:1].mean()
        lying = bool(torch.rand(1, generator=generator) < 0.5)
        field = tiled(line / line.square().mean().sqrt(), y * 0, y if lying else x)
    else:
        field = tiled(tile, y, x)
    if shape == "mult":
        field = field * _contrast(clean)[0, 0]
    if shape == "region":
        rows, columns = height // 2, width // 2
        top = int(torch.randint(0, height - rows + 1, (1,), generator=generator))
        left = int(torch.randint(0, width - columns + 1, (1,), generator=generator))
        mask = torch.zeros(height, width)
        mask[top : top + rows, left : left + columns] = 1
        return (field * mask / (field * mask).square().sum().div(mask.sum()).sqrt())[None, None]
    return (field / field.square().mean().sqrt())[None, None]


def _contrast(clean: Tensor) -> Tensor:
    """(1, 1, H, W): as ``local_mean.local_contrast``, of the mean of the channels.

    By avg_pool2d and not by running sums, whose last bits differ: the benchmark's pictures must stay the same.
    """
    grey = clean.mean(1, keepdim=True) * 255
    mean = F.avg_pool2d(grey, 17, 1, 8, count_include_pad=False)
    return F.avg_pool2d((grey - mean).square(), 17, 1, 8, count_include_pad=False).sqrt()


def _blocks(clean: Tensor, y: Tensor, x: Tensor, period: int, generator: torch.Generator) -> Tensor:
    """Per token a random offset, and a random gain about the picture's mean, of equal RMS."""
    rows, columns = (y // period).long(), (x // period).long()
    shape = (int(rows.max()) + 1, int(columns.max()) + 1)
    offset = torch.randn(shape, generator=generator)[rows, columns]
    grey = clean.mean(1)[0]
    gain = torch.randn(shape, generator=generator)[rows, columns] * (grey - grey.mean())
    field = offset / offset.square().mean().sqrt() + gain / gain.square().mean().sqrt().clamp(min=1e-6)
    return (field / field.square().mean().sqrt())[None, None]


def inject(clean: Tensor, kind: str, grey_levels: float, seed: int = 0) -> Tensor:
    """The clean picture (1, 3, H, W) in [0, 1] with an artifact of that RMS (of 255) on all channels; clamped."""
    return (clean + pattern(kind, clean, seed) * (grey_levels / 255)).clamp(0, 1)


def real_texture(height: int, width: int, period: int, seed: int) -> Tensor:
    """(1, 3, H, W): a wall of sharp-edged shapes that really repeats, a little uneven, lit unevenly.

    Bricks of random proportions and shades, one motif per picture: periodic content that no model made.
    """
    rng = np.random.default_rng(seed)
    scale = 4
    side = period * scale
    motif = np.full((side, side), rng.uniform(0.3, 0.7), np.float32)
    for _ in range(int(rng.integers(2, 7))):
        y0, x0 = rng.integers(0, side, 2)
        rows, columns = rng.integers(side // 6, side, 2)
        index = np.ix_((np.arange(rows) + y0) % side, (np.arange(columns) + x0) % side)
        motif[index] = rng.uniform(0.1, 0.9)
    tile = torch.from_numpy(motif)
    y = torch.arange(height * 2, dtype=torch.float32)[:, None].expand(-1, width * 2) * (scale / 2)
    x = torch.arange(width * 2, dtype=torch.float32)[None].expand(height * 2, -1) * (scale / 2)
    wall = tiled(tile, y, x)[None, None]
    wall = resize(F.avg_pool2d(wall, 3, 1, 1, count_include_pad=False), height, width)
    coarse = torch.from_numpy(rng.standard_normal((1, 1, 5, 5)).astype(np.float32))
    light = 1 + 0.12 * resize(coarse, height, width)
    noise = torch.from_numpy(rng.normal(0, 0.012, (1, 3, height, width)).astype(np.float32))
    tint = torch.from_numpy(rng.uniform(0.85, 1.15, (1, 3, 1, 1)).astype(np.float32))
    return (wall * light * tint + noise).clamp(0, 1)
