"""The core beside the published inference of the public one-step LoRAs, on seeded models of diffusers' and PEFT's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, load_autoencoder, load_flux
from op4ksr_core.one_step import CoreStages
from op4ksr_core.weights.sr_lora import OMGSR_SIGMA, SrLora, describe_sr_lora

pytest.importorskip("diffusers")
pytest.importorskip("peft")
import one_step_weights as public  # noqa: E402

SEED, BOUND = 11, 1e-4
Found = Callable[[], SrLora]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> public.Base:
    return public.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))


def models(base: public.Base, found: SrLora | None, **options: Any) -> tuple[Flux, AutoEncoder]:
    prompt = None if found is not None and found.has_prompt else public.small_prompt()
    flux = load_flux(base.transformer, lora=found, prompt=prompt, **options)
    return flux, load_autoencoder(base.vae, lora=found)


def ours(flux: Flux, vae: AutoEncoder, image: Tensor) -> public.Published:
    stages = CoreStages(flux, vae).with_seed(SEED)
    encoded = stages.encode(image, lambda *_: None)
    latent = stages.transform(encoded, lambda *_: None)
    return public.Published(encoded, latent, stages.decode(latent, lambda *_: None))


def apart(one: public.Published, other: public.Published) -> dict[str, float]:
    """The largest difference of each part, by the scale of what is in it."""
    pairs = {name: (getattr(one, name), getattr(other, name)) for name in ("encoded", "latent", "picture")}
    return {name: float((a - b).abs().max() / b.abs().max()) for name, (a, b) in pairs.items()}


@pytest.fixture(scope="module")
def omgsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public.save_omgsr(tmp_path_factory.mktemp("omgsr"))


def test_omgsr_is_as_published(base: public.Base, omgsr: Path, image: Tensor) -> None:
    theirs = public.published(*public.omgsr_adapters()[:2], image, OMGSR_SIGMA, public.small_prompt(), SEED)
    found = describe_sr_lora(omgsr)
    flux, vae = models(base, found)
    assert (flux.settings.guidance, flux.settings.encode, flux.settings.train_tokens) == (1.0, "sample", 64)
    assert vae.params.stride == 1
    assert max(apart(ours(flux, vae, image), theirs).values()) <= BOUND
    plain_flux, plain_vae = load_flux(base.transformer), load_autoencoder(base.vae)
    plain_flux.settings = flux.settings
    without = apart(ours(plain_flux, vae, image), theirs)
    assert min(without["latent"], without["picture"]) >= 10 * BOUND
    assert min(apart(ours(flux, plain_vae, image), theirs).values()) >= 10 * BOUND
