"""What is done to a sharp photo before it is enlarged again: shrunk, and shrunk and made worse."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from op4ksr_core.images.io import jpeg_round_trip, to_8_bit
from op4ksr_core.images.resize import resize
from op4ksr_core.training.data.degradation import Degradation, degrade

from .picture_sets import HIGH

#: Seed of all that is drawn, beside each photo's set and name.
SEED = 41

#: Quality of the JPEG and deviation of the noise, in grey levels of 255, where either is all that is done.
JPEG_QUALITY, NOISE_LEVEL = 50, 10

#: High (1, 3, H, W), factor, seeds -> low (1, 3, H / factor, W / factor), both in [0, 1], low of 8 bit.
Damage = Callable[[Tensor, int, tuple[int, ...]], Tensor]


def shrunk(high: Tensor, factor: int) -> Tensor:
    """Bicubic, rounded to 8 bit."""
    height, width = high.shape[-2:]
    return to_8_bit(resize(high, height // factor, width // factor))


def _degraded(high: Tensor, factor: int, seeds: tuple[int, ...]) -> Tensor:
    return degrade(high, Degradation(factor=(factor, factor)), seeds).low


def _compressed(high: Tensor, factor: int, seeds: tuple[int, ...]) -> Tensor:
    return jpeg_round_trip(shrunk(high, factor), JPEG_QUALITY)


def _noisy(high: Tensor, factor: int, seeds: tuple[int, ...]) -> Tensor:
    """Gaussian, each channel by itself."""
    low = shrunk(high, factor)
    generator = torch.Generator().manual_seed(zlib.crc32(repr(seeds).encode("ascii")))
    return to_8_bit(low + torch.randn(low.shape, generator=generator) * (NOISE_LEVEL / 255))


#: By name. "degraded" is the second-order degradation that models are trained on.
DAMAGES: dict[str, Damage] = {
    "clean": lambda high, factor, seeds: shrunk(high, factor),
    "degraded": _degraded,
    f"jpeg{JPEG_QUALITY}": _compressed,
    f"noise{NOISE_LEVEL}": _noisy,
}


def set_of(path: Path) -> str:
    """The set that a photo is of: its folder, or of <set>/HR the set."""
    folder = path.resolve().parent
    return folder.parent.name if folder.name == HIGH else folder.name


def damaged(high: Tensor, factor: int, damage: str, path: Path) -> Tensor:
    """The small picture of a photo, the same whatever else is measured: it depends on its set's and its own name."""
    name = f"{set_of(path)}/{path.stem}"
    return DAMAGES[damage](high, factor, (SEED, zlib.crc32(name.encode("utf-8", "surrogateescape"))))
