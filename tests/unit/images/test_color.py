"""Colour fixes and back-projection: what each promises of the result."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from op4ksr_core.images.color import (
    BACK_PROJECTIONS,
    COLOR_FIXES,
    adain_fix,
    back_project,
    blur_a_trous,
    color_fix,
    lab_fix,
    lab_to_rgb,
    rgb_to_lab,
    wavelet_fix,
    wavelet_levels,
)
from op4ksr_core.images.resize import resize

Natural = Callable[..., Tensor]

# --- wavelet ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "levels"), [(4, 5), (8, 6), (16, 7), (2, 4), (1, 3), (3, 5), (0.25, 1), (0.001, 1)])
def test_five_levels_at_x4_and_one_more_per_doubling(factor: float, levels: int) -> None:
    assert wavelet_levels(factor) == levels


def test_wavelet_of_the_reference_itself_is_the_identity(natural: Natural) -> None:
    image = natural(64, 80)
    assert torch.equal(wavelet_fix(image, image, 5), image)


@pytest.mark.parametrize("levels", [1, 3, 5])
def test_wavelet_takes_low_from_the_reference_and_high_from_the_image(natural: Natural, levels: int) -> None:
    image, reference = natural(96, 80, 1), natural(96, 80, 2)
    fixed = wavelet_fix(image, reference, levels)
    high = image - blur_a_trous(image, levels)
    torch.testing.assert_close(fixed, high + blur_a_trous(reference, levels), rtol=0, atol=1e-6)


def test_wavelet_removes_a_colour_cast_and_keeps_the_references_mean(natural: Natural) -> None:
    reference = natural(96, 96)
    cast = reference * 0.8 + torch.tensor([0.1, 0.0, -0.1]).view(1, 3, 1, 1)
    fixed = wavelet_fix(cast, reference, 5)
    axes = (-2, -1)
    before = (cast.mean(axes) - reference.mean(axes)).abs()
    after = (fixed.mean(axes) - reference.mean(axes)).abs()
    assert before.max() > 0.05
    assert after.max() < 0.002


def test_wavelet_blur_is_the_a_trous_binomial() -> None:
    impulse = torch.zeros(1, 1, 33, 33)
    impulse[0, 0, 16, 16] = 1
    kernel = torch.tensor([0.25, 0.5, 0.25])
    once = blur_a_trous(impulse, 1)[0, 0]
    torch.testing.assert_close(once[15:18, 15:18], torch.outer(kernel, kernel))
    assert torch.count_nonzero(once) == 9
    twice = blur_a_trous(impulse, 2)[0, 0]
    line = torch.tensor([1.0, 2, 3, 4, 3, 2, 1]) / 16  # [1 2 1] * [1 0 2 0 1] / 16
    torch.testing.assert_close(twice[13:20, 13:20], torch.outer(line, line))


def test_wavelet_of_a_flat_picture_is_flat_up_to_the_border() -> None:
    flat = torch.full((1, 3, 5, 7), 0.3)
    torch.testing.assert_close(blur_a_trous(flat, 6), flat)


# --- lab --------------------------------------------------------------------------------------

#: sRGB -> L*, a*, b* at D65: published values (Lindbloom's calculator, to 0.01), grey by hand.
KNOWN = {
    (1.0, 1.0, 1.0): (100.0, 0.0, 0.0),
    (0.0, 0.0, 0.0): (0.0, 0.0, 0.0),
    (1.0, 0.0, 0.0): (53.24, 80.09, 67.20),
    (0.0, 1.0, 0.0): (87.73, -86.18, 83.18),
    (0.0, 0.0, 1.0): (32.30, 79.19, -107.86),
    (1.0, 1.0, 0.0): (97.14, -21.55, 94.48),
    (0.5, 0.5, 0.5): (53.39, 0.0, 0.0),
    (0.02, 0.02, 0.02): (1.398, 0.0, 0.0),
}


@pytest.mark.parametrize("rgb", KNOWN)
def test_lab_of_known_colours(rgb: tuple[float, float, float]) -> None:
    lab = rgb_to_lab(torch.tensor(rgb).view(1, 3, 1, 1)).flatten().tolist()
    assert lab == pytest.approx(KNOWN[rgb], abs=0.02)
    back = lab_to_rgb(torch.tensor(lab).view(1, 3, 1, 1)).flatten().tolist()
    assert back == pytest.approx(rgb, abs=2e-4)


def test_lab_and_back_is_the_identity_also_beyond_the_range() -> None:
    image = torch.rand(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)) * 1.4 - 0.2
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(image)), image, rtol=0, atol=2e-5)


def test_lab_fix_matches_mean_and_deviation_in_lab(natural: Natural) -> None:
    """Taller than a band, and a batch: each picture by its own statistics."""
    image = torch.cat([natural(600, 40, 1), natural(600, 40, 2)]) * 0.5 + 0.2
    reference = torch.cat([natural(600, 40, 3), natural(600, 40, 4)]) * 0.6 + 0.2
    got, wanted = rgb_to_lab(lab_fix(image, reference)), rgb_to_lab(reference)
    axes = (-2, -1)
    torch.testing.assert_close(got.mean(axes), wanted.mean(axes), rtol=0, atol=0.01)
    torch.testing.assert_close(got.std(axes), wanted.std(axes), rtol=0.001, atol=0.01)
    assert (rgb_to_lab(image).mean(axes) - wanted.mean(axes)).abs().max() > 1


def test_lab_fix_with_the_picture_itself_is_the_identity(natural: Natural) -> None:
    image = natural(300, 40)
    torch.testing.assert_close(lab_fix(image, image), image, rtol=0, atol=5e-5)


def test_lab_fix_of_a_flat_picture_is_finite() -> None:
    fixed = lab_fix(torch.zeros(1, 3, 4, 4), torch.full((1, 3, 4, 4), 0.7))
    torch.testing.assert_close(fixed, torch.full((1, 3, 4, 4), 0.7), rtol=0, atol=1e-4)


# --- adain ------------------------------------------------------------------------------------


def test_adain_matches_mean_and_deviation_of_each_channel(natural: Natural) -> None:
    image, reference = torch.cat([natural(64, 64, 1), natural(64, 64, 4)]), torch.cat([natural(32, 48, 2)] * 2)
    fixed = adain_fix(image, reference)
    axes = (-2, -1)
    torch.testing.assert_close(fixed.mean(axes), reference.mean(axes), rtol=0, atol=1e-5)
    torch.testing.assert_close(fixed.std(axes, correction=0), reference.std(axes, correction=0), rtol=1e-4, atol=0)
    assert not torch.allclose(fixed.mean(axes), image.mean(axes), atol=1e-2)


def test_adain_of_a_flat_picture_is_finite() -> None:
    fixed = adain_fix(torch.zeros(1, 3, 1, 1), torch.full((1, 3, 1, 1), 0.7))
    assert torch.equal(fixed, torch.full((1, 3, 1, 1), 0.7))


# --- choosing ---------------------------------------------------------------------------------


def test_each_colour_fix_by_name(natural: Natural) -> None:
    image, reference = natural(48, 48, 1), natural(48, 48, 2)
    assert COLOR_FIXES == ("wavelet", "adain", "none", "lab")
    assert torch.equal(color_fix(image, reference, "wavelet", 8), wavelet_fix(image, reference, 6))
    assert torch.equal(color_fix(image, reference, "adain", 8), adain_fix(image, reference))
    assert torch.equal(color_fix(image, reference, "lab", 8), lab_fix(image, reference))
    assert color_fix(image, reference, "none", 8) is image


# --- back-projection --------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 256), (192, 250), (130, 97)], ids=str)
def test_each_round_brings_the_shrunk_result_nearer_to_the_input(natural: Natural, size: tuple[int, int]) -> None:
    low = natural(64, 64)
    image = resize(natural(256, 256, 9), *size)  # another scene: far off at first
    errors = [(low - resize(image, 64, 64)).abs().mean().item()]
    for rounds in range(1, BACK_PROJECTIONS + 1):
        error = (low - resize(back_project(image, low, 1.0, rounds), 64, 64)).abs().mean().item()
        assert error < 0.7 * errors[-1]
        errors.append(error)


def test_the_default_rounds_on_an_enlarged_scene_leave_less_than_a_grey_level(natural: Natural) -> None:
    low = natural(96, 96)
    image = resize(low, 384, 384)
    before = (low - resize(image, 96, 96)).abs().mean().item()
    after = (low - resize(back_project(image, low, 1.0), 96, 96)).abs().mean().item()
    assert after < 1 / 255 < before


@pytest.mark.parametrize("fidelity", [0.25, 1.0])
def test_a_round_adds_the_enlarged_error(natural: Natural, fidelity: float) -> None:
    low, image = natural(32, 32), natural(128, 96, 9)
    once = image + fidelity * resize(low - resize(image, 32, 32), 128, 96)
    assert torch.equal(back_project(image, low, fidelity, 1), once)
    twice = once + fidelity * resize(low - resize(once, 32, 32), 128, 96)
    assert torch.equal(back_project(image, low, fidelity, 2), twice)


def test_less_fidelity_goes_less_far(natural: Natural) -> None:
    low = natural(64, 64)
    image = resize(natural(256, 256, 9), 256, 256)
    errors = [
        (low - resize(back_project(image, low, fidelity), 64, 64)).abs().mean().item()
        for fidelity in (0.0, 0.25, 0.5, 1.0)
    ]
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[1]


def test_fidelity_zero_is_the_identity(natural: Natural) -> None:
    image = natural(64, 64)
    assert back_project(image, torch.zeros(1, 3, 16, 16), 0.0) is image


@pytest.mark.parametrize("size", [(64, 64), (80, 80), (32, 64), (64, 32)], ids=str)
def test_an_input_that_is_not_smaller_is_not_projected(natural: Natural, size: tuple[int, int]) -> None:
    image = natural(64, 64)
    assert back_project(image, torch.zeros(1, 3, *size), 1.0) is image


def test_every_round_is_reported(natural: Natural) -> None:
    seen: list[int] = []
    back_project(natural(64, 64), torch.zeros(1, 3, 16, 16), 1.0, on_round=seen.append)
    assert seen == list(range(1, BACK_PROJECTIONS + 1))
