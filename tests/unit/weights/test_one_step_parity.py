"""The core beside the published inference of the public one-step LoRAs, on seeded models of diffusers' and PEFT's.

From encode to decode, without the margin that a run adds; from the published folders and from the one file of each.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, load_autoencoder, load_flux
from op4ksr_core.cli.main import main
from op4ksr_core.one_step import CoreStages
from op4ksr_core.weights.sr_lora import OMGSR_SIGMA, describe_sr_lora, sr_lora_settings

pytest.importorskip("diffusers")
pytest.importorskip("peft")
import one_step_weights as public

#: Largest difference, over the largest value; and how far a run without an adapter must be beyond it.
SEED, BOUND, BEYOND = 11, 1e-4, 10


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> public.Base:
    return public.save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 128, 96, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def omgsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public.save_omgsr(tmp_path_factory.mktemp("omgsr"))


@pytest.fixture(scope="module")
def fluxsr(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return public.save_fluxsr(tmp_path_factory.mktemp("fluxsr"))


def models(base: public.Base, path: Path, strength: float = 1.0) -> tuple[Flux, AutoEncoder]:
    found = describe_sr_lora(path)
    prompt = None if found.has_prompt else public.small_prompt()
    flux = load_flux(base.transformer, lora=found, strength=strength, prompt=prompt)
    return flux, load_autoencoder(base.vae, lora=found, strength=strength)


def ours(flux: Flux, vae: AutoEncoder, image: Tensor, seed: int = SEED) -> public.Published:
    stages = CoreStages(flux, vae).with_seed(seed)
    encoded = stages.encode(image, lambda *_: None)
    latent = stages.transform(encoded, lambda *_: None)
    return public.Published(encoded, latent, stages.decode(latent, lambda *_: None))


def apart(one: public.Published, other: public.Published) -> tuple[float, float, float]:
    """The largest difference of the encoded latent, of the sharp one and of the picture, by what is in each."""
    pairs = ((one.encoded, other.encoded), (one.latent, other.latent), (one.picture, other.picture))
    encoded, latent, picture = (float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    return encoded, latent, picture


def converted(folder: Path, output: Path, *options: object) -> Path:
    assert main([str(word) for word in ("convert", "--sr-lora", folder, "-o", output, *options)]) == 0
    return output


def without(base: public.Base, flux: Flux) -> Flux:
    """The base model with the other's constants."""
    bare = load_flux(base.transformer)
    bare.settings = flux.settings
    return bare


def test_omgsr_is_as_published(base: public.Base, omgsr: Path, image: Tensor, tmp_path: Path) -> None:
    theirs = public.published(*public.omgsr_adapters()[:2], image, OMGSR_SIGMA, public.small_prompt(), SEED)
    prompt = public.save_prompt(tmp_path / "prompt.safetensors")
    one = converted(omgsr, tmp_path / "one.safetensors", "--prompt-embedding", prompt)
    for path in (omgsr, one):
        flux, vae = models(base, path)
        settings = flux.settings
        assert (settings.sigma, settings.guidance, settings.encode) == (OMGSR_SIGMA, 1.0, "sample")
        assert settings.train_tokens == 64 and vae.params.ratio == 8
        assert max(apart(ours(flux, vae, image), theirs)) <= BOUND
    far = BEYOND * BOUND
    assert min(apart(ours(without(base, flux), vae, image), theirs)[1:]) >= far
    assert min(apart(ours(flux, load_autoencoder(base.vae), image), theirs)) >= far
    assert min(apart(ours(flux, vae, image, SEED + 1), theirs)) >= far
    flux.settings = replace(flux.settings, encode="mean")
    assert min(apart(ours(flux, vae, image), theirs)) >= far


@pytest.mark.slow
def test_an_alpha_of_its_own_is_in_both(base: public.Base, image: Tensor, tmp_path: Path) -> None:
    """alpha 12 of rank 8, which the configs state and the tensors do not."""
    folder = public.save_omgsr(tmp_path / "omgsr", alpha=12)
    theirs = public.published(*public.omgsr_adapters(alpha=12)[:2], image, OMGSR_SIGMA, public.small_prompt(), SEED)
    for path in (folder, converted(folder, tmp_path / "one.safetensors")):
        assert max(apart(ours(*models(base, path), image), theirs)) <= BOUND
    assert min(apart(ours(*models(base, folder, 1 / 1.5), image), theirs)) >= BEYOND * BOUND


def test_fluxsr_is_as_published(base: public.Base, fluxsr: Path, image: Tensor, tmp_path: Path) -> None:
    theirs = public.published(public.fluxsr_transformer(), public.small_vae(), image, 0.25, public.small_prompt())
    for path in (fluxsr, converted(fluxsr, tmp_path / "one.safetensors")):
        flux, vae = models(base, path)
        assert (flux.settings.sigma, flux.settings.guidance, flux.settings.encode) == (0.25, 1.0, "mean")
        assert max(apart(ours(flux, vae, image), theirs)) <= BOUND
    assert min(apart(ours(without(base, flux), vae, image), theirs)[1:]) >= BEYOND * BOUND


def test_the_one_file_is_whole(omgsr: Path, fluxsr: Path, tmp_path: Path) -> None:
    """Nothing of the folder is needed beside it: the constants, where they are from, the prompt."""
    txt, vec = public.small_prompt()
    for folder, origin in ((omgsr, "github.com/wuer5/OMGSR"), (fluxsr, "whose publisher is not verified")):
        one = converted(folder, tmp_path / f"{folder.name}.safetensors")
        found, source = describe_sr_lora(one), describe_sr_lora(folder)
        assert (found.origin, found.settings) == ("OP4KSR", source.settings)
        assert origin in found.why["origin"] and "FLUX.1-dev (non-commercial licence)" in found.why["origin"]
        assert (found.encoder is None) == (source.encoder is None)
        assert found.has_prompt == (folder == fluxsr)
        assert not any(name.startswith("base_model") for name in found.transformer.shapes)
    settings = sr_lora_settings(found)
    assert settings.txt is not None and settings.vec is not None
    assert torch.equal(settings.txt, txt) and torch.equal(settings.vec, vec)


def test_a_strength_scales_both_halves(base: public.Base, omgsr: Path) -> None:
    whole, half, none = (models(base, omgsr, strength) for strength in (1.0, 0.5, 0.0))
    for full, part, bare in zip(whole, half, none, strict=True):
        weights: Any = full.state_dict(), part.state_dict(), bare.state_dict()
        changed = [name for name, weight in weights[0].items() if not torch.equal(weight, weights[2][name])]
        assert changed
        for name in changed:
            expected = (weights[0][name] + weights[2][name]) / 2
            assert torch.allclose(weights[1][name], expected, atol=1e-6), name


def test_half_precision_is_rounded_once(base: public.Base, omgsr: Path) -> None:
    found = describe_sr_lora(omgsr)
    exact, rounded = (load_autoencoder(base.vae, lora=found, dtype=dtype) for dtype in (None, torch.bfloat16))
    for name, weight in exact.state_dict().items():
        assert torch.equal(rounded.state_dict()[name], weight.bfloat16()), name
    prompt = public.small_prompt()
    flux, half = (load_flux(base.transformer, lora=found, prompt=prompt, dtype=d) for d in (None, torch.bfloat16))
    for name, weight in flux.state_dict().items():
        assert torch.equal(half.state_dict()[name], weight.bfloat16()), name
