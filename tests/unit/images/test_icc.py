"""Colour profiles: known colours of other spaces arrive in sRGB; sRGB itself is not touched."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade_png import chunk, deep, encoded, planes
from PIL import Image, ImageCms

from op4ksr_core.images.icc import to_srgb
from op4ksr_core.images.io import load_image

#: Chromaticities of Display P3's primaries, and of the white D65 in XYZ.
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
D65 = np.array([0.95047, 1.0, 1.08883])
#: Bradford adaptation from D65 to the profiles' D50 (ICC.1, annex E).
BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
D50 = np.array([0.9642, 1.0, 0.8249])
SRGB = ((0.640, 0.330), (0.300, 0.600), (0.150, 0.060))


def rgb_to_xyz(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    return columns * np.linalg.solve(columns, D65)


def profile(name: str, primaries: tuple[tuple[float, float], ...] | None, gamma: float) -> bytes:
    """An ICC version 2 matrix (or, without primaries, grey) profile with a power curve."""

    def fixed(value: float) -> bytes:
        return struct.pack(">i", round(value * 65536))

    text = name.encode()
    curve = b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256)) + bytes(2)
    tags: dict[bytes, bytes] = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", len(text) + 1) + text + bytes(1 + 4 + 4 + 2 + 1 + 67),
        b"cprt": b"text" + bytes(4) + b"none\0",
        b"wtpt": b"XYZ " + bytes(4) + b"".join(map(fixed, D50)),
    }
    if primaries is None:
        tags[b"kTRC"] = curve
    else:
        adapt = np.linalg.inv(BRADFORD) @ np.diag((BRADFORD @ D50) / (BRADFORD @ D65)) @ BRADFORD
        matrix = adapt @ rgb_to_xyz(primaries)
        for i, color in enumerate((b"r", b"g", b"b")):
            tags[color + b"XYZ"] = b"XYZ " + bytes(4) + b"".join(map(fixed, matrix[:, i]))
            tags[color + b"TRC"] = curve
    body, table, offset = b"", b"", 128 + 4 + 12 * len(tags)
    for tag, content in tags.items():
        content += bytes(-len(content) % 4)
        table += tag + struct.pack(">II", offset + len(body), len(content))
        body += content
    space = b"GRAY" if primaries is None else b"RGB "
    size = struct.pack(">I", offset + len(body))
    head = size + bytes(4) + struct.pack(">I", 0x02400000) + b"mntr" + space + b"XYZ " + bytes(12) + b"acsp"
    head += bytes(28) + b"".join(map(fixed, D50))
    return head + bytes(128 - len(head)) + struct.pack(">I", len(tags)) + table + body


def expected(rgb: np.ndarray, primaries: tuple[tuple[float, float], ...], gamma: float) -> np.ndarray:
    """(..., 3) in [0, 1] of the other space -> sRGB, by the formulas."""
    linear = (rgb**gamma) @ (np.linalg.inv(rgb_to_xyz(SRGB)) @ rgb_to_xyz(primaries)).T
    linear = linear.clip(0, 1)
    return np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def muted(height: int = 8, width: int = 9) -> np.ndarray:
    """Colours that both spaces have."""
    return np.random.default_rng(1).integers(70, 190, (height, width, 3), dtype=np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg", ".webp"])
def test_display_p3_is_converted(tmp_path: Path, suffix: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    pixels = muted() if suffix not in (".jpg", ".webp") else np.full((16, 16, 3), (180, 90, 60), np.uint8)
    options = (
        {"quality": 100, "subsampling": 0} if suffix == ".jpg" else {"lossless": True} if suffix == ".webp" else {}
    )
    Image.fromarray(pixels).save(tmp_path / f"a{suffix}", icc_profile=profile("Test P3", P3, 2.2), **options)
    got = load_image(tmp_path / f"a{suffix}").image[0].permute(1, 2, 0).numpy()
    wanted = expected(pixels / 255, P3, 563 / 256)
    assert np.abs(got - wanted).max() < 2.1 / 255
    assert np.abs(pixels / 255 - wanted).max() > 10 / 255
    assert "colours converted from Test P3 to sRGB" in caplog.text


def test_alpha_is_kept(tmp_path: Path) -> None:
    rgba = np.dstack([muted(), np.arange(72, dtype=np.uint8).reshape(8, 9)])
    Image.fromarray(rgba).save(tmp_path / "a.png", icc_profile=profile("Test P3", P3, 2.2))
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is not None
    assert torch.equal(picture.alpha[0, 0], torch.from_numpy(rgba[..., 3]).float() / 255)
    wanted = expected(rgba[..., :3] / 255, P3, 563 / 256)
    assert np.abs(picture.image[0].permute(1, 2, 0).numpy() - wanted).max() < 2.1 / 255


def test_a_grey_profile_is_converted(tmp_path: Path) -> None:
    grey = np.arange(0, 256, 5, dtype=np.uint8)[None]
    Image.fromarray(grey).save(tmp_path / "a.png", icc_profile=profile("Test grey", None, 1.75))
    image = load_image(tmp_path / "a.png").image
    linear = (grey / 255) ** 1.75
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    for band in image[0].numpy():
        assert np.abs(band - wanted).max() < 2.1 / 255
    assert np.abs(grey / 255 - wanted).max() > 10 / 255


def test_srgb_itself_is_not_touched(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    pixels = np.random.default_rng(0).integers(0, 256, (9, 9, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=own)
    assert torch.equal(
        load_image(tmp_path / "a.png").image * 255, torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    )
    assert caplog.text == ""


@pytest.mark.parametrize("content", [b"no profile at all", profile("Test grey", None, 2.2)], ids=["broken", "for grey"])
def test_a_profile_that_does_not_fit_is_left_out_with_a_warning(
    tmp_path: Path, content: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    Image.fromarray(muted()).save(tmp_path / "a.png", icc_profile=content)
    image = load_image(tmp_path / "a.png").image
    assert torch.equal(image, torch.from_numpy(muted()).permute(2, 0, 1)[None].float() / 255)
    assert "colour profile cannot be used" in caplog.text and caplog.text.count("WARNING") == 1


def test_a_pillow_without_littlecms_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none(_: Any) -> bool:
        return False

    monkeypatch.setattr("op4ksr_core.images.icc.features.check", none)
    Image.fromarray(muted()).save(tmp_path / "a.png", icc_profile=profile("Test P3", P3, 2.2))
    load_image(tmp_path / "a.png")
    assert "no littlecms" in caplog.text


def iccp(content: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(content))


def test_16_bits_with_a_profile_of_curves_are_converted_in_16(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pixels = deep(9, 9) // 3 + 20000
    (tmp_path / "a.png").write_bytes(encoded(pixels, 1, iccp(profile("Test P3", P3, 2.2))))
    got = load_image(tmp_path / "a.png").image[0].permute(1, 2, 0).numpy()
    assert np.abs(got - expected(pixels / 65535, P3, 563 / 256)).max() < 30 / 65535
    assert caplog.text == ""


def test_16_bits_with_srgb_keep_all_bits(tmp_path: Path) -> None:
    own = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    (tmp_path / "a.png").write_bytes(encoded(deep(), 0, iccp(own)))
    assert torch.equal(load_image(tmp_path / "a.png").image, planes(deep()))


def test_16_bit_grey_with_a_profile_is_converted_in_16(tmp_path: Path) -> None:
    grey = np.array([[0, 257, 32769]], np.uint16)
    Image.fromarray(grey).save(tmp_path / "a.tif", icc_profile=profile("Test grey", None, 1.0))
    wanted = expected(np.repeat(grey[..., None] / 65535, 3, -1), SRGB, 1.0)[0, :, 0]
    assert load_image(tmp_path / "a.tif").image[0, 0, 0].tolist() == pytest.approx(wanted.tolist(), abs=1e-6)


def test_a_converted_picture_is_srgb_and_says_nothing_else() -> None:
    picture = Image.fromarray(muted())
    picture.info.update(icc_profile=profile("Test P3", P3, 2.2), gamma=0.5)
    once, changed = to_srgb(picture, "a.png")
    assert changed and once.info == {} and to_srgb(once, "a.png") == (once, False)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "LA", "1", "P", "RGBA"])
def test_white_is_white_black_is_black_and_pixels_keep_their_kind(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, Any, Any, str]] = []

    def recorded(picture: Image.Image, *_: Any, renderingIntent: Any, flags: Any, outputMode: str) -> Image.Image:  # noqa: N803
        asked.append((picture.mode, renderingIntent, flags, outputMode))
        return Image.new("RGB", picture.size)

    monkeypatch.setattr(ImageCms, "profileToProfile", recorded)
    picture = Image.new(mode, (4, 4))
    picture.info["icc_profile"] = profile("Test P3", P3, 2.2)
    assert to_srgb(picture, "a")[1]
    kind = {"LA": "L", "1": "L", "P": "RGB", "RGBA": "RGB"}.get(mode, mode)
    intent, flags = ImageCms.Intent.RELATIVE_COLORIMETRIC, 0x2000
    assert set(asked) == {(kind, intent, flags, "RGB")}


def test_grey_with_alpha_has_a_grey_profile(tmp_path: Path) -> None:
    grey = np.arange(0, 250, 5, dtype=np.uint8).reshape(5, 10)
    Image.fromarray(np.dstack([grey, grey]), "LA").save(tmp_path / "a.png", icc_profile=profile("Grey", None, 1.75))
    picture = load_image(tmp_path / "a.png")
    linear = (grey / 255) ** 1.75
    wanted = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert picture.alpha is not None and torch.equal(picture.alpha[0, 0], torch.from_numpy(grey).float() / 255)
    assert np.abs(picture.image[0, 1].numpy() - wanted).max() < 2.1 / 255


def test_a_transparent_colour_stays_transparent(tmp_path: Path) -> None:
    pixels = muted()
    clear = tuple(int(value) for value in pixels[2, 3])
    Image.fromarray(pixels).save(tmp_path / "a.png", icc_profile=profile("Test P3", P3, 2.2), transparency=clear)
    picture = load_image(tmp_path / "a.png")
    assert picture.alpha is not None and picture.alpha[0, 0, 2, 3] == 0 and int((picture.alpha == 0).sum()) == 1
