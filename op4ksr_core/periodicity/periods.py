"""The period of a picture's repetition, found by search: 4 to 80 px, also between whole numbers.

evidence.py calls ``tile_period`` with the picture's autocorrelation and ``comb_period`` with its power spectrum; a
repetition of P px has autocorrelation at all multiples of P, so each candidate is scored by the sum over its multiples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from .autocorrelation import Autocorrelation, flatten, sample

SHORTEST, LONGEST, STEP = 4.0, 80.0, 0.25

#: Multiples of a period that are looked at, at most.
MULTIPLES = 12

#: How much more a rectangle must hold than the best square to be believed.
RECTANGLE = 1.15


@dataclass(frozen=True)
class FoundPeriod:
    """rows, columns: px (0 where there is none on that axis); z: of the autocorrelation at all its multiples."""

    rows: float
    columns: float
    z: float


@lru_cache(maxsize=16)
def _squares(ly: int, lx: int) -> tuple[Tensor, Tensor, Tensor, tuple[tuple[float, float], ...]]:
    """All periods that fit a reach, equal on both axes: lags (rows, columns) in one list, whose period each is."""
    periods = [SHORTEST + STEP * k for k in range(int((LONGEST - SHORTEST) / STEP) + 1)]
    pairs = tuple((p, p) for p in periods if p <= min(ly, lx))
    return *_lags(ly, lx, pairs), pairs


def _lags(ly: int, lx: int, pairs: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor, Tensor]:
    """Positions in the map of lags (i py, j px), i > 0, j != 0, of each pair, and the pair's index."""
    rows, columns, owner = [], [], []
    for k, (py, px) in enumerate(pairs):
        i = torch.arange(1, min(int(ly / py), MULTIPLES) + 1, dtype=torch.float32)
        n = min(int(lx / px), MULTIPLES)
        j = torch.arange(-n, n + 1, dtype=torch.float32)
        y, x = torch.meshgrid(ly + i * py, lx + j[j != 0] * px, indexing="ij")
        rows.append(y.flatten())
        columns.append(x.flatten())
        owner.append(torch.full((y.numel(),), k))
    return torch.cat(rows), torch.cat(columns), torch.cat(owner)


def _z(found: Autocorrelation, rows: Tensor, columns: Tensor, owner: Tensor, count: int) -> Tensor:
    """(count,): z of the sum of autocorrelation over each owner's lags."""
    values = found.values.cpu()
    picked = sample(values, rows, columns)
    total = torch.zeros(count).index_add_(0, owner, picked)
    number = torch.zeros(count).index_add_(0, owner, torch.ones_like(picked))
    return total / (found.sd * number.clamp(min=1).sqrt())


def tile_period(found: Autocorrelation) -> FoundPeriod:
    """The period whose lattice of lags, off the axes, holds most autocorrelation; z 0 where nothing fits.

    First one period for both axes, then pairs of each axis' own best, then in steps of 0.05 px.
    """
    ly, lx = found.reach
    rows, columns, owner, pairs = _squares(ly, lx)
    if not pairs:
        return FoundPeriod(0.0, 0.0, 0.0)
    z = _z(found, rows, columns, owner, len(pairs))
    best, top = pairs[int(z.argmax())], float(z.max())
    rectangles = _rectangles(found)
    if rectangles:
        z = _z(found, *_lags(ly, lx, rectangles), len(rectangles))
        if float(z.max()) > RECTANGLE * top:
            best = rectangles[int(z.argmax())]
    return _refined(found, best)


def _rectangles(found: Autocorrelation) -> list[tuple[float, float]]:
    """Periods that differ between the axes: the most periodic lags of each axis, in pairs."""
    ly, lx = found.reach
    chosen = [_line_z(line).topk(4).indices for line in (found.values[ly:, lx], found.values[ly, lx:])]
    each = [[SHORTEST + STEP * int(k) for k in best] for best in chosen]
    return [(y, x) for y in each[0] for x in each[1] if abs(y - x) > STEP and y <= ly and x <= lx]


def _line_z(line: Tensor) -> Tensor:
    """(L,) autocorrelation at lags 0, 1, ... -> (305,): z of its sum at each candidate's multiples; -1e9: too long."""
    periods = torch.arange(SHORTEST, LONGEST + STEP / 2, STEP)
    line = line.cpu()
    lags = periods[:, None] * torch.arange(1, MULTIPLES + 1)
    fits = lags < len(line) - 1
    k = lags.floor().long().clamp(max=len(line) - 2)
    part = lags - k
    picked = torch.where(fits, line[k] * (1 - part) + line[k + 1] * part, torch.zeros(()))
    number = fits.sum(1)
    z = picked.sum(1) / (number.clamp(min=1).sqrt() * (line[4:].std() + 1e-12))
    return torch.where(number > 0, z, torch.full_like(z, -1e9))


def _refined(found: Autocorrelation, best: tuple[float, float]) -> FoundPeriod:
    """Both periods moved in steps of 0.05 px to where the autocorrelation is largest."""
    ly, lx = found.reach
    shifts = [0.05 * k for k in range(-4, 5)]
    pairs = [(best[0] + a, best[1] + b) for a in shifts for b in shifts]
    pairs = [
        (y, x)
        for y, x in pairs
        if (y, x) == best or (min(y, x) >= SHORTEST and y <= min(LONGEST, ly) and x <= min(LONGEST, lx))
    ]
    z = _z(found, *_lags(ly, lx, pairs), len(pairs))
    at_best = float(z[pairs.index(best)]) if best in pairs else -1e9
    k = int(z.argmax())
    if float(z[k]) <= at_best * 1.0001:
        return FoundPeriod(*best, at_best)
    return FoundPeriod(round(pairs[k][0], 2), round(pairs[k][1], 2), float(z[k]))


def comb_period(power: Tensor) -> FoundPeriod:
    """Of lines in one direction: power is the mean power spectrum (Hs, Ws/2+1), not flattened.

    The axis with the higher z has its period; the other has 0.
    """
    results: list[tuple[float, float]] = []
    for line in (power[:, 0][: power.shape[0] // 2 + 1], power[0]):
        ratio = flatten(line.expand(13, -1))[6]
        ratio[: max(2, len(ratio) // 45)] = 1
        values = torch.fft.irfft(ratio - ratio.mean())
        values = values[: min(len(values) // 2, 257)].clone()
        values[:4] = 0
        z = _line_z(values)
        best = int(z.argmax())
        results.append((SHORTEST + STEP * best, float(z[best])))
    (py, zy), (px, zx) = results
    return FoundPeriod(py, 0.0, zy) if zy > zx else FoundPeriod(0.0, px, zx)
