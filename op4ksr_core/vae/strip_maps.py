"""A picture's maps, stored whole or computed row by row, and the layers that make rows of one from rows of another.

A map is what a layer of the autoencoder gives for one picture: (1, C, height, width). ``strips`` decides which maps
are stored; here each kind answers ``rows(top, bottom)``, and each layer is a function of the same two arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Rows(Protocol):
    """A map (1, C, height, width), whole or on demand."""

    height: int

    def rows(self, top: int, bottom: int) -> Tensor:
        """Rows top to bottom, the latter excluded: (1, C, bottom - top, width)."""
        ...


#: (A norm or a convolution, a strip that it is for) -> its weight and bias as calling it would use them; any float
#: dtype, any device.
ReadWeights = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def own_weights(module: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """The module's own parameters: what calling it uses, unless a host changes weights as it casts them."""
    return module.weight, module.bias


#: Devices with float64, and with a batch norm of half inputs and float32 statistics. Elsewhere (MPS, XPU,
#: DirectML) the statistics are merged on the CPU and a strip is normalised by way of float32.
_FULL_DEVICES = ("cpu", "cuda", "meta")


def _wide(tensor: Tensor) -> Tensor:
    """In float64, on the CPU where the tensor's own device has none."""
    return (tensor if tensor.device.type in _FULL_DEVICES else tensor.cpu()).double()


def _sum_of_squares(strip: Tensor) -> Tensor:
    """Per channel, in fp32. A float32 strip is overwritten.

    ``vector_norm`` spares half precision a float32 copy, but takes 3 to 4 times as long on a CPU and is less exact
    (1e-5; both measured), so that float32 does without it.
    """
    if strip.dtype == torch.float32:
        return strip.square_().sum((0, 2, 3))
    return torch.linalg.vector_norm(strip, dim=(0, 2, 3), dtype=torch.float32).square()


class Moments:
    """Mean and variance per channel, merged strip by strip: fp32 within a strip, fp64 between them."""

    def __init__(self) -> None:
        self.count = 0
        self.mean: Tensor | None = None
        self.m2: Tensor | None = None

    def add(self, strip: Tensor) -> None:
        """Take in a strip (1, C, n, W)."""
        count = strip.shape[2] * strip.shape[3]
        mean = _wide(strip.sum((0, 2, 3), dtype=torch.float32)) / count
        pivot = mean.to(strip.device, strip.dtype)  # or a channel far from 0 would lose its variance to rounding
        centred = strip - pivot[:, None, None]
        squares = _wide(_sum_of_squares(centred))
        m2 = (squares - count * (mean - _wide(pivot)).square()).clamp(min=0)
        if self.mean is None or self.m2 is None:
            self.count, self.mean, self.m2 = count, mean, m2
            return
        merged = self.count + count
        delta = mean - self.mean
        self.m2 = self.m2 + m2 + delta.square() * (self.count * count / merged)
        self.mean = self.mean + delta * (count / merged)
        self.count = merged


class Stored:
    """A map in memory (1, C, height, width), with its moments where they were gathered."""

    def __init__(self, tensor: Tensor, moments: Moments | None = None) -> None:
        self.tensor, self.moments = tensor, moments
        self.height = tensor.shape[2]

    def rows(self, top: int, bottom: int) -> Tensor:
        """A view of the rows (1, C, bottom - top, width), the last excluded."""
        return self.tensor[:, :, top:bottom]


class Computed:
    """A map that is computed whenever rows of it are asked for.

    keep: hold on to the rows that were computed last, and answer from them where they contain what is asked for.
    """

    def __init__(self, height: int, compute: Callable[[int, int], Tensor], *, keep: bool = False) -> None:
        self.height, self.compute, self.keep = height, compute, keep
        self._kept: tuple[int, Tensor] | None = None

    def rows(self, top: int, bottom: int) -> Tensor:
        """The rows (1, C, bottom - top, width), the last excluded: computed, or of those that were kept."""
        if self._kept is not None:
            first, strip = self._kept
            if first <= top and bottom <= first + strip.shape[2]:
                return strip[:, :, top - first : bottom - first]
            self._kept = None
            del strip
        strip = self.compute(top, bottom)
        if self.keep:
            self._kept = (top, strip)
        return strip


class Affine:
    """GroupNorm and SiLU of a strip, with the whole map's moments; without a float32 copy of the strip."""

    def __init__(self, norm: nn.GroupNorm, moments: Moments, read: ReadWeights = own_weights) -> None:
        self.read, self.norm = read, norm
        assert moments.mean is not None and moments.m2 is not None
        mean, m2 = (t.view(norm.num_groups, -1) for t in (moments.mean, moments.m2))
        group = mean.mean(1, keepdim=True)
        variance = (m2 / moments.count + (mean - group).square()).mean(1, keepdim=True)
        self.mean, self.variance = (t.expand_as(mean).flatten().float() for t in (group, variance))
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None
        self.eps = norm.eps

    def __call__(self, strip: Tensor) -> Tensor:
        """A strip (1, C, n, W) -> the same shape, dtype and device, in memory of its own."""
        if self.weight is None or self.mean.device != strip.device:
            parts = (self.mean, self.variance, *self.read(self.norm, strip))
            self.mean, self.variance, self.weight, self.bias = (t.detach().to(strip.device).float() for t in parts)
        given = strip if strip.device.type in _FULL_DEVICES else strip.float()
        normed = F.batch_norm(given, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)
        return F.silu(normed.to(strip.dtype), inplace=True)


