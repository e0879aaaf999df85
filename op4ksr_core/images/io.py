"""Picture files <-> tensors, with Pillow; every way in which a file can be wrong has its sentence."""

from __future__ import annotations

import io
import os
import tempfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import OutputError
from ..files import link_target, written_whole
from .formats import check_writable_size, written_format
from .png import PngOptions, Rows, write_png
from .read import PictureFile, open_picture, planes_of

#: Pillow's options by format.
_SAVE_OPTIONS: dict[str, dict[str, Any]] = {"JPEG": {"quality": 95, "subsampling": 0}}

#: Rows that are made integers at a time where a whole array is wanted.
_BAND = 256

#: Bits per colour -> the integers of a picture.
_INTEGERS: dict[int, type[Any]] = {8: np.uint8, 16: np.uint16}


@dataclass(frozen=True)
class Picture:
    """image (1, 3, H, W) and alpha (1, 1, H, W) or None, float32 in [0, 1], upright.

    Only to be written: the image may be ``levels`` of it, of as many bits as the file will have.
    """

    image: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.image.shape[-2], self.image.shape[-1]


def load_image(path: str | Path) -> Picture:
    """Read a picture, turned upright by its EXIF orientation, to RGB and alpha, in sRGB.

    What is read of each format: docs/files.md. Raises ImageError: no such file, no picture of a kind that is opened,
    damaged or cut short, too large for the memory that is free.
    """
    return load_pixels(open_picture(path))


def load_pixels(file: PictureFile) -> Picture:
    """The pixels of a picture whose header was read (``open_picture``). Raises ImageError."""
    return Picture(*file.pixels())


def picture_of_bytes(data: bytes, name: str, ending: str) -> Picture:
    """``load_image`` of a file's content; ``name`` for messages. Raises ImageError."""
    return load_pixels(PictureFile(data, name, ending))


def from_pil(picture: Image.Image) -> Picture:
    """A Pillow picture of any mode -> ``Picture``."""
    return Picture(*planes_of(picture))


def from_array(pixels: NDArray[np.uint8]) -> Tensor:
    """(H, W, C) uint8 -> (1, C, H, W) float32 in [0, 1], in memory of its own."""
    return torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div_(255)


def to_pil(picture: Picture) -> Image.Image:
    """The first picture of a batch -> 8-bit RGB or RGBA."""
    rows, (height, width) = integer_rows(picture, 8), picture.size
    out = np.empty((height, width, channels_of(picture)), np.uint8)
    for top in range(0, height, _BAND):  # no copy of the whole picture in float
        out[top : top + _BAND] = rows(top, min(height, top + _BAND))
    return Image.fromarray(out)


def channels_of(picture: Picture) -> int:
    """3, or 4 with transparency."""
    return 3 if picture.alpha is None else 4


def integer_rows(picture: Picture, bits: int) -> Rows:
    """The first picture of a batch as integers, made when asked for: rows (top, bottom) -> (n, W, 3 or 4).

    A picture on a device is made integers there and fetched whole, a quarter of its bytes at 8 bits. NumPy does the
    rest, for the threads that ask share no pool of PyTorch's.
    """
    top_level, kind = 2**bits - 1, _INTEGERS[bits]
    planes = [_plane(plane, bits) for plane in (picture.image, picture.alpha) if plane is not None]

    def rows(top: int, bottom: int) -> NDArray[Any]:
        out = np.empty((bottom - top, planes[0].shape[2], sum(map(len, planes))), kind)
        first = 0
        for plane in planes:
            band = plane[:, top:bottom]
            if band.dtype == np.float32:
                band = np.clip(band, 0, 1)
                band *= top_level
                np.rint(band, out=band)
            for index, channel in enumerate(band, first):
                out[..., index] = channel
            first += len(band)
        return out

    return rows


