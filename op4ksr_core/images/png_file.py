"""PNG files as they are in the wild: only what makes the picture reaches Pillow. Format: W3C PNG, third edition.

Texts, profiles and EXIF of any size and condition are read here, or left out; a wrong checksum costs a chunk that is
not needed, and refuses the file for one that is.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from .content import Content, Deep, NotReadError, Pixels, check_claim
from .png import LITTLE
from .spaces import Chromaticities, Space, space_of_codes, space_of_gamma
from .tags import exif_orientation

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

#: Largest profile or text that is unpacked: far above any, and small beside a picture. Our choice.
_MOST_UNPACKED = 2**26

#: Colour types -> channels; and the depths that each has.
_GREY, _RGB, _PALETTE, _GREY_ALPHA, _RGBA = 0, 2, 3, 4, 6
_CHANNELS = {_GREY: 1, _RGB: 3, _PALETTE: 1, _GREY_ALPHA: 2, _RGBA: 4}

#: Bytes that deflate packs into one at most, with room; and how many are unpacked at a time.
_MOST_PACKED, _AT_ONCE = 1040, 2**20

#: Where text writers put EXIF before PNG had a chunk for it (ImageMagick).
_TEXT_EXIF = (b"Raw profile type exif", b"Raw profile type APP1")
_XMP = b"XML:com.adobe.xmp"


@dataclass
class _File:
    """What the chunks say. clear: tRNS, as stored. needed: the chunks that make the pixels, whole."""

    header: tuple[int, int, int, int] = (0, 0, 0, 0)  # width, height, bits, colour type
    interlace: int = 0
    palette: int = 0
    clear: bytes | None = None
    notes: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    texts: dict[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    needed: list[memoryview] = field(default_factory=list[memoryview])
    frames: int = 1
    told: list[str] = field(default_factory=list[str])


def open_png(data: bytes, name: str) -> Content:
    """Raises ValueError, with what is wrong in words, NotReadError, and what Pillow raises."""
    file = _scan(data)
    width, height = file.header[:2]
    check_claim(name, (width, height))
    profile, space = _colors(file)
    exif = file.notes.get(b"eXIf") or _exif_of_texts(file.texts)
    return Content(
        size=(width, height),
        decode=lambda: _decode(file),
        orientation=exif_orientation(exif, file.texts.get(_XMP)),
        profile=profile,
        space=space,
        pages=file.frames,
        told=file.told,
    )


# --- chunks --------------------------------------------------------------------------------------


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, memoryview, bool]]:
    """Name, content, the whole chunk, and whether its checksum is right; the last one may be cut short."""
    view, at = memoryview(data), len(_SIGNATURE)
    while at + 8 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        name, end = data[at + 4 : at + 8], at + 12 + length
        whole = view[at : min(end, len(data))]
        right = end <= len(data) and zlib.crc32(view[at + 4 : end - 4]) == struct.unpack_from(">I", data, end - 4)[0]
        yield name, view[at + 8 : min(end - 4, len(data))], whole, right
        at = end


#: Chunks that say how the picture is to be seen.
_NOTES = (b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"cICP", b"eXIf")


def _scan(data: bytes) -> _File:
    file, images = _File(), 0
    for name, content, whole, right in _chunks(data):
        if not right:
            if name in (b"IHDR", b"PLTE", b"IDAT") and len(whole) == len(content) + 12:
                raise ValueError(f"the checksum of its chunk {name.decode()} is wrong")
            if name in (b"IHDR", b"PLTE"):
                raise ValueError("it ends within its header")
            if name in (*_NOTES, b"tRNS", b"acTL"):
                file.told.append(f"its chunk {name.decode()} has a wrong checksum and is left out")
            if name != b"IDAT":
                continue
        if name == b"CgBI":
            raise NotReadError("is in Apple's own kind of PNG, which few programs open; save it as an ordinary PNG")
        if name == b"IHDR" and not file.header[0]:
            _take_header(file, content)
            file.needed.append(whole)
        elif name == b"PLTE" and not file.palette and not images:
            file.palette = len(content) // 3
            if file.header[3] == _PALETTE:
                file.needed.append(whole)
        elif name == b"IDAT":
            images += 1
            file.needed.append(whole)
        elif name == b"tRNS" and not images:
            file.clear = bytes(content)
        elif name == b"acTL" and len(content) >= 4:
            file.frames = max(1, struct.unpack_from(">I", content)[0])
        elif name in _NOTES:
            file.notes.setdefault(name, bytes(content))
        elif name in (b"tEXt", b"zTXt", b"iTXt"):
            _take_text(file, name, bytes(content))
        elif name == b"IEND":
            file.needed.append(whole)
            break
    if not file.header[0]:
        raise ValueError("it has no header")
    if file.header[3] == _PALETTE and not file.palette:
        raise ValueError("it has no palette")
    return file


def _take_header(file: _File, content: memoryview) -> None:
    if len(content) < 13:
        raise ValueError("its header is too short")
    width, height, bits, kind, _, _, file.interlace = struct.unpack_from(">IIBBBBB", content)
    if not (width and height):
        raise ValueError(f"its header says {width}x{height} px")
    file.header = width, height, bits, kind


def _take_text(file: _File, name: bytes, content: bytes) -> None:
    """Of the texts only EXIF and XMP, unpacked."""
    keyword, _, rest = content.partition(b"\0")
    if keyword not in (*_TEXT_EXIF, _XMP):
        return
    if name == b"iTXt":
        packed, rest = rest[:1] == b"\1", rest[2:].partition(b"\0")[2].partition(b"\0")[2]
    else:
        packed, rest = name == b"zTXt", rest[1:] if name == b"zTXt" else rest
    text = _unpacked(rest) if packed else rest
    if text is not None:
        file.texts.setdefault(keyword, text)


def _unpacked(content: bytes) -> bytes | None:
    """None for what is broken, or larger than anything it may be."""
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(content, _MOST_UNPACKED)
    except zlib.error:
        return None
    return None if unpacking.unconsumed_tail else found


def _exif_of_texts(texts: dict[bytes, bytes]) -> bytes | None:
    """EXIF as hexadecimal digits, after a name and a length."""
    text = next((texts[keyword] for keyword in _TEXT_EXIF if keyword in texts), b"")
    try:
        return bytes.fromhex("".join(text.decode("latin-1").split("\n")[3:])) or None
    except ValueError:
        return None


# --- colours -------------------------------------------------------------------------------------


def _colors(file: _File) -> tuple[bytes | None, Space | None]:
    """A profile, or a space by numbers: cICP before iCCP before sRGB before gAMA and cHRM.

    Each where those before it are not there, or cannot be followed; a profile with the space that counts without it.
    """
    if (codes := file.notes.get(b"cICP")) is not None and len(codes) == 4:
        try:
            return None, space_of_codes(codes[0], codes[1], bool(codes[3]))
        except ValueError as error:
            others = any(name in file.notes for name in (b"iCCP", b"sRGB", b"gAMA", b"cHRM"))
            instead = "what else it states is followed" if others else "they are taken for sRGB"
            file.told.append(f"its colours are {error} (cICP), which is not converted; {instead}")
    if (stored := file.notes.get(b"iCCP")) is not None:
        profile = _unpacked(stored.partition(b"\0")[2][1:])
        if profile:
            return profile, _numbers_space(file)
        file.told.append("its colour profile cannot be unpacked and is left out")
    return None, _numbers_space(file)


def _numbers_space(file: _File) -> Space | None:
    """By sRGB before gAMA and cHRM."""
    if b"sRGB" in file.notes:
        return None
    try:
        return space_of_gamma(_gamma(file.notes.get(b"gAMA")), _primaries(file))
    except ValueError as error:
        file.told.append(f"states {error} for its colours, which means nothing; they are taken for sRGB")
        return None


def _gamma(chunk: bytes | None) -> float | None:
    return None if chunk is None or len(chunk) != 4 else struct.unpack(">I", chunk)[0] / 100000


def _primaries(file: _File) -> Chromaticities | None:
    chunk = file.notes.get(b"cHRM")
    if chunk is None or len(chunk) != 32 or file.header[3] in (_GREY, _GREY_ALPHA):
        return None
    values = [value / 100000 for value in struct.unpack(">8I", chunk)]
    return [(values[i], values[i + 1]) for i in range(0, 8, 2)]


# --- pixels --------------------------------------------------------------------------------------


def _decode(file: _File) -> Pixels:
    _check_ratio(file)
    decoded = _decoded(file)
    _check_end(file, decoded)
    return decoded


def _bytes_of_pixels(file: _File) -> int:
    """At least so many bytes are packed: rows and their filters, without those of interlacing."""
    width, height, bits, kind = file.header
    return height * (1 + -(-width * bits * _CHANNELS.get(kind, 1) // 8))


def _check_ratio(file: _File) -> None:
    """Raise ValueError where deflate cannot have packed the pixels into so few bytes."""
    size = sum(map(len, file.needed))
    if _bytes_of_pixels(file) > _MOST_PACKED * size:
        raise ValueError(f"{size} bytes cannot hold its {file.header[0]}x{file.header[1]} px")


def _check_end(file: _File, decoded: Pixels) -> None:
    """Raise ValueError where the packed stream ends before the pixels, of which Pillow says nothing (seen in 13.0).

    It leaves 0 in the rows that are missing: only then, and with interlacing, is the stream unpacked to be counted.
    """
    if _last_colors(decoded).any() and not file.interlace:
        return
    unpacking, found, wanted = zlib.decompressobj(), 0, _bytes_of_pixels(file)
    for part in (chunk[8:-4] for chunk in file.needed if bytes(chunk[4:8]) == b"IDAT"):
        while part and found < wanted:
            found += len(unpacking.decompress(part, _AT_ONCE))
            part = unpacking.unconsumed_tail
    if found + len(unpacking.flush()) < wanted:
        raise ValueError("its packed pixels end too early")


def _last_colors(decoded: Pixels) -> Any:
    """The last row, without transparency, which may be made."""
    if isinstance(decoded, Deep):
        return decoded.colors[-1:]
    row = np.asarray(decoded.crop((0, decoded.height - 1, decoded.width, decoded.height)))
    return row[..., :-1] if decoded.mode in ("LA", "RGBA") else row


def _decoded(file: _File) -> Pixels:
    _, _, bits, kind = file.header
    if bits == 16:
        return _decode_deep(file, kind)
    picture = _pillow(file)
    picture.load()
    clear = file.clear or b""
    if kind == _PALETTE:
        if clear:
            picture.info["transparency"] = clear[:256].ljust(1, b"\xff")
        return picture
    if kind == _GREY and len(clear) >= 2:
        level = (struct.unpack_from(">H", clear)[0] & (2**bits - 1)) * 255 // (2**bits - 1)
        grey = picture.convert("L")
        return Image.merge("LA", (grey, Image.fromarray(_opaque(np.asarray(grey) != level))))
    if kind == _RGB and len(clear) >= 6:
        color = np.array(struct.unpack_from(">HHH", clear)) & 255
        picture.putalpha(Image.fromarray(_opaque((np.asarray(picture) != color).any(-1))))
    return picture


def _opaque(visible: Any) -> Any:
    return visible.astype(np.uint8) * np.uint8(255)


def _decode_deep(file: _File, kind: int) -> Deep:
    clear = file.clear or b""
    if kind == _GREY_ALPHA:  # two samples of two bytes are laid out as RGBA of 8 bits
        picture = _pillow(file, as_kind=_RGBA)
        picture.load()
        pairs = np.asarray(picture).astype(np.uint16)
        return Deep(pairs[..., :1] << 8 | pairs[..., 1:2], pairs[..., 2] << 8 | pairs[..., 3])
    picture = _pillow(file)
    if kind == _GREY:
        picture.load()
        grey = np.asarray(picture).astype(np.uint16)
        alpha = _deep_opaque(grey != struct.unpack_from(">H", clear)[0]) if len(clear) >= 2 else None
        return Deep(grey[..., None], alpha)
    picture.load()
    low = _pillow(file)
    _lower_bytes(low)
    low.load()
    values = np.asarray(picture).astype(np.uint16) << 8 | np.asarray(low)
    if kind == _RGBA:
        return Deep(values[..., :3], values[..., 3])
    alpha = (values != np.array(struct.unpack_from(">HHH", clear))).any(-1) if len(clear) >= 6 else None
    return Deep(values, None if alpha is None else _deep_opaque(alpha))


def _deep_opaque(visible: Any) -> Any:
    return visible.astype(np.uint16) * np.uint16(65535)


def _pillow(file: _File, as_kind: int | None = None) -> Image.Image:
    """Pillow's picture of the needed chunks alone, not yet loaded; as_kind: of 8 bits, with that colour type."""
    chunks = list(file.needed)
    if as_kind is not None:
        width, height = file.header[:2]
        content = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, as_kind, 0, 0, file.interlace)
        chunks[0] = memoryview(struct.pack(">I", 13) + content + struct.pack(">I", zlib.crc32(content)))
    return Image.open(io.BytesIO(b"".join((_SIGNATURE, *chunks))), formats=("PNG",))


def _lower_bytes(picture: Any) -> None:
    """Have Pillow unpack each sample's lower byte: as if samples were stored with that byte first."""
    kind, box, offset, arguments = picture.tile[0]
    raw = arguments if isinstance(arguments, str) else str(arguments[0])
    little = LITTLE[raw]
    picture.tile = [(kind, box, offset, little if isinstance(arguments, str) else (little, *arguments[1:]))]
