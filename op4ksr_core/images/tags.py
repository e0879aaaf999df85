"""TIFF's directories of tags, of which EXIF is one: read with all their oddities, and of EXIF the orientation alone.

Format: TIFF 6.0, and BigTIFF. Whatever in a directory is odd is left out; nothing in it is ever rewritten.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

#: TIFF's and EXIF's tag for how the picture is turned.
ORIENTATION = 274

#: Types of numbers -> struct's letters; ratios are two numbers, and of no tag that is used here.
_LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 7: "B", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q"}
_SIZES = {2: 1, 5: 8, 10: 8, 18: 8, **{kind: struct.calcsize(letter) for kind, letter in _LETTERS.items()}}

#: Types that an orientation may have: whole numbers, as cameras and editors write them.
_WHOLE = {1, 3, 4, 6, 8, 9, 13, 16, 17}

#: Longest list of numbers that is read: offsets of more strips no picture has.
_MOST_VALUES = 2**24

#: Directories that are followed at most.
_MOST_PAGES = 65536


@dataclass(frozen=True)
class Header:
    """How the file's numbers are written, and where its first directory is. big: BigTIFF, with 64-bit offsets."""

    order: str
    big: bool
    first: int

    @property
    def offset_letter(self) -> str:
        return "Q" if self.big else "I"


@dataclass(frozen=True)
class Tag:
    """kind: TIFF's type. at: where the ``count`` values begin."""

    kind: int
    count: int
    at: int


Directory = dict[int, Tag]


def header_of(data: bytes) -> Header:
    """Raises ValueError where the content does not begin as a TIFF does."""
    order = {b"II": "<", b"MM": ">"}.get(bytes(data[:2]))
    if order is None or len(data) < 8:
        raise ValueError("no TIFF header")
    (magic,) = struct.unpack_from(order + "H", data, 2)
    if magic == 42:
        return Header(order, False, struct.unpack_from(order + "I", data, 4)[0])
    if magic == 43 and len(data) >= 16:
        return Header(order, True, struct.unpack_from(order + "Q", data, 8)[0])
    raise ValueError("no TIFF header")


def directory_at(data: bytes, head: Header, at: int) -> tuple[Directory, int]:
    """The directory there, and where the next one is; 0 after the last. Raises ValueError where it is cut short."""
    size, value, letter = (20, 12, "Q") if head.big else (12, 8, "H")
    first = at + struct.calcsize(head.order + letter)
    if not 0 < at <= len(data) - (first - at):
        raise ValueError("its directory lies outside the file")
    (count,) = struct.unpack_from(head.order + letter, data, at)
    end = first + size * count
    if end > len(data):
        raise ValueError("its directory is cut short")
    found: Directory = {}
    for place in range(first, end, size):
        tag, kind, number = struct.unpack_from(head.order + ("HHQ" if head.big else "HHI"), data, place)
        inside = _SIZES.get(kind, 1) * number <= size - value
        offset = (
            place + value if inside else struct.unpack_from(head.order + head.offset_letter, data, place + value)[0]
        )
        found.setdefault(tag, Tag(kind, number, offset))
    following = 0
    if end + struct.calcsize(head.order + head.offset_letter) <= len(data):
        (following,) = struct.unpack_from(head.order + head.offset_letter, data, end)
    return found, following


def size_of(kind: int) -> int:
    """Bytes of a value of TIFF's type ``kind``; 1 of an unknown one."""
    return _SIZES.get(kind, 1)


def numbers(data: bytes, head: Header, tag: Tag | None) -> tuple[Any, ...]:
    """A tag's numbers; none where it is missing, of another type, or outside the file."""
    letter = _LETTERS.get(tag.kind) if tag else None
    if tag is None or letter is None or not 0 < tag.count <= _MOST_VALUES:
        return ()
    if tag.at + tag.count * _SIZES[tag.kind] > len(data):
        return ()
    return struct.unpack_from(f"{head.order}{tag.count}{letter}", data, tag.at)


def content(data: bytes, tag: Tag | None) -> bytes:
    """A tag's bytes, as of a profile; empty where it is missing or outside the file."""
    if tag is None or _SIZES.get(tag.kind) != 1 or tag.at + tag.count > len(data):
        return b""
    return bytes(data[tag.at : tag.at + tag.count])


def count_directories(data: bytes, head: Header, first: int) -> int:
    """Pages of a file whose first directory is read: until the last, one that was seen, or one that is broken."""
    seen: set[int] = set()
    at = first
    while at and at not in seen and len(seen) < _MOST_PAGES:
        try:
            _, following = directory_at(data, head, at)
        except ValueError:
            break
        seen.add(at)
        at = following
    return max(1, len(seen))


def orientation_of(data: bytes, head: Header, directory: Directory) -> int:
    """1 to 8; 1, upright, where the tag is missing or odd."""
    tag = directory.get(ORIENTATION)
    if tag is not None and tag.kind == 2:
        return _from_text(content(data, tag).strip(b"\0 ").decode("latin-1"))
    values = numbers(data, head, tag) if tag is not None and tag.kind in _WHOLE else ()
    return values[0] if values and values[0] in range(1, 9) else 1


def _from_text(text: str) -> int:
    return int(text) if text in tuple("12345678") else 1


def exif_orientation(exif: bytes | None, xmp: bytes | str | None = None) -> int:
    """The orientation that EXIF states, 1 to 8; where it has no such tag XMP's, as Pillow takes it; else 1.

    exif: the block with or without its head "Exif". Nothing in it makes an error.
    """
    data = (exif or b"").removeprefix(b"Exif\0\0")
    try:
        head = header_of(data)
        directory, _ = directory_at(data, head, head.first)
    except (ValueError, struct.error):
        directory, head = {}, None
    if head is not None and ORIENTATION in directory:
        return orientation_of(data, head, directory)
    text = xmp.decode("latin-1") if isinstance(xmp, bytes) else xmp or ""
    found = re.search(r"tiff:Orientation(?:=[\"']|>)([1-8])", text)
    return int(found[1]) if found else 1


# --- turning ------------------------------------------------------------------------------------

_TURN = Image.Transpose
_METHODS = {
    2: _TURN.FLIP_LEFT_RIGHT,
    3: _TURN.ROTATE_180,
    4: _TURN.FLIP_TOP_BOTTOM,
    5: _TURN.TRANSPOSE,
    6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE,
    8: _TURN.ROTATE_90,
}

_ARRAYS: dict[int, Callable[[NDArray[Any]], NDArray[Any]]] = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """A Pillow picture upright, by EXIF's orientation 1 to 8; as it is for any other number."""
    return picture.transpose(_METHODS[orientation]) if orientation in _METHODS else picture


def turned_array(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """(H, W, ...) -> upright, as a view."""
    return _ARRAYS[orientation](pixels) if orientation in _ARRAYS else pixels


def upright_size(size: Sequence[int], orientation: int) -> tuple[int, int]:
    """(height, width) as stored -> as seen."""
    return (size[1], size[0]) if orientation >= 5 else (size[0], size[1])
