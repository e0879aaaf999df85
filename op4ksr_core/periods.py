"""The period of a picture's repetition, found without being told: 4 to 80 px, also between whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .autocorrelation import Autocorrelation, flatten, sample

SHORTEST, LONGEST, STEP = 4.0, 80.0, 0.25

#: Of the periods whose z is within this share of the best, the longest... no: the best wins; ties do not occur.
MULTIPLES = 12


@dataclass(frozen=True)
class FoundPeriod:
    """rows, columns: px (0 where there is none on that axis); z: of the autocorrelation at all its multiples."""

    rows: float
    columns: float
    z: float


def candidates() -> Tensor:
    """(305,) periods in px."""
    return torch.arange(SHORTEST, LONGEST + STEP / 2, STEP)


def tile_period(found: Autocorrelation) -> FoundPeriod:
    """The period whose lattice of lags, off the axes, holds most autocorrelation; the same on both axes, then refined."""
    values = found.values
    periods = candidates().to(values.device)
    z = torch.stack([_lattice_z(found, float(p), float(p)) for p in periods])
    best = int(z.argmax())
    rows = columns = float(periods[best])
    top = float(z[best])
    for py, px in _rectangles(found):
        score = float(_lattice_z(found, py, px))
        if score > 1.15 * top:
            rows, columns, top = py, px, score
    return _refined(found, rows, columns)


def _lattice_z(found: Autocorrelation, py: float, px: float) -> Tensor:
    """z of the sum of autocorrelation at lags (i py, j px), i > 0, j != 0."""
    ly, lx = found.reach
    ny, nx = min(int(ly / py), MULTIPLES), min(int(lx / px), MULTIPLES)
    if ny < 1 or nx < 1:
        return found.values.new_tensor(-1e9)
    i = torch.arange(1, ny + 1, device=found.values.device, dtype=torch.float32)
    j = torch.arange(-nx, nx + 1, device=found.values.device, dtype=torch.float32)
    j = j[j != 0]
    rows, columns = torch.meshgrid(ly + i * py, lx + j * px, indexing="ij")
    picked = sample(found.values, rows, columns)
    return picked.sum() / (found.sd * picked.numel() ** 0.5)


def _rectangles(found: Autocorrelation) -> list[tuple[float, float]]:
    """Periods that differ between the axes: the most periodic lags of each axis, in pairs."""
    ly, lx = found.reach
    chosen: list[list[float]] = []
    for line in (found.values[ly:, lx], found.values[ly, lx:]):
        z = torch.stack([_line_z(line, float(p)) for p in candidates()])
        chosen.append([float(SHORTEST + STEP * k) for k in z.topk(4).indices.tolist()])
    return [(py, px) for py in chosen[0] for px in chosen[1] if abs(py - px) > STEP]


def _line_z(line: Tensor, period: float) -> Tensor:
    """(L,) autocorrelation at lags 0, 1, ... -> z of its mean at the multiples of a period."""
    n = min(int((len(line) - 2) / period), MULTIPLES)
    if n < 1:
        return line.new_tensor(-1e9)
    lags = torch.arange(1, n + 1, device=line.device, dtype=torch.float32) * period
    k = lags.floor().long()
    part = lags - k
    picked = line[k] * (1 - part) + line[k + 1] * part
    return picked.sum() / (n**0.5 * (line[4:].std() + 1e-12))


def _refined(found: Autocorrelation, rows: float, columns: float) -> FoundPeriod:
    """Each period moved in steps of 0.05 px to where the autocorrelation is largest."""
    best, z = (rows, columns), float(_lattice_z(found, rows, columns))
    for axis in (0, 1):
        centre = best
        for k in range(-4, 5):
            trial = (centre[0] + 0.05 * k, centre[1]) if axis == 0 else (centre[0], centre[1] + 0.05 * k)
            score = float(_lattice_z(found, *trial))
            if score > z:
                best, z = trial, score
    return FoundPeriod(best[0], best[1], z)


def comb_period(power: Tensor) -> FoundPeriod:
    """Of lines in one direction: power is the mean power spectrum (Hs, Ws/2+1), not flattened.

    The axis with the higher z has its period; the other has 0.
    """
    results: list[tuple[float, float]] = []
    for line in (power[:, 0][: power.shape[0] // 2 + 1], power[0]):
        ratio = flatten(line.expand(13, -1), 10.0)[6]
        ratio[: max(2, len(ratio) // 45)] = 1
        values = torch.fft.irfft(ratio - ratio.mean())
        values = values[: min(len(values) // 2, 257)].clone()
        values[:4] = 0
        z = torch.stack([_line_z(values, float(p)) for p in candidates()])
        best = int(z.argmax())
        results.append((SHORTEST + STEP * best, float(z[best])))
    (py, zy), (px, zx) = results
    return FoundPeriod(py, 0.0, zy) if zy > zx else FoundPeriod(0.0, px, zx)
