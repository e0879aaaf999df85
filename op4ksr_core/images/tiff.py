"""TIFF files: what Pillow reads rightly as it reads it, and every other kind of sample from the bytes it unpacks.

For those the file is given to Pillow as a wide grey picture of its bytes: compression and tiles stay Pillow's, while
predictors, byte order, planes, white-is-zero and transparency are undone here. Format: TIFF 6.0, its technical note 3
(floating-point predictor), BigTIFF.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image, TiffImagePlugin

from .content import Content, Deep, NotReadError, Pixels, Samples, check_claim, floats_in_range, integers_in_range
from .tags import (
    Directory,
    Header,
    content,
    count_directories,
    directory_at,
    header_of,
    numbers,
    orientation_of,
    size_of,
)

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES, _PLANAR, _PREDICTOR, _PALETTE = 273, 277, 278, 279, 284, 317, 320
_KIND, _SMALLER_COPY, _DNG = 254, 1, 50706
_TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, _EXTRA, _FORMAT = 322, 323, 324, 325, 338, 339
_LEAST, _MOST, _JPEG_TABLES, _PROFILE = 340, 341, 347, 34675

#: Tags that Pillow needs for the pixels; all others are left out.
_KEPT: tuple[int, ...] = (
    *(_KIND, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _STRIPS, _SAMPLES, _ROWS, _STRIP_BYTES),
    *(_PLANAR, 292, 293, _PREDICTOR, _PALETTE, _TILE_WIDTH, _TILE_HEIGHT, _TILES, _TILE_BYTES, 332, _EXTRA, _FORMAT),
    *(_JPEG_TABLES, 512, 513, 514, 515, 517, 518, 519, 520, 521, 529, 530, 531, 532),
)

#: Compressions of bytes, which do not look at what the bytes mean: none, LZW, deflate (two numbers), PackBits, LZMA,
#: Zstandard.
_OF_BYTES = (1, 5, 8, 32946, 32773, 34925, 50000)

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _CMYK, _YCBCR = 0, 1, 2, 5, 6

#: Photometric interpretations whose samples are read here -> colours.
_COLORS = {_WHITE_IS_ZERO: 1, _BLACK_IS_ZERO: 1, _RGB: 3, _CMYK: 4}

#: What an extra sample is.
_PREMULTIPLIED, _ALPHA = 1, 2

#: Sample formats -> NumPy's letters.
_LETTERS = {1: "u", 2: "i", 3: "f"}


@dataclass
class _Tiff:
    data: bytes
    head: Header
    directory: Directory
    told: list[str] = field(default_factory=list[str])

    def values(self, tag: int, *default: int) -> tuple[Any, ...]:
        return numbers(self.data, self.head, self.directory.get(tag)) or default

    def one(self, tag: int, default: int) -> int:
        return int(self.values(tag, default)[0])


def open_tiff(data: bytes, name: str) -> Content:
    """Raises ValueError, with what is wrong in words, NotReadError, and what Pillow raises."""
    head = header_of(data)
    directory, _ = directory_at(data, head, head.first)
    tiff = _Tiff(data, head, directory)
    width, height = tiff.one(_WIDTH, 0), tiff.one(_HEIGHT, 0)
    if width <= 0 or height <= 0:
        raise ValueError(f"its header says {width}x{height} px")
    check_claim(name, (width, height))
    if tiff.one(_KIND, 0) & _SMALLER_COPY:
        if _DNG in directory:
            raise NotReadError(
                "is a camera's raw photo (DNG), of which only a preview is a picture; develop it, and save it as TIFF"
            )
        tiff.told.append(
            "its first picture, which is taken, is marked as a smaller copy of another; is it a raw photo?"
        )
    return Content(
        size=(width, height),
        decode=lambda: _decode(tiff),
        orientation=orientation_of(data, head, directory),
        profile=content(data, directory.get(_PROFILE)) or None,
        pages=count_directories(data, head, head.first),
        cost=28 + 4 * _bytes_per_pixel(tiff),
        told=tiff.told,
    )


def _bytes_per_pixel(tiff: _Tiff) -> int:
    return min(64, max(1, tiff.one(_SAMPLES, 1))) * max(1, min(64, tiff.one(_BITS, 1)) // 8)


def _decode(tiff: _Tiff) -> Pixels:
    bits, samples = _bits_and_samples(tiff)
    _check_ends(tiff, bits, samples)
    if not _is_ours(tiff, bits, samples):
        tail: list[bytes] = []
        entries = _same_entries(tiff, tail)
        try:
            picture = _pillow(_with_directory(_even(tiff.data) + b"".join(tail), tiff.head.order, entries))
        except SyntaxError as error:  # of the directory, which was read here
            if len(entries) < sum(tag in tiff.directory for tag in _KEPT):
                raise ValueError("it ends within its directory") from error
            raise NotReadError("is a TIFF of a rare kind that is not read; save it as RGB, or as PNG") from error
        if bits == 12:  # as Pillow leaves it
            values = np.asarray(picture).astype(np.uint32)
            return Deep(((values * 65535 + 2047) // 4095).clip(0, 65535).astype(np.uint16)[..., None])
        return picture
    planes = _samples(tiff, bits // 8, samples)
    return _meant(tiff, planes)


def _bits_and_samples(tiff: _Tiff) -> tuple[int, int]:
    """Bits of every sample, and samples of a pixel. Raises NotReadError for kinds that no picture program writes."""
    kinds, samples = set(tiff.values(_BITS, 1)), tiff.one(_SAMPLES, 1)
    formats = set(tiff.values(_FORMAT, 1))
    bits = kinds.pop() if len(kinds) == 1 else 0
    known = {1: (8, 16, 32, 64), 2: (8, 16, 32, 64), 3: (16, 32, 64)}
    kind = formats.pop() if len(formats) == 1 else 0
    small = bits in (1, 2, 4) or (bits == 12 and samples == 1)
    if not 1 <= samples <= 64 or not (bits in known.get(kind, ()) or (kind in (1, 4) and small) or kind == 4):
        raise NotReadError(
            f"has samples of a kind that is not read ({bits or 'unequal'} bits, format {kind or 'unequal'}); "
            "save it with 8 or 16 bits per colour"
        )
    return bits, samples


def _check_ends(tiff: _Tiff, bits: int, samples: int) -> None:
    """Raise ValueError where the file ends before its pixels: what is added to it must not be taken for them."""
    tiled = _TILES in tiff.directory
    places = tiff.values(_TILES if tiled else _STRIPS)
    lengths = tiff.values(_TILE_BYTES if tiled else _STRIP_BYTES)
    if tiff.one(_COMPRESSION, 1) == 1 and tiff.one(_PHOTOMETRIC, _BLACK_IS_ZERO) != _YCBCR:
        height, width = tiff.one(_HEIGHT, 0), tiff.one(_WIDTH, 0)
        own = 1 if tiff.one(_PLANAR, 1) == 2 else samples
        rows = tiff.one(_TILE_HEIGHT, 0) if tiled else min(height, tiff.one(_ROWS, 2**31))
        row = -(-(tiff.one(_TILE_WIDTH, 0) if tiled else width) * own * bits // 8)
        strips = max(1, -(-height // max(1, rows)))
        lengths = tuple(
            row * (rows if tiled else min(rows, height - index % strips * rows)) for index in range(len(places))
        )
    if any(place + length > len(tiff.data) for place, length in zip(places, lengths, strict=False)):
        raise ValueError("it ends within its pixels")


def _is_ours(tiff: _Tiff, bits: int, samples: int) -> bool:
    """Whether the samples are read here: what Pillow lacks, reduces, or takes for something else."""
    photometric, fits = tiff.one(_PHOTOMETRIC, _BLACK_IS_ZERO), bits in (8, 16, 32, 64)
    colors = _COLORS.get(photometric)
    if not fits or colors is None or samples < colors or tiff.one(_COMPRESSION, 1) not in _OF_BYTES:
        return False
    plain = bits == 8 and photometric != _WHITE_IS_ZERO and samples == colors
    return not (plain and tiff.one(_PLANAR, 1) == 1 and tiff.one(_FORMAT, 1) in (1, 4))


def _pillow(data: bytes) -> Image.Image:
    """The picture of these bytes, loaded. Not by ``Image.open``: its limit on pixels is for pixels, not bytes."""
    picture = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    picture.load()
    return picture


# --- directories that Pillow is given -------------------------------------------------------------
#
# Always classic ones: BigTIFF with the higher byte first is not opened by Pillow (seen in 13.0).


def _with_directory(data: bytes, order: str, entries: Sequence[bytes]) -> bytes:
    """The file with another first directory, and no other; what entries refer to stays where it is."""
    body = _even(data)
    if len(body) >= 2**32 - 2**16:
        raise NotReadError("has more than 4 GB, which is not read; save it in a smaller size")
    start = (b"II" if order == "<" else b"MM") + struct.pack(order + "HI", 42, len(body))
    count, following = struct.pack(order + "H", len(entries)), bytes(4)
    return b"".join((start, body[len(start) :], count, *entries, following))


def _even(data: bytes) -> bytes:
    return data + bytes(len(data) % 2)


def _same_entries(tiff: _Tiff, tail: list[bytes]) -> list[bytes]:
    """The entries that Pillow needs, as they are, but with offsets of 32 bits."""
    end, entries = len(_even(tiff.data)), list[bytes]()
    for number in _KEPT:
        tag = tiff.directory.get(number)
        if tag is None:
            continue
        if tag.kind in (16, 17):
            entries.append(_entry(tiff.head, number, tiff.values(number), end, tail))
        elif tag.count > 0 and tag.at + tag.count * size_of(tag.kind) <= len(tiff.data):
            packed = bytes(tiff.data[tag.at : tag.at + tag.count * size_of(tag.kind)])
            if number == _PALETTE and tag.kind == 3 and max(tiff.values(_PALETTE)) < 256:
                packed = bytes(byte for value in tiff.values(_PALETTE) for byte in (value, value))  # of 8 bits, not 16
            entries.append(_packed_entry(tiff.head, number, tag.kind, tag.count, packed, end, tail))
    return entries


def _entry(head: Header, number: int, values: Sequence[int], end: int, tail: list[bytes]) -> bytes:
    """An entry of whole numbers of 32 bits. Raises ValueError for larger ones."""
    if any(not 0 <= value < 2**32 for value in values):
        raise ValueError(f"its tag {number} is out of range")
    packed = struct.pack(f"{head.order}{len(values)}I", *values)
    return _packed_entry(head, number, 4, len(values), packed, end, tail)


def _packed_entry(
    head: Header, number: int, kind: int, count: int, packed: bytes, end: int, tail: list[bytes]
) -> bytes:
    """An entry; values that do not fit into it are added to the file's tail, which begins at ``end``."""
    if len(packed) > 4:
        place = end + sum(map(len, tail))
        tail.append(_even(packed))
        packed = struct.pack(head.order + "I", place)
    return struct.pack(head.order + "HHI", number, kind, count) + packed.ljust(4, b"\0")


