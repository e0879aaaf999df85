"""JPEG and AVIF without what only disturbs: EXIF, texts and further pictures are left out before Pillow opens them.

Whatever is odd in EXIF then matters in no version of Pillow.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from .content import Content, Deep, NotReadError, check_claim, floats_in_range
from .formats import Format
from .spaces import Space, space_of_codes
from .tags import Header, directory_at, exif_orientation, header_of, numbers

#: JPEG's frames (SOF) that are not read: lossless and hierarchical ones, and those of JPEG-LS. Codes among them that
#: begin no frame: DHT, JPG, DAC.
_LS = 0xF7
_UNREAD_FRAMES = (0xC3, 0xC5, 0xC6, 0xC7, 0xCB, 0xCD, 0xCE, 0xCF, _LS)
_NO_FRAMES = (0xC4, 0xC8, 0xCC)

#: Pixels that a byte of a JPEG can stand for: a bit for each block of 8x8, in a channel of a quarter of the pixels.
_MOST_OF_A_BYTE = 8 * 64 * 4

_SOS, _APP0, _APP1, _APP2, _APP14, _LAST_APP, _COMMENT = 0xDA, 0xE0, 0xE1, 0xE2, 0xEE, 0xEF, 0xFE

_XMP = b"http://ns.adobe.com/xap/1.0/\0"

#: MPF's tag for how many pictures there are.
_MPF_COUNT = 0xB001


def open_jpeg(data: bytes, name: str) -> Content:
    """Raises what Pillow raises."""
    exif = xmp = None
    pages, kept, end = 1, [b"\xff\xd8"], 2
    for marker, body, after in _segments(data):
        end = after
        _check_frame(marker, body, len(data))
        if marker == _APP1 and body.startswith(b"Exif\0\0"):
            exif = exif or body
        elif marker == _APP1 and body.startswith(_XMP):
            xmp = xmp or body
        elif marker == _APP2 and body.startswith(b"MPF\0"):
            pages = _mpf_pictures(body[4:])
        elif _is_needed(marker, body):
            kept.append(struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body)
    picture = Image.open(io.BytesIO(b"".join((*kept, data[end:]))), formats=("JPEG",))
    return _content(picture, name, exif_orientation(exif, xmp), pages)


def _check_frame(marker: int, body: bytes, size: int) -> None:
    """Raise NotReadError for frames that no version of Pillow reads, ValueError for one of more than the file holds."""
    if not (0xC0 <= marker <= 0xCF or marker == _LS) or marker in _NO_FRAMES or len(body) < 6:
        return
    bits, height, width = struct.unpack_from(">BHH", body)
    if bits != 8 or marker in _UNREAD_FRAMES:
        kind = f"{bits} bits per colour" if marker in (0xC0, 0xC1, 0xC2) else "a rare coding (lossless or hierarchical)"
        raise NotReadError(f"is a JPEG with {kind}, which is not read; save it as an ordinary JPEG or PNG")
    if marker in (0xC0, 0xC1, 0xC2) and height * width > _MOST_OF_A_BYTE * size:
        raise ValueError(f"{size} bytes cannot hold its {width}x{height} px")


def _is_needed(marker: int, body: bytes) -> bool:
    """Whether a segment is the picture's, says how its colours are coded, or holds a part of its profile."""
    if marker == _APP2:
        return body.startswith(b"ICC_PROFILE\0")
    return marker in (_APP0, _APP14) or not (_APP0 <= marker <= _LAST_APP or marker == _COMMENT)


def _segments(data: bytes) -> Iterator[tuple[int, bytes, int]]:
    """Marker, content, and where it ends, up to the first scan, or to what is no segment."""
    at = 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # filling
            at += 1
            continue
        (length,) = struct.unpack_from(">H", data, at + 2)
        if marker == _SOS or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or length < 2 or at + 2 + length > len(data):
            return
        yield marker, data[at + 4 : at + 2 + length], at + 2 + length
        at += 2 + length


def _mpf_pictures(block: bytes) -> int:
    """Pictures that a multi-picture index counts; 1 where it is broken."""
    try:
        head: Header = header_of(block)
        found = numbers(block, head, directory_at(block, head, head.first)[0].get(_MPF_COUNT))
    except (ValueError, struct.error):
        return 1
    return max(1, int(found[0])) if found else 1


# --- AVIF ----------------------------------------------------------------------------------------

#: An item of EXIF in the index, up to its type; of a version that has a type.
_EXIF_ITEM = re.compile(rb"(infe[\x02\x03].{7,9}?)Exif", re.DOTALL)

#: Bytes of the file in which the index is looked for.
_INDEX = 2**20


def open_avif(data: bytes, name: str) -> Content:
    """Turned as its irot and imir say, which count in this format; EXIF is hidden from Pillow, which trips over it."""
    head = _EXIF_ITEM.sub(rb"\1none", data[:_INDEX])
    picture = Image.open(io.BytesIO(head + data[_INDEX:]), formats=("AVIF",))
    told: list[str] = []
    space = None if picture.info.get("icc_profile") else _nclx_space(data[:_INDEX], told)
    if (bits := _av1_bits(data[:_INDEX])) > 8:
        told.append(_reduced(bits))
    orientation = exif_orientation(picture.info.get("exif"))
    return _content(picture, name, orientation, _frames(picture), space, told)


def _nclx_space(head: bytes, told: list[str]) -> Space | None:
    at = head.find(b"colrnclx")
    if at < 0 or at + 15 > len(head):
        return None
    primaries, transfer = struct.unpack_from(">HH", head, at + 8)
    if transfer in (1, 6, 14, 15):  # what encoders of video write for want of another: browsers show it as sRGB
        transfer = 13
    try:
        return space_of_codes(primaries, transfer)
    except ValueError as error:
        told.append(f"its colours are {error} (nclx), which is not converted; they are taken for sRGB")
        return None


