"""PNG in bands: what Pillow reads, whatever the number of threads; texts, errors, how it is joined; and 16 bits."""

from __future__ import annotations

import io
import logging
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade_png import SIGNATURE, chunk, deep, encoded, planes, unfiltered
from PIL import Image

from op4ksr_core import ImageError, OutputError
from op4ksr_core.cli.main import main
from op4ksr_core.images.io import Picture, integer_rows, levels, load_image, save_image, to_pil
from op4ksr_core.images.png import BAND, PngOptions, combined_adler, filtered, write_png

HEIGHTS = [1, 7, BAND, BAND + 1, 2 * BAND + 9]


def pixels(height: int, width: int = 37, channels: int = 3, kind: type[Any] = np.uint8) -> np.ndarray:
    """Slopes and noise, so that every branch of the filter is taken."""
    generator = np.random.default_rng(height)
    slope = np.add.outer(np.arange(height), np.arange(width))[..., None] % 200
    noisy = slope + generator.integers(0, 50, (height, width, channels))
    return (noisy * (np.iinfo(kind).max // 255)).astype(kind)


def written(values: np.ndarray, **options: Any) -> bytes:
    file = io.BytesIO()
    bits = 8 * values.itemsize
    write_png(file, values.shape[:2], values.shape[2], bits, lambda a, b: values[a:b], PngOptions(**options))
    return file.getvalue()


@pytest.mark.parametrize("channels", [3, 4])
@pytest.mark.parametrize("height", HEIGHTS)
def test_pillow_reads_every_pixel(height: int, channels: int) -> None:
    values = pixels(height, channels=channels)
    picture = Image.open(io.BytesIO(written(values)))
    assert picture.mode == ("RGB", "RGBA")[channels - 3]
    assert (np.asarray(picture) == values).all()


def test_the_filter_is_the_one_pillow_writes() -> None:
    """In the rows for which Pillow chose Paeth too."""
    values = pixels(40)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", compress_type=zlib.Z_RLE)
    start = file.getvalue().index(b"IDAT")
    length = int.from_bytes(file.getvalue()[start - 4 : start], "big")
    theirs = np.frombuffer(zlib.decompress(file.getvalue()[start + 4 : start + 4 + length]), np.uint8)
    theirs = theirs.reshape(40, -1)
    rows = theirs[:, 0] == 4
    assert rows.sum() > 5
    assert (filtered(lambda a, b: values[a:b], 0, 40)[rows] == theirs[rows]).all()


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_bytes_do_not_depend_on_the_threads(kind: type[Any]) -> None:
    values = pixels(3 * BAND + 5, kind=kind)
    assert written(values, threads=1) == written(values, threads=5) == written(values)


def test_bands_are_made_at_the_same_time() -> None:
    """Two threads have to meet within two bands' rows, or the barrier breaks."""
    barrier, values = threading.Barrier(2, timeout=20), pixels(2 * BAND)
    met: list[int] = []

    def rows(top: int, bottom: int) -> np.ndarray:
        if top % BAND == 0:
            barrier.wait()
            met.append(top)
        return values[top:bottom]

    write_png(io.BytesIO(), values.shape[:2], 3, 8, rows, PngOptions(threads=2))
    assert sorted(met) == [0, BAND]


@pytest.mark.parametrize("level", [0, 1, 9])
def test_levels_and_strategies_are_zlibs(level: int) -> None:
    values = pixels(BAND + 20)
    data = written(values, level=level, strategy=zlib.Z_DEFAULT_STRATEGY)
    assert (np.asarray(Image.open(io.BytesIO(data))) == values).all()
    assert (len(data) > values.nbytes) == (level == 0)


def test_checksums_of_pieces_make_that_of_the_whole() -> None:
    data = np.random.default_rng(0).integers(0, 256, 200_000, dtype=np.uint8).tobytes()
    for cut in (0, 1, 65_521, 131_072, 199_999, 200_000):
        parts = data[:cut], data[cut:]
        assert combined_adler(*map(zlib.adler32, parts), len(parts[1])) == zlib.adler32(data)


def test_texts_are_read_back() -> None:
    texts = {"prompt": '{"1": "a"}', "remark": "\u9ad8\u6e05"}
    picture: Any = Image.open(io.BytesIO(written(pixels(5), texts=texts)))
    assert picture.text == texts


@pytest.mark.parametrize("where", [0, BAND])
def test_errors_of_the_rows_come_through_and_end_the_threads(where: int) -> None:
    before = threading.active_count()

    def rows(top: int, bottom: int) -> np.ndarray:
        if top >= where:
            raise MemoryError("as if")
        return np.zeros((bottom - top, 4, 3), np.uint8)

    with pytest.raises(MemoryError, match="as if"):
        write_png(io.BytesIO(), (5 * BAND, 4), 3, 8, rows)
    assert threading.active_count() == before


def test_integers_are_rounded_as_pytorch_rounds() -> None:
    """Half levels to even; beyond 0 and 1 cut off; the same for a file and for Pillow."""
    half = (torch.arange(0, 254) + 0.5) / 255
    image = torch.cat((half, torch.tensor([-0.1, 1.2]))).view(1, 1, 16, 16).expand(1, 3, 16, 16)
    wanted = image.clamp(0, 1).mul(255).round().to(torch.uint8)[0].movedim(0, -1).numpy()
    assert (integer_rows(Picture(image), 8)(0, 16) == wanted).all()
    assert (np.asarray(to_pil(Picture(image))) == wanted).all()
    assert image.min() < 0, "the picture itself stays as it is"


def test_half_precision_and_batches(tmp_path: Any) -> None:
    image = torch.rand(2, 3, 9, 8, generator=torch.Generator().manual_seed(0))
    for dtype in (torch.float16, torch.bfloat16):
        save_image(tmp_path / "a.png", Picture(image.to(dtype)))
        wanted = image[0].to(dtype).float().mul(255).round().to(torch.uint8).movedim(0, -1).numpy()
        assert (np.asarray(Image.open(tmp_path / "a.png")) == wanted).all()


@pytest.mark.parametrize(("name", "bits"), [("a.png", 8), ("a.png", 16), ("a.webp", 8)])
def test_levels_are_written_as_the_picture_they_are_of(tmp_path: Any, name: str, bits: int) -> None:
    """What a device sends in place of floats; with transparency, which may be floats still."""
    image = 1.1 * torch.rand(1, 3, 9, 8, generator=torch.Generator().manual_seed(0)) - 0.05
    alpha = image[:, :1].clamp(0, 1)
    save_image(tmp_path / name, Picture(image, alpha), bits)
    expected = (tmp_path / name).read_bytes()
    save_image(tmp_path / name, Picture(levels(image, bits), alpha), bits)
    assert (tmp_path / name).read_bytes() == expected
    assert levels(image, bits).max() == 2**bits - 1 and not levels(image, bits).is_floating_point()


# --- 16 bits per colour: reading ---------------------------------------------------------------


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


@pytest.mark.parametrize("adam7", [False, True])
@pytest.mark.parametrize("kind", range(5))
def test_grey_with_alpha_keeps_all_bits(tmp_path: Path, kind: int, adam7: bool) -> None:
    pixels = deep(19, 21, channels=2)
    (tmp_path / "a.png").write_bytes(encoded(pixels, kind, adam7=adam7))
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is not None and torch.equal(picture.alpha, planes(pixels)[:, 1:])
    assert torch.equal(picture.image, planes(pixels)[:, :1].expand(-1, 3, -1, -1))


def test_a_file_cut_short_is_refused(tmp_path: Path) -> None:
    content = encoded(deep(64, 64))
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match="damaged or cut short"):
        load_image(tmp_path / "a.png")


# --- 16 bits per colour: writing ---------------------------------------------------------------


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
        assert opened.mode == mode
