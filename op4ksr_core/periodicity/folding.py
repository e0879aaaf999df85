"""The tile of an artifact of a known period, estimated by folding a picture over that period, and laid over it again.

The remover (suppress.py) calls ``estimate_artifact`` for each plane of a picture with the period that the meter found
and subtracts the result; coherence.py uses ``phases_of`` alone. Folding is adding up all pixels that lie whole periods
apart: what repeats adds up, the picture averages out.

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

from .local_mean import box_mean, local_power

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

#: Variances of chance by which the share around a place must differ from the whole's to count.
CHANCE = 2.0

#: How sure it must be that the plain squared error falls, next to how sure the estimate is where it is quiet.
PLAIN = 2.0

#: Box mean, px, that is taken off at least, and standard deviations by which what it leaves must bear out
#: the low frequencies that a smaller one took.
WIDE_BOX, LEAST_LOW = 65, 2.0


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


def alternated(plane: Tensor, phases: Phases) -> list[Tensor]:
    """(H, W) with the sign of every other period turned, on both axes, down, and across: what folds to chance.

    One axis alone as well, because an edge along an axis is the same in every period along it. An axis
    along which nothing varies has no periods; what would be the plane itself is left out.
    """
    down, across = phases.signs[0][:, None], phases.signs[1]
    if phases.count[0] == 1 or phases.count[1] == 1:
        return [plane * down * across]
    lying = plane * down
    return [lying * across, lying, plane * across]


def quietness(detail: Tensor) -> Tensor:
    """(H, W): 1 / noise power around each px, in 1 / grey levels squared."""
    return 1 / (local_power(detail.square(), QUIET_BOX) + LEAST_NOISE)


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
    chance = _chance([_power(torch.fft.fft2(fold(x, phases) / total)) for x in alternated(pulled, phases)], phases)
    power = _power(tile)
    keep = (1 - SHRINK * chance / power.clamp(min=1e-20)).clamp(min=0) * (power > THRESHOLD * chance)
    keep[0, 0] = 0
    return tile * keep


def _chance(powers: list[Tensor], phases: Phases) -> Tensor:
    """(p, q): chance level of each frequency, from the powers of ``alternated`` folds, over its neighbours too.

    On an axis only what was alternated along that axis tells.
    """
    chance = sum(powers[1:], powers[0]) / len(powers)
    for axis in (0, 1):
        if phases.count[axis] > 1:
            chance = (chance + chance.roll(1, axis) + chance.roll(-1, axis)) / 3
    if len(powers) > 1:
        for axis, power in ((0, powers[1]), (1, powers[2])):
            line = power.select(1 - axis, 0)
            line = (line + line.roll(1) + line.roll(-1)) / 3
            chance.select(1 - axis, 0).copy_(torch.maximum(chance.select(1 - axis, 0), line))
    return chance


def _power(z: Tensor) -> Tensor:
    return torch.view_as_real(z).square().sum(-1)


def fit_gains(detail: Tensor, weight: Tensor, artifact: Tensor, phases: Phases) -> Tensor:
    """(H, W) in [0, 4]: how much of the artifact is where; where that is not certain, as much as around it."""
    precision = _cells(weight * artifact.square()) + 1e-9
    pulled = weight * detail * artifact
    product, by_chance = _cells(pulled), _cells(alternated(pulled, phases)[0])
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

    confidence: how well the estimate agrees with those pixels, in standard deviations of chance.
    """

    artifact: Tensor
    explained: float
    confidence: float


def estimate_artifact(
    detail: Tensor,
    wide: Tensor,
    weight: Tensor,
    place: Tensor | None,
    contrast: Tensor | None,
    phases: Phases,
    side: int,
) -> Folded:
    """What repeats in a high-passed plane (H, W), no more of it than pixels it was not made from bear out.

    place: (H, W) in [0, 1], where to look for it; None: everywhere. contrast: (H, W) that it is
    proportional to; None: to nothing. side: of the box mean that was taken off the plane, px; what it
    took of the artifact is put back where that holds in wide, the plane less a box mean of WIDE_BOX.
    Where nothing repeats, all is 0.
    """
    shape = torch.ones_like(detail) if contrast is None else contrast
    looked = weight if place is None else weight * place
    board = _checkerboard(detail.shape[0], detail.shape[1], phases)
    kept = (1 - low_pass_response(phases, side)).clamp(min=0.1)
    seen = torch.zeros_like(kept, dtype=torch.bool)
    crossed, laid = torch.zeros_like(detail), torch.zeros_like(detail)
    for half in (board, 1 - board):
        spectrum, gains = _alternate(detail, weight * half, looked * half, shape, phases)
        seen |= spectrum != 0
        scaled = (1 - half) * gains * shape
        crossed += scaled * unfold(torch.fft.ifft2(spectrum).real, phases)
        laid += scaled * unfold(torch.fft.ifft2(spectrum / kept).real, phases)
    tested = _tested(detail, weight, crossed, phases)
    if tested is None:
        return Folded(torch.zeros_like(detail), 0.0, 0.0)
    explained, confidence, share = tested
    spectrum, gains = _alternate(detail, weight, looked, shape, phases)
    if _plainly(wide, laid - box_mean(laid, WIDE_BOX), phases) > LEAST_LOW:
        spectrum = torch.where(seen, spectrum / kept, spectrum)
    artifact = unfold(torch.fft.ifft2(spectrum).real, phases) * shape * gains * share
    return Folded(artifact, explained, confidence)


