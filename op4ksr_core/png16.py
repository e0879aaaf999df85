"""16-bit colour PNG, which Pillow reads and writes in 8 bit only. Format: W3C PNG, third edition.

Reading: Pillow's own decoder undoes compression and filters either way; asked for little-endian samples it
hands out the second byte of each, so that two readings make all 16 bits.
"""

from __future__ import annotations

import struct
import zlib
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_LITTLE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}
_COLOR_TYPE = {3: 2, 4: 6}

#: Rows that are filtered and compressed at a time.
_BAND = 64


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


def write_png16(file: IO[bytes], pixels: NDArray[np.uint16], level: int = 6, strategy: int = zlib.Z_RLE) -> None:
    """Write (H, W, 3 or 4) uint16 as RGB or RGBA, every row by the Paeth filter; level and strategy are zlib's."""
    height, width, channels = pixels.shape
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, 16, _COLOR_TYPE[channels], 0, 0, 0))
    compressor = zlib.compressobj(level, zlib.DEFLATED, zlib.MAX_WBITS, 9, strategy)
    above = np.zeros((1, width * channels * 2), np.uint8)
    for start in range(0, height, _BAND):
        band = pixels[start : start + _BAND].astype(">u2").reshape(-1, width * channels).view(np.uint8)
        filtered = _paeth(band, np.concatenate([above, band[:-1]]), 2 * channels)
        rows = np.concatenate([np.full((len(band), 1), 4, np.uint8), filtered], axis=1)
        _chunk(file, b"IDAT", compressor.compress(rows.tobytes()))
        above = band[-1:]
    _chunk(file, b"IDAT", compressor.flush())
    _chunk(file, b"IEND", b"")


def _paeth(row: NDArray[Any], above: NDArray[Any], step: int) -> NDArray[Any]:
    """Each byte minus its predictor: left, above or above left, whichever is nearest left + above - above left."""
    b = above.astype(np.int16)
    a, c = np.zeros_like(b), np.zeros_like(b)
    a[:, step:], c[:, step:] = row[:, :-step], above[:, :-step]
    from_a, from_b = np.abs(b - c), np.abs(a - c)
    from_c = np.abs(a + b - 2 * c)
    predictor = np.where((from_a <= from_b) & (from_a <= from_c), a, np.where(from_b <= from_c, b, c))
    return (row - predictor).astype(np.uint8)


def _chunk(file: IO[bytes], kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
