"""Odd picture files, drawn by chance from a seed: what is in them, and what should come out.

Containers, modes, depths, metadata, transparency, sizes, and mutations of their bytes. Nothing here uses our reader.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from handmade_png import chunk, png
from handmade_tiff import Tiff, exif
from PIL import Image, features
from upright import UPRIGHT

Rng = np.random.Generator


@dataclass(frozen=True)
class Odd:
    """content: of a file with this ending. colors (H, W, 3) and alpha (H, W) in [0, 1]: what should be read, upright.

    colors None: nothing is expected of what is read. near: the largest difference that is right, at alpha above 0.
    told: words that a warning must have. refused: it must be.
    """

    name: str
    ending: str
    content: bytes
    colors: np.ndarray | None = None
    alpha: np.ndarray | None = None
    near: float = 1e-6
    told: str = ""
    refused: bool = False


# --- drawing ---------------------------------------------------------------------------------------


def size(rng: Rng) -> tuple[int, int]:
    return int(rng.choice([1, 2, 3, 7, 16, 17, 33, 40])), int(rng.choice([1, 2, 3, 8, 16, 19, 32, 45]))


def smooth(rng: Rng, height: int, width: int, channels: int) -> np.ndarray:
    """(H, W, C) in [0, 1]: slopes, which every codec keeps nearly."""
    y, x = np.mgrid[0:height, 0:width] / 45
    parts = [rng.uniform(0.2, 0.6) + rng.uniform(-0.2, 0.3) * x + rng.uniform(-0.2, 0.3) * y for _ in range(channels)]
    return np.stack(parts, -1).clip(0, 1)


def noise(rng: Rng, height: int, width: int, channels: int, bits: int) -> np.ndarray:
    return rng.integers(0, 2**bits, (height, width, channels)).astype(np.int64)


def odd_exif(rng: Rng) -> tuple[bytes, int]:
    """EXIF with odd tags, and the orientation that counts."""
    turn = int(rng.integers(1, 9))
    kind = int(rng.choice([1, 3, 3, 4, 6, 8, 9]))
    entries: list[Any] = [(274, kind, [turn])]
    if rng.random() < 0.15:
        entries = [(274, 11, [float(turn)])] if rng.random() < 0.5 else [(274, 3, [int(rng.choice([0, 9, 600]))])]
        turn = 1
    odd: list[Any] = [
        (282, 2, b"72 dpi of text\0"),
        (282, 5, [(72, 0)]),
        (296, 2, b"inch\0"),
        (283, 10, [(-1, 0)]),
        (34665, 4, [0xFFFFFFF0]),
        (34853, 2, b"no directory\0"),
        (270, 7, b"\xff" * 300),
        (37500, 7, bytes(5000)),
        (256, 12, [1e300]),
        (305, 2, b"x" * 70),
    ]
    picked = {entry[0]: entry for entry in (odd[i] for i in rng.integers(0, len(odd), 4))}
    block = exif([*entries, *picked.values()], str(rng.choice(["<", ">"])))
    if rng.random() < 0.1:
        return block[:6] + b"XX" + block[8:], 1
    return block, turn


# --- colours ---------------------------------------------------------------------------------------


def srgb(linear: np.ndarray) -> np.ndarray:
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def linear(values: np.ndarray) -> np.ndarray:
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


WHITE = (0.3127, 0.3290)
SRGB = (WHITE, (0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
P3 = (WHITE, (0.68, 0.32), (0.265, 0.69), (0.15, 0.06))
REC2020 = (WHITE, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046))


def to_xyz(primaries: Any) -> np.ndarray:
    columns = np.array([[x / y, 1, (1 - x - y) / y] for x, y in primaries]).T
    return columns[:, 1:] * np.linalg.solve(columns[:, 1:], columns[:, 0])


def seen(values: np.ndarray, gamma: float | None, primaries: Any = SRGB) -> np.ndarray:
    """sRGB of stored values; gamma None: sRGB's curve."""
    light = linear(values) if gamma is None else values**gamma
    return srgb(light @ (np.linalg.inv(to_xyz(SRGB)) @ to_xyz(primaries)).T)


BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def profile(name: str, primaries: Any, gamma: float | None, pad: int = 0) -> bytes:
    """An ICC profile of version 2, of a matrix and a curve; primaries None: of grey. gamma None: sRGB's curve."""

    def fixed(values: Any) -> bytes:
        return b"".join(struct.pack(">i", round(float(v) * 65536)) for v in values)

    if gamma is None:
        table = (linear(np.arange(1024) / 1023) * 65535).round().astype(">u2").tobytes()
        curve = b"curv" + bytes(4) + struct.pack(">I", 1024) + table
    else:
        curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    d50 = np.array([0.9642, 1.0, 0.8249])
    tags: dict[bytes, bytes] = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(name) + 1) + name.encode() + bytes(79),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + fixed(d50),
    }
    if pad:
        tags[b"priv"] = b"data" + bytes(4) + np.random.default_rng(0).bytes(pad)
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        own = to_xyz(primaries)
        white = own.sum(1)
        matrix = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ d50) / (BRADFORD @ white)) @ BRADFORD @ own
        for i, color in enumerate((b"r", b"g", b"b")):
            tags[color + b"XYZ"], tags[color + b"TRC"] = b"XYZ " + bytes(4) + fixed(matrix[:, i]), curve
    body, table_of_tags, offset = b"", b"", 132 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table_of_tags += tag + struct.pack(">II", offset + len(body), len(content))
        body += content
    head = struct.pack(">I4xI", offset + len(body), 0x02400000) + b"mntr" + (b"RGB " if primaries else b"GRAY")
    head += b"XYZ " + bytes(12) + b"acsp" + bytes(28) + fixed(d50)
    return head.ljust(128, b"\0") + struct.pack(">I", len(tags)) + table_of_tags + body


# --- PNG -------------------------------------------------------------------------------------------


def junk_chunks(rng: Rng) -> bytes:
    """Texts and chunks that are no reason to refuse."""
    long = b"Comment\0" + rng.bytes(64).hex().encode() * 12000
    wrong = bytearray(chunk(b"tEXt", b"Title\0odd"))
    wrong[-1] ^= 255
    kinds = [
        b"",
        chunk(b"tEXt", long),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        bytes(wrong),
        chunk(b"zTXt", b"Comment\0\0not packed"),
        chunk(b"iTXt", b"\xff\xff\0\1\0\0\0odd"),
        chunk(b"pHYs", b"odd"),
        chunk(b"tIME", b""),
        chunk(b"sBIT", bytes(9)),
        chunk(b"vpAg", bytes(9)),
    ]
    return b"".join(kinds[i] for i in rng.integers(0, len(kinds), 2))


def png_case(rng: Rng) -> Odd:
    kind, bits = [(0, 1), (0, 2), (0, 4), (0, 8), (0, 16), (2, 8), (2, 16), (3, 1), (3, 2), (3, 4), (3, 8), (4, 8)][
        int(rng.integers(12))
    ]
    if rng.random() < 0.3:
        kind, bits = [(4, 16), (6, 8), (6, 16)][int(rng.integers(3))]
    height, width = size(rng)
    samples = noise(rng, height, width, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind], bits)
    top, extra, alpha = 2**bits - 1, junk_chunks(rng), None
    if kind == 3:
        palette = noise(rng, 1, 2**bits, 3, 8)[0]
        colors, extra = palette[samples[..., 0]] / 255, extra + chunk(b"PLTE", palette.astype(np.uint8).tobytes())
        if rng.random() < 0.6:
            table = noise(rng, 1, int(rng.choice([1, 2, 2**bits, 300])), 1, 8)[0, :, 0]
            extra += chunk(b"tRNS", table.astype(np.uint8).tobytes())
            alpha = np.pad(table, (0, 600), constant_values=255)[samples[..., 0]] / 255
    else:
        values = samples / top
        own = values[..., : 3 if kind in (2, 6) else 1]
        colors = np.broadcast_to(own, (height, width, 3))
        alpha = values[..., -1] if kind in (4, 6) else None
        if alpha is None and rng.random() < 0.4:
            clear = samples[0, 0]
            extra += chunk(b"tRNS", clear.astype(">u2").tobytes() + (b"\0\0" if rng.random() < 0.2 else b""))
            alpha = (samples != clear).any(-1).astype(float)
    turn = 1
    if rng.random() < 0.5:
        block, turn = odd_exif(rng)
        extra += chunk(b"eXIf", block[6:])
    content = png(samples, bits, kind, extra, adam7=bool(rng.random() < 0.2))
    told = ""
    return upright(Odd(f"png type {kind} {bits} bit", ".png", content, colors, alpha, told=told), turn)


