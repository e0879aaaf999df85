"""Photos cut beforehand into squares to train on: a large photo cannot be decoded for each crop.

Each photo is shrunk by every factor, so that what is left is sharper than the camera's own pixels, and cut on an even
grid that covers it. Flat squares teach little and are left out, and so are those with transparency, under which
anything may be hidden. The measures are our choice.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from ...errors import OptionError
from ...images.io import Picture, levels
from ...images.resize import resize
from .shards import Pixels
from .sources import HELD_OUT

#: Of a square's side, px; of a factor; and most factors at once.
SIDES, FACTORS, MOST_FACTORS = (32, 4096), (1, 64), 16

#: A photo whose shorter side is below the square's gives squares of that side, down to this share of it.
SMALLEST = 0.5

#: How far the antialiased bicubic filter looks beyond a pixel's own place, px of the shrunk photo.
_REACH = 2


@dataclass(frozen=True)
class TileSettings:
    """side: of a square, px. shrink: the factors, each by itself. least: see ``mean_gradient``. Raises OptionError."""

    side: int = 512
    shrink: tuple[float, ...] = (2.0, 4.0, 6.0)
    least: float = 3.0

    def __post_init__(self) -> None:
        _within("side", self.side, *SIDES)
        _within("least", self.least, 0, 510)
        if not 1 <= len(self.shrink) <= MOST_FACTORS:
            raise OptionError(f"shrink: expected 1 to {MOST_FACTORS} factors, got {len(self.shrink)}; name fewer")
        for factor in self.shrink:
            _within("shrink", factor, *FACTORS)
        labels = [label(factor) for factor in self.shrink]
        for name in labels:
            if labels.count(name) > 1:
                raise OptionError(f"shrink: {name} is named twice, and its squares would have one name; name it once")


@dataclass(frozen=True)
class Square:
    """pixels (side, side, 3) uint8, from ``top`` and ``left`` of the photo shrunk by ``factor``, px."""

    factor: float
    top: int
    left: int
    pixels: Pixels

    def name(self, photo: str) -> str:
        """``photo_FACTOR_TOP_LEFT.png``: no two squares have one name where no two photos have."""
        return f"{photo}_{label(self.factor)}_{self.top}_{self.left}.png"


@dataclass
class Squares:
    """What a photo gives, and how many squares were left out; too_small: factors that leave less than half a side."""

    kept: list[Square] = field(default_factory=list[Square])
    flat: int = 0
    transparent: int = 0
    too_small: list[float] = field(default_factory=list[float])

    def by_factor(self, settings: TileSettings) -> dict[str, int]:
        """How many were kept of each."""
        return {label(factor): sum(square.factor == factor for square in self.kept) for factor in settings.shrink}


def label(factor: float) -> str:
    """A factor as names have it: ``2``, ``2.7``."""
    return f"{factor:.10g}"


def squares_of(photo: Picture, settings: TileSettings) -> Squares:
    """A photo's squares, factor by factor, from left to right and top to bottom; the same for the same photo.

    photo: one picture, any size. Beside it the memory holds no more than its shrunk copies in 8 bits, whose views the
    squares are, and one colour that is being shrunk.
    """
    found = Squares()
    for factor in settings.shrink:
        height, width = (max(1, round(length / factor)) for length in photo.size)
        side = min(settings.side, height, width)
        if side < SMALLEST * settings.side:
            found.too_small.append(factor)
            continue
        pixels = _shrunk(photo.image, height, width)
        for top in starts(height, side):
            for left in starts(width, side):
                square = Square(factor, top, left, pixels[top : top + side, left : left + side])
                if photo.alpha is not None and not _is_opaque(photo.alpha, square, pixels.shape):
                    found.transparent += 1
                elif mean_gradient(square.pixels) < settings.least:
                    found.flat += 1
                else:
                    found.kept.append(square)
    return found


def starts(length: int, side: int) -> list[int]:
    """Where the fewest squares of that side begin that cover the length evenly, px, from 0 to length - side."""
    count = -(-length // side)
    return [index * (length - side) // max(1, count - 1) for index in range(count)]


def mean_gradient(pixels: Pixels) -> float:
    """(H, W, 3) uint8 -> the mean step from a pixel to the next below, plus that to the next on the right, in levels.

    Of the mean of the colours. 0 to 510; photos' squares mostly have 3 to 30.
    """
    grey = pixels.astype(np.float32).mean(axis=2)
    return float(sum(np.abs(np.diff(grey, axis=axis)).mean(dtype=np.float64) for axis in (0, 1)))


def leaf_name(number: int) -> str:
    """Of the procedural picture with that seed."""
    return f"leaves_{number:04d}.png"


def leaf_numbers(count: int, seed: int) -> range:
    """The seeds of ``count`` pictures by ``leaves`` from ``seed`` on; those of a run whose seed is 0 from 0 on.

    Raises OptionError: a count or a seed that cannot be, or one that runs hold out.
    """
    if count < 0 or seed < 0 or seed + count > HELD_OUT:
        raise OptionError(f"procedural: expected seeds from 0 to {HELD_OUT:,}, got {count} from {seed} on; name others")
    return range(seed, seed + count)


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise OptionError(f"{name}: expected {low:g} to {high:g}, got {value:g}")


def _shrunk(image: Tensor, height: int, width: int) -> Pixels:
    """(1, 3, H, W) -> (height, width, 3) uint8, one colour after the other, so that little is held in float."""
    pixels = np.empty((height, width, 3), np.uint8)
    for index in range(3):
        pixels[..., index] = levels(resize(image[:, index : index + 1], height, width), 8)[0, 0].numpy()
    return pixels


def _is_opaque(alpha: Tensor, square: Square, shrunk: tuple[int, ...]) -> bool:
    """Whether nothing that a square's pixels were made of is transparent at all."""
    side, spans = len(square.pixels), []
    for start, full, length in zip((square.top, square.left), alpha.shape[-2:], shrunk[:2], strict=True):
        scale = full / length
        spans.append(slice(max(0, int((start - _REACH) * scale)), int((start + side + _REACH) * scale) + 1))
    return bool(alpha[0, 0, spans[0], spans[1]].min() >= 1)