def with_halo(source: Rows, top: int, bottom: int, apply: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """``apply`` of the rows from top - 1 to bottom + 1, as far as they exist; and how many of them precede ``top``.

    At the picture's edges the convolution's own zero padding stands in, as in the plain pass.
    """
    first, last = max(0, top - 1), min(source.height, bottom + 1)
    return apply(source.rows(first, last)), top - first


def convolved(source: Rows, conv: nn.Conv2d, apply: Callable[[Tensor], Tensor]) -> Callable[[int, int], Tensor]:
    """Rows of a 3x3 convolution, padding 1, of ``apply`` of the source."""

    def compute(top: int, bottom: int) -> Tensor:
        strip, before = with_halo(source, top, bottom, apply)
        return conv(strip)[:, :, before : before + bottom - top]

    return compute


def fold_upsampling(conv: nn.Conv2d, like: Tensor, read: ReadWeights = own_weights) -> tuple[Tensor, Tensor]:
    """nearest 2x then a 3x3 convolution, as one 2x2 convolution with four times the outputs.

    Output pixel (2i + p, 2j + q) sees two source rows: i - 1 + p with the taps that fall on it, and
    i + p with the rest. Summed in fp32. Returns weight (4 C, C_in, 2, 2), ordered (p, q, C), and bias.
    """
    given, bias = read(conv, like)
    weight = given.detach().to(like.device, torch.float32)

    def pairs(taps: Tensor, axis: int, parity: int) -> Tensor:
        a, b, c = taps.unbind(axis)
        return torch.stack((a, b + c) if parity == 0 else (a + b, c), axis)

    parts = [pairs(pairs(weight, 2, p), 3, q) for p in (0, 1) for q in (0, 1)]
    return torch.cat(parts).to(like.dtype), bias.detach().to(like.device, like.dtype).repeat(4)


def upsampled(
    source: Rows,
    conv: nn.Conv2d,
    apply: Callable[[Tensor], Tensor],
    shift: int = 0,
    read: ReadWeights = own_weights,
) -> Callable[[int, int], Tensor]:
    """Rows of conv(nearest 2x of ``apply`` of the source); top and bottom even, in rows of the output.

    shift 1 gives the plain rows moved 1 px down and right, as the published decoders do.
    """
    folded: list[tuple[Tensor, Tensor]] = []

    def compute(top: int, bottom: int) -> Tensor:
        low, high = top // 2, -(-bottom // 2)
        strip, before = with_halo(source, low, high, apply)
        if not folded:
            folded.append(fold_upsampling(conv, strip, read))
        missing_above, missing_below = 1 - before, 1 - (strip.shape[2] - before - (high - low))
        strip = F.pad(strip, (1, 1, missing_above, missing_below))
        parts = F.conv2d(strip, *folded[0]).chunk(4, dim=1)
        count, width = high - low, strip.shape[3] - 2
        out = empty_map(parts[0], 2 * count, 2 * width)
        for index, part in enumerate(parts):
            p, q = divmod(index, 2)
            if shift:  # plain pixel y lands on y + 1: parity 1 of the pair before, parity 0 of this one
                out[:, :, 1 - p :: 2, 1 - q :: 2] = part[:, :, :count, :width]
            else:
                out[:, :, p::2, q::2] = part[:, :, p : p + count, q : q + width]
        return out[:, :, top - 2 * low : bottom - 2 * low]

    return compute


def downsampled(source: Rows, conv: nn.Conv2d) -> Callable[[int, int], Tensor]:
    """Rows of a 3x3 convolution of stride 2 over the source padded by one row and column at the end."""

    def compute(top: int, bottom: int) -> Tensor:
        last = min(source.height, 2 * bottom + 1)
        strip = source.rows(2 * top, last)
        return conv(F.pad(strip, (0, 1, 0, 2 * bottom + 1 - last)))

    return compute


def empty_map(like: Tensor, height: int, width: int) -> Tensor:
    """Memory for a map (1, C, height, width) with the channels, dtype and device of another tensor."""
    shape = (1, like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def dense(tensor: Tensor) -> Tensor:
    """The tensor in channels_last order, in which a range of rows of one picture is one block of memory."""
    return tensor.contiguous(memory_format=torch.channels_last)


def same(strip: Tensor) -> Tensor:
    """The strip itself, where a layer applies nothing before it convolves."""
    return strip
