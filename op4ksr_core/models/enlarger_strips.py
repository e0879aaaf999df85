"""The learned enlarger in strips, top to bottom: each row of each map is computed once, however low the strips are.

Strips with a halo would compute it again for each: at 1024 px two fifths more. Here each convolution keeps the last two
rows that it was given, and gives a row once it has been given the one below it; so the maps lag behind the picture by
a row per layer, and the last strip brings them to its end. Our choice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .enlarger import IN_CHANNELS, Enlarger, bicubic

#: Rows that a 3x3 convolution needs of those before a strip.
KEPT = 2

#: Maps of the body that are alive at once, as counted: of a strip that is all there is, and of one of several, which is
#: joined to the rows before it.
_MAPS_ALONE, _MAPS_JOINED = 3, 5

#: Input rows beside a strip on which bicubic may depend.
_BICUBIC_ROWS = 4


def enlarged(enlarger: Enlarger, low: Tensor, factor: int, strength: float, rows: int) -> Iterator[Tensor]:
    """The enlarger's picture of ``low`` (B, 3, h, w), ``rows`` more input rows at a time: strips (B, 3, n, w * factor).

    They follow one another from the top, not clamped, in the weights' dtype and on their device, and are what
    ``enlarger(low, factor, strength)`` is, to rounding. There are as many as ``rows`` goes into h, rounded up; rows is
    made ``least_rows`` at least. Raises OptionError for a factor without a head.
    """
    one, height = _Pass(enlarger, low, factor, strength), low.shape[-2]
    rows = max(rows, least_rows(enlarger))
    for start in range(0, height, rows):
        yield one.strip(start, min(height, start + rows))


def least_rows(enlarger: Enlarger) -> int:
    """Of a strip: so many that the first one reaches the last layer, and every layer has ``KEPT`` rows of it."""
    return enlarger.reach + 1


@dataclass(frozen=True)
class Strips:
    """What ``enlarged`` needs for one picture of ``low`` (height, width) px, before it runs."""

    enlarger: Enlarger
    low: tuple[int, int]
    factor: int
    rows: int

    @property
    def longest(self) -> int:
        """Input rows of the longest strip that is given: the last one, in which all maps catch up."""
        return min(self.low[0], self.rows + self.enlarger.reach)

    def peak_bytes(self, beside: int = 0) -> int:
        """Bytes live at most, beside the picture, until a strip is taken; beside: what its taker needs for it, itself
        included. As counted: in the body, at its head, when bicubic is added, or when it is taken."""
        params, dtype, width = self.enlarger.params, self.enlarger.dtype, self.low[1]
        map_row = width * params.width * dtype.itemsize
        maps = _MAPS_ALONE if self.rows >= self.low[0] else _MAPS_JOINED
        body, head = (count * map_row * (self.longest + KEPT) for count in (maps, 2))
        strip_row = 3 * 4 * width * self.factor
        head += strip_row * self.longest * self.factor
        copies = 2 if dtype == torch.float32 else 3
        adding = copies * strip_row * (self.longest + 2 * _BICUBIC_ROWS) * self.factor
        kept = KEPT * (2 * params.blocks + 3)  # rows of the body's maps, those that are just being replaced among them
        return max(body, head, adding, beside) + kept * map_row

    @property
    def flops(self) -> float:
        """Of its convolutions: of every row once, and at each seam of ``KEPT`` rows that are cut again."""
        params, (height, width) = self.enlarger.params, self.low
        taps = params.width * (IN_CHANNELS + 2 * params.blocks * params.width + 3 * self.factor**2)
        seams = -(-height // self.rows) - 1
        return 2.0 * 9 * taps * (height + KEPT * seams) * width


class _Pass:
    """One picture's way through the enlarger; its strips must be asked for in order, each once."""

    def __init__(self, enlarger: Enlarger, low: Tensor, factor: int, strength: float) -> None:
        self.enlarger, self.low, self.factor, self.strength = enlarger, low, factor, strength
        self.layers = [
            _Convolution(enlarger.conv_in),
            *(_Block(block) for block in enlarger.body),
            _Convolution(enlarger.head(factor)),
        ]

    def strip(self, start: int, stop: int) -> Tensor:
        """Input rows start to stop -> the rows of the result that they end: ``reach`` behind, but at the bottom."""
        given = self.low[..., start:stop, :].to(self.enlarger.device, self.enlarger.dtype)
        strip = self.enlarger.planes(given, self.strength)
        for layer in self.layers:
            strip = layer(strip, stop == self.low.shape[-2])
        detail = F.pixel_shuffle(strip, self.factor)
        del strip
        top = max(0, start - self.enlarger.reach)
        return self._bicubic(top, top + detail.shape[-2] // self.factor).to(detail).add_(detail)

    def _bicubic(self, top: int, bottom: int) -> Tensor:
        """Those input rows, enlarged by bicubic."""
        first = max(0, top - _BICUBIC_ROWS)
        strip = bicubic(self.low[..., first : bottom + _BICUBIC_ROWS, :], self.factor)
        return strip[..., (top - first) * self.factor : (bottom - first) * self.factor, :]


class _Following:
    """A map whose strips follow one another: joins each to the rows kept of those before."""

    def __init__(self) -> None:
        self.kept: Tensor | None = None

    def joined(self, strip: Tensor) -> tuple[Tensor, int]:
        """The strip below the kept rows; and the first row that a convolution makes rightly: 1 unless it is the top."""
        first = 0 if self.kept is None else 1
        whole = strip if self.kept is None else torch.cat([self.kept, strip], 2)
        self.kept = whole[:, :, -KEPT:].clone()
        return whole, first


class _Convolution:
    """A 3x3 convolution, padding 1. At the picture's edges alone its zeros count."""

    def __init__(self, conv: Any) -> None:
        self.conv, self.source = conv, _Following()

    def __call__(self, strip: Tensor, last: bool) -> Tensor:
        whole, first = self.source.joined(strip)
        return _right(self.conv(whole), first, last)


class _Block:
    """A ``ResidualBlock``, in whose source the rows that its result is added to are kept as well."""

    def __init__(self, block: Any) -> None:
        self.conv1, self.outer, self.source = block.conv1, _Convolution(block.conv2), _Following()

    def __call__(self, strip: Tensor, last: bool) -> Tensor:
        whole, first = self.source.joined(strip)
        outer = self.outer(F.relu_(_right(self.conv1(whole), first, last)), last)
        return outer.add_(whole[:, :, : outer.shape[2]])


def _right(made: Tensor, first: int, last: bool) -> Tensor:
    """The rows of a convolution for which it was given both neighbours, or which the picture's edge is next to."""
    return made[:, :, first : None if last else -1]
