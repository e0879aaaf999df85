"""The picture formats: which are opened, which are written, and how large a picture each can hold. One table."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from ..errors import OutputError
from ..files import link_target


@dataclass(frozen=True)
class Written:
    """How a format is written. bits: per colour. alpha: whether it holds transparency that programs read.

    side: longest side in px. room: most bytes of pixels. packed: whether they are compressed.
    """

    bits: tuple[int, ...] = (8,)
    alpha: bool = True
    side: int = 2**31 - 1
    room: int | None = None
    packed: bool = True


@dataclass(frozen=True)
class Format:
    """name: for people. kind: Pillow's. starts: how the content begins; empty: known by its ending alone.

    depth, alpha, colors: what is read, in the words of docs/files.md.
    """

    name: str
    kind: str
    endings: tuple[str, ...]
    starts: tuple[bytes, ...]
    depth: str = "8 bits"
    alpha: str = "yes"
    colors: str = "ICC"
    written: Written | None = None


#: Sizes at which the writers end: libjpeg's JPEG_MAX_DIMENSION, WebP's 14 bits; 32-bit offsets of BMP and TIFF, less
#: what the rest of the file takes (our choice).
_JPEG_SIDE, _WEBP_SIDE, _OFFSETS = 65500, 16383, 2**32 - 2**20

FORMATS = (
    Format(
        "PNG",
        "PNG",
        (".png", ".apng"),
        (b"\x89PNG\r\n\x1a\n",),
        "1 to 16 bits, all kept",
        "yes; palettes and single colours (tRNS) too",
        "cICP, ICC, sRGB, gAMA and cHRM, in that order",
        Written((8, 16)),
    ),
    Format(
        "JPEG",
        "JPEG",
        (".jpg", ".jpeg", ".jpe", ".jfif"),
        (b"\xff\xd8\xff",),
        alpha="no",
        written=Written(alpha=False, side=_JPEG_SIDE),
    ),
    Format("MPO (JPEG of several pictures)", "JPEG", (".mpo",), (b"\xff\xd8\xff",), alpha="no"),
    Format("WebP", "WEBP", (".webp",), (b"RIFF",), written=Written(side=_WEBP_SIDE)),
    Format(
        "TIFF",
        "TIFF",
        (".tif", ".tiff"),
        (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
        "1 to 16 bits, 32-bit integers and floats of 16 to 64 bits, all kept; CMYK in 8",
        "yes; premultiplied too",
        written=Written(room=_OFFSETS, packed=False),
    ),
    Format("BMP", "BMP", (".bmp",), (b"BM",), colors="none", written=Written(alpha=False, room=_OFFSETS, packed=False)),
    Format("GIF", "GIF", (".gif",), (b"GIF87a", b"GIF89a"), alpha="one colour", colors="none"),
    Format("AVIF", "AVIF", (".avif", ".avifs"), (b"ftyp",), "8 bits of 8, 10 or 12", colors="ICC, nclx"),
    Format(
        "PPM, PGM, PBM, PFM",
        "PPM",
        (".ppm", ".pgm", ".pbm", ".pnm", ".pfm"),
        (b"P1", b"P2", b"P3", b"P4", b"P5", b"P6", b"Pf", b"PF"),
        "8 bits; grey 1 to 16 bits and floats, all kept",
        "no",
        "none",
    ),
    Format("TGA", "TGA", (".tga", ".icb", ".vda", ".vst"), (), colors="none"),
    Format(
        "JPEG 2000",
        "JPEG2000",
        (".jp2", ".j2k", ".jpx", ".jpf", ".j2c", ".jpc"),
        (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
        "8 bits; grey up to 16 bits, all kept",
    ),
)

#: What a folder is searched for.
IMAGE_SUFFIXES = tuple(ending for kind in FORMATS for ending in kind.endings)

#: For messages.
NAMES = ", ".join(found.name.split(" (")[0] for found in FORMATS if not found.name.startswith("MPO"))

#: Bytes of a compressed file for each byte of pixels, below which no photo comes. Our choice.
_PACKED_SHARE = 1 / 50


def format_of_content(content: bytes, ending: str) -> Format | None:
    """What the content begins like; TGA, which begins like nothing, by the name's ending. None: no picture of ours."""
    if content[4:8] == b"ftyp":
        return _by_name("AVIF") if b"avi" in content[8:64] else None
    for found in FORMATS:
        if found.starts and content.startswith(found.starts) and found.kind != "AVIF":
            if found.kind == "WEBP" and content[8:12] != b"WEBP":
                return None
            return found
    tga = _by_name("TGA")
    return tga if ending.lower() in tga.endings else None


def _by_name(name: str) -> Format:
    return next(found for found in FORMATS if found.name == name)


def can_be_read(found: Format) -> bool:
    """Whether this Pillow has a reader for the format."""
    Image.init()
    if found.kind not in Image.OPEN:
        return False
    from PIL import features

    needs = {"AVIF": "avif", "WEBP": "webp", "JPEG2000": "jpg_2000", "JPEG": "jpg"}.get(found.kind)
    return needs is None or bool(features.check(needs))


def written_format(path: Path) -> tuple[Format, Written]:
    """The format that the name's ending means, and what it holds. Raises OutputError."""
    for found in FORMATS:
        if found.written is not None and path.suffix.lower() in found.endings:
            return found, found.written
    raise OutputError(f"{path}: unknown picture format {path.suffix!r}; end the name in .png, .jpg or .webp")


def check_writable_size(path: str | Path, height: int, width: int, channels: int = 3, bits: int = 8) -> None:
    """Raise OutputError where the format that the name's ending means cannot hold such a picture, or the disk cannot.

    height, width in px; channels: 4 with transparency; bits: per colour. To be asked before anything is computed.
    """
    path = Path(path)
    found, written = written_format(path)
    if max(height, width) > written.side:
        raise OutputError(
            f"{path}: {width}x{height} px, but {found.name} holds at most {written.side} px on a side; "
            "end the name in .png, or ask for less"
        )
    pixels = height * width * (channels if written.alpha else 3) * (bits // 8)
    if written.room is not None and pixels > written.room:
        raise OutputError(
            f"{path}: {width}x{height} px are {pixels / 1e9:.1f} GB, but {found.name} holds at most "
            f"{written.room / 1e9:.1f} GB; end the name in .png, or ask for less"
        )
    _check_room(path, int(pixels * _PACKED_SHARE) if written.packed else pixels)


def _check_room(path: Path, need: int, free_of: Callable[[Path], int] = lambda p: shutil.disk_usage(p).free) -> None:
    """Raise OutputError where the disk has less than ``need`` bytes left; a folder that is not there is not judged."""
    try:
        free = free_of(link_target(path).parent)
    except OSError:
        return
    if need > free:
        raise OutputError(
            f"{path}: the picture takes at least {need / 1e6:.0f} MB, but the disk has {free / 1e6:.0f} MB left; "
            "choose another disk, or make room"
        )
