"""TIFF: every kind of sample, layout and byte order, as written here in plain Python; or one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade_tiff import Tiff
from PIL import Image

from op4ksr_core import ImageError
from op4ksr_core.images import tiff
from op4ksr_core.images.io import Picture, load_image

RNG = np.random.default_rng(3)


def loaded(tmp_path: Path, content: bytes) -> Picture:
    (tmp_path / "a.tif").write_bytes(content)
    return load_image(tmp_path / "a.tif")


def ramp(kind: str, height: int = 9, width: int = 21, samples: int = 1, top: float | None = None) -> np.ndarray:
    """From 0 to the type's largest, or ``top``."""
    dtype = np.dtype(kind)
    largest = top if top is not None else float(np.iinfo(dtype).max)
    values = np.linspace(0, 1, height * width * samples).reshape(height, width, samples) * largest
    out = values.astype(dtype) if dtype.kind == "f" else np.minimum(np.round(values), largest).astype(dtype)
    out[-1, -1, -1] = top if top is not None else np.iinfo(dtype).max
    return out


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("photometric", [0, 1])
@pytest.mark.parametrize(
    ("kind", "top"),
    [("u1", None), ("u2", None), ("u4", None), ("u4", 65535), ("i2", None), ("i4", None),
     ("f2", 1), ("f4", 1), ("f4", 255), ("f4", 65535), ("f8", 255)],
)  # fmt: skip
def test_black_is_black_and_white_is_white(
    tmp_path: Path, kind: str, top: float | None, photometric: int, order: str
) -> None:
    pixels = ramp(kind, top=top)
    image = loaded(tmp_path, Tiff(order=order, photometric=photometric).encoded(pixels)).image
    wanted = pixels[..., 0].astype(np.float64) / (top or np.iinfo(np.dtype(kind)).max)
    wanted = 1 - wanted if photometric == 0 else wanted
    for band in image[0].numpy():
        assert np.abs(band - wanted).max() < 1e-6


LAYOUTS: list[dict[str, Any]] = [
    {},
    {"planar": 2},
    {"rows": 1},
    {"rows": 100},
    {"tile": (16, 32)},
    {"tile": (16, 16), "planar": 2},
    {"compression": 8},
    {"compression": 32946, "predictor": 2},
    {"compression": 8, "predictor": 2, "tile": (16, 16)},
    {"compression": 8, "predictor": 2, "planar": 2},
    {"compression": 32773},
    {"big": True},
    {"big": True, "tile": (16, 16), "compression": 8, "predictor": 2},
]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("extra", [0, 1, 2])
@pytest.mark.parametrize("kind", ["u1", "u2"])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_colours_and_transparency_in_any_layout(
    tmp_path: Path, layout: dict[str, Any], kind: str, extra: int, order: str
) -> None:
    top = np.iinfo(kind).max
    pixels = RNG.integers(1, top, (33, 37, 3 + (extra > 0)), endpoint=True).astype(kind)
    if extra == 1:
        pixels[..., :3] = pixels[..., :3].astype(float) * pixels[..., 3:] / top
    writer = Tiff(order=order, photometric=2, extra=(extra,) if extra else (), **layout)
    picture = loaded(tmp_path, writer.encoded(pixels))
    colors, alpha = pixels[..., :3] / top, pixels[..., 3] / top if extra else None
    if alpha is None:
        assert picture.alpha is None
    else:
        assert picture.alpha is not None and np.abs(picture.alpha[0, 0].numpy() - alpha).max() < 1e-6
    if extra == 1 and alpha is not None:
        colors = (colors / alpha[..., None]).clip(0, 1)
    near = 0.51 / 255 if extra == 1 and kind == "u1" else 1e-6
    assert np.abs(picture.image[0].permute(1, 2, 0).numpy() - colors).max() < near


@pytest.mark.parametrize("layout", [{}, {"tile": (16, 16)}, {"planar": 2}], ids=str)
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_the_predictor_of_floats(tmp_path: Path, kind: str, layout: dict[str, Any]) -> None:
    pixels = RNG.random((20, 37, 3)).astype(kind)
    writer = Tiff(order=">", photometric=2, compression=8, predictor=3, **layout)
    image = loaded(tmp_path, writer.encoded(pixels)).image[0].permute(1, 2, 0).numpy()
    assert np.abs(image - pixels.astype(np.float64)).max() < 1e-6


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd", "tiff_lzma"])
def test_16_bit_grey_as_pillow_compresses_it(tmp_path: Path, compression: str) -> None:
    grey = RNG.integers(0, 65536, (40, 41), dtype=np.uint16)
    try:
        Image.fromarray(grey).save(tmp_path / "a.tif", compression=compression)
    except (OSError, ValueError):
        pytest.skip(f"this Pillow does not write {compression}")
    assert np.array_equal((load_image(tmp_path / "a.tif").image[0, 0] * 65535).round().numpy(), grey)


