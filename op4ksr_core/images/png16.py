"""16-bit colour PNG, which Pillow reads in 8 bit only. ``png_writer`` writes it.

Pillow's own decoder undoes compression and filters either way; asked for little-endian samples it
hands out the second byte of each, so that two readings make all 16 bits.
"""

from __future__ import annotations

from typing import IO, Any

from PIL import Image

_LITTLE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def is_png16(picture: Image.Image) -> bool:
    """Whether an opened, not yet loaded picture is a PNG with 16 bits per colour."""
    return picture.format == "PNG" and _raw_mode(picture) in _LITTLE


def open_low_bytes(file: IO[bytes]) -> Image.Image:
    """The same picture as ``Image.open(file)``, 8 bit, made of each sample's lower byte. Not yet loaded."""
    file.seek(0)
    picture: Any = Image.open(file)
    kind, box, offset, arguments = picture.tile[0]
    little = _LITTLE[_raw_mode(picture)]
    picture.tile = [(kind, box, offset, little if isinstance(arguments, str) else (little, *arguments[1:]))]
    return picture


def _raw_mode(picture: Any) -> str:
    if len(getattr(picture, "tile", ())) != 1:
        return ""
    arguments = picture.tile[0][3]
    return arguments if isinstance(arguments, str) else str(arguments[0])
