"""A picture file as its container tells it, before a pixel is decoded; and what decoding gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from .spaces import Space

Samples = NDArray[Any]


class NotReadError(Exception):
    """A whole file of a kind that is not read: what it is, and the remedy, to go after its name."""


@dataclass(frozen=True)
class Deep:
    """colors (H, W, 1 or 3) and alpha (H, W) or None; uint16, or float32 in [0, 1]. As stored, not upright."""

    colors: Samples
    alpha: Samples | None = None


#: 8 bits are Pillow's picture in any of its modes.
Pixels = Image.Image | Deep


@dataclass(frozen=True)
class Content:
    """size: (width, height) as stored. orientation: 1 to 8, EXIF's. profile: ICC, if that is what states the colours.

    space: what else states them, where it is not sRGB. pages: pictures in the file, of which the first is read.
    told: what the user should know, for the log. decode: called once, for the pixels. cost: bytes for each pixel that
    reading takes at its peak: what Pillow and NumPy hold, and four floats. As measured.
    """

    size: tuple[int, int]
    decode: Callable[[], Pixels]
    orientation: int = 1
    profile: bytes | None = None
    space: Space | None = None
    pages: int = 1
    told: list[str] = field(default_factory=list[str])
    cost: int = 32


def check_claim(name: str, size: tuple[int, int]) -> None:
    """Raise Pillow's DecompressionBombError beyond twice its ``MAX_IMAGE_PIXELS``, which a host may set."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and size[0] * size[1] > 2 * limit:
        raise Image.DecompressionBombError(f"{size[0]}x{size[1]} px, above the limit of {2 * limit} px")


def floats_in_range(values: Samples, stated: tuple[float, float] | None, told: list[str]) -> Samples:
    """Floats -> float32 in [0, 1]: by the range that the file states, or by the largest value (our choice).

    Raises NotReadError for NaN, infinity, and ranges that are no picture's.
    """
    low, high = float(values.min()), float(values.max())
    if not (np.isfinite(low) and np.isfinite(high)):
        raise NotReadError("holds NaN or infinite values; expected numbers from 0 to 1; save it without them")
    first, last = stated or (0.0, next((top for top, most in _FLOAT_TOPS if high <= most), 0.0))
    if last <= first:
        raise NotReadError(f"holds numbers up to {high:g}; expected 0 to 1, 0 to 255 or 0 to 65535; scale them")
    if (first, last) != (0.0, 1.0):
        told.append(f"holds numbers from {low:g} to {high:g}, taken for {first:g} (black) to {last:g} (white)")
    elif low < -_OVER or high > 1 + _OVER:
        told.append(f"holds numbers from {low:g} to {high:g}; those below 0 become black, those above 1 white")
    return ((values.astype(np.float64) - first) / (last - first)).clip(0, 1).astype(np.float32)


#: Whites that floats may have, and the largest value up to which each is taken: some are brighter than white.
_FLOAT_TOPS = ((1.0, 16.0), (255.0, 512.0), (65535.0, 131070.0))

#: What resampling overshoots by; more is told.
_OVER = 0.25


def integers_in_range(values: Samples, stated: tuple[float, float] | None, told: list[str]) -> Samples:
    """Integers of 32 or 64 bits, or signed ones -> float32 in [0, 1]: by the range stated, or by the largest value.

    Our choice: up to 65535 they are taken for 16 bits, from a 256th of their type's largest on for all of it. Raises
    NotReadError between.
    """
    top = int(np.iinfo(values.dtype).max)
    low, high = int(values.min()), int(values.max())
    if stated is not None and stated[0] < stated[1]:
        first, last = stated
    elif values.dtype.itemsize < 4:
        first, last = 0.0, float(top)
    elif high <= 65535:
        first, last = 0.0, 65535.0
    elif high >= top // 256:
        first, last = 0.0, float(top)
    else:
        raise NotReadError(f"holds whole numbers up to {high}; expected up to 65535, or up to {top}; scale them")
    told.append(f"holds whole numbers from {low} to {high}, taken for {first:g} (black) to {last:g} (white)")
    return ((values.astype(np.float64) - first) / (last - first)).clip(0, 1).astype(np.float32)
