"""Reading a picture file in two steps: its header, so that size and memory can be judged, and then its pixels."""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import ImageError, Op4ksrError
from ..files import regular_file
from ..machine import is_out_of_memory, system_memory
from ..plain_text import plain, plain_logger
from . import containers
from .content import Content, Deep, NotReadError, Samples, floats_in_range
from .formats import NAMES, can_be_read, format_of_content
from .icc import deep_to_srgb, to_srgb
from .png_file import open_png
from .tags import turned, turned_array, upright_size
from .tiff import open_tiff

log = plain_logger(__name__)

#: What Pillow and its decoders raise at a broken picture. RuntimeError: AVIF's; the rest: from odd headers.
BROKEN = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    NotImplementedError,
    RuntimeError,
    ArithmeticError,
    LookupError,
    AttributeError,
    AssertionError,
    BufferError,
    EOFError,
    struct.error,
    zlib.error,
)

#: A decoder that runs out of memory for a picture of fewer bytes than this, where there are more free, was misled.
_SMALL = 2**28

_EXPECTED = f"expected {NAMES}"

#: Where it cannot be told which.
_UNSURE = "is damaged or cut short, or of a rare kind that is not read"


class PictureFile:
    """A picture file whose header is read, and its pixels not yet.

    size: (height, width) in px, upright. need: about as many bytes as reading it takes at its peak, the file included.
    """

    def __init__(self, data: bytes, name: str, ending: str) -> None:
        self.name = name
        with _in_a_sentence(name, opening=True):
            self._content = _opened(data, name, ending)
        width, height = self._content.size
        self.size = upright_size((height, width), self._content.orientation)
        self.need = width * height * self._content.cost + len(data)

    def pixels(self) -> tuple[Tensor, Tensor | None]:
        """image (1, 3, H, W) and alpha (1, 1, H, W) or None, float32 in [0, 1], upright, sRGB. To be called once.

        Raises ImageError: cut short or damaged, or too large for the memory that is free.
        """
        self._check_memory()
        found = self._content
        with _in_a_sentence(self.name, self.need):
            decoded = found.decode()
            if isinstance(decoded, Image.Image):
                decoded = _deep(decoded, found.told) or decoded
            for line in found.told:
                log.warning("%s: %s", self.name, line)
            if found.pages > 1:
                log.warning("%s: holds %d pictures, of which the first is taken", self.name, found.pages)
            if isinstance(decoded, Deep):
                return _deep_planes(decoded, found, self.name)
            picture = turned(decoded, found.orientation)
            picture.info.pop("icc_profile", None)
            if found.profile:
                picture.info["icc_profile"] = found.profile
            return planes_of(to_srgb(picture, self.name, found.space)[0])

    def _check_memory(self) -> None:
        free = system_memory()
        if free is not None and self.need > free:
            raise ImageError(self._too_large(f"but there are {free / 1e9:.2f} GB"))

    def _too_large(self, what: str) -> str:
        height, width = self.size
        return (
            f"{self.name}: {width}x{height} px take about {self.need / 1e9:.2f} GB of memory to be read, {what}; "
            "shrink it first, or free memory"
        )


def open_picture(path: str | Path) -> PictureFile:
    """Read a picture file's header. Raises ImageError: no such file, none of our formats, damaged, a bomb."""
    path = Path(path)
    match regular_file(path):
        case None:
            pass
        case "not there":
            raise ImageError(f"{path}: no such file; check the name and the folder")
        case what:
            raise ImageError(f"{path}: is {what}; expected a picture file")
    free = system_memory()
    with _in_a_sentence(str(path)):
        if free is not None and (size := path.stat().st_size) > free:
            raise ImageError(f"{path}: has {size / 1e9:.1f} GB, more than the memory that is free; shrink it first")
        data = path.read_bytes()
    return PictureFile(data, str(path), path.suffix)


