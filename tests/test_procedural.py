"""Training pictures: the same for the same seed, and with a natural picture's statistics."""

from __future__ import annotations

import numpy as np
import pytest

from op4ksr_core.procedural import Palette, fractal_noise, paste, pattern, scene, shape_mask, texture_atlas


def test_scene_is_uint8_rgb_of_the_size_asked_for() -> None:
    picture = scene(5, 40, 70)
    assert picture.shape == (40, 70, 3) and picture.dtype == np.uint8


def test_a_seed_makes_the_same_scene_and_another_makes_another() -> None:
    assert np.array_equal(scene(5, 64, 64), scene(5, 64, 64))
    assert not np.array_equal(scene(5, 64, 64), scene(6, 64, 64))


def test_the_atlas_is_made_anew_just_the_same_and_its_seed_counts() -> None:
    first = scene(5, 48, 48)
    texture_atlas.cache_clear()
    assert np.array_equal(first, scene(5, 48, 48))
    assert not np.array_equal(first, scene(5, 48, 48, atlas_seed=1))


def test_scenes_are_broad_in_luma_and_small_in_chroma() -> None:
    pictures = np.stack([scene(seed, 64, 64) for seed in range(24)]).astype(np.float64) / 255
    luma = pictures @ [0.299, 0.587, 0.114]
    means = luma.mean((1, 2))
    assert 0.25 < means.mean() < 0.7
    assert means.std() > 0.08
    assert luma.std((1, 2)).mean() > 0.06
    chroma = (pictures - luma[..., None]).std()
    assert 0.01 < chroma < 0.12


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0])
def test_fractal_noise_has_the_spectrum_it_says(exponent: float) -> None:
    noise = fractal_noise(np.random.default_rng(0), 256, exponent)
    assert noise.dtype == np.float32
    assert noise.mean() == pytest.approx(0, abs=1e-4) and noise.std() == pytest.approx(1, abs=1e-3)
    amplitude = np.abs(np.fft.fft2(noise))
    fy, fx = np.fft.fftfreq(256)[:, None] * 256, np.fft.fftfreq(256)[None] * 256
    f = np.hypot(fy, fx)
    low, high = (np.sqrt((amplitude[(f > a) & (f < b)] ** 2).mean()) for a, b in ((4, 8), (32, 64)))
    assert np.log2(low / high) / 3 == pytest.approx(exponent, abs=0.15)


def test_patterns_repeat_with_mean_0_and_deviation_1() -> None:
    rng = np.random.default_rng(2)
    for _ in range(3):
        wave = pattern(rng, 128)
        assert wave.shape == (128, 128) and wave.dtype == np.float32
        assert wave.mean() == pytest.approx(0, abs=1e-3) and wave.std() == pytest.approx(1, abs=1e-2)


def test_masks_are_antialiased_and_about_as_large_as_asked() -> None:
    rng = np.random.default_rng(0)
    masks = [shape_mask(rng, radius) for radius in (2.5, 6.0, 20.0, 60.0) for _ in range(8)]
    assert all(mask.min() >= 0 and mask.max() <= 1 and mask.ndim == 2 for mask in masks)
    assert any(((mask > 0.1) & (mask < 0.9)).any() for mask in masks)
    for radius, group in zip((2.5, 6.0, 20.0, 60.0), (masks[i : i + 8] for i in range(0, 32, 8)), strict=True):
        assert all(mask.shape == (int(2 * radius) + 3,) * 2 for mask in group)
        areas = [mask.sum() for mask in group]
        assert min(areas) > 0 and max(areas) < 3.3 * radius**2 + 4 * radius


def test_paste_is_cut_at_the_borders() -> None:
    canvas = np.zeros((6, 8, 3), np.float32)
    surface, mask = np.ones((4, 4, 3), np.float32), np.full((4, 4), 0.5, np.float32)
    paste(canvas, surface, mask, -2, 6)
    assert canvas.sum() == 3 * 4 * 0.5 and (canvas[:2, 6:] == 0.5).all()
    for top, left in ((-4, 0), (6, 0), (0, -4), (0, 8)):
        paste(canvas, surface, mask, top, left)
    assert canvas.sum() == 3 * 4 * 0.5


def test_a_palettes_colours_lie_along_blue_and_orange() -> None:
    palette = Palette(np.random.default_rng(7))
    colours = np.stack([palette.colour() for _ in range(400)])
    assert colours.shape == (400, 3) and colours.dtype == np.float32
    luma = colours @ np.array([0.299, 0.587, 0.114], np.float32)
    assert np.corrcoef(colours[:, 0] - luma, colours[:, 2] - luma)[0, 1] < -0.4
