"""Steps at the borders of blocks: per-token gains and offsets, and JPEG's 8 px grid.

evidence.py calls ``block_steps`` for the statistics of family "block" and for JPEG's grid; meter.py calls ``block_map``
for where they are. A profile says for each column border how much of a step it is; folded over a period, the phase of
the blocks' borders stands out.

A constant per token has no energy at all on the token's lattice lines (the sinc's zeros fall on
them), so it is looked for where it shows: as steps, one px wide, that run along a block's side.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Periods (px) that are looked for.
BLOCK_PERIODS = (64, 32, 16, 8)

#: Sum of the step along a side, px, and how often it is taken.
ALONG, EVERY = 32, 16

#: Share of a phase's steps that one border may have: a frame or a wall has one edge, a grid many.
LARGEST_STEP = 0.5

#: Shorter side, px, under which blocks are not reported: few rows make chance look like steps.
SHORTEST_BORDER = 160

#: Neighbourhood (px to each side) that a step is compared with.
ACROSS = 8


@dataclass(frozen=True)
class Steps:
    """Per period: z of the best phase against all phases (full) and against those 8 px apart (exclusive)."""

    full: dict[int, float]
    exclusive: dict[int, float]


def block_steps(plane: Tensor) -> Steps:
    """Of a luma plane (H, W), not whitened; both axes together, zeros where there is not enough of it."""
    profiles = [step_profile(plane), step_profile(plane.T)]
    full = {period: _joined([_best_phase(p, period, False) for p in profiles]) for period in BLOCK_PERIODS}
    exclusive: dict[int, float] = {
        period: _joined([_best_phase(p, period, True) for p in profiles]) for period in BLOCK_PERIODS
    }
    if min(plane.shape) < SHORTEST_BORDER:
        exclusive = {period: 0.0 for period in BLOCK_PERIODS}
    return Steps(full, exclusive)


def spread(values: Tensor) -> Tensor:
    """Scalar: standard deviation about 0, by the median, so that the steps looked for do not raise it; above 0."""
    return 1.4826 * values.abs().median() + 1e-6


def _joined(z: list[float]) -> float:
    return max(*z, sum(z) / math.sqrt(2))


def step_profile(plane: Tensor) -> Tensor:
    """(H, W) -> (W-1,): how much each column border is a step, mean over the rows, its local trend removed."""
    shares = step_shares(plane)
    if not shares.numel():
        return plane.new_zeros(0)
    profile = shares.mean(0)
    trend = torch.nn.functional.avg_pool1d(profile[None, None], 33, 1, 16, count_include_pad=False)[0, 0]
    return profile - trend


def step_shares(plane: Tensor) -> Tensor:
    """(H, W) -> (S, W-1): how much of a step each column border is in segments of 32 rows, 16 apart; (0, 0): too small.

    A step is what a difference exceeds its two neighbours by (slopes and soft edges drop out). It is
    compared with its neighbourhood: s^2 / (s^2 + local mean of s^2), in [0, 1].
    """
    height, width = plane.shape
    rows = height // EVERY
    if rows < ALONG // EVERY or width < 32:
        return plane.new_zeros(0, 0)
    plane = plane[: rows * EVERY].reshape(rows, EVERY, width).sum(1)
    step = plane[:, 1:] - plane[:, :-1]
    n = ALONG // EVERY
    step = torch.nn.functional.pad(step[:, 1:-1] - (step[:, :-2] + step[:, 2:]) / 2, (1, 1))
    segments = sum((step[i : rows - n + 1 + i] for i in range(1, n)), step[: rows - n + 1])
    power = segments.square()
    sums = torch.nn.functional.pad(power, (ACROSS + 1, ACROSS), mode="reflect").cumsum(-1, dtype=torch.float64)
    around = (sums[:, 2 * ACROSS + 1 :] - sums[:, : -2 * ACROSS - 1]).float() - power
    around = (around / (2 * ACROSS)).clamp(min=0)
    return power / (power + around + 1.0)


def block_map(plane: Tensor, period: int, cells: tuple[int, int]) -> Tensor:
    """(H, W) -> (cells): z of the steps at the borders of blocks of that period, about each place; both axes together.

    The borders are where the whole picture's steps are strongest. 0 where the picture is too small.
    """
    maps = [_border_map(plane, period, cells), _border_map(plane.T, period, (cells[1], cells[0])).T]
    return (maps[0] + maps[1]) / math.sqrt(2)


def _border_map(plane: Tensor, period: int, cells: tuple[int, int]) -> Tensor:
    """z of the standing borders, from 3 x 3 neighbouring segments, against the other columns' spread."""
    shares = step_shares(plane)
    folds = shares.shape[1] // period
    if folds < 3:
        return plane.new_zeros(cells)
    parts = shares[:, : folds * period].reshape(len(shares), folds, period).permute(2, 0, 1)
    parts = parts - parts.mean(0)
    phase = int(parts.mean((1, 2)).argmax())
    near = torch.nn.functional.avg_pool2d(parts[:, None], (5, 3), 1, (2, 1), count_include_pad=False)
    z = near[phase : phase + 1] / spread(near)
    return torch.nn.functional.interpolate(z, cells, mode="bilinear", align_corners=False)[0, 0]


def _best_phase(profile: Tensor, period: int, exclusive: bool) -> float:
    """z of the strongest phase of a folded profile; exclusive: over the mean of the phases 8, 16, ... px off."""
    folds = len(profile) // period
    if folds < 3 or (exclusive and period == 8):
        return 0.0
    chance = float(spread(profile.double()))
    parts = profile[: folds * period].reshape(folds, period)
    folded = parts.mean(0)
    if exclusive:
        by_grid = folded.reshape(period // 8, 8)
        folded = (by_grid - (by_grid.sum(0) - by_grid) / (period // 8 - 1)).flatten()
        chance *= math.sqrt(1 + 1 / (period // 8 - 1))
    steps = parts[:, int(folded.argmax())].clamp(min=0)
    if float(steps.max()) > LARGEST_STEP * float(steps.sum()):
        return 0.0
    return float(folded.max()) / chance * math.sqrt(folds)
