"""The degradation does what its numbers say, and the same for the same seed."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from op4ksr_core import OptionError
from op4ksr_core.images.io import jpeg_round_trip
from op4ksr_core.images.resize import resize
from op4ksr_core.training.data.degradation import (
    CLEAN,
    Degradation,
    degrade,
    filtered,
    gaussian_kernel,
    sinc_kernel,
)

#: Nothing happens but the shrinking.
NOTHING = Degradation(order=1, blur=(0.0,), resize=(0, 0, 1), noise=(0.0,), jpeg=(0.0,), final_sinc=0, factor=(2, 2))


def grey(height: int = 128, width: int = 128, level: float = 0.5) -> torch.Tensor:
    return torch.full((1, 3, height, width), level)


def test_the_same_seed_gives_the_same_picture_and_steps(natural) -> None:
    image, params = natural(96, 128), Degradation(factor=(2, 8))
    one, two, other = (degrade(image, params, seed) for seed in ((3, 1), (3, 1), (3, 2)))
    assert torch.equal(one.low, two.low) and one.steps == two.steps and one.factor == two.factor
    assert one.factor != other.factor


def test_sizes_and_levels(natural) -> None:
    for seed in range(12):
        found = degrade(natural(96, 160), Degradation(factor=(2, 8)), (seed,))
        assert 2 <= found.factor <= 8
        assert found.low.shape == (1, 3, round(96 / found.factor), round(160 / found.factor))
        levels = found.low * 255
        assert torch.allclose(levels, levels.round(), atol=1e-4) and levels.min() >= 0 and levels.max() <= 255


def test_clean_is_bicubic_shrinking_and_nothing_else(natural) -> None:
    image = natural(96, 128)
    found = degrade(image, CLEAN, (0,))
    assert [name for name, _ in found.steps] == ["shrink"]
    assert (found.low - resize(image, 24, 32)).abs().max() <= 0.5 / 255 + 1e-6 or found.low.max() in (0, 1)


def test_two_rounds_in_order(natural) -> None:
    always = Degradation(sinc=0, final_sinc=1.0, blur=(1, 1), noise=(1, 1), jpeg=(1, 1))
    names = [name for name, _ in degrade(natural(96, 96), always, (1,)).steps]
    assert names[:7] == ["blur", "resize", "noise", "jpeg", "blur", "resize", "noise"]
    assert sorted(names[7:]) == ["final_sinc", "jpeg"]
    one = [name for name, _ in degrade(natural(96, 96), replace(always, order=1), (1,)).steps]
    assert one.count("blur") == 1 and one.count("jpeg") == 1


def test_shares_are_what_is_asked_for() -> None:
    params = Degradation(blur=(0.7, 0.0), sinc=0.25, noise=(0.5, 0), jpeg=(0.3, 0), clean=0.4)
    runs = [degrade(grey(16, 16), params, (seed,)).steps for seed in range(600)]
    dirty = [dict(steps) for steps in runs if steps[0][0] != "shrink"]
    assert 1 - len(dirty) / len(runs) == pytest.approx(0.4, abs=0.07)
    share = {name: sum(name in steps for steps in dirty) / len(dirty) for name in ("blur", "sinc", "noise", "jpeg")}
    assert share["blur"] == pytest.approx(0.7 * 0.75, abs=0.08) and share["sinc"] == pytest.approx(0.175, abs=0.06)
    assert share["noise"] == pytest.approx(0.5, abs=0.08) and share["jpeg"] == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize(("wide", "narrow", "angle"), [(1.5, 1.5, 0.0), (2.5, 0.8, 0.7), (0.6, 2.0, 2.0)])
def test_gaussian_kernels_have_the_moments_they_say(wide: float, narrow: float, angle: float) -> None:
    kernel = gaussian_kernel(21, wide, narrow, angle).double()
    axis = torch.arange(21.0, dtype=torch.float64) - 10
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    u, v = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    assert float(kernel.sum()) == pytest.approx(1, abs=1e-6)
    assert float((kernel * u * u).sum()) == pytest.approx(wide**2, rel=0.03)
    assert float((kernel * v * v).sum()) == pytest.approx(narrow**2, rel=0.03)
    assert float((kernel * u * v).sum()) == pytest.approx(0, abs=0.02)


def test_the_sinc_filter_passes_below_its_cutoff_and_stops_above() -> None:
    response = torch.fft.fft2(sinc_kernel(41, math.pi / 2), s=(256, 256)).abs()
    assert response[0, 10:40].min() > 0.85 and response[0, 90:128].max() < 0.15


@pytest.mark.parametrize(("shot", "level"), [(0.0, 5.0), (0.0, 12.0), (1.0, 8.0)])
def test_noise_has_the_deviation_it_says(shot: float, level: float) -> None:
    params = replace(NOTHING, factor=(1, 1), noise=(1.0,), noise_level=((level, level),), shot=shot, grey=0.0)
    noise = degrade(grey(), params, (0,)).low - 0.5
    assert float(noise.std()) * 255 == pytest.approx(level, rel=0.03)
    assert abs(float((noise[:, 0] * noise[:, 1]).mean())) < 0.05 * float(noise.var())
    same = degrade(grey(), replace(params, grey=1.0), (0,)).low
    assert torch.equal(same[:, 0], same[:, 1])


def test_shot_noise_grows_with_the_root_of_the_brightness() -> None:
    params = replace(NOTHING, factor=(1, 1), noise=(1.0,), noise_level=((6.0, 6.0),), shot=1.0, grey=0.0)
    dark, bright = (float((degrade(grey(level=v), params, (0,)).low - v).std()) for v in (0.15, 0.6))
    assert bright / dark == pytest.approx(2, rel=0.05)


def test_what_filters_and_shrinks_keeps_a_flat_picture() -> None:
    flat = grey(64, 64, 0.2)
    assert torch.allclose(filtered(flat, sinc_kernel(21, 2.0)), flat, atol=1e-5)
    calm = replace(Degradation(), noise=(0.0, 0.0))
    assert (degrade(flat, calm, (4,)).low - 0.2).abs().max() < 2.5 / 255


def numbers(steps: list[tuple[str, dict[str, Any]]], name: str, key: str) -> list[Any]:
    """One number of each step of that name, in order."""
    return [told[key] for kind, told in steps if kind == name]


@pytest.mark.slow
def test_each_round_draws_from_its_own_ranges(natural) -> None:
    params = Degradation(
        factor=(2, 2),
        sinc=0,
        final_sinc=0,
        anisotropic=1.0,
        resize=(0, 1, 0),
        blur=(1, 1),
        noise=(1, 1),
        jpeg=(1, 1),
        blur_deviation=((0.5, 0.7), (2.0, 2.2)),
        resize_range=((0.5, 0.6), (0.8, 0.9)),
        noise_level=((2.0, 3.0), (8.0, 9.0)),
        jpeg_quality=((40.0, 50.0), (80.0, 90.0)),
    )
    places = (
        ("blur", "wide", params.blur_deviation),
        ("blur", "narrow", params.blur_deviation),
        ("resize", "scale", params.resize_range),
        ("noise", "level", params.noise_level),
        ("jpeg", "quality", params.jpeg_quality),
    )
    runs = [degrade(natural(64, 96), params, (seed,)).steps for seed in range(30)]
    for name, key, ranges in places:
        found = np.array([numbers(steps, name, key) for steps in runs])
        for drawn, (low, high) in zip(found.T, ranges, strict=True):
            width = high - low
            assert low <= drawn.min() < low + 0.2 * width and high - 0.2 * width < drawn.max() <= high, (name, key)
    angles = np.array([numbers(steps, "blur", "angle") for steps in runs])
    assert 0 <= angles.min() < 0.5 and 2.6 < angles.max() <= math.pi
    for steps in runs:
        sizes, scales = numbers(steps, "resize", "size"), numbers(steps, "resize", "scale")
        for size, scale, (height, width) in zip(sizes, scales, ((64, 96), (32, 48)), strict=True):
            assert size == (round(height * scale), round(width * scale)), "the second round is relative to the LR"


@pytest.mark.parametrize("name", ["blur", "noise", "jpeg"])
def test_each_round_has_its_own_share(name: str) -> None:
    always: dict[str, Any] = {"blur": (1, 1), "noise": (1, 1), "jpeg": (1, 1), "sinc": 0, "final_sinc": 0}
    whole = [kind for kind, _ in degrade(grey(16, 16), Degradation(**always), (0,)).steps]
    assert whole == ["blur", "resize", "noise", "jpeg"] * 2
    for turn, shares in ((1, (1, 0)), (0, (0, 1))):
        left = [kind for kind, _ in degrade(grey(16, 16), Degradation(**{**always, name: shares}), (0,)).steps]
        assert left == [kind for i, kind in enumerate(whole) if kind != name or i // 4 != turn]


def test_factors_are_uniform_in_the_logarithm() -> None:
    params = replace(CLEAN, factor=(1, 16))
    octaves = np.log2([degrade(grey(16, 16), params, (seed,)).factor for seed in range(1000)])
    assert (octaves < 2).mean() == pytest.approx(0.5, abs=0.06) and octaves.mean() == pytest.approx(2, abs=0.15)


@pytest.mark.parametrize(
    ("shares", "low", "high"), [((1, 0, 0), 1.0, 1.5), ((0, 1, 0), 0.5, 1.0), ((0, 0, 1), 1.0, 1.0)]
)
def test_resizing_enlarges_shrinks_or_keeps(shares: tuple[float, float, float], low: float, high: float) -> None:
    params = replace(NOTHING, resize=shares, resize_range=((0.5, 1.5),))
    scales = [numbers(degrade(grey(16, 16), params, (seed,)).steps, "resize", "scale")[0] for seed in range(40)]
    assert low <= min(scales) <= low + 0.1 and high - 0.1 <= max(scales) <= high


def test_shares_of_kinds_are_what_is_asked_for() -> None:
    params = replace(NOTHING, blur=(1.0,), noise=(1.0,), anisotropic=0.8, shot=0.2, grey=0.7, sinc=0, final_sinc=0.3)
    runs = [degrade(grey(16, 16), params, (seed,)).steps for seed in range(300)]
    round_ones = [numbers(steps, "blur", "wide") == numbers(steps, "blur", "narrow") for steps in runs]
    assert np.mean(round_ones) == pytest.approx(0.2, abs=0.07)
    assert np.mean([numbers(steps, "noise", "shot") for steps in runs]) == pytest.approx(0.2, abs=0.07)
    assert np.mean([numbers(steps, "noise", "grey") for steps in runs]) == pytest.approx(0.7, abs=0.07)
    assert np.mean(["final_sinc" in dict(steps) for steps in runs]) == pytest.approx(0.3, abs=0.07)


def test_what_is_told_is_what_was_done(natural) -> None:
    """Each step by hand, from the numbers told, gives the picture to its last level."""
    image = natural(64, 96)
    params = replace(
        NOTHING, factor=(1, 1), blur=(1.0,), sinc=0.3, anisotropic=0.7, kernel=11, resize=(0.3, 0.7, 0), jpeg=(1.0,)
    )
    seen: set[tuple[str, ...]] = set()
    for seed in range(24):
        found = degrade(image, replace(params, final_sinc=1.0), (seed,))
        x = image
        for name, told in found.steps:
            if name == "blur":
                x = filtered(x, gaussian_kernel(11, told["wide"], told["narrow"], told["angle"]))
            elif name == "resize":
                seen.add((told["mode"],))
                options = {} if told["mode"] == "area" else {"antialias": True, "align_corners": False}
                bicubic = told["mode"] == "bicubic"
                x = (
                    resize(x, *told["size"])
                    if bicubic
                    else F.interpolate(x, told["size"], mode=told["mode"], **options)
                )
                x = resize(x, 64, 96)
            elif name == "jpeg":
                x = jpeg_round_trip(x, told["quality"])
            else:
                x = filtered(x, sinc_kernel(11, told["cutoff"]))
        seen.add(tuple(name for name, _ in found.steps[-2:]))
        assert torch.equal(found.low, (x.clamp(0, 1) * 255).round() / 255), found.steps
        cutoffs = numbers(found.steps, "sinc", "cutoff") + numbers(found.steps, "final_sinc", "cutoff")
        assert all(math.pi / 3 <= cutoff <= math.pi for cutoff in cutoffs)
    assert seen == {("area",), ("bilinear",), ("bicubic",), ("jpeg", "final_sinc"), ("final_sinc", "jpeg")}


def test_cutoffs_fill_their_range() -> None:
    params = replace(NOTHING, final_sinc=1.0, sinc_cutoff=(1.2, 2.8))
    cutoffs = [numbers(degrade(grey(16, 16), params, (s,)).steps, "final_sinc", "cutoff")[0] for s in range(40)]
    assert 1.2 <= min(cutoffs) < 1.4 and 2.6 < max(cutoffs) <= 2.8


def test_grey_shot_noise_is_the_same_in_all_channels() -> None:
    colour = torch.tensor([0.3, 0.5, 0.7]).view(1, 3, 1, 1).expand(1, 3, 64, 64)
    params = replace(NOTHING, factor=(1, 1), noise=(1.0,), noise_level=((15.0, 15.0),), shot=1.0, grey=1.0)
    noise = degrade(colour, params, (0,)).low - colour
    assert float(noise.std()) * 255 == pytest.approx(15, rel=0.05)
    assert float((noise[:, 0] - noise[:, 2]).abs().max()) * 255 <= 1.01


def test_tiny_pictures_pass() -> None:
    for seed in range(8):
        low = degrade(
            torch.rand(1, 3, 9, 14, generator=torch.Generator().manual_seed(seed)), Degradation(), (seed,)
        ).low
        assert low.shape == (1, 3, 2, 4) and bool(torch.isfinite(low).all())


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({"factor": (4, 2)}, "factor"),
        ({"kernel": 20}, "kernel"),
        ({"resize": (1, 1, 0)}, "resize"),
        ({"noise": (0.5,)}, "noise"),
        ({"jpeg_quality": ((0, 50), (5, 50))}, "jpeg_quality"),
    ],
)
def test_wrong_numbers_are_named(wrong: dict[str, object], named: str) -> None:
    with pytest.raises(OptionError, match=f"degradation.{named}"):
        Degradation(**wrong)  # type: ignore[arg-type]


def test_numpy_seeds_are_not_shared_between_steps() -> None:
    """Neighbouring seeds draw different factors: none of them is a constant."""
    factors = {degrade(grey(16, 16), Degradation(factor=(2, 8)), (0, i)).factor for i in range(20)}
    assert len(factors) == 20 and np.ptp(list(factors)) > 3
