"""Colours that PNG, AVIF and profiles state by numbers, against the formulas."""

from __future__ import annotations

import logging
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from campaigns.odd_pictures import P3, REC2020, SRGB, profile, seen
from handmade_png import chunk, png
from PIL import Image

from op4ksr_core.images.io import load_image
from op4ksr_core.images.spaces import space_of_codes, space_of_gamma, space_of_profile


def gama(value: float) -> bytes:
    return chunk(b"gAMA", struct.pack(">I", round(value * 100000)))


def chrm(primaries: Any) -> bytes:
    return chunk(b"cHRM", struct.pack(">8I", *(round(v * 100000) for pair in primaries for v in pair)))


def cicp(primaries: int, transfer: int, full: int = 1) -> bytes:
    return chunk(b"cICP", bytes([primaries, transfer, 0, full]))


def iccp(content: bytes) -> bytes:
    return chunk(b"iCCP", b"x\0\0" + zlib.compress(content))


def read(path: Path, pixels: np.ndarray, bits: int, extra: bytes) -> np.ndarray:
    path.write_bytes(png(pixels, bits, 2 if pixels.shape[2] == 3 else 0, extra))
    return load_image(path).image[0].permute(1, 2, 0).numpy()


def pixels_of(bits: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, (12, 13, 3))


STATED = [
    (gama(1.0), 1.0, SRGB),
    (gama(1 / 1.8), 1.8, SRGB),
    (gama(0.45455), None, SRGB),
    (gama(0.45455) + chrm(SRGB), None, SRGB),
    (chrm(P3), None, P3),
    (gama(1.0) + chrm(REC2020), 1.0, REC2020),
    (gama(1.0) + chunk(b"sRGB", b"\0"), None, SRGB),
    (chunk(b"sRGB", b"\0") + iccp(profile("sRGB", P3, 1.8)), 461 / 256, P3),
    (gama(1.0) + iccp(profile("x", SRGB, None)), None, SRGB),
    (iccp(profile("x", P3, 1.8)) + cicp(1, 13), None, SRGB),
    (gama(1.0) + cicp(12, 13), None, P3),
    (cicp(9, 8), 1.0, REC2020),
    (cicp(1, 4), 2.2, SRGB),
    (cicp(2, 2), None, SRGB),
]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("index", range(len(STATED)))
def test_what_a_png_states_is_followed_in_the_order_of_its_specification(
    tmp_path: Path, index: int, bits: int, caplog: pytest.LogCaptureFixture
) -> None:
    extra, gamma, primaries = STATED[index]
    pixels = pixels_of(bits)
    found = read(tmp_path / "a.png", pixels, bits, extra)
    wanted = seen(pixels / (2**bits - 1), gamma, primaries)
    near = (0.51 if b"iCCP" not in extra else 2.1) / 255 if bits == 8 else 2e-3 if b"iCCP" in extra else 2e-4
    assert np.abs(found - wanted).max() < near
    assert caplog.text == ""


def test_what_says_srgb_leaves_every_bit(tmp_path: Path) -> None:
    pixels = pixels_of(8)
    for extra in (gama(0.45455), gama(0.45), chrm(SRGB), cicp(1, 13), iccp(profile("no name", SRGB, None))):
        assert np.array_equal(read(tmp_path / "a.png", pixels, 8, extra), (pixels / np.float32(255)).astype(np.float32))