@pytest.mark.parametrize("extra", [1, 2])
def test_grey_with_transparency(tmp_path: Path, extra: int) -> None:
    pixels = np.array([[[100, 200], [50, 100], [0, 0], [255, 255]]], np.uint8)
    picture = loaded(tmp_path, Tiff(extra=(extra,)).encoded(pixels))
    wanted = [128, 128, 0, 255] if extra == 1 else [100, 50, 0, 255]
    assert (picture.image[0, 2, 0] * 255).round().tolist() == wanted
    assert picture.alpha is not None and (picture.alpha * 255).round().flatten().tolist() == [200, 100, 0, 255]


def test_an_extra_sample_that_is_no_transparency_is_left_out(tmp_path: Path) -> None:
    picture = loaded(tmp_path, Tiff(photometric=2, extra=(0, 0)).encoded(ramp("u2", samples=5)))
    assert picture.alpha is None and picture.image.shape == (1, 3, 9, 21)


def test_inks_of_16_bits_are_read_in_8_and_that_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = np.zeros((4, 5, 4), np.uint16)
    pixels[..., 1:3] = 65535
    image = loaded(tmp_path, Tiff(photometric=5).encoded(pixels)).image
    assert image[0, :, 0, 0].tolist() == [1.0, 0.0, 0.0]
    assert "more than 8 bits per ink, of which 8 are read" in caplog.text


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0.0, np.nan], "holds NaN or infinite values"),
        ([0.0, np.inf], "holds NaN or infinite values"),
        ([0.0, 1e6], r"holds numbers up to 1e\+06; expected 0 to 1, 0 to 255 or 0 to 65535; scale them"),
    ],
)
def test_floats_that_are_no_picture(tmp_path: Path, values: list[float], message: str) -> None:
    with pytest.raises(ImageError, match=rf"a\.tif: {message}"):
        loaded(tmp_path, Tiff().encoded(np.array(values, np.float32).reshape(1, 2, 1)))


def test_whole_numbers_between_16_and_32_bits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"whole numbers up to 100000; expected up to 65535, or up to 4294967295"):
        loaded(tmp_path, Tiff().encoded(np.array([[[0], [100000]]], np.uint32)))


def test_the_range_that_a_file_states_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = ((340, 11, [100.0]), (341, 11, [300.0]))
    image = loaded(tmp_path, Tiff(more=more).encoded(np.array([[[100], [150], [300]]], np.float32))).image
    assert image[0, 0, 0].tolist() == [0.0, 0.25, 1.0]
    assert "holds numbers from 100 to 300, taken for 100 (black) to 300 (white)" in caplog.text


def test_a_kind_of_sample_that_is_not_read_says_so(tmp_path: Path) -> None:
    content = Tiff(more=((339, 3, [6]),)).encoded(ramp("u2"))
    with pytest.raises(ImageError, match=r"a\.tif: has samples of a kind that is not read \(16 bits, format 6\)"):
        loaded(tmp_path, content.replace(b"\x53\x01\x03\0\x01\0\0\0\x01\0", b"\x53\x01\x03\0\x01\0\0\0\x06\0"))


@pytest.mark.parametrize("kind", [3, 4, 6, 8, 9, 16])
@pytest.mark.parametrize("name", ["u1", "u2", "f4"])
def test_orientation_of_any_whole_type(tmp_path: Path, name: str, kind: int) -> None:
    if kind == 16:
        writer = Tiff(big=True, more=((274, 16, [6]),))
    else:
        writer = Tiff(more=((274, kind, [6]), (282, 2, b"odd\0"), (283, 5, [(1, 0)])))
    pixels = ramp(name, top=1.0 if name == "f4" else None)
    assert loaded(tmp_path, writer.encoded(pixels)).size == (21, 9)


def test_a_picture_is_unpacked_in_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiff, "_BAND", 1000)
    pixels = RNG.integers(0, 65536, (100, 37, 3), dtype=np.uint16)
    for layout in ({"rows": 3}, {"tile": (16, 16)}, {"rows": 100}, {"planar": 2, "rows": 7}):
        image = loaded(tmp_path, Tiff(photometric=2, compression=8, **layout).encoded(pixels)).image
        assert np.abs(image[0].permute(1, 2, 0).numpy() - pixels / 65535).max() < 1e-6


def test_a_strip_that_is_missing_is_damage(tmp_path: Path) -> None:
    content = bytearray(Tiff(rows=2).encoded(ramp("u2")))
    at = content.index(b"\x11\x01\x04\0")  # StripOffsets: of five one less
    content[at + 4] -= 1
    with pytest.raises(ImageError, match="is damaged or cut short"):
        loaded(tmp_path, bytes(content))


def test_8_bit_rgb_is_what_pillow_reads(tmp_path: Path) -> None:
    pixels = RNG.integers(0, 256, (9, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.tif", compression="tiff_lzw")
    assert torch.equal(load_image(tmp_path / "a.tif").image[0].permute(1, 2, 0), torch.from_numpy(pixels) / 255)
