"""One period of an artifact, estimated from the lattice's lines in windows, and laid over the picture again.

Any period works, whole or not. The lines' complex amplitudes are averaged over Hann windows, each
window weighted by how quiet it is around those lines, and shrunk by what chance gives half-way
between them; each window then says how much of that period it holds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .autocorrelation import box_mean, hann, window_starts

#: The power of a line must exceed its own error this many times to count, and is shrunk by as much.
SHRINK = 3.0

#: Times that the period and the windows' gains are estimated in turn.
ROUNDS = 5

#: Smallest window, in periods: fewer, and the half-way frequencies are not controls any more.
PERIODS_PER_WINDOW = 4


@dataclass(frozen=True)
class Windows:
    """Where the windows are, and the frequencies looked at: side (px), first px, cycles per px.

    rows (2 K + 1,), columns (2 L + 1,): multiples of half the lattice's frequency, the middle one 0;
    even offsets from the middle are the lattice's lines, odd ones the controls.
    """

    side: tuple[int, int]
    tops: list[int]
    lefts: list[int]
    rows: Tensor
    columns: Tensor


def plan_windows(size: tuple[int, int], period: tuple[float, float], wish: int = 128) -> Windows:
    """Windows for a picture (H, W) and a period in px (rows, columns; 0: does not vary along that axis)."""
    sides = [_side(length, p, wish) for length, p in zip(size, period, strict=True)]
    starts = [window_starts(length, side) for length, side in zip(size, sides, strict=True)]
    return Windows((sides[0], sides[1]), starts[0], starts[1], frequencies(period[0]), frequencies(period[1]))


def _side(length: int, period: float, wish: int) -> int:
    return min(length // 2 * 2, max(wish, 2 * math.ceil(PERIODS_PER_WINDOW * period / 2)))


def frequencies(period: float) -> Tensor:
    """Multiples of 1 / (2 period), below 1/2 cycles per px in size, the middle one 0; (1,) of 0 for period 0."""
    if period <= 0:
        return torch.zeros(1)
    count = math.ceil(period / 2) * 2 - 1
    return torch.arange(-count, count + 1) / (2 * period)


def _basis(frequency: Tensor, start: int, length: int, sign: int) -> Tensor:
    """(F, length) complex64: exp(sign 2 pi i f x) at x = start, start + 1, ..."""
    position = torch.arange(start, start + length, dtype=torch.float64)
    turns = torch.remainder(frequency.double()[:, None] * position, 1.0)
    return torch.polar(torch.ones_like(turns), sign * 2 * math.pi * turns).to(torch.complex64)


def analyse(plane: Tensor, windows: Windows) -> Tensor:
    """(H, W) -> amplitudes (rows, columns, F, G) complex64 per window, at all of its frequencies."""
    tall, wide = windows.side
    taper_y, taper_x = hann(tall, plane.device), hann(wide, plane.device)
    scale = float(taper_y.sum() * taper_x.sum())
    across = [(_basis(windows.columns, left, wide, -1) * taper_x).T.contiguous() for left in windows.lefts]
    out: list[Tensor] = []
    for top in windows.tops:
        down = _basis(windows.rows, top, tall, -1) * taper_y
        half = down @ plane[top : top + tall].to(torch.complex64)
        row = [half[:, left : left + wide] @ x for left, x in zip(windows.lefts, across, strict=True)]
        out.append(torch.stack(row) / scale)
    return torch.stack(out)


def _power(z: Tensor) -> Tensor:
    return torch.view_as_real(z).square().sum(-1)


def _lattice_part(count: int) -> slice:
    return slice((count // 2) % 2, None, 2)


def _on_lattice(amplitudes: Tensor) -> Tensor:
    """(..., F, G) -> (..., K, L): the lattice's lines of all frequencies."""
    return amplitudes[..., _lattice_part(amplitudes.shape[-2]), :][..., _lattice_part(amplitudes.shape[-1])]


def background(power: Tensor) -> Tensor:
    """(..., F, G) -> the same: the power that the controls nearby have, at every frequency.

    Off the axes from the odd, odd frequencies within 3 steps; on an axis from the odd ones along it.
    """
    rows, columns = power.shape[-2:]
    middle_y, middle_x = rows // 2, columns // 2
    odd_y = (torch.arange(rows) - middle_y) % 2 != 0
    odd_x = (torch.arange(columns) - middle_x) % 2 != 0
    if rows == 1 or columns == 1:
        odd = odd_x if rows == 1 else odd_y
        return _local_mean(power, (odd[None] if rows == 1 else odd[:, None]).to(power.dtype))
    out = _local_mean(power, (odd_y[:, None] & odd_x).to(power.dtype))
    out[..., middle_y, :] = _local_mean(power[..., middle_y : middle_y + 1, :], odd_x[None].to(power.dtype))[..., 0, :]
    out[..., middle_x : middle_x + 1] = _local_mean(power[..., middle_x : middle_x + 1], odd_y[:, None].to(power.dtype))
    return out