def upright(odd: Odd, turn: int) -> Odd:
    assert odd.colors is not None
    alpha = None if odd.alpha is None else UPRIGHT[turn](odd.alpha)
    return replace(odd, name=f"{odd.name} turned {turn}", colors=UPRIGHT[turn](odd.colors), alpha=alpha)


def png_color_case(rng: Rng) -> Odd:
    """gAMA, cHRM, sRGB, iCCP and cICP, alone and together."""
    bits, grey = int(rng.choice([8, 16])), bool(rng.random() < 0.25)
    height, width = size(rng)
    samples = noise(rng, height, width, 1 if grey else 3, bits)
    values = samples / (2**bits - 1)
    gamma = float(rng.choice([0.45455, 1.0, 0.55556, 0.5]))
    primaries = [SRGB, P3, REC2020][int(rng.integers(3))]
    stated = (chunk(b"gAMA", struct.pack(">I", round(gamma * 100000))), None if gamma == 0.45455 else 1 / gamma)
    extra, curve, own, told = stated[0], stated[1], SRGB, ""
    if rng.random() < 0.5:
        numbers = [round(v * 100000) for pair in primaries for v in pair]
        extra += chunk(b"cHRM", struct.pack(">8I", *numbers))
        own = SRGB if grey else primaries
    choice = rng.random()
    if choice < 0.2:
        extra, curve, own = extra + chunk(b"sRGB", b"\0"), None, SRGB
    elif choice < 0.35:
        numbered = {id(SRGB): 1, id(P3): 12, id(REC2020): 9}[id(primaries)]
        transfer, curve = [(13, None), (8, 1.0), (4, 2.2)][int(rng.integers(3))]
        extra, own = extra + chunk(b"sRGB", b"\0") + chunk(b"cICP", bytes([numbered, transfer, 0, 1])), primaries
        own = SRGB if grey else own
    elif choice < 0.45:
        extra, told = extra + chunk(b"cICP", bytes([9, 16, 0, 1])), "HDR"  # gAMA and cHRM count, then
    colors = seen(np.broadcast_to(values, (height, width, 3)), curve, own)
    near = 0.51 / 255 if bits == 8 else 3e-5
    return Odd(f"png colours {bits} bit", ".png", png(samples, bits, 0 if grey else 2, extra), colors, None, near, told)


def profile_case(rng: Rng) -> Odd:
    """ICC profiles whose names say nothing, in several containers."""
    primaries = [SRGB, P3, REC2020, None][int(rng.integers(4))]
    gamma = [None, 1.0, 1.8, 2.2][int(rng.integers(4))]
    name = str(rng.choice(["sRGB", "Linear sRGB", "Rec2020-elle-V2-srgbtrc.icc", "", "x" * 40]))
    pad = 1_200_000 if rng.random() < 0.1 else 0
    content, height, width = profile(name, primaries, gamma, pad), *size(rng)
    ending = str(rng.choice([".png", ".tif", ".webp", ".jpg", ".png16", ".tif16"]))
    values = smooth(rng, height, width, 1 if primaries is None else 3)
    deep = ending.endswith("16")
    stored = np.round(values * (65535 if deep else 255)) / (65535 if deep else 255)
    grey = primaries is None
    if not grey:
        colors = seen(stored, gamma, primaries)
    else:
        colors = np.broadcast_to(seen(np.repeat(stored, 3, -1), gamma), (height, width, 3))
    near = 0.0005 if deep else 2.6 / 255
    if ending.startswith(".png"):
        bits = 16 if deep else 8
        samples = np.round(stored * (2**bits - 1)).astype(int)
        packed = chunk(b"iCCP", b"x\0\0" + zlib.compress(content))
        data, ending = png(samples, bits, 0 if grey else 2, packed), ".png"
    elif deep:
        entry = (34675, 7, content)
        samples = np.round(stored * 65535).astype(np.uint16)
        data, ending = Tiff(photometric=1 if grey else 2, more=(entry,)).encoded(samples), ".tif"
    else:
        if ending == ".webp" and grey:
            ending = ".png"
        data = pillow(stored, ending, icc_profile=content)
        near = 2.6 / 255 if ending in (".png", ".tif") else 14 / 255
    return Odd(f"profile {name[:12]!r} {gamma} grey {grey}", ending, data, colors, None, near)


