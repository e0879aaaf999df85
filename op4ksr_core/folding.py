"""One period of an artifact, estimated by folding a picture over it, and laid over the picture again.

Every pixel counts as its surroundings are quiet. Per frequency of the tile, what folding with
alternating signs gives (the lattice half-way between) is the chance level, which the tile must exceed.
How much of the tile is where is fitted at ever smaller scales, each pulled to the one before it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from .autocorrelation import box_mean

#: A frequency's power must exceed chance THRESHOLD times to survive, and loses SHRINK times of it.
THRESHOLD, SHRINK = 6.0, 1.5

#: Box in which a pixel's surroundings are judged, px; least noise power, grey levels squared.
QUIET_BOX, LEAST_NOISE = 9, 0.3

#: Side of the cells in which the gains are fitted, px, and the boxes in cells, large to small.
CELL, SCALES = 8, (17, 9, 5, 3)

#: Most of the average tile that a place may hold.
LARGEST_GAIN = 4.0

#: Times that tile and gains are estimated in turn.
ROUNDS = 4

#: Fewest periods on an axis that can be folded.
FEWEST_PERIODS = 3


@dataclass(frozen=True)
class Phases:
    """rows (H,), columns (W,) long: each px' place in the tile (count); signs: +1 and -1 in turn by period."""

    rows: Tensor
    columns: Tensor
    count: tuple[int, int]
    signs: tuple[Tensor, Tensor]
    period: tuple[float, float]


def phases_of(size: tuple[int, int], period: tuple[float, float]) -> Phases:
    """For a picture (H, W) and a period in px, whole or not; 0 on an axis along which nothing varies."""
    places: list[Tensor] = []
    signs: list[Tensor] = []
    counts: list[int] = []
    for length, p in zip(size, period, strict=True):
        position = torch.arange(length, dtype=torch.float64)
        if p <= 0:
            places.append(torch.zeros(length, dtype=torch.long))
            signs.append(torch.ones(length))
            counts.append(1)
            continue
        count = max(2, round(p))
        part = torch.remainder(position, p) / p
        places.append((part * count).floor().long().clamp(max=count - 1))
        signs.append(1.0 - 2.0 * torch.remainder((position / p).floor(), 2).float())
        counts.append(count)
    return Phases(places[0], places[1], (counts[0], counts[1]), (signs[0], signs[1]), period)


def fold(plane: Tensor, phases: Phases) -> Tensor:
    """(H, W) -> (p, q): the sum over all pixels of each place in the tile."""
    rows = plane.new_zeros(phases.count[0], plane.shape[1]).index_add_(0, phases.rows, plane)
    return plane.new_zeros(phases.count).index_add_(1, phases.columns, rows)


def unfold(tile: Tensor, phases: Phases) -> Tensor:
    """(p, q) -> (H, W): the tile repeated."""
    return tile[phases.rows][:, phases.columns]


def alternated(plane: Tensor, phases: Phases) -> Tensor:
    """(H, W) with the sign of every other period turned, on both axes: what folds to chance."""
    return plane * phases.signs[0][:, None] * phases.signs[1]


def quietness(detail: Tensor) -> Tensor:
    """(H, W): 1 / noise power around each px, in 1 / grey levels squared."""
    return 1 / (box_mean(detail.square(), QUIET_BOX).clamp(min=0) + LEAST_NOISE)


def low_pass_response(phases: Phases, side: int) -> Tensor:
    """(p, q): what a box mean of that side leaves of each frequency of the tile."""
    parts: list[Tensor] = []
    for count, period in zip(phases.count, phases.period, strict=True):
        if count == 1:
            parts.append(torch.ones(1))
            continue
        x = math.pi * torch.fft.fftfreq(count) * count / period
        zero = x == 0
        parts.append(torch.where(zero, torch.ones(()), torch.sin(side * x) / (side * torch.sin(x + zero))))
    return parts[0][:, None] * parts[1]


def shrunk_tile(detail: Tensor, weight: Tensor, shape: Tensor, phases: Phases) -> Tensor:
    """(p, q) complex: spectrum of the tile t that makes shape * t nearest to the detail, chance taken off.

    detail, weight, shape: (H, W); shape: how much of the tile is where (its gain and local contrast).
    """
    pull = weight * shape
    total = fold(pull * shape, phases).clamp(min=1e-9)
    pulled = pull * detail
    tile = torch.fft.fft2(fold(pulled, phases) / total)
    chance = _power(torch.fft.fft2(fold(alternated(pulled, phases), phases) / total))
    for axis in (0, 1):
        if phases.count[axis] > 1:
            chance = (chance + chance.roll(1, axis) + chance.roll(-1, axis)) / 3
    power = _power(tile)
    keep = (1 - SHRINK * chance / power.clamp(min=1e-20)).clamp(min=0) * (power > THRESHOLD * chance)
    keep[0, 0] = 0
    return tile * keep


