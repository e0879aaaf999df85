"""Rare kinds of the formats that are opened: read rightly, or told for what they are; nothing is made up."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns.odd_pictures import P3, profile, seen
from handmade_png import chunk, png
from handmade_tiff import Tiff
from PIL import Image, features

from op4ksr_core import ImageError
from op4ksr_core.images.io import load_image

HEIGHT, WIDTH = 24, 32


def colors() -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([40 + x * 5, 60 + y * 6, 200 - x * 2 - y], -1).astype(np.uint8)


def encoded(kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(colors()).save(file, kind, **options)
    return file.getvalue()


def loaded(tmp_path: Path, name: str, content: bytes) -> tuple[np.ndarray, np.ndarray | None]:
    """(H, W, 3) and (H, W) in levels of 255."""
    path = tmp_path / name
    path.write_bytes(content)
    picture = load_image(path)
    alpha = None if picture.alpha is None else picture.alpha[0, 0].numpy() * 255
    return picture.image[0].permute(1, 2, 0).numpy() * 255, alpha


# --- read ------------------------------------------------------------------------------------------


@pytest.mark.skipif(not features.check("jpg_2000"), reason="Pillow without JPEG 2000")
@pytest.mark.parametrize("method", [2, 3])
def test_a_profile_in_jpeg_2000_counts(tmp_path: Path, method: int) -> None:
    data, icc = encoded("JPEG2000"), profile("P3", P3, 2.2)
    at, head = data.find(b"colr") - 4, data.find(b"jp2h") - 4
    old, whole = (struct.unpack_from(">I", data, place)[0] for place in (at, head))
    box = struct.pack(">I4sBBB", 11 + len(icc), b"colr", method, 0, 0) + icc
    data = b"".join(
        (data[:head], struct.pack(">I", whole - old + len(box)), data[head + 4 : at], box, data[at + old :])
    )
    found, _ = loaded(tmp_path, "a.jp2", data)
    assert abs(found - seen(colors() / 255, 2.2, P3) * 255).max() < 2.5


@pytest.mark.parametrize(("scale", "kind"), [("-1.0", "<f4"), ("1.0", ">f4"), ("-0.5e1", "<f4")])
def test_pfm_in_colour(tmp_path: Path, scale: str, kind: str) -> None:
    pixels = (colors()[::-1] / 255).astype(kind).tobytes()
    found, _ = loaded(tmp_path, "a.pfm", f"PF\n{WIDTH} {HEIGHT}\n{scale}\n".encode() + pixels)
    assert abs(found - colors()).max() < 0.001


@pytest.mark.parametrize(
    "head", ["PF\n32 24\n0\n", "PF\n32 24\nnan\n", "PF\n0 24\n-1\n", "PF\n32\n", "PF\n32 25\n-1\n"]
)
def test_a_broken_pfm_is_told(tmp_path: Path, head: str) -> None:
    with pytest.raises(ImageError, match=r"a\.pfm: is damaged or cut short \(it"):
        loaded(tmp_path, "a.pfm", head.encode() + bytes(HEIGHT * WIDTH * 12))


@pytest.mark.parametrize("attributes", [0, 1])
@pytest.mark.parametrize("bit", [0, 0x8000])
def test_the_highest_bit_of_a_tga_of_16_bits_is_opacity(tmp_path: Path, attributes: int, bit: int) -> None:
    red, green, blue = np.moveaxis(colors().astype(int) >> 3, -1, 0)
    pixels = ((red << 10 | green << 5 | blue) | bit).astype("<u2").tobytes()
    head = bytes([0, 0, 2]) + bytes(9) + struct.pack("<HHBB", WIDTH, HEIGHT, 16, 0x20 | attributes)
    found, alpha = loaded(tmp_path, "a.tga", head + pixels)
    assert abs(found - colors()).max() < 9
    if attributes:
        assert alpha is not None and (alpha == (255 if bit else 0)).all()
    else:
        assert alpha is None


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("extra", [(0, 2), (2, 0), (0, 1)])
def test_transparency_of_a_tiff_is_whichever_extra_sample_says_so(
    tmp_path: Path, kind: str, extra: tuple[int, int]
) -> None:
    clear = np.linspace(0.2, 1, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH, 1)
    own = colors() / 255 * (clear if 1 in extra else 1)
    extras = [clear if each else np.full_like(clear, 0.5) for each in extra]
    top = {"u1": 255, "u2": 65535, "f4": 1}[kind]
    samples = np.concatenate([own, *extras], -1) * top
    stored = (samples if kind == "f4" else samples.round()).astype(kind)
    found, alpha = loaded(tmp_path, "a.tif", Tiff(photometric=2, extra=extra).encoded(stored))
    assert alpha is not None and abs(alpha - clear[..., 0] * 255).max() < 0.51
    assert abs(found - colors()).max() < (4 if kind == "u1" else 0.1)


def test_a_palette_of_8_bits_in_a_tiff(tmp_path: Path) -> None:
    palette = [int(value) for value in np.tile(np.arange(256), 3)]
    content = Tiff(photometric=3, more=((320, 3, palette),)).encoded(colors()[..., :1])
    assert (loaded(tmp_path, "a.tif", content)[0].round() == colors()[..., :1]).all()


# --- what a PNG states, and what counts when it cannot be followed -----------------------------------


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("codes", [(9, 16, 0, 1), (9, 18, 0, 1), (1, 77, 0, 1)])
def test_what_else_is_stated_counts_where_cicp_cannot_be_followed(
    tmp_path: Path, bits: int, codes: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    packed = chunk(b"iCCP", b"x\0\0" + zlib.compress(profile("P3", P3, 2.2)))
    samples = colors().astype(int) * (257 if bits == 16 else 1)
    found, _ = loaded(tmp_path, "a.png", png(samples, bits, 2, packed + chunk(b"cICP", bytes(codes))))
    assert abs(found - seen(colors() / 255, 2.2, P3) * 255).max() < 2.5
    assert "what else it states is followed" in caplog.text


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("broken", [b"no profile" * 9, profile("grey", None, 2.2)], ids=["broken", "for grey"])
def test_gamma_counts_where_the_profile_cannot_be_used(
    tmp_path: Path, bits: int, broken: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    extra = chunk(b"iCCP", b"x\0\0" + zlib.compress(broken)) + chunk(b"gAMA", struct.pack(">I", 100000))
    grey = np.full((4, 4, 3), 64)
    found, _ = loaded(tmp_path, "a.png", png(grey * (257 if bits == 16 else 1), bits, 2, extra))
    assert abs(found - 137).max() < 1
    assert "cannot be used" in caplog.text and "taken for gamma 1" in caplog.text


# --- what is missing -------------------------------------------------------------------------------


def short(samples: np.ndarray, bits: int, kind: int, extra: bytes = b"", adam7: bool = False) -> bytes:
    """A PNG whose packed stream is sound, and ends in the middle of the picture."""
    data = png(samples, bits, kind, extra, adam7=adam7)
    first, last = data.find(b"IDAT") - 4, data.find(b"IEND") - 4
    rows = zlib.decompress(data[first + 8 : last - 4])
    return data[:first] + chunk(b"IDAT", zlib.compress(rows[: len(rows) // 2])) + data[last:]


@pytest.mark.parametrize("adam7", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(0, 8), (0, 16), (2, 8), (2, 16), (3, 8), (4, 8), (4, 16), (6, 8), (6, 16)])
def test_a_png_that_packs_too_few_rows_is_refused(tmp_path: Path, kind: int, bits: int, adam7: bool) -> None:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]
    samples = np.random.default_rng(0).integers(1, 2**bits, (HEIGHT, WIDTH, channels))
    extra = {0: chunk(b"tRNS", b"\0\1"), 2: chunk(b"tRNS", b"\0\1\0\1\0\1"), 3: chunk(b"PLTE", bytes(768))}.get(
        kind, b""
    )
    with pytest.raises(ImageError, match=r"is damaged or cut short \((its packed pixels end too early|.*truncated)"):
        loaded(tmp_path, "a.png", short(samples, bits, kind, extra, adam7))


@pytest.mark.parametrize("adam7", [False, True])
@pytest.mark.parametrize(("kind", "bits"), [(0, 1), (0, 8), (0, 16), (2, 8), (2, 16), (3, 4), (4, 8), (6, 8), (6, 16)])
def test_a_black_png_is_whole(tmp_path: Path, kind: int, bits: int, adam7: bool) -> None:
    samples = np.zeros((5, 7, {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[kind]), int)
    extra = chunk(b"PLTE", bytes(48)) if kind == 3 else b""
    assert (loaded(tmp_path, "a.png", png(samples, bits, kind, extra, adam7=adam7))[0] == 0).all()


@pytest.mark.parametrize("kind", ["u1", "u2", "f4"])
@pytest.mark.parametrize("layout", [{}, {"planar": 2}, {"tile": (16, 16)}], ids=str)
def test_a_tiff_without_its_last_pixels_is_refused(tmp_path: Path, kind: str, layout: dict[str, Any]) -> None:
    """Not filled with the directory that is added for Pillow."""
    whole = Tiff(photometric=2, **layout).encoded(
        (colors() / 255 * {"u1": 255, "u2": 65535, "f4": 1}[kind]).astype(kind)
    )
    size, at = len(whole), struct.unpack_from("<I", whole, 4)[0]
    directory, pixels = whole[at:], whole[8:at]
    moved = bytearray(whole[:8] + directory)  # first the directory, then the pixels
    struct.pack_into("<I", moved, 4, 8)
    shift = len(directory)
    count = struct.unpack_from("<H", directory)[0]
    for index in range(count):
        place = 10 + 12 * index
        tag, letter, number, value = struct.unpack_from("<HHII", moved, place)
        if {1: 1, 3: 2, 4: 4}[letter] * number > 4:
            struct.pack_into("<I", moved, place + 8, value - at + 8)
            value = value - at + 8
        if tag in (273, 324):
            places = [value] if number == 1 else list(struct.unpack_from(f"<{number}I", moved, value))
            struct.pack_into(f"<{number}I", moved, place + 8 if number == 1 else value, *(p + shift for p in places))
    content = bytes(moved) + pixels
    assert len(content) == size
    assert abs(loaded(tmp_path, "a.tif", content)[0] - colors()).max() < 6
    for missing in (1, 20, 200):
        with pytest.raises(ImageError, match=r"is damaged or cut short \(it ends within its pixels\)"):
            loaded(tmp_path, "a.tif", content[:-missing])


@pytest.mark.parametrize("options", [{}, {"progressive": True}], ids=str)
def test_a_jpeg_too_small_for_its_size_is_refused_at_once(tmp_path: Path, options: dict[str, Any]) -> None:
    data = bytearray(encoded("JPEG", **options))
    at = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))
    struct.pack_into(">HH", data, at + 5, 13000, 13000)
    with pytest.raises(ImageError, match=rf"{len(data)} bytes cannot hold its 13000x13000 px"):
        loaded(tmp_path, "a.jpg", bytes(data))


def test_the_smallest_jpeg_of_a_plain_picture_is_whole(tmp_path: Path) -> None:
    Image.new("L", (4000, 3000)).save(tmp_path / "a.jpg", quality=1, optimize=True, progressive=True)
    assert load_image(tmp_path / "a.jpg").size == (3000, 4000)


def test_a_png_too_small_for_its_size_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    data = encoded("PNG")
    head = data[12:16] + struct.pack(">II", 13000, 13000) + data[24:29]
    with pytest.raises(ImageError, match=r"bytes cannot hold its 13000x13000 px"):
        loaded(tmp_path, "a.png", data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:])


# --- told for what they are ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("marker", "bits", "words"),
    [
        (0xC1, 12, "is a JPEG with 12 bits per colour, which is not read"),
        (0xC3, 8, "is a JPEG with a rare coding"),
        (0xC7, 8, "is a JPEG with a rare coding"),
        (0xF7, 8, "is a JPEG with a rare coding"),
    ],
)
def test_a_jpeg_that_is_not_read_is_not_called_damaged(tmp_path: Path, marker: int, bits: int, words: str) -> None:
    data = bytearray(encoded("JPEG"))
    at = data.find(b"\xff\xc0")
    data[at + 1], data[at + 4] = marker, bits
    with pytest.raises(ImageError, match=words):
        loaded(tmp_path, "a.jpg", bytes(data))


@pytest.mark.parametrize("photometric", [3, 4, 6, 8, 9, 32803, 32845])
def test_a_tiff_that_is_not_read_is_not_called_damaged(tmp_path: Path, photometric: int) -> None:
    more = ((320, 3, [0] * 3 * 65536),) if photometric == 3 else ()
    samples = colors().astype(np.uint16)[..., : 1 if photometric in (3, 4, 32803) else 3]
    with pytest.raises(ImageError, match="is a TIFF of a rare kind that is not read"):
        loaded(tmp_path, "a.tif", Tiff(photometric=photometric, more=more).encoded(samples))


@pytest.mark.parametrize(("name", "at", "value"), [("a.bmp", 28, b"\x40\0"), ("a.tga", 16, b"\x0f")])
def test_where_a_rare_kind_looks_like_damage_both_are_said(tmp_path: Path, name: str, at: int, value: bytes) -> None:
    data = encoded(name[2:].upper())
    with pytest.raises(ImageError, match="is damaged or cut short, or of a rare kind that is not read.+ordinary PNG"):
        loaded(tmp_path, name, data[:at] + value + data[at + len(value) :])


@pytest.mark.parametrize("ending", ["jpg", "bmp", "png", "tif", "webp", "gif"])
def test_pillows_warnings_are_not_shown(tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor errors under a Python that is told to make them such."""
    path = tmp_path / f"a.{ending}"
    Image.fromarray(colors()).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", HEIGHT * WIDTH * 2 // 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_image(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match=r"has more than 0 megapixels, Pillow's limit; shrink it first"):
        load_image(path)


def test_a_preview_is_not_taken_for_the_photo(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    smaller = (254, 4, [1])
    assert (
        loaded(tmp_path, "a.tif", Tiff(photometric=2, more=(smaller,)).encoded(colors()))[0].round() == colors()
    ).all()
    assert "is marked as a smaller copy of another" in caplog.text
    raw = Tiff(photometric=2, more=(smaller, (50706, 1, [1, 4, 0, 0]))).encoded(colors())
    with pytest.raises(ImageError, match=r"a\.tif: is a camera's raw photo"):
        loaded(tmp_path, "a.tif", raw)
