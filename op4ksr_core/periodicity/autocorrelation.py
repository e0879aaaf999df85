"""The windowed line spectra of a whitened plane, and its autocorrelation: where any period shows.

A periodic artifact is a lattice of weak spectral lines under a picture's strong, smooth spectrum. So the detail is
divided by its local contrast first (evidence.py); then Hann windows of 2N px, folded to N px (the sum of the halves:
exactly the even bins of the 2N-point transform), show the lattice of period N/2 in the even bins and nothing of it in
the odd ones, which are the controls. lattice.py reads the folded spectra, periods.py the autocorrelation, and the
report picture (report_picture.py) draws both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .local_mean import box_mean
from .thresholds import KNOWN_POWER

#: Window sides that are tried, largest first, and the side under which nothing can be said.
WINDOWS = (256, 128, 64)
SMALLEST_SIDE = WINDOWS[-1]

#: Side of the windows whose mean power spectrum becomes the autocorrelation.
LONG_WINDOW = 512

#: A spectral line counts at most this many times its neighbourhood.
CLIP = 10.0


def window_side(length: int, largest: int = WINDOWS[0]) -> int:
    """The largest window (px) that fits into a side of that length, at least 64. The caller checks that."""
    return next(side for side in WINDOWS if side <= max(min(length, largest), SMALLEST_SIDE))


def window_starts(length: int, side: int) -> list[int]:
    """First px of each window: evenly spaced, half a window apart or a little less, border to border."""
    count = math.ceil((length - side) / (side // 2)) + 1
    if count == 1:
        return [(length - side) // 2]
    return [round(i * (length - side) / (count - 1)) for i in range(count)]


def hann(side: int, device: torch.device) -> Tensor:
    """(side,) float32: the periodic Hann window, which adds up to a constant at half its length."""
    return torch.hann_window(side, periodic=True, device=device)


def folded_spectra(plane: Tensor, largest: int = WINDOWS[0]) -> Tensor:
    """(H, W), both >= 64 px -> (rows, columns, Ny, Nx/2+1) complex64: one spectrum per window.

    N is half the window's side on each axis; bin k is k/N cycles per px; phases count from the
    picture's corner, so that the spectra of a lattice with period N/k add up. One row of windows at
    a time.
    """
    height, width = plane.shape
    tall, wide = window_side(height, largest), window_side(width, largest)
    taper = hann(tall, plane.device)[:, None] * hann(wide, plane.device)
    lefts = window_starts(width, wide)
    rows: list[Tensor] = []
    for top in window_starts(height, tall):
        windows: list[Tensor] = []
        for left in lefts:
            piece = plane[top : top + tall, left : left + wide] * taper
            piece = piece[: tall // 2] + piece[tall // 2 :]
            piece = piece[:, : wide // 2] + piece[:, wide // 2 :]
            windows.append(piece.roll((top % (tall // 2), left % (wide // 2)), (0, 1)))
        rows.append(torch.fft.rfft2(torch.stack(windows)))
    return torch.stack(rows)


@dataclass(frozen=True)
class Autocorrelation:
    """values (2 Ly + 1, 2 Lx + 1): sum over the flattened spectrum, lag 0 in the middle and set to 0.

    sd: standard deviation of its values away from the middle. power: (Hs, Ws/2+1) the flattened,
    clipped power spectrum it came from (1 = background), rows from -1/2 to 1/2 cycles per px.
    """

    values: Tensor
    sd: float
    power: Tensor

    @property
    def reach(self) -> tuple[int, int]:
        """Largest lag (rows, columns) in px."""
        return self.values.shape[0] // 2, self.values.shape[1] // 2


def mean_power(plane: Tensor) -> Tensor:
    """(H, W) -> (Hs, Ws/2+1): power spectrum, mean over Hann windows of up to 512 px."""
    height, width = plane.shape
    tall, wide = min(height, LONG_WINDOW) // 2 * 2, min(width, LONG_WINDOW) // 2 * 2
    taper = hann(tall, plane.device)[:, None] * hann(wide, plane.device)
    total = torch.zeros(tall, wide // 2 + 1, device=plane.device)
    for top in window_starts(height, tall):
        for left in window_starts(width, wide):
            spectrum = torch.fft.rfft2(plane[top : top + tall, left : left + wide] * taper)
            total += torch.view_as_real(spectrum).square().sum(-1)
    return total


def from_power(power: Tensor, known: Tensor | None = None) -> Autocorrelation:
    """From ``mean_power``, each spectral line weighed against its neighbourhood and clipped.

    Clipping is why textures count little: they have few strong lines, an artifact has many weak ones.
    known: power of what was there before; its lines do not count.
    """
    tall, wide = power.shape[0], (power.shape[1] - 1) * 2
    ratio = flatten(power)
    if known is not None:
        ratio = torch.where(flatten(known) > KNOWN_POWER, ratio.clamp(max=1), ratio)
    low = _low_bins(tall, wide, power.device)
    ratio = torch.where(low, ratio.new_tensor(1.0), ratio)
    full = torch.fft.irfft2(ratio - ratio.mean(), s=(tall, wide))
    ly, lx = min(tall // 2 - 1, 256), min(wide // 2 - 1, 256)
    values = full.roll((ly, lx), (0, 1))[: 2 * ly + 1, : 2 * lx + 1].clone()
    values[max(0, ly - 3) : ly + 4, max(0, lx - 3) : lx + 4] = 0
    return Autocorrelation(values, float(values.std()) + 1e-12, ratio.roll(tall // 2, 0))


def flatten(power: Tensor) -> Tensor:
    """Power spectrum (rows, columns of rfft2) / its own local log mean (13 x 13 bins), clipped; mean about 1."""
    log = (power + 1e-6 * power.mean() + 1e-20).log()
    side = 6
    padded = torch.cat([log[-side:], log, log[:side]])
    smooth = box_mean(padded, 2 * side + 1)[side:-side]
    ratio = (log - smooth - 0.5772).exp()
    return ratio.clamp(max=CLIP)


def _low_bins(tall: int, wide: int, device: torch.device) -> Tensor:
    """True where the whitening has left nothing: below 1/90 cycles per px on both axes."""
    fy = torch.fft.fftfreq(tall, device=device).abs()[:, None]
    fx = torch.fft.rfftfreq(wide, device=device)[None]
    return torch.maximum(fy.expand(tall, fx.shape[1]), fx.expand(tall, fx.shape[1])) < 1 / 90


def sample(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Bilinear samples of a map (H, W) at positions of one shape, inside the map."""
    y0 = rows.floor().long().clamp(0, values.shape[0] - 2)
    x0 = columns.floor().long().clamp(0, values.shape[1] - 2)
    v, u = rows - y0, columns - x0
    top = values[y0, x0] * (1 - u) + values[y0, x0 + 1] * u
    return top * (1 - v) + (values[y0 + 1, x0] * (1 - u) + values[y0 + 1, x0 + 1] * u) * v