@pytest.mark.parametrize("bits", [8, 16])
def test_grey_follows_gamma_and_stays_grey(tmp_path: Path, bits: int) -> None:
    pixels = np.arange(0, 2**bits, 2**bits // 200)[None, :, None]
    found = read(tmp_path / "a.png", pixels, bits, gama(1.0) + chrm(REC2020))
    wanted = seen(np.repeat(pixels / (2**bits - 1), 3, -1), 1.0)
    assert np.abs(found - wanted).max() < (0.51 / 255 if bits == 8 else 1e-5)
    assert np.array_equal(found[..., 0], found[..., 1]) and np.array_equal(found[..., 0], found[..., 2])


@pytest.mark.parametrize(("transfer", "name"), [(16, "PQ"), (18, "HLG")])
def test_hdr_is_told(tmp_path: Path, transfer: int, name: str, caplog: pytest.LogCaptureFixture) -> None:
    pixels = pixels_of(8)
    found = read(tmp_path / "a.png", pixels, 8, cicp(9, transfer))
    assert np.abs(found - pixels / 255).max() < 1e-6
    assert f"its colours are HDR ({name}) (cICP), which is not converted" in caplog.text


@pytest.mark.parametrize("extra", [gama(0), chrm([(0, 0)] * 4), chrm([(0.3, 0.3)] * 4), cicp(77, 13), cicp(1, 99)])
def test_numbers_that_mean_nothing_are_told_and_left_out(
    tmp_path: Path, extra: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = pixels_of(8)
    assert np.abs(read(tmp_path / "a.png", pixels, 8, extra) - pixels / 255).max() < 1e-6
    assert "they are taken for sRGB" in caplog.text and caplog.text.count("WARNING") == 1


def test_narrow_range() -> None:
    space = space_of_codes(1, 13, full_range=False)
    assert space is not None
    found = space.to_srgb(np.array([[[16 / 255], [235 / 255]]]))
    assert found.flatten().tolist() == pytest.approx([0.0, 1.0], abs=1e-6)


@pytest.mark.parametrize("name", ["sRGB", "Linear sRGB", "Rec2020-elle-V2-srgbtrc.icc"])
@pytest.mark.parametrize("ending", [".png", ".tif", ".jpg", ".webp"])
def test_a_profile_goes_by_its_numbers_not_its_name(
    tmp_path: Path, name: str, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    options = {".jpg": {"quality": 100, "subsampling": 0}, ".webp": {"lossless": True}}.get(ending, {})
    picture = Image.new("RGB", (16, 16), (64, 64, 64))
    picture.save(tmp_path / f"a{ending}", icc_profile=profile(name, SRGB, 1.0), **options)
    assert (load_image(tmp_path / f"a{ending}").image * 255 - 137).abs().max() < 1.6
    assert "to sRGB" in caplog.text


def test_a_large_profile_in_a_png_is_followed(tmp_path: Path) -> None:
    pixels = pixels_of(8)
    found = read(tmp_path / "a.png", pixels, 8, iccp(profile("big", P3, 1.8, pad=1_500_000)))
    assert np.abs(found - seen(pixels / 255, 1.8, P3)).max() < 2.1 / 255


def test_curves_of_every_kind() -> None:
    def curve(kind: int, *values: float) -> bytes:
        numbers = b"".join(struct.pack(">i", round(v * 65536)) for v in values)
        return b"para" + bytes(4) + struct.pack(">HH", kind, 0) + numbers

    base = profile("x", None, 1.0)
    at = base.index(b"curv")
    x = np.linspace(0, 1, 33)
    srgb = curve(3, 2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    cases = [(curve(0, 1.8), x**1.8), (srgb, None), (curve(1, 2.0, 1.0, -0.25), (x - 0.25).clip(0) ** 2)]
    cases += [(curve(2, 2.0, 1.0, -0.25, 0.125), (x - 0.25).clip(0) ** 2 + 0.125)]
    cases += [(curve(4, 2.0, 0.5, 0.5, 0.25, 0.5, 0.0, 0.125), np.where(x >= 0.5, (x / 2 + 0.5) ** 2, x / 4 + 0.125))]
    for content, wanted in cases:
        spoilt = base[:at] + content
        spoilt = spoilt[:128] + spoilt[128:]
        places = [132 + 12 * i for i in range(4)]
        entry = next(p for p in places if spoilt[p : p + 4] == b"kTRC")
        spoilt = spoilt[: entry + 8] + struct.pack(">I", len(content)) + spoilt[entry + 12 :]
        space = space_of_profile(spoilt, "x")
        assert space is not None
        if wanted is None:
            assert space.is_srgb()
        else:
            assert space.curves[0](x) == pytest.approx(wanted, abs=1e-4)


def test_nothing_stated_is_nothing() -> None:
    assert space_of_gamma(None, None) is None and space_of_codes(2, 2) is None
    assert space_of_profile(b"", "x") is None and space_of_profile(bytes(200), "x") is None
