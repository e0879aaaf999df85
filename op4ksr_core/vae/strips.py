"""The autoencoder in row strips: the same picture as the plain pass, to rounding, in a fraction of its memory.

Not overlapping tiles: normalisation uses the statistics of the whole picture, convolutions get their
true neighbour rows, so that nothing is approximated and the strip height is of no consequence.

A *map* is stored whole or computed row by row on demand. A normalised convolution of a map needs its
statistics first: they are gathered while the map is written, or in a pass of their own where it is
never stored. How much is stored, and so how often something is computed twice, is the ``MemoryMode``:

- ``fast``: two maps are kept, nothing is computed twice;
- ``lean``: an upsampled map is never stored (computed twice);
- ``tiny``: one map is kept; the inner convolution of every block is computed twice as well, and so an
  upsampled map three times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, Protocol, get_args

from torch import Tensor, nn

from .strip_maps import (
    Affine,
    Computed,
    Moments,
    ReadWeights,
    Stored,
    convolved,
    dense,
    downsampled,
    empty_map,
    own_weights,
    same,
    upsampled,
)

MemoryMode = Literal["fast", "lean", "tiny"]
MEMORY_MODES: tuple[MemoryMode, ...] = get_args(MemoryMode)

#: Called before each strip with (strips done, strips in all); may raise to cancel.
OnStrip = Callable[[int, int], None]


@dataclass(frozen=True)
class StripSettings:
    """How a picture's pass is cut: rows per strip (of each map's own rows), and how much is kept.

    rows is made even, and at least 2. Raises ValueError for fewer than 1 row, or an unknown mode.
    """

    rows: int = 64
    mode: MemoryMode = "fast"

    def __post_init__(self) -> None:
        if self.rows < 1 or self.mode not in MEMORY_MODES:
            raise ValueError(f"strips need rows >= 1 and a mode of {MEMORY_MODES}, got {self.rows}, {self.mode!r}")
        # Even, as an upsampled map comes in pairs of rows; at least two, as a block in place looks back that far.
        object.__setattr__(self, "rows", max(2, self.rows // 2 * 2))


class Strips:
    """The pass of one picture: takes a map through block after block, and stores what the mode allows."""

    def __init__(
        self,
        settings: StripSettings,
        on_strip: OnStrip | None = None,
        total: int = 0,
        read: ReadWeights = own_weights,
    ) -> None:
        self.settings, self.on_strip, self.done, self.total = settings, on_strip, 0, total
        self.read = read

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
                tensor = empty_map(strip, height, strip.shape[3])
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

    def affine(self, norm: nn.GroupNorm, source: Stored | Computed) -> Affine:
        """The norm, with the moments of the source, and SiLU."""
        return Affine(norm, self.moments(source), self.read)

    def upsampled(self, source: Stored | Computed, conv: nn.Conv2d) -> Computed:
        """The map of twice both sides, computed on demand, a strip of it kept."""
        return Computed(2 * source.height, upsampled(source, conv, same, read=self.read), keep=True)

    def block(self, source: Stored | Computed, block: Any, spare: Tensor | None = None) -> tuple[Stored, Tensor | None]:
        """The map after a residual block, and a map's memory that is free now.

        spare: what the block before gave as free, to be used again, as taking new memory is slow. A stored source is
        overwritten where the block does not change its width.
        """
        inner = convolved(source, block.conv1, self.affine(block.norm1, source))
        shortcut = getattr(block, "nin_shortcut", None)
        carry = same if shortcut is None else shortcut
        hidden: Stored | Computed = Computed(source.height, inner)
        carried: Stored | None = None
        if self.settings.mode != "tiny":
            if isinstance(source, Computed):
                hidden, carried = self._store_both(source, inner, carry)
            else:
                hidden = self.store(source.height, inner, spare)
        outer = convolved(hidden, block.conv2, self.affine(block.norm2, hidden))
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
        """A computed map's inner convolution, and what the shortcut carries past it: in one pass over the map."""
        carried: list[Tensor] = []

        def compute(top: int, bottom: int) -> Tensor:
            strip, rest = inner(top, bottom), carry(source.rows(top, bottom))
            if not carried:
                carried.append(empty_map(rest, source.height, rest.shape[3]))
            carried[0][:, :, top:bottom] = rest
            return strip

        hidden = self.store(source.height, compute)
        return hidden, Stored(carried[0])

    def middle(self, mid: Any, source: Stored) -> Stored:
        """The two blocks at the latent's resolution, and the attention between them over the whole map."""
        source = self.block(source, mid.block_1)[0]
        if hasattr(mid, "attn_1"):
            source = Stored(dense(mid.attn_1(source.tensor)))
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
        """The shortcut's map, written over the source where it is narrower than that. Its moments are not gathered."""
        channels, wide = shortcut.out_channels, source.tensor.shape[1]
        if channels > wide:
            return Stored(self.store(source.height, lambda a, b: shortcut(source.rows(a, b))).tensor)
        height, width = source.tensor.shape[2:]
        flat = source.tensor.permute(0, 2, 3, 1).view(-1)
        narrow = flat[: channels * height * width].view(1, height, width, channels).permute(0, 3, 1, 2)
        for top, bottom in self.ranges(height):
            narrow[:, :, top:bottom] = shortcut(source.rows(top, bottom))
        return Stored(narrow)


