"""The transformer in pieces: overlapping windows of the latent, one pass each, blended into one latent.

For devices that cannot hold a whole picture's tokens, and to compare with: the default is the whole picture in one
pass. The VAE is not cut. Windows, their places and their weights are those of OMGSR-F's published inference (its
``_forward_tile``), which blends velocities. Here what is blended is the result ``z - sigma v`` of each window, raw:
that is an affine map of v, the same in every window, and weights that sum to 1 go through it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .errors import OptionError
from .models.flux import OnProgress
from .models.latent import PATCH
from .plain_text import plain

#: OMGSR-F's: the window that it was trained at, and half of it. px of the output, with Flux's 8x VAE.
DEFAULT_SIZE_PX = 1024
DEFAULT_OVERLAP_PX = 512

#: Of the published weights' bell, in units of the window's side squared.
_VARIANCE = 0.01


@dataclass(frozen=True)
class Pieces:
    """Windows of ``size_px`` a side that share ``overlap_px`` with their neighbours, in px of the output.

    Both must be whole tokens of the VAE at hand (16 px at 8x, 32 px at 16x). Raises OptionError unless
    0 <= overlap_px < size_px.
    """

    size_px: int = DEFAULT_SIZE_PX
    overlap_px: int = DEFAULT_OVERLAP_PX

    def __post_init__(self) -> None:
        if self.size_px < 1 or not 0 <= self.overlap_px < self.size_px:
            raise OptionError(
                f"pieces: expected a size above 0 px and an overlap from 0 to less than it, got a size of "
                f"{plain(self.size_px)} and an overlap of {plain(self.overlap_px)}; take half of the size as overlap"
            )

    def in_tokens(self, ratio: int) -> tuple[int, int]:
        """(side, overlap) in tokens, for a VAE of ``ratio`` px per latent px. OptionError unless both are whole."""
        token = ratio * PATCH
        if self.size_px % token or self.overlap_px % token:
            side = max(token, self.size_px // token * token)
            overlap = min(self.overlap_px // token * token, side - token)
            raise OptionError(
                f"pieces: expected a size and an overlap that are multiples of {token} px for this VAE ({ratio}x), "
                f"got {plain(self.size_px)} and {plain(self.overlap_px)}; take {plain(side)} and {plain(overlap)}"
            )
        return self.size_px // token, self.overlap_px // token


@dataclass(frozen=True)
class Window:
    """A rectangle of a grid of tokens."""

    top: int
    left: int
    rows: int
    columns: int

    def of(self, latent: Tensor) -> Tensor:
        """Its part of a latent (B, C, h, w), as a view."""
        top, left = self.top * PATCH, self.left * PATCH
        return latent[..., top : top + self.rows * PATCH, left : left + self.columns * PATCH]


def windows(grid: tuple[int, int], pieces: Pieces, ratio: int) -> list[Window]:
    """The windows over a grid of (rows, columns) tokens, row by row; all of one size.

    They stand size - overlap apart, and the last of a row or column ends with the picture. A side that is no longer
    than a window is one window (our choice: the published code makes all windows as small as the shorter side, for
    which its positions and its overlap do not fit), so that a picture no larger than a window is whole.
    """
    side, overlap = pieces.in_tokens(ratio)
    rows, columns = min(side, grid[0]), min(side, grid[1])
    return [
        Window(top, left, rows, columns)
        for top in _starts(grid[0], side, overlap)
        for left in _starts(grid[1], side, overlap)
    ]


def _starts(length: int, side: int, overlap: int) -> list[int]:
    if length <= side:
        return [0]
    step = side - overlap
    count = -(-(length - side) // step)  # whole steps before the last window
    return [index * step for index in range(count)] + [length - side]


def window_weights(height: int, width: int) -> Tensor:
    """(height, width) float32: how much each latent px of a window counts, as published.

    A bell of variance 0.01 sides squared, largest in the middle; of a column's weights the middle is half a px too
    low (height / 2, where a row has (width - 1) / 2), as it is there.
    """
    rows = _bell(height, height / 2)
    columns = _bell(width, (width - 1) / 2)
    return torch.outer(rows, columns).float()


def _bell(length: int, middle: float) -> Tensor:
    offsets = (torch.arange(length, dtype=torch.float64) - middle) / length
    return (-offsets.square() / (2 * _VARIANCE)).exp() / (2 * torch.pi * _VARIANCE) ** 0.5


def blend_bytes(grid: tuple[int, int], channels: int) -> int:
    """Of the sums that lie beside the windows, for a latent of ``channels`` over (rows, columns) tokens."""
    return 4 * (channels + 1) * grid[0] * grid[1] * PATCH**2


def in_pieces(
    raw: Tensor, transform: Callable[[Tensor, OnProgress], Tensor], pieces: Pieces, ratio: int, tell: OnProgress
) -> Tensor:
    """Raw latent (1, C, h, w), h and w even -> ``transform`` of its windows, blended, on the latent's device.

    Sums are float32, and so is the result; a picture no larger than a window is what ``transform`` makes of it.
    ``tell(done, total)`` runs before each window and with each report of its own, and may raise to cancel.
    """
    found = windows((raw.shape[-2] // PATCH, raw.shape[-1] // PATCH), pieces, ratio)
    if len(found) == 1:
        return transform(raw, tell)
    weights = window_weights(found[0].rows * PATCH, found[0].columns * PATCH).to(raw.device)
    total = torch.zeros(raw.shape, device=raw.device)
    weight = torch.zeros(raw.shape[-2:], device=raw.device)
    for index, window in enumerate(found):
        tell(index, len(found))
        part = transform(window.of(raw).contiguous(), _share(tell, index, len(found)))
        window.of(total).add_(part.to(raw.device, torch.float32) * weights)
        window.of(weight).add_(weights)
    return total.div_(weight)


def _share(tell: OnProgress, index: int, count: int) -> OnProgress:
    """One window's own reports as a part of all windows'."""

    def tell_part(done: int, total: int) -> None:
        tell(index * total + done, count * total)

    return tell_part
