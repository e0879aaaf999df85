"""Picture files as they are in the wild: read rightly, whatever their metadata, or refused in one sentence."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade_png import chunk, png
from handmade_tiff import Tiff, exif
from PIL import Image, PngImagePlugin

from op4ksr_core import ImageError
from op4ksr_core.images import read
from op4ksr_core.images.io import load_image
from op4ksr_core.images.read import open_picture


def colors(height: int = 16, width: int = 32, channels: int = 3) -> np.ndarray:
    """Smooth, so that JPEG keeps it nearly, and unlike itself turned."""
    y, x = np.mgrid[0:height, 0:width]
    return (
        np.stack([x * 7, y * 15, 255 - x * 3 - y * 5, x * 5 + y * 5], -1)[..., :channels].clip(0, 255).astype(np.uint8)
    )


def levels(path: Path) -> np.ndarray:
    return (load_image(path).image[0].permute(1, 2, 0) * 255).round().numpy().astype(int)


# --- EXIF ------------------------------------------------------------------------------------------

ODD_TAGS = [
    (282, 2, b"seventy-two\0"),
    (283, 5, [(72, 0)]),
    (296, 2, b"inch\0"),
    (34665, 4, [0xFFFFFFF0]),
    (34853, 2, b"text\0"),
    (270, 7, b"\xff" * 300),
]


def write_with_exif(path: Path, block: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The picture with this EXIF, as it is."""
    picture = Image.fromarray(colors())
    if path.suffix == ".png":
        path.write_bytes(png(colors(), 8, 2, chunk(b"eXIf", block[6:])))
    elif path.suffix == ".tif":
        import handmade_tiff

        entries = [(274, 8, [6])] + [tag for tag in ODD_TAGS if block.count(b"seventy")]
        path.write_bytes(handmade_tiff.Tiff(photometric=2, more=tuple(entries)).encoded(colors()))
    elif path.suffix == ".mpo":
        picture.save(path, "MPO", save_all=True, append_images=[picture], exif=block, quality=95)
    elif path.suffix == ".avif":
        plain = exif([(274, 3, [6]), (305, 2, b"a program of some name\0")])
        picture.save(path, exif=plain, quality=100)
        data = path.read_bytes()  # Pillow writes irot, and EXIF without the tag: spoilt, it must not matter
        assert b"a program" in data and data.count(b"II*\0\x08\0\0\0") == 1
        path.write_bytes(data.replace(b"II*\0\x08\0\0\0", b"XX*\0\x08\0\0\0"))
    else:
        options = {"lossless": True} if path.suffix == ".webp" else {"quality": 95, "subsampling": 0}
        picture.save(path, exif=block, **options)
        data = path.read_bytes()
        if path.suffix == ".jpg" and data[2:4] == b"\xff\xe0":  # without JFIF, as cameras write: Pillow asks EXIF
            path.write_bytes(data[:2] + data[20:])


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp", ".tif", ".avif", ".mpo"])
@pytest.mark.parametrize("kind", [1, 3, 4, 6, 8, 9])
def test_only_the_orientation_counts_of_exif(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, kind: int
) -> None:
    path = tmp_path / f"a{ending}"
    if ending == ".avif" and not read.can_be_read(read.format_of_content(b"\0\0\0\x1cftypavif", "")):
        pytest.skip("this Pillow has no AVIF")
    write_with_exif(path, exif([(274, kind, [6]), *ODD_TAGS], "<" if kind % 2 else ">"), monkeypatch)
    wanted = np.rot90(colors(), -1).astype(int)
    found = levels(path)
    assert found.shape == wanted.shape
    assert np.abs(found - wanted).max() <= {".jpg": 12, ".mpo": 60, ".avif": 12}.get(ending, 0)


@pytest.mark.parametrize("ending", [".jpg", ".png", ".webp"])
@pytest.mark.parametrize(
    "block",
    [
        b"Exif\0\0XX*\0\x08\0\0\0",
        b"Exif\0\0",
        b"Exif\0\0II*\0\xff\xff\xff\xff",
        exif([(274, 3, [6])])[:20],
        exif([(274, 11, [6.0])]),
        exif([(274, 3, [0])]),
        exif([(274, 3, [999])]),
        exif([(274, 5, [(6, 1)])]),
    ],
)
def test_an_orientation_that_is_none_leaves_the_picture_upright(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block: bytes, ending: str
) -> None:
    write_with_exif(tmp_path / f"a{ending}", block, monkeypatch)
    assert levels(tmp_path / f"a{ending}").shape == (16, 32, 3)


