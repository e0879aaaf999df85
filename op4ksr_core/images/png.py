"""PNG of 8 or 16 bits per colour: written by all cores at once. Format: W3C PNG, third edition.

Bands of rows are made, filtered and compressed each by itself; their streams are joined, as pigz joins them: each
ends at a whole byte without being the last one, and the checksums are combined. What is written does not depend on
the number of threads. Pillow compresses on one core, a second or more for 16 megapixels.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

#: Rows ``top`` to ``bottom`` of a picture: (bottom - top, W, channels) of uint8 or uint16. Called by several threads.
Rows = Callable[[int, int], NDArray[Any]]

#: Rows that are compressed together, and of them those that are made and filtered at a time, within a core's cache.
BAND, _SLICE = 128, 8

#: More threads than this were never tried, and would find little left to do.
MOST_THREADS = 16

#: PNG's number for pictures of 3 channels (RGB) and 4 (RGBA).
_COLOR_TYPE = {3: 2, 4: 6}

_PAETH = 4

#: Pillow's names of 16-bit samples with the higher byte first, as PNG has them -> with the lower byte first.
LITTLE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}

#: zlib's header: deflate with a window of 32 KB. And the modulus of its checksum.
_ZLIB_HEADER, _ADLER_BASE = b"\x78\x9c", 65521


@dataclass(frozen=True)
class PngOptions:
    """level: 0 to 9, and strategy, as zlib counts them; run lengths alone (``Z_RLE``) are our choice (docs/speed.md).

    texts: keyword -> text, written in front of the picture. threads: None for one per core.
    """

    level: int = 6
    strategy: int = zlib.Z_RLE
    texts: Mapping[str, str] = field(default_factory=dict[str, str])
    threads: int | None = None


def write_png(
    file: IO[bytes], size: tuple[int, int], channels: int, bits: int, rows: Rows, options: PngOptions | None = None
) -> None:
    """Write a picture of (height, width) px, 3 or 4 channels, 8 or 16 bits per colour, every row by the Paeth filter.

    ``rows`` is asked for a few rows at a time, by several threads. Lets through what it or ``file`` raises.
    """
    options = options or PngOptions()
    height, width = size
    file.write(b"\x89PNG\r\n\x1a\n")
    _chunk(file, b"IHDR", struct.pack(">IIBBBBB", width, height, bits, _COLOR_TYPE[channels], 0, 0, 0))
    for keyword, text in options.texts.items():
        _chunk(file, *_text(keyword, text))
    threads = options.threads or min(MOST_THREADS, os.cpu_count() or 1)
    pool = ThreadPoolExecutor(threads, "op4ksr-png")
    try:
        bands = pool.map(lambda top: _band(rows, top, height, options), range(0, height, BAND))
        start, adler = _ZLIB_HEADER, 1
        for compressed, own, length in bands:
            _chunk(file, b"IDAT", start + compressed)
            start, adler = b"", combined_adler(adler, own, length)
    finally:
        pool.shutdown(cancel_futures=True)
    _chunk(file, b"IDAT", struct.pack(">I", adler))
    _chunk(file, b"IEND", b"")


def _band(rows: Rows, top: int, height: int, options: PngOptions) -> tuple[bytes, int, int]:
    """One band: its deflate stream, and of the filtered bytes the checksum and the number."""
    bottom = min(height, top + BAND)
    content = filtered(rows, top, bottom).tobytes()
    deflate = zlib.compressobj(options.level, zlib.DEFLATED, -zlib.MAX_WBITS, 9, options.strategy)
    compressed = deflate.compress(content)
    compressed += deflate.flush(zlib.Z_FINISH if bottom == height else zlib.Z_SYNC_FLUSH)
    return compressed, zlib.adler32(content), len(content)


def combined_adler(first: int, second: int, length: int) -> int:
    """Adler-32 of two pieces one after the other, of their own and the second one's length (RFC 1950)."""
    (low, high), (low2, high2) = ((value & 0xFFFF, value >> 16) for value in (first, second))
    return (low + low2 - 1) % _ADLER_BASE | (high + high2 + length * (low - 1)) % _ADLER_BASE << 16


def filtered(rows: Rows, top: int, bottom: int) -> NDArray[np.uint8]:
    """Rows as they are compressed, (bottom - top, 1 + bytes of a row): the filter's number, and what it left."""
    above: NDArray[np.uint8] | None = _bytes(rows(top - 1, top)) if top else None
    out: NDArray[np.uint8] | None = None
    for start in range(top, bottom, _SLICE):
        pixels = rows(start, min(bottom, start + _SLICE))
        band, step = _bytes(pixels), pixels.shape[2] * pixels.itemsize
        if out is None:
            out = np.empty((bottom - top, 1 + band.shape[1]), np.uint8)
            out[:, 0] = _PAETH
        before = np.zeros((1, band.shape[1]), np.uint8) if above is None else above
        place = slice(start - top, start - top + len(band))
        out[place, 1:] = _paeth(band, np.concatenate([before, band[:-1]]), step)
        above = band[-1:]
    assert out is not None
    return out


def _bytes(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """(n, W, C) -> (n, bytes of a row); 16 bits the higher byte first."""
    ordered = pixels.astype(">u2") if pixels.itemsize == 2 else np.ascontiguousarray(pixels)
    return ordered.view(np.uint8).reshape(len(pixels), -1)


def _paeth(row: NDArray[Any], above: NDArray[Any], step: int) -> NDArray[np.uint8]:
    """Each byte minus its predictor: left, above or above left, whichever is nearest left + above - above left."""
    b = above.astype(np.int16)
    a, c = np.zeros_like(b), np.zeros_like(b)
    a[:, step:], c[:, step:] = row[:, :-step], above[:, :-step]
    from_a, from_b = np.abs(b - c), np.abs(a - c)
    from_c = np.abs(a + b - 2 * c)
    predictor = np.where((from_a <= from_b) & (from_a <= from_c), a, np.where(from_b <= from_c, b, c))
    return (row - predictor).astype(np.uint8)


def _text(keyword: str, text: str) -> tuple[bytes, bytes]:
    """The chunk of a text: Latin-1 as it is, else UTF-8."""
    try:
        return b"tEXt", keyword.encode("latin-1") + b"\0" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"iTXt", keyword.encode("latin-1") + b"\0\0\0\0\0" + text.encode("utf-8")


def _chunk(file: IO[bytes], kind: bytes, content: bytes) -> None:
    file.write(struct.pack(">I", len(content)) + kind + content)
    file.write(struct.pack(">I", zlib.crc32(content, zlib.crc32(kind))))