class Rows(Protocol):
    """Where a picture's rows are written: ``rows[:, :, top:bottom] = strip``."""

    def __setitem__(self, place: tuple[slice, slice, slice], strip: Tensor, /) -> None: ...


def decode_picture(
    decoder: Any,
    latent: Tensor,
    settings: StripSettings,
    out: Rows,
    on_strip: OnStrip | None = None,
    read: ReadWeights = own_weights,
) -> None:
    """Decode one raw latent (1, C, h, w) into ``out`` (1, 3, H, W), about [-1, 1], each strip as soon as it is done.

    decoder: ours, or any of LDM's layout (the host's own); ``stride`` and ``shift`` are read off it,
    1 and 0 if it has none. out: a tensor of any device and float dtype, or what else takes rows, from top to bottom.
    """
    strips = Strips(settings, on_strip, _decode_strips(decoder, latent.shape[2], settings), read)
    source: Stored | Computed = strips.middle(decoder.mid, Stored(dense(decoder.conv_in(latent))))
    for level in reversed(decoder.up):
        spare = None
        for block in level.block:
            source, spare = strips.block(source, block, spare)
        del spare
        if hasattr(level, "upsample"):
            source = strips.upsampled(source, level.upsample.conv)
            if settings.mode == "fast":
                source = strips.store(source.height, source.compute)
    _last_step(decoder, source, strips, out)


def _last_step(decoder: Any, source: Stored | Computed, strips: Strips, out: Rows) -> None:
    stride, shift = getattr(decoder, "stride", 1), getattr(decoder, "shift", 0)
    activate = strips.affine(decoder.norm_out, source)
    if stride == 1:
        rows = convolved(source, decoder.conv_out, activate)
    else:
        rows = upsampled(source, decoder.conv_out, activate, shift, strips.read)
    for top, bottom in strips.ranges(source.height):
        out[:, :, top * stride : bottom * stride] = rows(top * stride, bottom * stride)


def encode_picture(
    encoder: Any,
    height: int,
    pixels: Callable[[int, int], Tensor],
    settings: StripSettings,
    on_strip: OnStrip | None = None,
    read: ReadWeights = own_weights,
) -> Tensor:
    """One picture -> the encoder's output (1, 2 C, h, w).

    encoder: ours, or any of LDM's layout. pixels(top, bottom): those rows (1, 3, n, W) of the
    picture's ``height``, in [-1, 1], in the dtype and on the device to compute with.
    """
    stride = encoder.conv_in.stride[0]
    strips = Strips(settings, on_strip, _encode_strips(encoder, height, settings), read)
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
    activate = strips.affine(encoder.norm_out, source)
    return strips.store(source.height, convolved(source, encoder.conv_out, activate)).tensor


def _entry(
    height: int, pixels: Callable[[int, int], Tensor], conv: nn.Conv2d, stride: int
) -> Callable[[int, int], Tensor]:
    """Rows of the first convolution (padding 1, stride 1 or 2), each from the pixel rows it needs."""

    def compute(top: int, bottom: int) -> Tensor:
        first = max(0, stride * (top - 1))  # one output row too many above, so that padding never shows
        last = min(height, stride * bottom + 1)
        before = top - first // stride
        return conv(dense(pixels(first, last)))[:, :, before : before + bottom - top]

    return compute


# --- how many strips that is, for the progress ------------------------------------------------


def _count(height: int, settings: StripSettings, passes: int) -> int:
    return passes * -(-height // settings.rows)


def _block_passes(block: Any, settings: StripSettings) -> int:
    """Passes over a stored map whose moments are known: inner, outer, and the shortcut's own."""
    return 3 if hasattr(block, "nin_shortcut") and settings.mode != "tiny" else 2


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
            computed = settings.mode != "fast"
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