# --- TIFF ------------------------------------------------------------------------------------------


def tiff_case(rng: Rng) -> Odd:
    kind = str(rng.choice(["u1", "u2", "u2", "u4", "f4", "f4", "f2", "f8", "i2", "i4"]))
    photometric = int(rng.choice([0, 1, 1, 2, 2]))
    colors_count, extra = (3 if photometric == 2 else 1), int(rng.choice([0, 0, 1, 2]))
    height, width = size(rng)
    values = rng.random((height, width, colors_count + (extra > 0)))
    dtype = np.dtype(kind)
    scale: float = np.iinfo(dtype).max if dtype.kind != "f" else float(rng.choice([1, 255, 65535]))
    if dtype.kind == "f" and (kind == "f2" or scale == 1):
        scale = 1.0 if kind == "f2" else scale
    if extra == 1:
        values[..., :-1] *= values[..., -1:]
    more: list[Any] = []
    turn = 1
    if rng.random() < 0.4:
        turn = int(rng.integers(1, 9))
        more.append((274, int(rng.choice([3, 4, 8])), [turn]))
    if rng.random() < 0.3:
        more += [(282, 2, b"text\0"), (283, 5, [(1, 0)]), (305, 2, b"\x1b[31m\xff\0"), (34665, 4, [2**32 - 2])]
    stored = values * scale if dtype.kind == "f" else np.round(values * scale).clip(0, scale)
    stored = stored.astype(dtype)
    if dtype.kind != "f" and dtype.itemsize >= 4:
        stored[0, 0, 0] = np.iinfo(dtype).max
    elif dtype.kind == "f":
        stored[0, 0, 0] = scale
    exact = stored.astype(np.float64) / scale
    compression = int(rng.choice([1, 8, 32773, 32946]))
    predictor = int(rng.choice([1, 1, 2])) if compression != 32773 and dtype.itemsize < 8 else 1
    if dtype.kind == "f":
        predictor = int(rng.choice([1, 3])) if compression in (8, 32946) else 1
    if compression == 1:
        predictor = 1
    writer = Tiff(
        order=str(rng.choice(["<", ">"])),
        big=bool(rng.random() < 0.15),
        photometric=photometric,
        planar=int(rng.choice([1, 1, 2])),
        predictor=predictor,
        compression=compression,
        rows=int(rng.choice([1, 5, 64])),
        tile=(16, 32) if rng.random() < 0.25 else None,
        extra=(extra,) if extra else (),
        more=tuple(more),
    )
    content = writer.encoded(stored)
    own, alpha = exact[..., :colors_count], exact[..., -1] if extra else None
    near = 1e-6
    if extra == 1 and alpha is not None:
        own = np.where(alpha[..., None] > 0, own / np.maximum(alpha[..., None], 1e-12), 0).clip(0, 1)
        near = 0.51 / 255 if kind == "u1" else 1e-5
    own = 1 - own if photometric == 0 else own
    name = f"tiff {kind} {writer.order} photometric {photometric} extra {extra} planar {writer.planar} "
    name += f"compression {compression} predictor {predictor} tile {writer.tile} big {writer.big} scale {scale:g}"
    return upright(Odd(name, ".tif", content, np.broadcast_to(own, (height, width, 3)), alpha, near), turn)


# --- what Pillow writes ----------------------------------------------------------------------------


#: Formats that this Pillow may lack: their cases are drawn as PNG.
LACKING = {
    ending: ".png"
    for ending, name in ((".avif", "avif"), (".webp", "webp"), (".jp2", "jpg_2000"))
    if name not in features.get_supported()
}


