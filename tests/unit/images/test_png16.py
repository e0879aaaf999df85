"""16-bit colour PNG against encoders and decoders written here from the specification, byte by byte."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from op4ksr_core import ImageError, OutputError
from op4ksr_core.cli.main import main
from op4ksr_core.images.io import Picture, load_image, save_image
from op4ksr_core.images.png16 import is_png16

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def deep(height: int = 7, width: int = 5, channels: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 65536, (height, width, channels), dtype=np.uint16)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def paeth(a: int, b: int, c: int) -> int:
    p = a + b - c
    pa, pb, pc = abs(p - a), abs(p - b), abs(p - c)
    return a if pa <= pb and pa <= pc else b if pb <= pc else c


def predictor(kind: int, a: int, b: int, c: int) -> int:
    return (0, a, b, (a + b) // 2, paeth(a, b, c))[kind]


def filtered(pixels: np.ndarray, kind: int) -> bytes:
    """Scanlines of (H, W, C) uint16 by one filter, in plain Python."""
    step = 2 * pixels.shape[2]
    above = bytes(pixels.shape[1] * step)
    out = bytearray()
    for line in pixels.astype(">u2"):
        row = line.tobytes()
        out.append(kind)
        for i, value in enumerate(row):
            a, c = (row[i - step], above[i - step]) if i >= step else (0, 0)
            out.append((value - predictor(kind, a, above[i], c)) % 256)
        above = row
    return bytes(out)


def unfiltered(content: bytes, height: int, width: int, channels: int) -> np.ndarray:
    step, length = 2 * channels, width * channels * 2
    above, rows = bytes(length), bytearray()
    for y in range(height):
        start = y * (length + 1)
        kind, row = content[start], bytearray(content[start + 1 : start + 1 + length])
        for i in range(length):
            a, c = (row[i - step], above[i - step]) if i >= step else (0, 0)
            row[i] = (row[i] + predictor(kind, a, above[i], c)) % 256
        rows += row
        above = bytes(row)
    return np.frombuffer(bytes(rows), ">u2").reshape(height, width, channels).astype(np.uint16)


def encoded(pixels: np.ndarray, kind: int = 0, extra: bytes = b"", adam7: bool = False) -> bytes:
    height, width, channels = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 16, {2: 4, 3: 2, 4: 6}[channels], 0, 0, int(adam7))
    passes = [(0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)]
    parts = [pixels[y::dy, x::dx] for y, x, dy, dx in passes] if adam7 else [pixels]
    content = b"".join(filtered(part, kind) for part in parts if part.size)
    return SIGNATURE + chunk(b"IHDR", header) + extra + chunk(b"IDAT", zlib.compress(content)) + chunk(b"IEND", b"")


def planes(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.astype(np.float32) / 65535).permute(2, 0, 1)[None]


# --- reading ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("kind", range(5))
def test_all_bits_are_read_whatever_the_filter(tmp_path: Path, kind: int, channels: int) -> None:
    (tmp_path / "a.png").write_bytes(encoded(deep(channels=channels), kind))
    picture = load_image(tmp_path / "a.png")
    assert torch.equal(picture.image, planes(deep(channels=channels)[..., :3]))
    assert (picture.alpha is None) == (channels == 3)
    if picture.alpha is not None:
        assert torch.equal(picture.alpha, planes(deep(channels=4)[..., 3:]))


def test_interlaced_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encoded(deep(19, 21), 4, adam7=True))
    assert torch.equal(load_image(tmp_path / "a.png").image, planes(deep(19, 21)))


def test_orientation_and_a_transparent_colour(tmp_path: Path) -> None:
    pixels = deep()
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = chunk(b"tRNS", struct.pack(">HHH", *pixels[2, 1].tolist()))
    (tmp_path / "a.png").write_bytes(encoded(pixels, 1, clear + chunk(b"eXIf", exif.tobytes()[6:])))
    picture = load_image(tmp_path / "a.png")
    assert torch.equal(picture.image, planes(np.rot90(pixels, -1).copy()))
    expected = torch.ones(7, 5)
    expected[2, 1] = 0
    assert picture.alpha is not None and torch.equal(picture.alpha[0, 0], torch.rot90(expected, -1))


def test_grey_with_alpha_is_read_in_8_bits_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = deep(channels=2)
    (tmp_path / "a.png").write_bytes(encoded(pixels))
    picture = load_image(tmp_path / "a.png")
    assert "of which 8 are read" in caplog.text and "PNG" in caplog.text
    assert (picture.image[0, 0] - planes(pixels)[0, 0]).abs().max() < 1 / 254


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    content = encoded(deep(64, 64))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_image(tmp_path / "a.png")


# --- writing ----------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("height", [1, 64, 130])
def test_what_is_written_decodes_to_the_same_numbers(tmp_path: Path, height: int, channels: int) -> None:
    pixels = deep(height, 9, channels)
    tensor = planes(pixels)
    save_image(tmp_path / "a.png", Picture(tensor[:, :3], tensor[:, 3:] if channels == 4 else None), bits=16)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(SIGNATURE)
    position, data = 8, b""
    while position < len(content):
        (length,), kind = struct.unpack(">I", content[position : position + 4]), content[position + 4 : position + 8]
        body = content[position + 8 : position + 8 + length]
        assert content[position : position + 12 + length] == chunk(kind, body)
        data += body if kind == b"IDAT" else b""
        position += 12 + length
    assert np.array_equal(unfiltered(zlib.decompress(data), height, 9, channels), pixels)


def test_pillow_reads_it_too_and_we_read_it_back(tmp_path: Path) -> None:
    pixels = deep(70, 33)
    save_image(tmp_path / "a.png", Picture(planes(pixels)), bits=16)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.size == (33, 70)
        assert np.array_equal(np.asarray(opened), pixels >> 8)
    assert torch.equal(load_image(tmp_path / "a.png").image, planes(pixels))


def test_smooth_pictures_are_compressed(tmp_path: Path) -> None:
    ramp = torch.linspace(0, 1, 256).expand(1, 3, 256, 256)
    save_image(tmp_path / "a.png", Picture(ramp), bits=16)
    assert (tmp_path / "a.png").stat().st_size < 256 * 256 * 6 / 10


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.tif"])
def test_other_formats_hold_8_bits(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputError, match="PNG only; end the name in .png"):
        save_image(tmp_path / name, Picture(torch.zeros(1, 3, 2, 2)), bits=16)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_keeps_16_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str], natural: Any) -> None:
    source, out = tmp_path / "a.png", tmp_path / "b.png"
    save_image(source, Picture(natural(32, 32)), bits=16)
    command = ["upscale", str(source), "--scale", "2", "--vae-only", "-o"]
    assert main([*command, str(out), "--bits", "16"]) == 0
    values = load_image(out).image * 65535
    assert values.shape == (1, 3, 64, 64)
    assert ((values.round() % 257) != 0).any(), "8-bit values in 16 bits"
    assert main([*command, str(tmp_path / "b.jpg"), "--bits", "16"]) == 1
    assert "16 bits per colour are written as PNG only" in capsys.readouterr().err


def test_nothing_is_told_of_8_bit_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    for name in ("a.png", "a.jpg", "a.tif"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        load_image(tmp_path / name)
    assert caplog.text == ""


@pytest.mark.parametrize(("channels", "kind", "mode"), [(3, 2, "RGB"), (4, 6, "RGBA")])
def test_the_header_says_what_pillow_sees(tmp_path: Path, channels: int, kind: int, mode: str) -> None:
    values = torch.from_numpy(deep(9, 8, channels).astype(np.float32) / 65535).permute(2, 0, 1)[None]
    save_image(tmp_path / "a.png", Picture(values[:, :3], values[:, 3:] if channels == 4 else None), 16)
    assert (tmp_path / "a.png").read_bytes()[24:26] == bytes([16, kind])
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.mode == mode and is_png16(opened)
        opened.load()
        assert not is_png16(opened), "once it is loaded, nothing tells any more"