def test_an_orientation_of_xmp_counts_where_exif_has_none(tmp_path: Path) -> None:
    text = b'<rdf tiff:Orientation="6"/>'
    itxt = chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + text)
    (tmp_path / "a.png").write_bytes(png(colors(), 8, 2, itxt))
    assert levels(tmp_path / "a.png").shape == (32, 16, 3)
    upright = chunk(b"eXIf", exif([(274, 3, [1])])[6:])
    (tmp_path / "a.png").write_bytes(png(colors(), 8, 2, itxt + upright))
    assert levels(tmp_path / "a.png").shape == (16, 32, 3)


def test_exif_in_a_text_of_a_png_counts(tmp_path: Path) -> None:
    block = exif([(274, 3, [6])])
    text = b"\nexif\n%8d\n" % len(block) + block.hex().encode() + b"\n"
    (tmp_path / "a.png").write_bytes(
        png(colors(), 8, 2, chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))
    )
    assert levels(tmp_path / "a.png").shape == (32, 16, 3)


def test_exif_is_never_rewritten_or_parsed_by_pillow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    block = exif([(274, 8, [6]), *ODD_TAGS])
    for ending in (".jpg", ".png", ".webp"):
        write_with_exif(tmp_path / f"a{ending}", block, monkeypatch)

    def parsed(*_: Any, **__: Any) -> None:
        raise struct.error("required argument is not an integer")

    for name in ("load", "tobytes", "_load_bytes", "__setitem__", "__getitem__"):
        monkeypatch.setattr(Image.Exif, name, parsed, raising=False)
    for ending in (".jpg", ".png", ".webp"):
        assert levels(tmp_path / f"a{ending}").shape == (32, 16, 3)


# --- PNG's chunks ----------------------------------------------------------------------------------


def broken(name: bytes, content: bytes) -> bytes:
    whole = bytearray(chunk(name, content))
    whole[-1] ^= 1
    return bytes(whole)


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"tEXt", b"Comment\0" + b"x" * 1_500_000),
        chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(3_000_000))),
        chunk(b"zTXt", b"Comment\0\0no deflate"),
        broken(b"tEXt", b"Comment\0x"),
        broken(b"tIME", bytes(7)),
        chunk(b"iTXt", b"\xff\1\1"),
        chunk(b"pHYs", b"1"),
        chunk(b"cHRM", b"1"),
        chunk(b"gAMA", b"1"),
        chunk(b"sRGB", b""),
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(1_500_000))),
        broken(b"iCCP", b"x\0\0" + zlib.compress(b"1")),
        chunk(b"eXIf", b""),
        chunk(b"acTL", b""),
    ],
    ids=range(14),
)
def test_no_chunk_that_is_not_needed_refuses_a_png(tmp_path: Path, extra: bytes) -> None:
    before = PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY
    (tmp_path / "a.png").write_bytes(png(colors(), 8, 2, extra))
    assert np.array_equal(levels(tmp_path / "a.png"), colors())
    assert before == (PngImagePlugin.MAX_TEXT_CHUNK, PngImagePlugin.MAX_TEXT_MEMORY)


def test_a_wrong_checksum_where_pixels_are_refuses_the_png(tmp_path: Path) -> None:
    data = bytearray(png(colors(), 8, 2))
    data[data.index(b"IDAT") + 20] ^= 1
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(ImageError, match=r"is damaged or cut short \(the checksum of its chunk IDAT is wrong\)"):
        load_image(tmp_path / "a.png")


def test_a_transparency_with_a_wrong_checksum_is_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a.png").write_bytes(png(colors(), 8, 2, broken(b"tRNS", bytes(6))))
    assert load_image(tmp_path / "a.png").alpha is None
    assert "its chunk tRNS has a wrong checksum and is left out" in caplog.text