def _local_mean(power: Tensor, mask: Tensor) -> Tensor:
    """(..., F, G): mean over the masked bins within 3 bins."""
    total, count = box_mean(power * mask, 7), box_mean(mask, 7)
    return (total / count.clamp(min=1e-6)).clamp(min=1e-12)


@dataclass(frozen=True)
class Fold:
    """lines (K', L') complex64: the shrunk amplitudes of one period; gains (rows, columns) per window, 1 = that much."""

    windows: Windows
    lines: Tensor
    gains: Tensor


def estimate(plane: Tensor, windows: Windows, allowed: Tensor | None = None) -> Fold:
    """The period that a plane (H, W) holds, and how much of it is where.

    allowed (rows, columns) bool: windows that may be looked at and changed.
    """
    amplitudes = analyse(plane, windows)
    weight = 1 / background(_power(amplitudes))
    if allowed is not None:
        weight = weight * allowed[..., None, None]
    held, its_weight = _on_lattice(amplitudes), _on_lattice(weight)
    gains = torch.ones(amplitudes.shape[:2])
    lines = held[0, 0]
    for _ in range(ROUNDS):
        lines = _shrunk_mean(amplitudes, weight, gains)
        gains = _gains(held, its_weight, lines)
    if allowed is not None:
        gains = gains * allowed
    return Fold(windows, lines, gains)


def _shrunk_mean(amplitudes: Tensor, weight: Tensor, gains: Tensor) -> Tensor:
    """(K, L): the windows' weighted mean at the lattice, shrunk by what the same mean gives at the controls."""
    pull = gains[..., None, None]
    total = (weight * pull.square()).sum((0, 1)).clamp(min=1e-20)
    mean = (amplitudes * (weight * pull)).sum((0, 1)) / total
    error = _on_lattice(background(_power(mean) * total) / total)
    lines = _on_lattice(mean)
    lines = lines * (1 - SHRINK * error / _power(lines).clamp(min=1e-20)).clamp(min=0)
    lines[lines.shape[0] // 2, lines.shape[1] // 2] = 0
    return lines


def _gains(amplitudes: Tensor, weight: Tensor, lines: Tensor) -> Tensor:
    """Each window's share of the period, pulled towards the mean where the window can hardly tell."""
    power = _power(lines)
    precision = (weight * power).sum((-2, -1))
    fit = (amplitudes * lines.conj()).real.mul(weight).sum((-2, -1)) / precision.clamp(min=1e-20)
    variance = 0.5 / precision.clamp(min=1e-20)
    trust = 1 / (variance + 0.05)
    mean = (fit * trust).sum() / trust.sum().clamp(min=1e-20)
    spread = ((fit - mean).square() - variance).mul(trust.square()).sum() / trust.square().sum().clamp(min=1e-20)
    spread = spread.clamp(min=0)
    gains = mean + (fit - mean) * spread / (spread + variance)
    return torch.where(precision > 0, gains.clamp(0, 4), gains.new_tensor(0.0))


def lay(fold: Fold, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The artifact (H, W) that a fold describes, and its gain (H, W): between windows the gain is interpolated."""
    windows = fold.windows
    height, width = size
    y, x = _lattice_part(len(windows.rows)), _lattice_part(len(windows.columns))
    across = _basis(windows.columns[x], 0, width, 1)
    gain_x = _blend(windows.lefts, windows.side[1], width)
    artifact, gain = torch.empty(size), torch.empty(size)
    gain_y = _blend(windows.tops, windows.side[0], height)
    for top in range(0, height, 256):
        rows = min(256, height - top)
        down = _basis(windows.rows[y], top, rows, 1)
        band = ((down.T @ fold.lines) @ across).real
        gain[top : top + rows] = gain_y[top : top + rows] @ fold.gains @ gain_x.T
        artifact[top : top + rows] = band * gain[top : top + rows]
    return artifact, gain


def _blend(starts: list[int], side: int, length: int) -> Tensor:
    """(length, windows): weights of the windows' Hann tapers at each px; they sum to 1."""
    position = torch.arange(length)[:, None] - torch.tensor(starts)[None] + 0.5
    inside = (position > 0) & (position < side)
    taper = torch.where(inside, torch.sin(math.pi * position / side).square() + 1e-4, torch.zeros(()))
    return taper / taper.sum(1, keepdim=True).clamp(min=1e-12)