def _opened(data: bytes, name: str, ending: str) -> Content:
    if not data:
        raise ImageError(f"{name}: is no picture, but an empty file; {_EXPECTED}")
    found = format_of_content(data[:64], ending)
    if found is None:
        raise ImageError(f"{name}: is no picture of a kind that is opened here; {_EXPECTED}")
    if not can_be_read(found):
        raise ImageError(f"{name}: is {found.name}, which this Pillow was built without; save it as PNG")
    if found.kind == "PNG":
        return open_png(data, name)
    if found.kind == "TIFF":
        return open_tiff(data, name)
    if found.kind == "JPEG":
        return containers.open_jpeg(data, name)
    if found.kind == "AVIF":
        return containers.open_avif(data, name)
    if data.startswith(b"PF"):
        return containers.open_color_pfm(data, name)
    return containers.open_other(data, name, found)


@contextmanager
def _in_a_sentence(name: str, need: int = 0, opening: bool = False) -> Generator[None, None, None]:
    """Whatever a decoder raises as the ImageError that is true of it; Pillow's warnings are not shown.

    opening: while the header is read, of which Pillow raises OSError for damage and for kinds that it does not know.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except Op4ksrError:
        raise
    except NotReadError as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise ImageError(f"{name}: has more than {limit:.0f} megapixels, Pillow's limit; shrink it first") from error
    except (MemoryError, *BROKEN) as error:
        if is_out_of_memory(error) or isinstance(error, MemoryError):
            free = system_memory()
            if need > _SMALL or (free is not None and free < 2 * _SMALL):
                raise ImageError(
                    f"{name}: memory ran out while it was read, for which it takes about {need / 1e9:.2f} GB; "
                    "shrink it first, or free memory"
                ) from error
            error = ValueError("it asks for more memory than its size needs")
        reason = plain(error) or type(error).__name__
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({reason})"
        if opening and isinstance(error, OSError):
            raise ImageError(f"{name}: {_UNSURE}{why}; save it again from its source, as an ordinary PNG") from error
        raise ImageError(f"{name}: is damaged or cut short{why}; save it again from its source") from error


# --- pixels ----------------------------------------------------------------------------------------


def planes_of(picture: Image.Image) -> tuple[Tensor, Tensor | None]:
    """A Pillow picture of any mode -> image (1, 3, H, W) and alpha (1, 1, H, W) or None, float32 in [0, 1]."""
    if (deep := _deep(picture, [])) is not None:
        return _tensor(deep.colors), None
    if picture.mode == "La":  # Pillow converts it to nothing else
        picture = picture.convert("LA")
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info
    pixels = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"))
    return _tensor(pixels[..., :3]), _tensor(pixels[..., 3:], 1) if has_alpha else None


def _deep(picture: Image.Image, told: list[str]) -> Deep | None:
    """Pillow's grey pictures of more than 8 bits; None for others. Integers of 32 bits are taken for 16."""
    if picture.mode.startswith("I"):
        return Deep(np.asarray(picture).clip(0, 65535).astype(np.uint16)[..., None])
    if picture.mode == "F":
        return Deep(floats_in_range(np.asarray(picture), None, told)[..., None])
    return None


def _deep_planes(deep: Deep, found: Content, name: str) -> tuple[Tensor, Tensor | None]:
    colors = deep_to_srgb(deep.colors, found.profile, found.space, name)
    image = _tensor(turned_array(colors, found.orientation))
    if deep.alpha is None:
        return image, None
    return image, _tensor(turned_array(deep.alpha[..., None], found.orientation), 1)


#: The largest number of each kind of sample.
_TOPS: dict[Any, int] = {np.dtype(np.uint8): 255, np.dtype(np.uint16): 65535, np.dtype(np.float32): 1}


def _tensor(pixels: Samples, channels: int = 3) -> Tensor:
    """(H, W, 1 or 3) uint8, uint16 or float32 in [0, 1] -> (1, channels, H, W) float32; grey as often as asked."""
    height, width, own = pixels.shape
    out = torch.empty(1, channels, height, width)
    for index in range(channels):
        plane = np.array(pixels[..., min(index, own - 1)], np.float32, order="C")  # a copy: never of negative strides
        out[0, index] = torch.from_numpy(plane).div_(_TOPS[pixels.dtype])
    return out
