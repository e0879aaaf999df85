"""The autoencoder in row strips: the same picture as the plain pass, to rounding, in a fraction of its memory.

Not overlapping tiles: normalisation uses the statistics of the whole picture, convolutions get their
true neighbour rows, so that nothing is approximated and the strip height is of no consequence.

A *map* is stored whole or computed row by row on demand. A normalised convolution of a map needs its
statistics first: they are gathered while the map is written, or in a pass of their own where it is
never stored. How much is stored, and so how often something is computed twice, is the ``Thrift``:

- ``fast``: two maps are kept, nothing is computed twice;
- ``lean``: an upsampled map is never stored (computed twice);
- ``tiny``: one map is kept; the inner convolution of every block is computed twice as well, and so an
  upsampled map three times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Thrift = Literal["fast", "lean", "tiny"]
THRIFTS: tuple[Thrift, ...] = get_args(Thrift)

#: Called before each strip with (strips done, strips in all); may raise to cancel.
OnStrip = Callable[[int, int], None]


@dataclass(frozen=True)
class StripSettings:
    """Rows per strip, counted in each map's own rows, and how much is kept."""

    rows: int = 64
    thrift: Thrift = "fast"

    def __post_init__(self) -> None:
        if self.rows < 1 or self.thrift not in THRIFTS:
            raise ValueError(f"strips need rows >= 1 and a thrift of {THRIFTS}, got {self.rows}, {self.thrift!r}")
        # Even, as an upsampled map comes in pairs of rows; at least two, as a block in place looks back that far.
        object.__setattr__(self, "rows", max(2, self.rows // 2 * 2))


class Rows(Protocol):
    """A map (1, C, height, width), whole or on demand."""

    height: int

    def rows(self, top: int, bottom: int) -> Tensor: ...


#: Devices with float64, and with a batch norm of half inputs and float32 statistics. Elsewhere (MPS, XPU,
#: DirectML) the statistics are merged on the CPU and a strip is normalised by way of float32.
_FULL_DEVICES = ("cpu", "cuda", "meta")


def _wide(tensor: Tensor) -> Tensor:
    return (tensor if tensor.device.type in _FULL_DEVICES else tensor.cpu()).double()


def _sum_of_squares(strip: Tensor) -> Tensor:
    """Per channel, fp32; a float32 strip is overwritten: ``vector_norm`` needs no copy of half ones, but is slower
    on a CPU, 3 to 4 times, and less exact (1e-5; measured)."""
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
    """A map in memory, with its moments."""

    def __init__(self, tensor: Tensor, moments: Moments | None = None) -> None:
        self.tensor, self.moments = tensor, moments
        self.height = tensor.shape[2]

    def rows(self, top: int, bottom: int) -> Tensor:
        return self.tensor[:, :, top:bottom]


class Computed:
    """A map that is computed row by row, each time it is asked for; with ``keep``, unless the last rows hold it."""

    def __init__(self, height: int, compute: Callable[[int, int], Tensor], *, keep: bool = False) -> None:
        self.height, self.compute, self.keep = height, compute, keep
        self._kept: tuple[int, Tensor] | None = None

    def rows(self, top: int, bottom: int) -> Tensor:
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
    """GroupNorm and SiLU of a strip, from the whole map's moments; no fp32 copy of the strip."""

    def __init__(self, norm: nn.GroupNorm, moments: Moments) -> None:
        assert moments.mean is not None and moments.m2 is not None
        mean, m2 = (t.view(norm.num_groups, -1) for t in (moments.mean, moments.m2))
        group = mean.mean(1, keepdim=True)
        variance = (m2 / moments.count + (mean - group).square()).mean(1, keepdim=True)
        self.mean, self.variance = (t.expand_as(mean).flatten().float() for t in (group, variance))
        self.weight, self.bias = (p.detach().float() for p in (norm.weight, norm.bias))
        self.eps = norm.eps

    def __call__(self, strip: Tensor) -> Tensor:
        if self.mean.device != strip.device or self.weight.device != strip.device:
            parts = (self.mean, self.variance, self.weight, self.bias)
            self.mean, self.variance, self.weight, self.bias = (t.to(strip.device) for t in parts)
        given = strip if strip.device.type in _FULL_DEVICES else strip.float()
        normed = F.batch_norm(given, self.mean, self.variance, self.weight, self.bias, False, 0.0, self.eps)
        return F.silu(normed.to(strip.dtype), inplace=True)


def with_halo(source: Rows, top: int, bottom: int, apply: Callable[[Tensor], Tensor]) -> tuple[Tensor, int]:
    """Rows top-1 .. bottom+1, as far as they exist, through ``apply``; and how many precede ``top``.

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


def fold_upsampling(conv: nn.Conv2d, like: Tensor) -> tuple[Tensor, Tensor]:
    """nearest 2x then a 3x3 convolution, as one 2x2 convolution with four times the outputs.

    Output pixel (2i + p, 2j + q) sees two source rows: i - 1 + p with the taps that fall on it, and
    i + p with the rest. Summed in fp32. Returns weight (4 C, C_in, 2, 2), ordered (p, q, C), and bias.
    """
    weight = conv.weight.detach().to(like.device, torch.float32)

    def pairs(taps: Tensor, axis: int, parity: int) -> Tensor:
        a, b, c = taps.unbind(axis)
        return torch.stack((a, b + c) if parity == 0 else (a + b, c), axis)

    parts = [pairs(pairs(weight, 2, p), 3, q) for p in (0, 1) for q in (0, 1)]
    bias = conv.bias
    assert bias is not None
    return torch.cat(parts).to(like.dtype), bias.detach().to(like.device, like.dtype).repeat(4)


def upsampled(
    source: Rows, conv: nn.Conv2d, apply: Callable[[Tensor], Tensor], shift: int = 0
) -> Callable[[int, int], Tensor]:
    """Rows of conv(nearest 2x of ``apply`` of the source); top and bottom even, in rows of the output.

    shift 1 gives the plain rows moved 1 px down and right, as the published decoders do.
    """
    folded: list[tuple[Tensor, Tensor]] = []

    def compute(top: int, bottom: int) -> Tensor:
        low, high = top // 2, -(-bottom // 2)
        strip, before = with_halo(source, low, high, apply)
        if not folded:
            folded.append(fold_upsampling(conv, strip))
        missing_above, missing_below = 1 - before, 1 - (strip.shape[2] - before - (high - low))
        strip = F.pad(strip, (1, 1, missing_above, missing_below))
        parts = F.conv2d(strip, *folded[0]).chunk(4, dim=1)
        count, width = high - low, strip.shape[3] - 2
        out = _empty_map(parts[0], 2 * count, 2 * width)
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


class Strips:
    """One picture's pass: walks the layers, stores what the thrift allows."""

    def __init__(self, settings: StripSettings, on_strip: OnStrip | None = None, total: int = 0) -> None:
        self.settings, self.on_strip, self.done, self.total = settings, on_strip, 0, total

    def ranges(self, height: int) -> Iterator[tuple[int, int]]:
        """The strips of a map, top to bottom; they begin at even rows."""
        rows = self.settings.rows
        for top in range(0, height, rows):
            if self.on_strip:
                self.on_strip(self.done, self.total)
            self.done += 1
            yield top, min(height, top + rows)

    def store(self, height: int, compute: Callable[[int, int], Tensor], tensor: Tensor | None = None) -> Stored:
        """Compute a map once and keep it (in ``tensor``, if one of its shape is free), gathering its moments."""
        moments = Moments()
        for top, bottom in self.ranges(height):
            strip = compute(top, bottom)
            moments.add(strip)
            if tensor is None:
                tensor = _empty_map(strip, height, strip.shape[3])
            tensor[:, :, top:bottom] = strip
            del strip
        assert tensor is not None
        return Stored(tensor, moments)

    def moments(self, source: Stored | Computed) -> Moments:
        """The source's moments: known already, or by computing it once."""
        if isinstance(source, Stored) and source.moments is not None:
            return source.moments
        moments = Moments()
        for top, bottom in self.ranges(source.height):
            moments.add(source.rows(top, bottom))
        return moments

    def block(self, source: Stored | Computed, block: Any, spare: Tensor | None = None) -> tuple[Stored, Tensor | None]:
        """A residual block; and memory that it is done with, for the next block of the level: new memory is slow.

        A stored source of the same width is overwritten.
        """
        inner = convolved(source, block.conv1, Affine(block.norm1, self.moments(source)))
        shortcut = getattr(block, "nin_shortcut", None)
        carry = _same if shortcut is None else shortcut
        hidden: Stored | Computed = Computed(source.height, inner)
        carried: Stored | None = None
        if self.settings.thrift != "tiny":
            if isinstance(source, Computed):
                hidden, carried = self._store_both(source, inner, carry)
            else:
                hidden = self.store(source.height, inner, spare)
        outer = convolved(hidden, block.conv2, Affine(block.norm2, self.moments(hidden)))
        if isinstance(source, Stored) and shortcut is None:
            carried = source
        elif isinstance(source, Stored) and shortcut is not None and isinstance(hidden, Stored):
            carried = self._compact(source, shortcut)
        if carried is not None:
            spare = hidden.tensor if isinstance(hidden, Stored) else None
            return self._add_in_place(carried, hidden, outer), spare
        return self.store(source.height, lambda a, b: outer(a, b).add_(carry(source.rows(a, b)))), None

    def _store_both(
        self, source: Computed, inner: Callable[[int, int], Tensor], carry: Callable[[Tensor], Tensor]
    ) -> tuple[Stored, Stored]:
        """The inner convolution of a computed map and what the block adds to it, from one computation."""
        carried: list[Tensor] = []

        def compute(top: int, bottom: int) -> Tensor:
            strip, rest = inner(top, bottom), carry(source.rows(top, bottom))
            if not carried:
                carried.append(_empty_map(rest, source.height, rest.shape[3]))
            carried[0][:, :, top:bottom] = rest
            return strip

        hidden = self.store(source.height, compute)
        return hidden, Stored(carried[0])

    def middle(self, mid: Any, source: Stored) -> Stored:
        """The two blocks at the latent's resolution, and the attention between them over the whole map."""
        source = self.block(source, mid.block_1)[0]
        if hasattr(mid, "attn_1"):
            source = Stored(_dense(mid.attn_1(source.tensor)))
        return self.block(source, mid.block_2)[0]

    def _add_in_place(self, source: Stored, hidden: Stored | Computed, outer: Callable[[int, int], Tensor]) -> Stored:
        """source += outer, strip by strip.

        Where ``hidden`` is computed from the source itself, the strip below still needs the two rows
        above it as they were: each result is written only once the next strip has been computed.
        """
        moments = Moments()
        waiting: tuple[int, int, Tensor] | None = None
        for top, bottom in self.ranges(source.height):
            strip = outer(top, bottom).add_(source.rows(top, bottom))
            moments.add(strip)
            if isinstance(hidden, Stored):
                source.tensor[:, :, top:bottom] = strip
            else:
                if waiting is not None:
                    source.tensor[:, :, waiting[0] : waiting[1]] = waiting[2]
                waiting = (top, bottom, strip)
            del strip
        if waiting is not None:
            source.tensor[:, :, waiting[0] : waiting[1]] = waiting[2]
        return Stored(source.tensor, moments)

    def _compact(self, source: Stored, shortcut: nn.Conv2d) -> Stored:
        """The shortcut's map, in the source's own memory where it is narrower; its moments are not needed."""
        channels, wide = shortcut.out_channels, source.tensor.shape[1]
        if channels > wide:
            return Stored(self.store(source.height, lambda a, b: shortcut(source.rows(a, b))).tensor)
        height, width = source.tensor.shape[2:]
        flat = source.tensor.permute(0, 2, 3, 1).view(-1)
        narrow = flat[: channels * height * width].view(1, height, width, channels).permute(0, 3, 1, 2)
        for top, bottom in self.ranges(height):
            narrow[:, :, top:bottom] = shortcut(source.rows(top, bottom))
        return Stored(narrow)


def _empty_map(like: Tensor, height: int, width: int) -> Tensor:
    shape = (1, like.shape[1], height, width)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _dense(tensor: Tensor) -> Tensor:
    """channels_last: with one picture, a range of rows is then one block of memory."""
    return tensor.contiguous(memory_format=torch.channels_last)


def _same(strip: Tensor) -> Tensor:
    return strip


def decode_picture(
    decoder: Any, latent: Tensor, settings: StripSettings, out: Tensor, on_strip: OnStrip | None = None
) -> None:
    """One raw latent (1, C, h, w) -> ``out`` (1, 3, H, W), about [-1, 1], strip by strip as they are done.

    decoder: ours, or any of LDM's layout (the host's own); ``stride`` and ``shift`` are read off it,
    1 and 0 if it has none. out: any device and float dtype.
    """
    strips = Strips(settings, on_strip, _decode_strips(decoder, latent.shape[2], settings))
    source: Stored | Computed = strips.middle(decoder.mid, Stored(_dense(decoder.conv_in(latent))))
    for level in reversed(decoder.up):
        spare = None
        for block in level.block:
            source, spare = strips.block(source, block, spare)
        del spare
        if hasattr(level, "upsample"):
            source = Computed(2 * source.height, upsampled(source, level.upsample.conv, _same), keep=True)
            if settings.thrift == "fast":
                source = strips.store(source.height, source.compute)
    _last_step(decoder, source, strips, out)


def _last_step(decoder: Any, source: Stored | Computed, strips: Strips, out: Tensor) -> None:
    stride, shift = getattr(decoder, "stride", 1), getattr(decoder, "shift", 0)
    activate = Affine(decoder.norm_out, strips.moments(source))
    if stride == 1:
        rows = convolved(source, decoder.conv_out, activate)
    else:
        rows = upsampled(source, decoder.conv_out, activate, shift)
    for top, bottom in strips.ranges(source.height):
        out[:, :, top * stride : bottom * stride] = rows(top * stride, bottom * stride)


def encode_picture(
    encoder: Any,
    height: int,
    pixels: Callable[[int, int], Tensor],
    settings: StripSettings,
    on_strip: OnStrip | None = None,
) -> Tensor:
    """One picture -> the encoder's output (1, 2 C, h, w).

    encoder: ours, or any of LDM's layout. pixels(top, bottom): those rows (1, 3, n, W) of the
    picture's ``height``, in [-1, 1], in the dtype and on the device to compute with.
    """
    stride = encoder.conv_in.stride[0]
    strips = Strips(settings, on_strip, _encode_strips(encoder, height, settings))
    rows = _entry(height, pixels, encoder.conv_in, stride)
    source = strips.store((height - 1) // stride + 1, rows)
    for level in encoder.down:
        spare = None
        for block in level.block:
            source, spare = strips.block(source, block, spare)
        del spare
        if hasattr(level, "downsample"):
            source = strips.store(source.height // 2, downsampled(source, level.downsample.conv))
    source = strips.middle(encoder.mid, source)
    activate = Affine(encoder.norm_out, strips.moments(source))
    return strips.store(source.height, convolved(source, encoder.conv_out, activate)).tensor


def _entry(
    height: int, pixels: Callable[[int, int], Tensor], conv: nn.Conv2d, stride: int
) -> Callable[[int, int], Tensor]:
    """Rows of the first convolution (padding 1, stride 1 or 2), each from the pixel rows it needs."""

    def compute(top: int, bottom: int) -> Tensor:
        first = max(0, stride * (top - 1))  # one output row too many above, so that padding never shows
        last = min(height, stride * bottom + 1)
        before = top - first // stride
        return conv(_dense(pixels(first, last)))[:, :, before : before + bottom - top]

    return compute


# --- how many strips that is, for the progress ------------------------------------------------


def _count(height: int, settings: StripSettings, passes: int) -> int:
    return passes * -(-height // settings.rows)


def _block_passes(block: Any, settings: StripSettings) -> int:
    """Passes over a stored map whose moments are known: inner, outer, and the shortcut's own."""
    return 3 if hasattr(block, "nin_shortcut") and settings.thrift != "tiny" else 2


def _middle_passes(mid: Any) -> int:
    """Two blocks; after the attention moments are gathered apart."""
    return 5 if hasattr(mid, "attn_1") else 4


def _decode_strips(decoder: Any, height: int, settings: StripSettings) -> int:
    total, computed = _count(height, settings, 1 + _middle_passes(decoder.mid)), False
    for level in reversed(decoder.up):
        for block in level.block:
            total += _count(height, settings, 3 if computed else _block_passes(block, settings))
            computed = False
        if hasattr(level, "upsample"):
            height *= 2
            computed = settings.thrift != "fast"
            total += 0 if computed else _count(height, settings, 1)
    return total + _count(height, settings, 1)


def _encode_strips(encoder: Any, height: int, settings: StripSettings) -> int:
    height = (height - 1) // encoder.conv_in.stride[0] + 1
    total = _count(height, settings, 1)
    for level in encoder.down:
        total += sum(_count(height, settings, _block_passes(block, settings)) for block in level.block)
        if hasattr(level, "downsample"):
            height //= 2
            total += _count(height, settings, 1)
    return total + _count(height, settings, _middle_passes(encoder.mid) + 1)