def pillow(values: np.ndarray, ending: str, **options: Any) -> bytes:
    """(H, W, 1 to 4) in [0, 1] -> a file of 8 bits."""
    array = np.round(values * 255).astype(np.uint8)
    picture = Image.fromarray(array[..., 0] if array.shape[2] == 1 else array)
    kind = {".jpg": "JPEG", ".webp": "WEBP", ".tif": "TIFF", ".jp2": "JPEG2000", ".tga": "TGA"}.get(ending)
    kind = kind or {".ppm": "PPM", ".mpo": "MPO"}.get(ending, ending[1:].upper())
    if kind == "JPEG":
        options = {"quality": 98, "subsampling": 0, **options}
    if kind == "WEBP":
        options = {"lossless": True, "exact": True, **options}
    if kind == "AVIF":
        options = {"quality": 100, "subsampling": "4:4:4", **options}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture.save(file, kind, **options)
    return file.getvalue()


def pillow_case(rng: Rng) -> Odd:
    ending = str(rng.choice([".jpg", ".webp", ".bmp", ".gif", ".avif", ".ppm", ".tga", ".jp2", ".mpo"]))
    ending = LACKING.get(ending, ending)
    channels = 3
    if ending in (".webp", ".tga", ".avif", ".jp2") and rng.random() < 0.5:
        channels = 4
    elif ending in (".jpg", ".bmp", ".tga", ".jp2") and rng.random() < 0.3:
        channels = 1
    height, width = (int(max(side, 4)) for side in size(rng))
    values, options, turn, told = smooth(rng, height, width, channels), {}, 1, ""
    if ending in (".jpg", ".webp", ".mpo") and rng.random() < 0.7:
        block, turn = odd_exif(rng)
        options["exif"] = block
    elif ending == ".avif" and rng.random() < 0.6:
        turn = int(rng.integers(1, 9))
        options["exif"] = exif([(274, 3, [turn]), (305, 2, b"a program\0")])
    if ending == ".mpo":
        file = io.BytesIO()
        picture = Image.fromarray(np.round(values * 255).astype(np.uint8))
        picture.save(file, "MPO", save_all=True, append_images=[picture], quality=98, **options)
        content, told = file.getvalue(), "of which the first"
    elif ending in (".gif", ".webp") and rng.random() < 0.3 and channels == 3:
        file = io.BytesIO()
        picture = Image.fromarray(np.round(values * 255).astype(np.uint8))
        other = Image.new("RGB", picture.size, (255, 0, 0))
        picture.save(file, ending[1:].upper(), save_all=True, append_images=[other], lossless=True, **options)
        content, told = file.getvalue(), "of which the first"
    else:
        content = pillow(values, ending, **options)
    if ending == ".avif" and "exif" in options and rng.random() < 0.3:
        content = content.replace(b"II*\0\x08\0", b"XX*\0\x08\0")
    near = {".jpg": 8, ".mpo": 30, ".gif": 60, ".avif": 6, ".jp2": 0.6}.get(ending, 0.51) / 255
    own = np.broadcast_to(values[..., : 3 if channels > 1 else 1], (height, width, 3))
    alpha = values[..., 3] if channels == 4 else None
    if ending == ".gif":  # its palette is Pillow's choice
        with Image.open(io.BytesIO(content)) as opened:
            own, near = np.asarray(opened.convert("RGB")) / 255, 0.01 / 255
    return upright(Odd(f"{ending} {channels}", ending, content, own, alpha, near, told), turn)