#: Bytes that Pillow unpacks at a time, where there are several strips: its limit on pixels stays far.
_BAND = 2**26


def _byte_rows(tiff: _Tiff, width: int, tile: int, plane: slice) -> Samples:
    """The rows of the strips or tiles in ``plane``, (H, width) uint8; width, and tile (0 for none), in bytes."""
    offsets, sizes = (_TILES, _TILE_BYTES) if tile else (_STRIPS, _STRIP_BYTES)
    places, lengths = tiff.values(offsets)[plane], tiff.values(sizes)[plane]
    height, across = tiff.one(_HEIGHT, 0), width // tile if tile else 1
    rows = tiff.one(_TILE_HEIGHT, 0) if tile else min(tiff.one(_ROWS, 2**31), height)
    if not places or rows <= 0 or len(places) < -(-height // rows) * across:
        raise ValueError("it does not say where all its pixels are")
    out = np.empty((height, width), np.uint8)
    at_once = max(1, _BAND // (rows * width))  # strips, or rows of tiles
    for first in range(0, -(-height // rows), at_once):
        part = slice(first * across, (first + at_once) * across)
        band = out[first * rows : (first + at_once) * rows]
        kind: dict[int, Sequence[int]] = {offsets: places[part], sizes: lengths[part]}
        kind |= {_TILE_WIDTH: (tile,), _TILE_HEIGHT: (rows,)} if tile else {_ROWS: (rows,)}
        band[:] = _unpacked(tiff, kind, *band.shape)
    return out


def _unpacked(tiff: _Tiff, kind: dict[int, Sequence[int]], height: int, width: int) -> Samples:
    """(height, width) bytes, by Pillow, as a picture of 4, 2 or 1 bytes in a pixel; ``kind``: tags of its strips."""
    tile, fill = kind.get(_TILE_WIDTH, (0,))[0], tiff.one(_FILL_ORDER, 1)
    each = next(n for n in (4, 2, 1) if n == 1 or (width % n == 0 and tile % (16 * n) == 0 and fill == 1))
    wanted = kind | {
        _WIDTH: (width // each,),
        _HEIGHT: (height,),
        _BITS: (8,) * each,
        _COMPRESSION: (tiff.one(_COMPRESSION, 1),),
        _PHOTOMETRIC: (_RGB if each == 4 else _BLACK_IS_ZERO,),
        _FILL_ORDER: (fill,),
        _SAMPLES: (each,),
        _EXTRA: (_ALPHA,) if each > 1 else (),
    }
    if tile:
        wanted[_TILE_WIDTH] = (tile // each,)
    tail: list[bytes] = []
    end = len(_even(tiff.data))
    entries = [_entry(tiff.head, tag, values, end, tail) for tag, values in sorted(wanted.items()) if values]
    picture = _pillow(_with_directory(_even(tiff.data) + b"".join(tail), tiff.head.order, entries))
    if picture.mode != {4: "RGBA", 2: "LA", 1: "L"}[each]:
        raise ValueError(f"its bytes were unpacked as {picture.mode}")
    return np.asarray(picture).reshape(height, width)


# --- samples from bytes ----------------------------------------------------------------------------


def _samples(tiff: _Tiff, size: int, samples: int) -> Samples:
    """(H, W, samples) in the machine's order, predictors undone; ``size``: bytes of each sample."""
    width, height = tiff.one(_WIDTH, 0), tiff.one(_HEIGHT, 0)
    tile = tiff.one(_TILE_WIDTH, 0) if _TILES in tiff.directory else 0
    if tile < 0 or (tile and tile % 16):
        raise ValueError(f"its tiles are {tile} px wide")
    whole = -(-width // tile) * tile if tile else width  # with the last tile's rest, which predictors need
    apart = tiff.one(_PLANAR, 1) == 2 and samples > 1
    own = 1 if apart else samples
    strips = len(tiff.values(_TILES if tile else _STRIPS))
    count = samples if apart else 1
    if strips % count:
        raise ValueError(f"it has {strips} strips for {samples} planes")
    kind = np.dtype(f"{tiff.head.order}{_LETTERS[max(1, tiff.one(_FORMAT, 1) % 4)]}{size}")
    planes: list[Samples] = []
    for index in range(count):
        part = slice(index * strips // count, (index + 1) * strips // count)
        rows = _byte_rows(tiff, whole * own * size, tile * own * size, part)
        planes.append(_unpredicted(rows, kind, own, tile or whole, tiff.one(_PREDICTOR, 1))[:, :width])
    out = np.concatenate(planes, -1)
    if out.shape != (height, width, samples):
        raise ValueError(f"its pixels are {out.shape}, its header says {height, width, samples}")
    return out.astype(kind.newbyteorder("="))


def _unpredicted(rows: Samples, kind: np.dtype[Any], own: int, tile: int, predictor: int) -> Samples:
    """Bytes of rows -> (H, W, own): differences along each tile's rows summed up, floats put together again."""
    height = len(rows)
    if predictor == 1:
        return np.ascontiguousarray(rows).view(kind).reshape(height, -1, own)
    tiles = rows.reshape(height, -1, tile * own * kind.itemsize)
    if predictor == 2:
        whole = kind if kind.kind != "f" else np.dtype(f"{kind.byteorder}u{kind.itemsize}")
        steps = np.ascontiguousarray(tiles).view(whole).reshape(*tiles.shape[:2], tile, own)
        unsigned = np.dtype(f"u{kind.itemsize}")
        summed = np.cumsum(steps.astype(unsigned), axis=2, dtype=unsigned)
        return summed.view(np.dtype(f"{kind.kind}{kind.itemsize}")).reshape(height, -1, own)
    if predictor == 3 and kind.kind == "f":
        steps = tiles.reshape(*tiles.shape[:2], -1, own)
        summed = np.cumsum(steps, axis=2, dtype=np.uint8).reshape(*tiles.shape[:2], kind.itemsize, tile * own)
        ordered = np.ascontiguousarray(summed.swapaxes(2, 3))  # the highest byte first, whatever the file's order
        return ordered.view(f">f{kind.itemsize}").reshape(height, -1, own)
    raise ValueError(f"its predictor {predictor} is not known")


# --- what samples mean -----------------------------------------------------------------------------


def _meant(tiff: _Tiff, planes: Samples) -> Pixels:
    """Samples -> colours and transparency, as many bits as they have; CMYK in 8."""
    photometric = tiff.one(_PHOTOMETRIC, _BLACK_IS_ZERO)
    count = _COLORS[photometric]
    place, extra = _extra(tiff, planes.shape[2])
    ranged = _ranged(planes[..., [*range(count), *([place] if extra else [])]], tiff)
    colors, alpha = ranged[..., :count], ranged[..., count] if extra else None
    if photometric == _CMYK:
        return _cmyk(colors, alpha, tiff)
    if alpha is not None and extra == _PREMULTIPLIED:
        colors = _straight(colors, alpha)
    if photometric == _WHITE_IS_ZERO:
        colors = _white(colors) - colors
    if colors.dtype != np.uint8:
        return Deep(colors, alpha)
    bands = colors if alpha is None else np.dstack([colors, alpha])
    return Image.fromarray(np.ascontiguousarray(bands[..., 0] if bands.shape[2] == 1 else bands))


def _extra(tiff: _Tiff, samples: int) -> tuple[int, int]:
    """Which sample is transparency, and of what kind: 0 for none."""
    colors = _COLORS[tiff.one(_PHOTOMETRIC, _BLACK_IS_ZERO)]
    kinds = tiff.values(_EXTRA, _ALPHA if samples in (2, 4) else 0)[: samples - colors]
    found = ((place, int(kind)) for place, kind in enumerate(kinds, colors) if kind in (_PREMULTIPLIED, _ALPHA))
    return next(found, (colors, 0))


def _ranged(planes: Samples, tiff: _Tiff) -> Samples:
    """Unsigned 8 and 16 bits as they are; all else float32 in [0, 1]."""
    if planes.dtype.kind == "u" and planes.dtype.itemsize <= 2:
        return planes
    least, most = tiff.values(_LEAST), tiff.values(_MOST)
    stated = (float(min(least)), float(max(most))) if least and most and min(least) < max(most) else None
    take = floats_in_range if planes.dtype.kind == "f" else integers_in_range
    return take(planes, stated, tiff.told)


def _white(colors: Samples) -> Any:
    return np.float32(1) if colors.dtype.kind == "f" else np.iinfo(colors.dtype).max


def _straight(colors: Samples, alpha: Samples) -> Samples:
    """Premultiplied colours -> their own; black where nothing is seen. 16 bits become floats, which keep more."""
    white = _white(colors)
    if colors.dtype == np.uint16:
        colors, alpha, white = colors / np.float32(white), alpha / np.float32(white), np.float32(1)
    weight = alpha[..., None].astype(np.float32)
    own = np.where(weight > 0, colors * np.float32(white) / np.maximum(weight, 1e-9), 0).clip(0, white)
    return own.round().astype(np.uint8) if colors.dtype == np.uint8 else own.astype(np.float32)


def _cmyk(colors: Samples, alpha: Samples | None, tiff: _Tiff) -> Image.Image:
    if colors.dtype != np.uint8:
        top = 1.0 if colors.dtype.kind == "f" else 65535.0
        tiff.told.append("has more than 8 bits per ink, of which 8 are read; save it as 16-bit RGB PNG to keep them")
        colors = (colors * (255 / top)).round().astype(np.uint8)
    if alpha is not None:
        tiff.told.append("its transparency is left out: with inks it is not read")
    return Image.fromarray(np.ascontiguousarray(colors), "CMYK")