def levels(image: Tensor, bits: int) -> Tensor:
    """(B, C, H, W) float in [0, 1] -> its 2^bits levels in ordinary memory: uint8, or int32 at 16 bits.

    Made where the picture is, so that a device sends a quarter of the bytes at 8 bits.
    """
    whole = torch.uint8 if bits == 8 else torch.int32
    return image.float().clamp(0, 1).mul_(2**bits - 1).round_().to(whole).cpu()


def to_8_bit(image: Tensor) -> Tensor:
    """The picture that a file of 8 bits gives back: rounded to multiples of 1/255, still float, in [0, 1]."""
    return image.clamp(0, 1).mul(255).round().div(255)


def jpeg_round_trip(image: Tensor, quality: int) -> Tensor:
    """(1, 3, H, W) float, rounded to 8 bits -> the same in [0, 1] after a JPEG file of that quality, 1 to 100.

    Chroma at half resolution (4:2:0): libjpeg's default, and what photos on the web mostly have.
    """
    buffer = io.BytesIO()
    to_pil(Picture(image)).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return from_pil(Image.open(buffer, formats=("JPEG",))).image.to(image)


def _plane(plane: Tensor, bits: int) -> NDArray[Any]:
    """(B, C, H, W) -> the first as (C, H, W): float32, or levels where they are that already or come from a device."""
    own = plane[:1].detach()
    if own.is_floating_point() and own.device.type != "cpu":
        own = levels(own, bits)
    return (own.float() if own.is_floating_point() else own)[0].numpy()


def save_image(
    path: str | Path,
    picture: Picture,
    bits: int = 8,
    compression: int | None = None,
    texts: Mapping[str, str] | None = None,
) -> None:
    """Write the first picture of a batch, sRGB, in the format of the name's ending; whole or not at all.

    bits: per colour, 8 or (PNG only) 16. Formats without transparency get the colours alone. compression, of
    PNG: 0 to 9 as zlib counts; None: run lengths alone, on photos as small as 6 and far faster (our choice,
    docs/speed.md). texts: keyword -> text, in PNG only. Raises OutputError: unknown ending, 16 bits elsewhere than
    in PNG, no such folder, not writable, disk full; a file that was there is then untouched.
    """
    path = Path(path)
    kind = check_bits(path, bits)
    picture = picture if holds_alpha(path) else Picture(picture.image)
    check_writable_size(path, *picture.size, channels_of(picture), bits)
    try:
        with written_whole(path) as temporary:
            if kind == "PNG":
                options = PngOptions(*_zlib_choice(compression), texts or {})
                with temporary.open("wb") as file:
                    write_png(file, picture.size, channels_of(picture), bits, integer_rows(picture, bits), options)
            else:
                to_pil(picture).save(temporary, format=kind, **_SAVE_OPTIONS.get(kind, {}))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder or name") from error


def _zlib_choice(compression: int | None) -> tuple[int, int]:
    """zlib's level and strategy."""
    return (6, zlib.Z_RLE) if compression is None else (compression, zlib.Z_DEFAULT_STRATEGY)


def check_bits(path: str | Path, bits: int) -> str:
    """Pillow's name of the file's format. Raises OutputError where it is unknown or cannot hold so many bits."""
    found, written = written_format(Path(path))
    if bits not in (8, 16):
        raise OutputError(f"{path}: expected 8 or 16 bits per colour, got {bits}; take one of the two")
    if bits not in written.bits:
        raise OutputError(f"{path}: 16 bits per colour are written as PNG only; end the name in .png, or take 8 bits")
    return found.kind


def check_output(path: str | Path) -> None:
    """Raise the OutputError that ``save_image`` would: unknown ending, no such folder, not writable."""
    path = Path(path)
    written_format(path)
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # which tells a name that is too long
        with tempfile.TemporaryFile(dir=link_target(path).parent):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder or name") from error


def holds_alpha(path: str | Path) -> bool:
    """Whether the format that the name's ending means can hold transparency."""
    return written_format(Path(path))[1].alpha
