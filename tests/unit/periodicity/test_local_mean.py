"""Box means, detail, local power and contrast, against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from op4ksr_core.periodicity.local_mean import box_mean, high_pass, local_contrast, local_energy, local_power


@pytest.mark.parametrize("size", [(40, 33), (5, 60), (1, 3), (257, 20), (530, 9)])
def test_box_mean_is_the_mean_over_what_lies_inside(size, generator) -> None:
    plane = torch.randn(2, *size, generator=generator)
    expected = F.avg_pool2d(plane[:, None], 17, 1, 8, count_include_pad=False)[:, 0]
    assert torch.allclose(box_mean(plane), expected, atol=1e-5)


def test_box_mean_has_a_gradient(generator) -> None:
    plane = torch.randn(6, 7, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: box_mean(x, 5), plane)


def test_high_pass_takes_slopes_away_and_leaves_fine_detail() -> None:
    slope = torch.arange(100.0)[None].expand(100, 100) * 2
    assert float(high_pass(slope)[20:80, 20:80].abs().max()) < 1e-2
    fine = torch.randn(100, 100, generator=torch.Generator().manual_seed(0))
    assert float((high_pass(fine) - fine).square().mean()) < 0.02


def test_energy_floor_scales_with_the_picture(generator) -> None:
    detail = torch.randn(64, 64, generator=generator) * 10
    assert torch.allclose(local_energy(detail * 0.5), local_energy(detail) * 0.25, rtol=1e-3)


def test_local_power_is_the_mean_square(generator) -> None:
    squares = torch.randn(64, 300, generator=generator).square()
    assert torch.equal(local_power(squares, 9), box_mean(squares, 9)) and float(local_power(squares - 2).min()) == 0


def test_local_contrast_is_a_standard_deviation_whatever_the_brightness(generator) -> None:
    plane = torch.randn(200, 200, generator=generator) * 5
    plane[:, 100:] *= 3
    contrast = local_contrast(plane)
    assert float(contrast[20:-20, 20:80].mean()) == pytest.approx(5, rel=0.05)
    assert float(contrast[20:-20, 120:-20].mean()) == pytest.approx(15, rel=0.05)
    assert torch.allclose(local_contrast(plane + 1000), contrast, rtol=1e-2)
