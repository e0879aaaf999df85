"""Wavelet bands: nothing lost, gradients, and what an error costs by its band."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from op4ksr_core.training.config import LossConfig
from op4ksr_core.training.tasks.bands import FLOOR, band_distance, haar
from op4ksr_core.training.tasks.objectives import Objective


def natural(side: int = 64, seed: int = 0) -> Tensor:
    """1/f noise, (2, 3, side, side), RMS 0.3: the less in a band, the finer it is."""
    generator = torch.Generator().manual_seed(seed)
    spectrum = torch.fft.rfft2(torch.randn(2, 3, side, side, generator=generator, dtype=torch.float64))
    rows, columns = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    pictures = torch.fft.irfft2(spectrum / (rows**2 + columns**2).sqrt().clamp(min=1 / side))
    return 0.3 * pictures / pictures.std()


def test_bands_hold_the_picture() -> None:
    picture = torch.rand(2, 3, 10, 14, dtype=torch.float64)
    coarse, fine = haar(picture)
    assert coarse.shape == (2, 3, 5, 7) and fine.shape == (2, 3, 3, 5, 7)
    assert coarse.square().sum() + fine.square().sum() == pytest.approx(float(picture.square().sum()))
    edge = torch.zeros(1, 1, 4, 4)
    edge[..., 1:] = 1
    across, down, diagonal = haar(edge)[1][0].abs().amax((1, 2, 3)).tolist()
    assert across > 0 and down == diagonal == 0
    assert haar(torch.rand(1, 1, 9, 7))[0].shape == (1, 1, 4, 3)


@pytest.mark.parametrize("size", [(32, 40), (9, 7), (2, 3)], ids=str)
def test_the_gradient_is_that_of_finite_differences(size: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(1)
    target = torch.rand(2, 2, *size, dtype=torch.float64, generator=generator)
    output = target + 0.2 * torch.randn(target.shape, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: band_distance(x, target), output.requires_grad_())


def test_equal_is_0_and_strength_does_not_matter() -> None:
    target = natural()
    output = target + 0.1 * natural(seed=1)
    assert float(band_distance(target, target)) == 0
    loud, soft = band_distance(100 * output, 100 * target), band_distance(output, target)
    assert float(soft) < float(loud) < 1.5 * float(soft)  # but for the floor, the same


def test_a_picture_that_lost_its_finest_band_costs_more_than_one_that_lost_as_much_elsewhere() -> None:
    """Mean absolute errors alike, so that l1 sees no difference."""
    target = natural()
    coarse = haar(target)[0].repeat_interleave(2, -1).repeat_interleave(2, -2) / 2
    blurred = coarse - target
    shifted = blurred.abs().mean() * torch.ones_like(target)
    assert float(band_distance(target + blurred, target)) > 2 * float(band_distance(target + shifted, target))


def test_a_band_that_the_target_has_nothing_of_is_bounded() -> None:
    flat = torch.zeros(1, 1, 16, 16)
    noise = 0.01 * torch.randn(1, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    assert 0 < float(band_distance(noise, flat)) < 4 * 0.01 / FLOOR


def test_it_is_a_term_and_a_kind_of_latents() -> None:
    output, target = natural(seed=2).float(), natural().float()
    one = Objective(LossConfig(pixel=0, gradient=0, bands=0.5, latent=2.0, latent_kind="bands"))
    expected = float(band_distance(output, target))
    assert one.names(latent=True) == ["bands", "latent"] and one.config.judges_pictures
    assert float(one.pictures(output, target)["bands"]) == pytest.approx(0.5 * expected)
    assert float(one.latents(output, target)["latent"]) == pytest.approx(2 * expected)
