"""How far the lines of a period's lattice stand above their controls, per window and over all of them.

A pattern that repeats every P px has energy at multiples of 1/P cycles per px alone: its lattice. evidence.py takes the
windows' folded spectra (autocorrelation.py), picks the bins off the axes (``interior_lines``: tiles) and on each axis
(``axis_lines``: lines in one direction), sums them over the windows (``coherent``, ``incoherent``) and asks ``excess``
for the z of the lattice's bins against bins that lie on no lattice (the controls).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

#: Periods (px) whose lattices are looked for: a 16x token of 2x2 latents is 32 px; its parts; two of them.
PERIODS = (64, 32, 16, 8)

#: A line counts at most this many times its control (off the axes; on an axis; one window's own).
CLIP, AXIS_CLIP, POWER_CLIP = 6.0, 12.0, 30.0


@dataclass(frozen=True)
class Lines:
    """Spectra of all windows at the bins that are used, over their local background.

    signal (rows, columns, K) complex64: G / B; weight (rows, columns, K): 1 / B; ky, kx (K,): bins,
    ky signed; fold (Ny, Nx). Under no artifact |sum signal|^2 / sum weight is exponential.
    """

    signal: Tensor
    weight: Tensor
    ky: Tensor
    kx: Tensor
    fold: tuple[int, int]

    def kept(self, windows: Tensor) -> Lines:
        """The same without some windows: (rows, columns) bool, False = out."""
        keep = windows.to(self.weight.dtype)[..., None]
        return replace(self, signal=self.signal * keep, weight=self.weight * keep)

    def own(self, period: int) -> Tensor:
        """(K,) bool: bins of that period's lattice that are not on the lattice of half of it (for 8: all)."""
        return self.on_lattice(period) & ~self.on_lattice(period // 2) if period > 8 else self.on_lattice(period)

    def on_lattice(self, period: int) -> Tensor:
        """(K,) bool: bins of that period's lattice; all False where the windows are too small for it."""
        ny, nx = self.fold
        if period > ny // 2 or period > nx // 2:
            return torch.zeros_like(self.ky, dtype=torch.bool)
        return (self.ky % (ny // period) == 0) & (self.kx % (nx // period) == 0)

    def controls(self) -> Tensor:
        """(K,) bool: odd bins, on no lattice (on an axis: odd along it)."""
        return ((self.ky % 2 != 0) | (self.ky == 0)) & ((self.kx % 2 != 0) | (self.kx == 0))


def interior_lines(spectra: Tensor) -> Lines:
    """Bins off the axes, each over the mean of its 8 neighbours. spectra (rows, columns, Ny, Nx/2+1)."""
    ny, nx = spectra.shape[-2], (spectra.shape[-1] - 1) * 2
    power = torch.view_as_real(spectra).square().sum(-1)
    sums = power + power.roll(1, -2) + power.roll(-1, -2)
    around = sums[..., :-2] + sums[..., 1:-1] + sums[..., 2:] - power[..., 1:-1]
    background = (around / 8).clamp_(min=float(around.mean()) * 1e-6 + 1e-12)
    signed = torch.fft.fftfreq(ny, device=spectra.device).mul(ny).round().long()
    ky = signed[:, None].expand(ny, nx // 2 - 1)
    kx = torch.arange(1, nx // 2, device=spectra.device)[None].expand_as(ky)
    used = (kx >= 2) & (ky.abs() >= 2) & ((ky % 2 == 0) == (kx % 2 == 0)) & (ky.abs() < ny // 2)
    keep = used.flatten().nonzero()[:, 0]
    background = background.flatten(-2).index_select(-1, keep)
    signal = spectra[..., 1:-1].flatten(-2).index_select(-1, keep) / background
    return Lines(signal, 1 / background, ky.flatten()[keep], kx.flatten()[keep], (ny, nx))


def axis_lines(spectra: Tensor, axis: int) -> Lines:
    """Bins on one axis (0: ky, lying lines; 1: kx, standing lines) over neighbours along that axis.

    Even bins against the odd ones at 1 and 3, odd bins against the odd ones at 2: never against a lattice.
    """
    line = spectra[..., 0] if axis == 0 else spectra[..., 0, :]
    fold = (spectra.shape[-2], (spectra.shape[-1] - 1) * 2)
    half = fold[axis] // 2
    power = torch.view_as_real(line[..., : half + 1]).square().sum(-1)
    index = torch.arange(2, half, device=spectra.device)
    offsets = torch.where(index[:, None] % 2 == 0, torch.tensor([-3, -1, 1, 3]), torch.tensor([-4, -2, 2, 4]))
    near = (index[:, None] + offsets).abs()
    near = torch.where(near > half, 2 * half - near, near)
    background = power[..., near.flatten()].unflatten(-1, near.shape).mean(-1)
    background = background.clamp(min=float(power.mean()) * 1e-6 + 1e-12)
    signal = line[..., 2:half] / background
    zeros = torch.zeros_like(index)
    ky, kx = (index, zeros) if axis == 0 else (zeros, index)
    return Lines(signal, 1 / background, ky, kx, fold)


def coherent(lines: Lines) -> Tensor:
    """(K,): |sum of signals|^2 over the sum of weights, all windows: what keeps its phase everywhere."""
    total = lines.signal.sum((0, 1))
    return torch.view_as_real(total).square().sum(-1) / lines.weight.sum((0, 1)).clamp(min=1e-30)


def incoherent(lines: Lines) -> Tensor:
    """(K,): mean over the windows of each one's own line power, clipped: also what drifts."""
    power = torch.view_as_real(lines.signal).square().sum(-1) / lines.weight.clamp(min=1e-30)
    return power.clamp(max=POWER_CLIP).mean((0, 1))


def neighbourhoods(lines: Lines, sides: Sequence[int]) -> Iterator[tuple[int, Tensor]]:
    """(side, (rows', columns', K)) for sides 1, 2, 4 ... that fit: coherent power of side x side windows."""
    signal, weight = lines.signal, lines.weight
    for side in sides:
        if side > 1:
            if min(signal.shape[:2]) <= side // 2:
                return
            signal, weight = _four(signal, side // 2), _four(weight, side // 2)
        yield side, torch.view_as_real(signal).square().sum(-1) / weight.clamp(min=1e-30)


def _four(x: Tensor, step: int) -> Tensor:
    x = x[:-step] + x[step:]
    return x[:, :-step] + x[:, step:]


def excess(power: Tensor, on: Tensor, off: Tensor, clip: float = CLIP, *, log: bool = False) -> Tensor:
    """Line powers (..., K) -> (...): z of the mean over the bins ``on`` against the bins ``off`` (masks (K,)).

    0 where there are no such bins. log: compare log(1 + q) in place of clipped q.
    """
    if not bool(on.any()):
        return power.new_zeros(power.shape[:-1])
    lattice, control = power[..., on], power[..., off]
    level = control.mean(-1, keepdim=True).clamp(min=1e-12)
    level = (level * (control / level).clamp(max=clip).mean(-1, keepdim=True)).clamp(min=1e-12)
    lattice, control = lattice / level, control / level
    if log:
        lattice, control = lattice.log1p(), control.log1p()
    else:
        lattice, control = lattice.clamp(max=clip), control.clamp(max=clip)
    spread = control.var(-1, correction=0) * (1 / lattice.shape[-1] + 1 / control.shape[-1])
    return (lattice.mean(-1) - control.mean(-1)) / (spread + 1e-12).sqrt()