def _power(z: Tensor) -> Tensor:
    return torch.view_as_real(z).square().sum(-1)


def fit_gains(detail: Tensor, weight: Tensor, artifact: Tensor, phases: Phases) -> Tensor:
    """(H, W) in [0, 4]: how much of the artifact is where; where it cannot be told, as much as around it."""
    precision = _cells(weight * artifact.square()) + 1e-9
    pulled = weight * detail * artifact
    product, by_chance = _cells(pulled), _cells(alternated(pulled, phases))
    prior = (product.sum() / precision.sum()).expand_as(product)
    for side in SCALES:
        sums = [box_mean(x, side) for x in (precision, product, by_chance)]
        found = sums[0].clamp(min=1e-12)
        fit, chance = sums[1] / found, sums[2] / found
        variance = 2 * (chance.square() * found).mean() / found
        trust = (found / (found + found.mean())).square()
        spread = (((fit - prior).square() - variance) * trust).sum() / trust.sum()
        spread = spread.clamp(min=0)
        prior = prior + (fit - prior) * spread / (spread + variance + 1e-12)
    gains = prior.clamp(0, LARGEST_GAIN)[None, None]
    return F.interpolate(gains, detail.shape, mode="bilinear", align_corners=False)[0, 0]


def _cells(plane: Tensor) -> Tensor:
    """(H, W) -> means of 8 x 8 px."""
    return F.avg_pool2d(plane[None, None], CELL, CELL, ceil_mode=True, count_include_pad=False)[0, 0]


@dataclass(frozen=True)
class Folded:
    """artifact (H, W) in grey levels. explained: what it takes off the weighted energy of pixels it was not made from.

    share: by that test, how much of what was estimated is real, in [0, 1].
    """

    artifact: Tensor
    explained: float
    share: float


def estimate_artifact(
    detail: Tensor, weight: Tensor, place: Tensor | None, contrast: Tensor | None, phases: Phases, side: int
) -> Folded:
    """What repeats in a high-passed plane (H, W).

    place: (H, W) in [0, 1], where to look for it; None: everywhere. contrast: (H, W) that it is
    proportional to; None: to nothing. side: of the box mean that was taken off the plane, px; what it
    took of the artifact is put back. Where nothing repeats, share is 0.
    """
    shape = torch.ones_like(detail) if contrast is None else contrast
    looked = weight if place is None else weight * place
    explained, share = _tested(detail, looked, shape, phases)
    if share == 0:
        return Folded(torch.zeros_like(detail), 0.0, 0.0)
    gains = torch.ones_like(detail)
    spectrum = shrunk_tile(detail, looked, shape, phases)
    for _ in range(ROUNDS):
        artifact = unfold(torch.fft.ifft2(spectrum).real, phases) * shape
        if not bool(artifact.any()):
            break
        gains = fit_gains(detail, weight, artifact, phases)
        spectrum = shrunk_tile(detail, looked, shape * gains.clamp(min=1e-3), phases)
    restored = spectrum / (1 - low_pass_response(phases, side)).clamp(min=0.1)
    artifact = unfold(torch.fft.ifft2(restored).real, phases) * shape * gains
    return Folded(artifact, explained, share)


def _tested(detail: Tensor, weight: Tensor, shape: Tensor, phases: Phases) -> tuple[float, float]:
    """Made from one half of a checkerboard, tried on the other: (energy explained, share that is real)."""
    board = _checkerboard(detail.shape[0], detail.shape[1], phases)
    product = energy = 0.0
    for half in (board, 1 - board):
        tile = torch.fft.ifft2(shrunk_tile(detail, weight * half, shape, phases)).real
        artifact = unfold(tile, phases) * shape
        pull = weight * (1 - half) * artifact
        product += float((pull * detail).sum())
        energy += float((pull * artifact).sum())
    if energy <= 0 or product <= 0:
        return 0.0, 0.0
    return 2 * product - energy, min(1.0, product / energy)


def _checkerboard(height: int, width: int, phases: Phases) -> Tensor:
    """(H, W) of 0 and 1, in squares of two periods."""
    sides = [max(1, round(2 * p)) if p > 0 else 64 for p in phases.period]
    return ((torch.arange(height)[:, None] // sides[0] + torch.arange(width) // sides[1]) % 2).float()