def _av1_bits(head: bytes) -> int:
    at = head.find(b"av1C")
    flags = head[at + 6] if at >= 0 and at + 6 < len(head) else 0
    return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10


def _reduced(bits: int) -> str:
    return f"has {bits} bits per colour, of which 8 are read; save it as 16-bit RGB PNG to keep them"


# --- the rest, as Pillow reads it ----------------------------------------------------------------


def open_other(data: bytes, name: str, found: Format) -> Content:
    """WebP, BMP, GIF, PPM, TGA and JPEG 2000. Raises what Pillow raises."""
    picture = Image.open(io.BytesIO(data), formats=(found.kind,))
    told: list[str] = []
    opaque = found.kind == "TGA" and _take_alpha_bit(picture) and data[17] & 15 == 0
    if found.kind == "JPEG2000" and (profile := _jpeg2000_profile(data)):
        picture.info["icc_profile"] = profile
    bits = {"PPM": _ppm_bits, "JPEG2000": _jpeg2000_bits}.get(found.kind, lambda _: 8)(data)
    if bits > 8 and picture.mode not in ("I", "F", "L") and not picture.mode.startswith("I;16"):
        told.append(_reduced(bits))
    orientation = exif_orientation(picture.info.get("exif"), picture.info.get("xmp"))
    pages = 1 if found.kind not in ("GIF", "WEBP") else _frames(Image.open(io.BytesIO(data), formats=(found.kind,)))
    return _content(picture, name, orientation, pages, None, told, opaque)


def _frames(picture: Image.Image) -> int:
    """Pictures in the file; 1 where that cannot be told."""
    try:
        return int(getattr(picture, "n_frames", 1))
    except (OSError, SyntaxError, ValueError, LookupError, RuntimeError, struct.error):
        return 1


def _take_alpha_bit(picture: Any) -> bool:
    """Whether a TGA is of 16 bits: the highest is then opacity, which Pillow takes for transparency (seen in 13.0)."""
    changed = [
        (*place, tuple("BGRA;15" if each == "BGRA;15Z" else each for each in arguments))
        for *place, arguments in picture.tile
    ]
    if changed == [tuple(each) for each in picture.tile]:
        return False
    picture.tile = changed
    return True


def _boxes(data: bytes, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Type, and where the content begins and ends, of ISO boxes."""
    while at + 8 <= end:
        size, kind, first = struct.unpack_from(">I", data, at)[0], data[at + 4 : at + 8], at + 8
        if size == 1 and at + 16 <= end:
            size, first = struct.unpack_from(">Q", data, first)[0], at + 16
        after = at + size if size else end
        if not first <= after <= end:
            return
        yield kind, first, after
        at = after


def _jpeg2000_profile(data: bytes) -> bytes | None:
    """The ICC profile of a JP2's header, which Pillow passes over (seen in 13.0)."""
    for kind, first, after in _boxes(data, 0, len(data)):
        if kind == b"jp2h":
            for inner, start, end in _boxes(data, first, after):
                if inner == b"colr" and data[start : start + 1] in (b"\2", b"\3"):
                    return data[start + 3 : end]
    return None


def open_color_pfm(data: bytes, name: str) -> Content:
    """PFM in colour, which Pillow does not read: floats from below upwards; a negative scale: lower bytes first."""
    found = re.match(rb"PF\s+(\d{1,9})\s+(\d{1,9})\s+([-+.\deE]{1,40})\s", data[:256])
    try:
        if found is None or not np.isfinite(scale := float(found[3])) or not scale:
            raise ValueError
    except ValueError:
        raise ValueError("its header is broken") from None
    width, height = int(found[1]), int(found[2])
    if not (width and height):
        raise ValueError(f"its header says {width}x{height} px")
    check_claim(name, (width, height))
    told: list[str] = []

    def decode() -> Deep:
        if len(data) - found.end() < height * width * 12:
            raise ValueError("it ends within its pixels")
        kind = "<f4" if scale < 0 else ">f4"
        values = np.frombuffer(data, kind, height * width * 3, found.end()).reshape(height, width, 3)[::-1]
        return Deep(floats_in_range(values, None, told))

    return Content((width, height), decode, told=told, cost=64)


def _ppm_bits(data: bytes) -> int:
    """By the largest value, which is the third number after P6 or P3."""
    words = re.sub(rb"#[^\n]*", b" ", data[2:512]).split()
    largest = words[2] if len(words) > 2 and data[:2] in (b"P6", b"P3") else b"255"
    return 16 if largest.isdigit() and len(largest) < 6 and int(largest) > 255 else 8


def _jpeg2000_bits(data: bytes) -> int:
    """By the codestream's SIZ: 36 bytes of sizes, the number of channels, the first one's bits less 1."""
    at = data.find(b"\xff\x4f\xff\x51")
    return 8 if at < 0 or at + 42 >= len(data) else (data[at + 42] & 0x7F) + 1


def _content(
    picture: Image.Image,
    name: str,
    orientation: int,
    pages: int,
    space: Space | None = None,
    told: list[str] | None = None,
    opaque: bool = False,
) -> Content:
    """opaque: what Pillow has for transparency is none."""
    check_claim(name, picture.size)
    profile = picture.info.get("icc_profile")

    def decode() -> Image.Image:
        picture.load()
        return picture.convert("RGB") if opaque else picture

    return Content(picture.size, decode, orientation, profile or None, space, pages, told or [])
