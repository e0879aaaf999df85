"""The posterior's mean and its seeded sample."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from op4ksr_core import AutoEncoder
from op4ksr_core.vae.posterior import posterior_mean, posterior_sample

MakeAutoEncoder = Callable[..., AutoEncoder]


def moments(batch: int = 1, spread: float = 1.0) -> torch.Tensor:
    return spread * torch.randn(batch, 32, 6, 4, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize("spread", [1.0, 100.0], ids=["usual", "beyond the bounds of the log variance"])
def test_the_sample_is_diffusers(spread: float) -> None:
    distribution = pytest.importorskip("diffusers.models.autoencoders.vae").DiagonalGaussianDistribution
    theirs = distribution(moments(spread=spread)).sample(torch.Generator().manual_seed(7))
    assert torch.allclose(posterior_sample(moments(spread=spread), 7), theirs, rtol=1e-6, atol=1e-6)


def test_a_picture_of_a_batch_is_what_it_is_alone() -> None:
    both = posterior_sample(moments(2), 3)
    assert torch.equal(both[1:], posterior_sample(moments(2)[1:], 4))
    assert not torch.equal(both[:1], posterior_sample(moments(2)[:1], 4))


def test_half_precision_is_computed_in_float32_and_rounded_once() -> None:
    half = moments().bfloat16()
    assert torch.equal(posterior_sample(half, 1), posterior_sample(half.float(), 1).bfloat16())


def test_any_whole_number_is_a_seed() -> None:
    for seed in (-1, 2**64 - 1, 2**64):
        assert torch.isfinite(posterior_sample(moments(), seed)).all()
    assert torch.equal(posterior_sample(moments(), 2**64 - 1), posterior_sample(moments(), -1))


def test_encode_gives_the_mean_and_with_a_seed_the_sample(make_autoencoder: MakeAutoEncoder) -> None:
    vae = make_autoencoder(stride=1)
    image = torch.rand(2, 3, 32, 48, generator=torch.Generator().manual_seed(1))
    whole = vae.encoder(image * 2 - 1)
    assert torch.allclose(vae.encode(image), posterior_mean(whole), atol=1e-5)
    assert torch.allclose(vae.encode(image, seed=9), posterior_sample(whole, 9), atol=1e-5)
    assert not torch.allclose(vae.encode(image, seed=9), vae.encode(image, seed=10), atol=1e-2)
