"""The pieces apart: the one-step sampler in the host's own graph, the empty latent, a LoRA with its settings."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import harness
import torch
from torch import Tensor
from weights import difference, picture, prompt, write_flux, write_vae

from op4ksr_core.resize import resize

VAE, FLUX = "f16.safetensors", "flux.safetensors"


@lru_cache
def models() -> tuple[Any, Any, Any]:
    """MODEL (theta per axis, sigma 0.3), its CONDITIONING, and VAE."""
    write_vae(VAE)
    write_flux(FLUX, theta=(46.7, 300.0), settings=prompt(sigma=0.3))
    model, conditioning = harness.run("OP4KSR_LoadFluxSR", FLUX)
    return model, conditioning, harness.load_vae(VAE)


def sampled(latent: dict[str, Any], sigma: float = 0.0, noise_node: str = "DisableNoise") -> tuple[Tensor, Tensor]:
    """SamplerCustomAdvanced's two outputs, with our sampler and sigmas."""
    model, conditioning, _ = models()
    sampler, sigmas = harness.run("OP4KSR_OneStepSampler", model, sigma)
    (guider,) = harness.run("BasicGuider", model, conditioning)
    (quiet,) = harness.run(noise_node, *([7] if noise_node == "RandomNoise" else []))
    out, denoised = harness.run("SamplerCustomAdvanced", quiet, guider, sampler, sigmas, latent)
    return out["samples"], denoised["samples"]


def encoded() -> tuple[Tensor, dict[str, Any]]:
    """A picture, and the latent of its enlargement, by the host's VAEEncode."""
    image = picture(48, 64)
    large = resize(image.movedim(-1, 1), 96, 128).clamp(0, 1).movedim(1, -1)
    return image, harness.run("VAEEncode", models()[2], large)[0]


def one_step_sampler() -> dict[str, Any]:
    """The same picture as the one-step node, out of the host's own nodes."""
    model, _, vae = models()
    image, latent = encoded()
    out, denoised = sampled(latent)
    strong, _ = sampled(latent, sigma=0.9)
    node, _ = harness.upscale_node(image, model, vae)
    node_strong, _ = harness.upscale_node(image, model, vae, sigma=0.9)
    return {
        "difference": difference(vae.decode(out), node),
        "typed_sigma": difference(vae.decode(strong), node_strong),
        "sigma_shows": difference(node, node_strong),
        "model_shows": difference(node, harness.upscale_node(image, model, vae, vae_only=True)[0]),
        "denoised_is_the_output": difference(out, denoised),
        "noise_is_ignored": torch.equal(out, sampled(latent, noise_node="RandomNoise")[0]),
        "sigmas": [round(s, 4) for s in harness.run("OP4KSR_OneStepSampler", model)[1].tolist()],
    }


def noise_mask() -> dict[str, float]:
    """Outside the mask the latent stays; inside it is the unmasked result."""
    _, latent = encoded()
    whole, _ = sampled(latent)
    mask = torch.zeros(1, 96, 128)
    mask[..., :64] = 1
    masked, _ = sampled({**latent, "noise_mask": mask})
    return {
        "inside": difference(masked[..., :3], whole[..., :3]),
        "outside": difference(masked[..., 5:], latent["samples"][..., 5:]),
        "changes": difference(whole[..., 5:], latent["samples"][..., 5:]),
    }


def empty_latent() -> dict[str, Any]:
    """Through KSampler and VAEDecode to a picture of the size asked for, by hosts that assume 8x."""
    model, conditioning, vae = models()
    (latent,) = harness.run("OP4KSR_EmptyLatent16x", 128, 96, 2)
    (out,) = harness.run("KSampler", model, 1, 1, 1.0, "euler", "simple", conditioning, conditioning, latent, 1.0)
    return {
        "latent": list(latent["samples"].shape),
        "zero": float(latent["samples"].abs().max()),
        "sampled": list(out["samples"].shape),
        "image": list(vae.decode(out["samples"]).shape),
    }


CASES = (
    one_step_sampler,
    noise_mask,
    empty_latent,
)