# --- what is no picture, and what is broken --------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n{ 1 pop } loop\n"
FOREIGN = {
    "eps": EPS,
    "eps with a binary head": b"\xc5\xd0\xd3\xc6" + struct.pack("<6IH", 32, len(EPS), 0, 0, 0, 0, 0xFFFF) + EPS,
    "pdf": b"%PDF-1.4\n",
    "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "html": b"<html><body>404</body></html>",
    "ico": b"\0\0\1\0\1\0\x10\x10\0\0\1\0\x20\0h\4\0\0\x16\0\0\0" + bytes(1128),
    "psd": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 4, 4, 8, 3) + bytes(200),
    "xbm": b"#define a_width 8\n#define a_height 1\nstatic char a_bits[] = {0x00};\n",
    "xpm": b'/* XPM */\nstatic char *a[] = {"1 1 1 1", "a c #ff0000", "a"};\n',
    "fits": b"SIMPLE  =                    T".ljust(2880),
    "wmf": b"\xd7\xcd\xc6\x9a\0\0" + bytes(60),
    "iptc": b"\x1c\x01" + bytes(60),
    "empty": b"",
    "zeros": bytes(2000),
    "appledouble": b"\0\5\x16\7\0\2\0\0Mac OS X        " + bytes(100),
    "heic": b"\0\0\0\x18ftypheic\0\0\0\0heicmif1" + bytes(200),
    "webm as riff": b"RIFF\x10\0\0\0AVI LIST" + bytes(100),
}


def foreign_case(rng: Rng) -> Odd:
    name = str(rng.choice(list(FOREIGN)))
    ending = str(rng.choice([".png", ".jpg", ".webp", ".tif", ".bmp", ".gif"]))
    return Odd(f"{name} as {ending}", ending, FOREIGN[name], refused=True)


def bomb_case(rng: Rng) -> Odd:
    """Small files that claim to be huge."""
    side = int(rng.choice([30000, 100000, 2**31 - 1]))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    a_png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    strip = zlib.compress(bytes(1000))
    order, entries = "<", [(256, 4, [side]), (257, 4, [side]), (258, 3, [16]), (259, 3, [8]), (262, 3, [1])]
    entries += [(273, 4, [8]), (277, 3, [1]), (278, 4, [side]), (279, 4, [len(strip)])]
    from handmade_tiff import directory, start

    place = 8 + len(strip) + len(strip) % 2
    a_tiff = start(order, False, place) + strip + bytes(len(strip) % 2) + directory(entries, place, order)
    a_bmp = b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, side, side, 1, 24, 0, 0, 0, 0, 0, 0)
    ending, content = [(".png", a_png), (".tif", a_tiff), (".bmp", a_bmp)][int(rng.integers(3))]
    return Odd(f"bomb of {side} px {ending}", ending, content, refused=True)


GOOD = (png_case, png_color_case, profile_case, tiff_case, pillow_case)


def cut_case(rng: Rng) -> Odd:
    """A sound file of pixels that do not compress, cut short in them."""
    ending = str(rng.choice([".png", ".jpg", ".webp", ".tif", ".bmp", ".ppm", ".tga", ".gif", ".avif"]))
    ending = LACKING.get(ending, ending)
    values = rng.random((40, 45, 3))
    content = pillow(values, ending)
    return Odd(f"cut {ending}", ending, content[: int(len(content) * rng.uniform(0.05, 0.7))], refused=True)


def mutated_case(rng: Rng) -> Odd:
    """Any of the sound ones with some bytes changed, taken out or put in: most of them in its head."""
    odd = GOOD[int(rng.integers(len(GOOD)))](rng)
    data = bytearray(odd.content)
    for _ in range(int(rng.integers(1, 9))):
        reach = len(data) if rng.random() < 0.4 else min(len(data), 200)
        at, what = int(rng.integers(reach)), rng.random()
        if what < 0.7:
            data[at] = int(rng.choice([0, 1, 127, 128, 255, int(rng.integers(256))]))
        elif what < 0.85:
            del data[at : at + int(rng.integers(1, 9))]
        else:
            data[at:at] = rng.bytes(int(rng.integers(1, 9)))
        if not data:
            break
    return Odd(f"mutated {odd.name}", odd.ending, bytes(data))


#: Kinds of cases, and their shares.
SHARES = (
    (png_case, 0.17),
    (png_color_case, 0.08),
    (profile_case, 0.08),
    (tiff_case, 0.2),
    (pillow_case, 0.14),
    (foreign_case, 0.04),
    (bomb_case, 0.02),
    (cut_case, 0.05),
    (mutated_case, 0.22),
)


def draw(seed: int) -> Odd:
    rng = np.random.default_rng((17, seed))
    shares = np.array([share for _, share in SHARES])
    return SHARES[int(rng.choice(len(SHARES), p=shares / shares.sum()))][0](rng)