def _alternate(detail: Tensor, weight: Tensor, looked: Tensor, shape: Tensor, phases: Phases) -> tuple[Tensor, Tensor]:
    """(spectrum of the tile (p, q), gains (H, W)), each estimated with the other in turn."""
    gains = torch.ones_like(detail)
    spectrum = shrunk_tile(detail, looked, shape, phases)
    for _ in range(ROUNDS):
        artifact = unfold(torch.fft.ifft2(spectrum).real, phases) * shape
        if not bool(artifact.any()):
            break
        gains = fit_gains(detail, weight, artifact, phases)
        spectrum = shrunk_tile(detail, looked, shape * gains.clamp(min=1e-3), phases)
    return spectrum, gains


def _plainly(detail: Tensor, crossed: Tensor, phases: Phases) -> float:
    """By how many standard deviations of chance the squared error falls, every px counted alike."""
    product, by_chance, energy = _agreement(detail, crossed, crossed, phases)
    return float((2 * product - energy).sum() / (4 * by_chance).clamp(min=1e-12).sqrt())


def _tested(detail: Tensor, weight: Tensor, crossed: Tensor, phases: Phases) -> tuple[float, float, Tensor] | None:
    """crossed: (H, W), each px estimated without its surroundings -> (energy explained, confidence, share (H, W)).

    share: what part of the estimate the picture bears out, in [0, 1]: over the whole, and around each place
    where that differs by more than chance. Chance: the same with the sign of every other period turned,
    which cancels whatever repeats within a square of two periods. None where nothing is explained.
    """
    product, by_chance, energy = _agreement(detail, weight * crossed, crossed, phases)
    if float(energy.sum()) <= 0 or float(product.sum()) <= 0:
        return None
    explained = float((2 * product - energy).sum())
    confidence = float(product.sum() / by_chance.clamp(min=1e-12).sqrt())
    product, by_chance, energy = _agreement(detail, weight.sqrt() * crossed, crossed, phases)
    level = by_chance / energy.sum() + 1e-12  # variance of product per energy
    overall = (product.sum() / energy.sum()).clamp(0, 1)
    near, near_energy = (box_mean(x, 3) * 9 for x in (product, energy))
    differs = near / near_energy.clamp(min=1e-12) - overall
    chance = CHANCE * level / near_energy.clamp(min=1e-12)
    share = overall + differs * (1 - chance / differs.square().clamp(min=1e-12)).clamp(min=0)
    share = F.interpolate(share.clamp(0, 1)[None, None], detail.shape, mode="bilinear", align_corners=False)[0, 0]
    return explained, min(confidence, PLAIN * _plainly(detail, crossed, phases)), share


def _agreement(detail: Tensor, pull: Tensor, crossed: Tensor, phases: Phases) -> tuple[Tensor, Tensor, Tensor]:
    """Per square of the picture: pull * detail and pull * crossed; and the variance of the former's sum by chance."""
    pulled = pull * detail
    chance = [_squares(x, phases).square().sum() for x in alternated(pulled, phases)]
    return _squares(pulled, phases), torch.stack(chance).amax(), _squares(pull * crossed, phases)


def _square_sides(phases: Phases) -> tuple[int, int]:
    """px: two periods, or as many times that as reach 32 px; 64 along what does not vary."""
    sides = [64 if p <= 0 else round(2 * p * max(1, math.ceil(16 / p))) for p in phases.period]
    return sides[0], sides[1]


def _squares(plane: Tensor, phases: Phases) -> Tensor:
    """(H, W) -> sums over the squares of the checkerboard."""
    rows, columns = _square_sides(phases)
    height, width = plane.shape
    filled = F.pad(plane, (0, -width % columns, 0, -height % rows))
    return filled.reshape(filled.shape[0] // rows, rows, filled.shape[1] // columns, columns).sum((1, 3))


def _checkerboard(height: int, width: int, phases: Phases) -> Tensor:
    """(H, W) of 0 and 1, in squares of two periods."""
    rows, columns = _square_sides(phases)
    return ((torch.arange(height)[:, None] // rows + torch.arange(width) // columns) % 2).float()
