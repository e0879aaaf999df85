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
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import ImageError, OutputError
from ..files import link_target, written_whole
from ..plain_text import plain_logger
from .icc import to_srgb
from .png import PngOptions, Rows, is_png16, open_low_bytes, write_png

log = plain_logger(__name__)

#: What a folder is searched for.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

#: What Pillow raises at a broken picture, in addition to its own errors.
BROKEN = (OSError, SyntaxError, ValueError, TypeError, NotImplementedError)

#: Pillow's names of the formats that are written.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")

#: Those of them that cannot hold transparency, or that few programs read it from.
_OPAQUE_FORMATS = ("JPEG", "BMP")

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
    """Read a picture, turned upright by its EXIF orientation, to RGB and alpha.

    16-bit grey, and 16-bit colour PNG, keep all bits (other 16-bit files are read in 8, with a warning);
    palettes, CMYK and grey become RGB; a colour profile is converted to sRGB, in 8 bit. Raises
    ImageError: no such file, no picture, cut short, without pixels.
    """
    path = Path(path)
    low = None
    try:
        # Not by name: Pillow garbles turned grey TIFFs that it can map into memory.
        with path.open("rb") as file, Image.open(file) as opened:
            deep, reduced = is_png16(opened), _reduced(opened)
            opened.load()
            picture = ImageOps.exif_transpose(opened)
            if deep:
                low = ImageOps.exif_transpose(open_low_bytes(file))
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the name and the folder") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is no picture that Pillow can read; expected PNG, JPEG, WebP or TIFF") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; shrink it first") from error
    except BROKEN as error:
        raise ImageError(f"{path}: is damaged or cut short ({error}); save it again from its source") from error
    if reduced:
        log.warning("%s: has 16 bits per colour, of which 8 are read; save it as 16-bit RGB PNG to keep them", path)
    converted, changed = to_srgb(picture, str(path))
    if low is not None and not changed:
        return _from_bytes(picture, low)
    if low is not None:
        log.warning("%s: the colour profile was applied in 8 bit; convert it to sRGB first to keep all 16", path)
    return from_pil(converted)


def _reduced(opened: Image.Image) -> bool:
    """Whether Pillow will read only the upper half of this file's 16-bit colours, and we have no way round it."""
    raw = str(opened.tile[0][3]) if getattr(opened, "tile", None) else ""  # pyright: ignore
    return opened.mode in ("RGB", "RGBA", "LA") and ";16" in raw and not is_png16(opened)


def _from_bytes(high: Image.Image, low: Image.Image) -> Picture:
    """Upper and lower bytes of a 16-bit RGB or RGBA picture -> ``Picture``."""
    values = np.asarray(high).astype(np.uint16) << 8 | np.asarray(low)
    tensor = torch.from_numpy(values.astype(np.float32) / 65535).permute(2, 0, 1)[None]
    alpha = tensor[:, 3:].contiguous() if tensor.shape[1] == 4 else None
    clear = high.info.get("transparency")
    if alpha is None and isinstance(clear, tuple):  # one colour, in 16 bits, is transparent
        alpha = torch.from_numpy((values != np.array(clear)).any(-1).astype(np.float32))[None, None]
    return Picture(tensor[:, :3].contiguous(), alpha)


def from_pil(picture: Image.Image) -> Picture:
    """A Pillow picture of any mode -> ``Picture``."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32) / 65535).clamp(0, 1)
        return Picture(grey[None, None].repeat(1, 3, 1, 1))
    if picture.mode == "F":
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32)).clamp(0, 1)
        return Picture(grey[None, None].repeat(1, 3, 1, 1))
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    pixels = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"))
    tensor = from_array(pixels)
    return Picture(tensor[:, :3].contiguous(), tensor[:, 3:].contiguous() if has_alpha else None)


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
    return from_pil(Image.open(buffer)).image.to(image)


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
    picture = Picture(picture.image) if kind in _OPAQUE_FORMATS else picture
    try:
        with written_whole(path) as temporary:
            if kind == "PNG":
                options = PngOptions(*_zlib_choice(compression), texts or {})
                with temporary.open("wb") as file:
                    write_png(file, picture.size, channels_of(picture), bits, integer_rows(picture, bits), options)
            else:
                to_pil(picture).save(temporary, kind, **_SAVE_OPTIONS.get(kind, {}))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder or name") from error


def _zlib_choice(compression: int | None) -> tuple[int, int]:
    """zlib's level and strategy."""
    return (6, zlib.Z_RLE) if compression is None else (compression, zlib.Z_DEFAULT_STRATEGY)


def check_bits(path: str | Path, bits: int) -> str:
    """Pillow's name of the file's format. Raises OutputError where it is unknown or cannot hold so many bits."""
    kind = _format(Path(path))
    if bits not in (8, 16):
        raise OutputError(f"{path}: expected 8 or 16 bits per colour, got {bits}; take one of the two")
    if bits == 16 and kind != "PNG":
        raise OutputError(f"{path}: 16 bits per colour are written as PNG only; end the name in .png, or take 8 bits")
    return kind


def check_output(path: str | Path) -> None:
    """Raise the OutputError that ``save_image`` would: unknown ending, no such folder, not writable."""
    path = Path(path)
    _format(path)
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # which tells a name that is too long
        with tempfile.TemporaryFile(dir=link_target(path).parent):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder or name") from error


def holds_alpha(path: str | Path) -> bool:
    """Whether the format that the name's ending means can hold transparency."""
    return _format(Path(path)) not in _OPAQUE_FORMATS


def _format(path: Path) -> str:
    """Pillow's name of the format that the name's ending means."""
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower(), "")
    if kind not in _FORMATS:
        raise OutputError(f"{path}: unknown picture format {path.suffix!r}; end the name in .png, .jpg or .webp")
    return kind
