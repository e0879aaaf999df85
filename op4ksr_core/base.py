"""What enlarges a picture before the one step: bicubic, the learned enlarger, or any network of the user's.

Our choice throughout: the paper enlarges by bicubic. Networks run in horizontal strips (others' with a halo), so that
their memory does not grow with the height, and what they make is brought to the exact size by antialiased bicubic, the
columns strip by strip, so that no larger picture than need be is held.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from .errors import Op4ksrError, OptionError, OutOfMemoryError
from .images.metrics import check_finite_output, luma
from .images.resize import picture_bytes, resize
from .machine import MEMORY_ERRORS, AllocationTracker, is_out_of_memory, release_memory
from .models.enlarger import Enlarger, bicubic
from .models.enlarger_strips import Strips, enlarged, least_rows
from .models.flux import OnProgress
from .plain_text import plain, plain_logger

log = plain_logger(__name__)

#: (height, width) in px.
Size = tuple[int, int]

#: What a user may ask for by name. auto: the bundled enlarger for models that add detail to a base, else bicubic.
Choice = Literal["auto", "bicubic", "bundled"]
CHOICES: tuple[Choice, ...] = get_args(Choice)

#: Strips of others' networks begin at multiples of this, px of the input, so that windows of attention fall as in the
#: whole picture: all windows in use (7 px of HAT's kin apart, which pads) divide it. Their default halo, too.
ALIGN = 64

#: Input px that a network is given at once, its halo among them, unless that is less than its smallest strip. Our
#: choice: half again what the host's own upscaling node takes (512 x 512).
PIXELS_AT_ONCE = 3 * 2**17

#: The same for the learned enlarger: maps (48 wide, float32) stay below 32 MB, up to which memory is used again rather
#: than fetched anew.
LEARNED_PIXELS = 2**16

#: The same of the enlarged strip, for heads of large factors.
_LEARNED_OUTPUT = 2**20

#: What networks raise on pictures that they cannot take.
_FAULTS = (RuntimeError, ValueError, TypeError, LookupError, AssertionError, ArithmeticError, AttributeError)


class Base(ABC):
    """Enlarges one picture. ``name``: for logs and reports; ``weights``: bytes of its weights, for plans."""

    name: str
    weights: int = 0

    @abstractmethod
    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        """Picture (1, 3, h, w) float32 in [0, 1] -> (1, 3, height, width) float32 in [0, 1], on the picture's device.

        repair: how much damage to undo, 0 to 1, by those that can. ``tell(done, total)`` runs before each strip and at
        the end, and may raise to cancel. Raises OutOfMemoryError, or torch's own, where its smallest strip fails.
        """

    def peak_bytes(self, low: Size, out: Size, repair: float = 0.0, least: bool = False) -> int:
        """Bytes live at most, as far as is known, beside the input and the result. least: with the smallest strips."""
        return 0

    def flops(self, low: Size, out: Size, repair: float = 0.0) -> float | None:
        """Multiplications and additions of its network; None where unknown."""
        return 0.0


class Bicubic(Base):
    """The host's and Pillow's bicubic, antialiased when it shrinks."""

    name = "bicubic"

    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        tell(0, 1)
        result = resize(low, height, width).clamp(0, 1)
        tell(1, 1)
        return result


@dataclass(frozen=True)
class _Strips:
    """How a network that enlarges by a factor runs: ``rows`` input rows at a time, and ``halo`` more on each side.

    align: the halo's first row is a multiple of this.
    """

    factor: int
    rows: int
    halo: int
    align: int = 1

    def run(self, name: str, network: Callable[[Tensor], Tensor], low: Tensor, out: Size, tell: OnProgress) -> Tensor:
        """(1, 3, h, w) -> (1, 3, *out) float32 in [0, 1]. network: (1, 3, n, w) -> (1, 3, n * factor, w * factor)."""
        starts = range(0, low.shape[-2], self.rows)
        made = (self._strip(network, low, start) for start in starts)
        return joined(name, [made], len(starts), low, self.factor, out, tell)

    def _strip(self, network: Callable[[Tensor], Tensor], low: Tensor, start: int) -> Tensor:
        first, stop = max(0, start - self.halo) // self.align * self.align, min(low.shape[-2], start + self.rows)
        made = network(low[..., first : stop + self.halo, :])
        return made[..., (start - first) * self.factor : (stop - first) * self.factor, :]

    def bytes(self, low: Size, out: Size, network: float) -> int:
        """Live at most beside the input and the result, where the network takes ``network`` bytes for an input px."""
        rows = min(low[0], self.rows + 2 * self.halo)
        made = picture_bytes(rows * self.factor, low[1] * self.factor)  # clamped
        return with_columns(int(network * rows * low[1]) + made, low, self.factor, out)


def joined(
    name: str, sweeps: Sequence[Iterable[Tensor]], count: int, low: Tensor, factor: int, out: Size, tell: OnProgress
) -> Tensor:
    """Strips (1, 3, n, w * factor) of ``low`` enlarged -> (1, 3, *out) float32 in [0, 1], on the device of ``low``.

    sweeps: strips from the top, ``count`` of them; a second one is of the picture upside down, and the mean of both is
    taken. Each strip is clamped and brought to its width as it comes. Raises Op4ksrError, which begins with the name of
    what made them, where one is not finite: clamped, infinity would be black or white.
    """
    tall = torch.empty(1, 3, low.shape[-2] * factor, out[1], device=low.device)
    done = 0
    tell(0, count * len(sweeps))
    for strips, upside_down in zip(sweeps, (False, True), strict=False):
        top = 0
        for made in strips:
            check_finite_output("enlarger", made, f"{plain(name)}: ")
            strip = made.to(low.device, torch.float32).clamp(0, 1)
            del made
            strip, bottom = resize(strip, strip.shape[-2], out[1]), top + strip.shape[-2]
            if upside_down:
                tall[..., tall.shape[-2] - bottom : tall.shape[-2] - top, :].lerp_(strip.flip(-2), 0.5)
            else:
                tall[..., top:bottom, :] = strip
            del strip
            top, done = bottom, done + 1
            tell(done, count * len(sweeps))
    return (tall if tall.shape[-2:] == out else resize(tall, *out)).clamp_(0, 1)


def with_columns(strip: int, low: Size, factor: int, out: Size) -> int:
    """Live at most in ``joined``, beside the input and the result, where a strip takes so many bytes until it is in
    its place.

    That, and where the result is of another height, the picture of which only the columns are right, before it is made.
    """
    tall = (low[0] * factor, out[1])
    if tall == out:
        return strip
    return max(picture_bytes(*tall) + strip - picture_bytes(*out), picture_bytes(*tall))


def _grows(low: Size, out: Size) -> bool:
    return out[0] > low[0] or out[1] > low[1]


class Learned(Base):
    """An ``Enlarger``: the smallest head that reaches the size, or the largest there is, and bicubic from there.

    Where damage is to be undone it sees the picture as it is, mirrored, upside down and both, and the mean is taken
    (EDSR's self-ensemble, Lim et al. 2017, of its eight the four that strips can have). Our choice: four times the work
    for 0.03 dB more on blur, noise and JPEG mixed, 0.08 on JPEG of quality 50 and 0.20 on noise of 10 levels (eight
    photos); 0.05 dB on clean photos were not thought worth it.

    Beyond the largest head a second pass instead was 0.02 dB better at x6 and x8 on eight photos (through x2 first,
    0.08), at many times the work. A picture that is to grow on neither side goes through the smallest head, and is
    shrunk, where damage is to be undone; else it is resized by bicubic. Plans count the former. It runs in the weights'
    dtype, on the picture's device where that is none of a CPU, else on the weights'.
    """

    def __init__(self, enlarger: Enlarger, name: str) -> None:
        self.enlarger, self.name = enlarger, name
        self.weights = sum(parameter.nbytes for parameter in enlarger.parameters())

    def head(self, low: Size, out: Size) -> int:
        """The factor of the head that runs, where one does."""
        factors = self.enlarger.params.factors
        return next((f for f in factors if f * low[0] >= out[0] and f * low[1] >= out[1]), factors[-1])

    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        size = low.shape[-2], low.shape[-1]
        if not (repair or _grows(size, (height, width))):
            return Bicubic().enlarge(low, height, width, repair, tell)
        factor = self.head(size, (height, width))
        rows = self._rows(size, factor)
        if low.device.type != "cpu":
            self.enlarger.to(low.device)
        strips = partial(_beside_its_mirror if repair else enlarged, self.enlarger)
        sweeps = [strips(one, factor, repair, rows) for one in ((low, low.flip(-2)) if repair else (low,))]
        with torch.no_grad():
            return joined(self.name, sweeps, -(-size[0] // rows), low, factor, (height, width), tell)

    def _rows(self, low: Size, factor: int) -> int:
        """Input rows of a strip: so many that its maps are quickly had again, or as few as it takes."""
        return max(least_rows(self.enlarger), min(LEARNED_PIXELS, _LEARNED_OUTPUT // factor**2) // low[1])

    def peak_bytes(self, low: Size, out: Size, repair: float = 0.0, least: bool = False) -> int:
        """As ``Base.peak_bytes``; its strips are of one size, whatever is free."""
        factor, pictures = self.head(low, out), 2 if repair else 1
        strips = Strips(self.enlarger, low, factor, self._rows(low, factor))
        cut = picture_bytes(strips.longest * factor, low[1] * factor) + picture_bytes(strips.longest * factor, out[1])
        given = picture_bytes(*low, 5) if repair else 0  # upside down, and each beside its mirror
        return with_columns(pictures * strips.peak_bytes(beside=cut) + given, low, factor, out)

    def flops(self, low: Size, out: Size, repair: float = 0.0) -> float | None:
        factor = self.head(low, out)
        return (4 if repair else 1) * Strips(self.enlarger, low, factor, self._rows(low, factor)).flops


def _beside_its_mirror(enlarger: Enlarger, low: Tensor, factor: int, strength: float, rows: int) -> Iterator[Tensor]:
    """As ``enlarged``: the mean of that and of what it makes of the picture mirrored, mirrored back."""
    both = torch.cat([low, low.flip(-1)])
    return map(_mean_of_mirrored, enlarged(enlarger, both, factor, strength, rows))


def _mean_of_mirrored(both: Tensor) -> Tensor:
    return both[:1].lerp(both[1:].flip(-1), 0.5)


@dataclass(frozen=True)
class Footprint:
    """What a network needs for one input px: bytes of its maps, and FLOPs."""

    bytes: float
    flops: float


def footprint(function: Callable[[Tensor], Tensor], channels: int = 3) -> Footprint:
    """A network's, as counted on a grey square of ``ALIGN`` px. Raises what the network raises."""
    square = torch.full((1, channels, ALIGN, ALIGN), 0.5)
    with torch.no_grad(), FlopCounterMode(display=False) as flops, AllocationTracker() as memory:
        function(square)
    return Footprint(memory.peak / ALIGN**2, flops.get_total_flops() / ALIGN**2)


class Foreign(Base):
    """Any network that enlarges by a whole factor: of spandrel, or of the host's Load Upscale Model.

    function: picture (1, channels, h, w) float32 in [0, 1], where the input lies -> (1, channels, h * factor,
    w * factor), any device and float dtype, not necessarily clamped; it moves its input to its own device. factor: 1
    (which restores alone) and more. channels: 3, or 1 for a network of brightness, which leaves colours to bicubic.
    halo: input px that a strip needs on each side. footprint: for plans, and to fit into ``free()`` bytes (None:
    unknown). A picture that is to grow on neither side is resized by bicubic, unless the factor is 1.
    Raises OptionError for a factor that is no whole number from 1 up, for other channels, and for a halo below 0.
    """

    def __init__(
        self,
        function: Callable[[Tensor], Tensor],
        factor: int,
        name: str,
        *,
        channels: int = 3,
        halo: int = ALIGN,
        weights: int = 0,
        footprint: Footprint | None = None,
        free: Callable[[], int | None] = lambda: None,
        is_oom: Callable[[BaseException], bool] = is_out_of_memory,
        release: Callable[[], None] = release_memory,
    ) -> None:
        if not (factor >= 1 and float(factor).is_integer()) or channels not in (1, 3):
            raise OptionError(
                f"{plain(name)}: expected an upscale model of a whole factor from 1 up that takes 3 channels or 1, "
                f"got a factor of {plain(factor)} and {plain(channels)} channels; choose another"
            )
        if halo < 0:
            raise OptionError(f"{plain(name)}: halo: expected 0 px or more, got {plain(halo)}; use {ALIGN}")
        self.function, self.factor, self.name, self.channels = function, int(factor), name, channels
        self.halo, self.weights, self.footprint, self.free = halo, weights, footprint, free
        self.is_oom, self.release = is_oom, release

    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        """As ``Base.enlarge``. Raises Op4ksrError where the network fails, or makes another size than it says."""
        size, out = (low.shape[-2], low.shape[-1]), (height, width)
        if not self._runs(size, out):
            return Bicubic().enlarge(low, height, width, repair, tell)
        rows = self._rows(size, out, self.free())
        while True:
            result = self._try(low, out, self._strips(rows), tell)
            if result is not None:
                return result[0]
            if rows <= ALIGN:
                raise OutOfMemoryError(
                    f"{plain(self.name)}: out of memory even with strips of {rows} rows of a picture of "
                    f"{size[1]}x{size[0]} px; choose a smaller upscale model or a smaller picture, close what else "
                    "uses the memory, or run on the CPU"
                )
            log.warning("%s: out of memory with strips of %d rows; trying half", self.name, rows)
            rows = _whole(min(rows, size[0]) // 2)
            self.release()

    def _try(self, low: Tensor, out: Size, strips: _Strips, tell: OnProgress) -> tuple[Tensor] | None:
        """The result in a tuple; None if out of memory. The error does not leave: it would keep every tensor alive."""
        try:
            with torch.no_grad():
                network = self._colours if self.channels == 1 else self._made
                return (strips.run(self.name, network, low, out, tell),)
        except MEMORY_ERRORS as error:
            if not self.is_oom(error):
                raise
            return None

    def _made(self, strip: Tensor) -> Tensor:
        expected = (*strip.shape[:2], strip.shape[-2] * self.factor, strip.shape[-1] * self.factor)
        try:
            made = cast(object, self.function(strip.clone(memory_format=torch.contiguous_format)))  # it may change it
        except _FAULTS as error:
            if self.is_oom(error):
                raise
            raise Op4ksrError(
                f"{plain(self.name)}: the upscale model fails on {strip.shape[-1]}x{strip.shape[-2]} px "
                f"({plain(str(error).splitlines()[0] if str(error) else type(error).__name__)}); choose another"
            ) from error
        if not isinstance(made, Tensor) or made.shape != expected:
            got = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise Op4ksrError(
                f"{plain(self.name)}: the upscale model was expected to make {expected} of {tuple(strip.shape)}, got "
                f"{plain(got)}; choose another"
            )
        return made

    def _colours(self, strip: Tensor) -> Tensor:
        """Bicubic's colours with the brightness of a network that knows nothing else."""
        colours = bicubic(strip, self.factor)
        bright = self._made(luma(strip)).to(strip.device, torch.float32)
        return colours.add_(bright - luma(colours))

    def _runs(self, low: Size, out: Size) -> bool:
        return self.factor == 1 or _grows(low, out)

    def _strips(self, rows: int) -> _Strips:
        return _Strips(self.factor, rows, self.halo, ALIGN)

    def _rows(self, low: Size, out: Size, free: int | None) -> int:
        """Of a strip: the whole picture, or what ``PIXELS_AT_ONCE`` and the free memory leave, multiples of ALIGN."""
        whole = low[0] * low[1] <= PIXELS_AT_ONCE
        rows = _whole(low[0] if whole else PIXELS_AT_ONCE // low[1] - 2 * self.halo, up=whole)
        while free is not None and rows > ALIGN and self._bytes(low, out, rows) > free:
            rows = _whole(rows // 2)
        return rows

    def _bytes(self, low: Size, out: Size, rows: int) -> int:
        given = picture_bytes(1, 1)  # the strip's own copy
        return self._strips(rows).bytes(low, out, given + (self.footprint.bytes if self.footprint else 0.0))

    def peak_bytes(self, low: Size, out: Size, repair: float = 0.0, least: bool = False) -> int:
        if not self._runs(low, out):
            return 0
        return self._bytes(low, out, ALIGN if least else self._rows(low, out, self.free()))

    def flops(self, low: Size, out: Size, repair: float = 0.0) -> float | None:
        if not self._runs(low, out):
            return 0.0
        strips = self._strips(self._rows(low, out, self.free()))
        return self.footprint and self.footprint.flops * low[0] * low[1] * _overlap(strips, low[0])


def _whole(rows: int, up: bool = False) -> int:
    """A multiple of ALIGN, one at least."""
    return max(1, -(-rows // ALIGN) if up else rows // ALIGN) * ALIGN


def _overlap(strips: _Strips, height: int) -> float:
    """How many times as many rows as the picture's are computed, halos included."""
    count = -(-height // strips.rows)
    return 1 + 2 * strips.halo * (count - 1) / height
