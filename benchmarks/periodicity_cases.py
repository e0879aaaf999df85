"""The pictures that the periodicity meter is measured on: crops of photos, clean ones and with injected artifacts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from op4ksr_core.errors import ImageError
from op4ksr_core.images.io import jpeg_round_trip, load_image, to_8_bit
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import inject, real_texture
from op4ksr_core.periodicity.autocorrelation import SMALLEST_SIDE

#: Grey levels (RMS) at which each kind is injected.
GREY_LEVELS: dict[str, tuple[float, ...]] = {
    "white32": (0.5, 1),
    "white16": (0.5, 1),
    "white24": (0.5, 1),
    "pink64": (1, 2),
    "pink32": (0.5, 0.75, 1),
    "pink16": (0.75, 1),
    "pink8": (0.75, 1),
    "mult32": (1, 1.5),
    "region32": (1, 2),
    "drift32": (2, 4),
    "comb32": (1, 1.5, 4),
    "block32": (2, 4),
}

#: Side of a crop at most, px, and how far a photo is shrunk before it is cut.
LARGEST_CROP, SHRINKS = 512, (0.72, 0.94)

#: Crops of each photo: clean ones, those that get artifacts, those that are compressed.
CLEAN_CROPS, POSITIVE_CROPS, COMPRESSED_CROPS = 8, 2, 4


@dataclass(frozen=True)
class Crop:
    """One clean crop (1, 3, H, W) of a photo and the input it is said to come from: shrunk by 4, 8 bit."""

    photo: str
    index: int
    image: Tensor
    low: Tensor


def crops_of(place: int, path: Path, count: int) -> Iterator[Crop]:
    """Crops of up to 512 px, each after shrinking by 0.72 to 0.94 (photos were JPEGs: their grid moves off 8 px).

    place: the photo's number, from which all that is random comes. Raises ImageError for a photo that is too small.
    """
    photo = load_image(path).image
    height, width = photo.shape[-2:]
    if min(height, width) * SHRINKS[0] < SMALLEST_SIDE:
        raise ImageError(
            f"{path}: {width}x{height} px, shrunk by {SHRINKS[0]}, are fewer than the {SMALLEST_SIDE} px that the "
            "meter needs on each side; take it out"
        )
    for k in range(count):
        rng = np.random.default_rng((place, k))
        factor = rng.uniform(*SHRINKS)
        small = resize(photo, round(height * factor), round(width * factor)).clamp(0, 1)
        rows, columns = (min(LARGEST_CROP, side) // 4 * 4 for side in small.shape[-2:])
        top = int(rng.integers(0, small.shape[-2] - rows + 1))
        left = int(rng.integers(0, small.shape[-1] - columns + 1))
        image = small[..., top : top + rows, left : left + columns].contiguous()
        low = to_8_bit(resize(image, rows // 4, columns // 4))
        yield Crop(f"{path.parent.name}/{path.stem}", place * 100 + k, image, low)


def negatives(crop: Crop, k: int) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(name, picture, reference) of what must not alarm."""
    image, low = crop.image, crop.low
    yield ("urban" if crop.photo.startswith("urban") else "clean"), to_8_bit(image), low
    if k >= POSITIVE_CROPS:
        return
    yield "enlarged4", to_8_bit(resize(low, *image.shape[-2:])), low
    yield "jpeg90", jpeg_round_trip(image, 90), low
    yield "jpeg60", jpeg_round_trip(image, 60), low
    rows, columns = image.shape[-2:]
    damaged = jpeg_round_trip(low, 50)
    yield "lrjpeg50", to_8_bit(resize(damaged, rows, columns) + image - resize(low, rows, columns)), damaged
    wall = real_texture(rows, columns, 32, crop.index)
    if k == 1:
        wall = torch.cat([wall[..., : columns // 2], image[..., columns // 2 :]], -1)
    yield "tex32", to_8_bit(wall), to_8_bit(resize(wall, rows // 4, columns // 4))


def positives(crop: Crop) -> Iterator[tuple[str, float, Tensor]]:
    """(kind, grey levels, picture) of what must alarm; "half ...": shrunk by 2 afterwards, "jpeg90 ...": compressed."""
    for kind, levels in GREY_LEVELS.items():
        for level in levels:
            picture = to_8_bit(inject(crop.image, kind, level, crop.index))
            yield kind, level, picture
            if kind in ("white32", "comb32") and level <= 1:
                yield f"jpeg90 {kind}", level, jpeg_round_trip(picture, 90)
    for level in (1, 2):
        picture = inject(crop.image, "white32", level, crop.index)
        rows, columns = picture.shape[-2:]
        yield "half white32", level, to_8_bit(resize(to_8_bit(picture), rows // 2, columns // 2))