@pytest.mark.parametrize("length", [1, 2, 4, 5, 300])
def test_a_palette_has_as_much_transparency_as_it_has_colours(tmp_path: Path, length: int) -> None:
    palette = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [9, 9, 9]], np.uint8)
    table = bytes(range(10, 250, 60)).ljust(length, b"\x07")[:length]
    extra = chunk(b"PLTE", palette.tobytes()) + chunk(b"tRNS", table)
    (tmp_path / "a.png").write_bytes(png(np.array([[[0], [1], [2], [3]]]), 2, 3, extra))
    picture = load_image(tmp_path / "a.png")
    wanted = list(table[:4]) + [255] * (4 - length)
    assert picture.alpha is not None and (picture.alpha * 255).round().flatten().tolist() == wanted
    assert np.array_equal(levels(tmp_path / "a.png")[0], palette)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_clear_grey_level_of_any_depth(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    values = np.array([[[0], [top], [1], [top // 2]]])
    (tmp_path / "a.png").write_bytes(png(values, bits, 0, chunk(b"tRNS", struct.pack(">H", 1))))
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is not None
    assert picture.alpha.flatten().tolist() == (values[0, :, 0] != 1).astype(float).tolist()
    assert picture.image[0, 1].flatten().tolist() == pytest.approx((values[0, :, 0] / top).tolist())


@pytest.mark.parametrize("bits", [8, 16])
def test_a_clear_colour_of_a_colour_picture(tmp_path: Path, bits: int) -> None:
    values = np.random.default_rng(0).integers(0, 2**bits, (5, 6, 3))
    clear = struct.pack(">HHH", *values[2, 3].tolist())
    (tmp_path / "a.png").write_bytes(png(values, bits, 2, chunk(b"tRNS", clear)))
    alpha = load_image(tmp_path / "a.png").alpha
    assert alpha is not None and alpha[0, 0, 2, 3] == 0 and int((alpha == 0).sum()) == 1


def test_apples_own_png_is_told_for_what_it_is(tmp_path: Path) -> None:
    data = png(colors(), 8, 2)
    (tmp_path / "a.png").write_bytes(data[:8] + chunk(b"CgBI", bytes(4)) + data[8:])
    with pytest.raises(ImageError, match=r"a\.png: is in Apple's own kind of PNG"):
        load_image(tmp_path / "a.png")


# --- several pictures ------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", [".gif", ".webp", ".tif", ".png", ".mpo", ".avif"])
def test_which_of_several_pictures_was_taken_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, ending: str
) -> None:
    path = tmp_path / f"a{ending}"
    frames = [Image.new("RGB", (24, 16), color) for color in ((200, 0, 0), (0, 200, 0), (0, 0, 200))]
    if ending == ".avif" and not read.can_be_read(read.format_of_content(b"\0\0\0\x1cftypavif", "")):
        pytest.skip("this Pillow has no AVIF")
    frames[0].save(path, save_all=True, append_images=frames[1:])
    with Image.open(path) as opened:
        try:
            opened.load()
        except OSError:
            pytest.skip("this Pillow writes a broken one (MPO, in 10.1)")
    found = levels(path)
    assert np.abs(found - np.array([200, 0, 0])).max() <= 6
    assert "holds 3 pictures, of which the first is taken" in caplog.text


# --- more bits than are read -----------------------------------------------------------------------


def test_a_deep_ppm_is_read_in_8_bits_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6\n# c\n2 1\n65535\n" + bytes([255, 255, 0, 0, 128, 0] * 2))
    assert levels(tmp_path / "a.ppm")[0, 0].tolist() == [255, 0, 128]
    assert "has 16 bits per colour, of which 8 are read" in caplog.text


# --- what is refused -------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_pipe_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    with pytest.raises(ImageError, match=r"a\.png: is a named pipe; expected a picture file"):
        load_image(tmp_path / "a.png")
    if Path("/dev/zero").exists():
        with pytest.raises(ImageError, match="is a device"):
            load_image("/dev/zero")


@pytest.mark.parametrize(
    "error",
    [RuntimeError("Failed to decode image"), MemoryError(), struct.error("x"), OverflowError("y"), KeyError("z"),
     zlib.error("w"), AssertionError(), AttributeError("v"), EOFError(), ZeroDivisionError("u")],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_whatever_a_decoder_raises_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    Image.fromarray(colors()).save(tmp_path / "a.webp")

    def fail(self: Any) -> None:
        raise error

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match=r"a\.webp: is damaged or cut short \(.+\); save it again"):
        load_image(tmp_path / "a.webp")


def test_memory_that_runs_out_for_a_large_picture_is_not_called_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.new("RGB", (4000, 4000)).save(tmp_path / "a.png")

    def fail(self: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)
    with pytest.raises(ImageError, match=r"memory ran out while it was read, for which it takes about 0\.51 GB"):
        load_image(tmp_path / "a.png")


def huge(side: int) -> bytes:
    """A small file that claims to be huge."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(bytes(100)))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def test_the_header_alone_tells_size_and_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(huge(13000))
    file = open_picture(tmp_path / "a.png")
    assert file.size == (13000, 13000) and file.need > 24 * 13000**2
    monkeypatch.setattr(read, "system_memory", lambda: 10**9)
    with pytest.raises(ImageError, match=r"13000x13000 px take about .* GB .* read, but there are 1\.00 GB"):
        load_image(tmp_path / "a.png")


def test_a_file_larger_than_the_free_memory_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(colors()).save(tmp_path / "a.bmp")
    monkeypatch.setattr(read, "system_memory", lambda: 1000)
    with pytest.raises(ImageError, match="more than the memory that is free"):
        load_image(tmp_path / "a.bmp")


@pytest.mark.slow
def test_the_memory_that_reading_takes_is_not_underestimated(tmp_path: Path) -> None:
    """By a process of its own, whose peak is measured: 8 and 16 bits, with transparency."""
    if not Path("/proc/self/statm").exists():
        pytest.skip("needs Linux's /proc")
    import subprocess
    import sys

    Image.new("RGBA", (4000, 4000), (1, 2, 3, 4)).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes(png(np.zeros((4000, 4000, 4), np.uint16), 16, 6))
    script = (
        "import sys; from pathlib import Path; from op4ksr_core.images.read import open_picture\n"
        "def kb(name): return int(Path('/proc/self/status').read_text().split(name)[1].split()[0])\n"
        "file = open_picture(sys.argv[1]); before = kb('VmRSS:')\n"
        "file.pixels(); print((kb('VmHWM:') - before) * 1024, file.need)"
    )
    deep = np.zeros((2000, 2000, 4), np.uint16)
    (tmp_path / "c.tif").write_bytes(Tiff(photometric=2, rows=100, extra=(1,)).encoded(deep))
    (tmp_path / "d.tif").write_bytes(Tiff(photometric=2, rows=100, extra=(2,)).encoded(deep.astype(np.float32)))
    for name in ("a.png", "b.png", "c.tif", "d.tif"):
        out = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path / name)],
            capture_output=True,
            text=True,
            check=True,
            cwd=Path(read.__file__).parents[2],
        ).stdout.split()
        assert int(out[0]) < int(out[1]) < 2.5 * int(out[0]), (name, out)


@pytest.mark.parametrize("ending", [".png", ".jpg", ".webp", ".tif", ".bmp", ".gif", ".ppm", ".tga"])
def test_a_file_that_ends_too_early_is_refused(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
    content = path.read_bytes()
    for share in (0.1, 0.5, 0.9):
        path.write_bytes(content[: int(share * len(content))])
        with warnings.catch_warnings(), pytest.raises(ImageError, match=r"is (no picture|damaged or cut short)"):
            warnings.simplefilter("ignore")
            load_image(path)


def test_pillows_globals_stay_as_they_are(tmp_path: Path) -> None:
    from PIL import ImageFile

    before = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
    (tmp_path / "a.png").write_bytes(png(colors(), 8, 2, broken(b"tEXt", b"a\0b")))
    load_image(tmp_path / "a.png")
    assert before == (ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS)


def test_grey_jpeg_is_exactly_grey(tmp_path: Path) -> None:
    file = io.BytesIO()
    grey = colors(channels=1).repeat(3, 2)
    Image.fromarray(grey).save(file, "JPEG")
    (tmp_path / "a.jpg").write_bytes(file.getvalue())
    image = load_image(tmp_path / "a.jpg").image
    assert torch.equal(image[:, 0], image[:, 1]) and torch.equal(image[:, 0], image[:, 2])
