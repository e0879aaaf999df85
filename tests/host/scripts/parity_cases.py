"""The core against the host's own modules, on the same weights and inputs."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import lru_cache
from typing import Any

import comfy.model_management
import comfy.sd
import harness
import torch
from comfy.ldm.flux.layers import EmbedND
from comfy.ldm.flux.math import rope
from torch import Tensor
from torch.nn import functional as F
from weights import noise, picture, relative_error, seeded, write_flux

from op4ksr_core import AutoEncoder, AutoEncoderParams, RescaledEmbedND, load_flux
from op4ksr_core.models.latent import position_ids


@lru_cache
def full_width() -> AutoEncoder:
    """Flux's own widths, the only ones that every host takes."""
    return seeded(lambda: AutoEncoder(AutoEncoderParams(stride=1)), 5)


def core_autoencoder(stride: int, shift: int) -> AutoEncoder:
    """The full-width weights at another geometry; nothing is copied."""
    model = AutoEncoder(replace(full_width().params, stride=stride, shift=shift), device="meta")
    model.load_state_dict(full_width().state_dict(), assign=True)
    return model.eval()


def host_vae() -> Any:
    vae = comfy.sd.VAE(sd=dict(full_width().state_dict()))
    vae.throw_exception_if_invalid()
    return vae


def host_f16_vae(shift: int) -> Any:
    """The host's F8 engine with the two changes that make it F16, as the published pipelines have them."""
    vae = host_vae()
    encoder, decoder = vae.first_stage_model.encoder, vae.first_stage_model.decoder
    encoder.conv_in.stride = (2, 2)
    if shift:
        decoder.conv_out.padding = (0, 0)

    def upsampled(module: Any, args: tuple[Tensor, ...]) -> Tensor:
        h = F.interpolate(args[0], scale_factor=2.0, mode="nearest")
        return F.pad(h, (2, 0, 2, 0)) if shift else h

    decoder.conv_out.register_forward_pre_hook(upsampled)
    return vae


def compare_engines(vae: Any, core: AutoEncoder) -> dict[str, Any]:
    pixels = picture(64, 96).movedim(-1, 1) * 2 - 1
    latent = vae.first_stage_model.encode(pixels)
    raw = noise(*latent.shape)
    return {
        "latent": list(latent.shape),
        "encode": relative_error(core.encode_pixels(pixels), latent),
        "decode": relative_error(core.decode_pixels(raw), vae.first_stage_model.decode(raw)),
    }


def f8() -> dict[str, Any]:
    return compare_engines(host_vae(), core_autoencoder(1, 0))


def f8_through_vae() -> dict[str, Any]:
    """The same through the host's VAE.encode and VAE.decode, ranges and axes included; each beside float64's.

    Two float32 results may differ by twice what each is off: on processors without AVX-512 they did, by 1.05e-5.
    """
    vae, core, image = host_vae(), core_autoencoder(1, 0), picture(64, 64)
    latent = vae.encode(image)
    pixels = vae.decode(latent)
    exact = copy.deepcopy(core).double()
    shown = (exact.decode_pixels(latent.double()) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    truth = exact.encode_pixels(image.movedim(-1, 1).double() * 2 - 1), shown
    return {
        "latent": list(latent.shape),
        "encode": relative_error(core.encode(image.movedim(-1, 1)).double(), truth[0]),
        "decode": relative_error(core.decode(latent).movedim(1, -1).double(), truth[1]),
        "host_encode": relative_error(latent.double(), truth[0]),
        "host_decode": relative_error(pixels.double(), truth[1]),
    }


def f16_shift_0() -> dict[str, Any]:
    return compare_engines(host_f16_vae(0), core_autoencoder(2, 0))


def f16_shift_1() -> dict[str, Any]:
    return compare_engines(host_f16_vae(1), core_autoencoder(2, 1))


def compare_flux(name: str, **params: Any) -> dict[str, Any]:
    """One file through the core's loader and through the loader node, called on the same tensors."""
    geometry = {"hidden_size": 256, "num_heads": 2, "depth_single_blocks": 2, **params}
    write_flux(name, **geometry)
    core = load_flux(harness.FOLDER / "diffusion_models" / name)
    model = harness.load_model(name)
    comfy.model_management.load_models_gpu([model])
    inputs = (
        noise(2, 16, 12, 20),
        torch.tensor([0.5, 0.9]),
        noise(2, 5, 64, seed=2),
        noise(2, 32, seed=3),
        torch.tensor([3.5, 1.0]),
    )
    host = model.model.diffusion_model(*inputs)
    ours = core(*inputs)
    core.pe_embedder = RescaledEmbedND(core.params.axes_dim, 555.0)
    return {
        "velocity": relative_error(ours, host),
        "with_another_theta": relative_error(core(*inputs), host)["error"],
        "parameters": [sum(p.numel() for p in m.parameters()) for m in (core, model.model.diffusion_model)],
    }


def flux_plain() -> dict[str, Any]:
    return compare_flux("plain.safetensors", guidance_embed=False)


def flux_guidance() -> dict[str, Any]:
    return compare_flux("guidance.safetensors", guidance_embed=True)


def flux_theta_per_axis() -> dict[str, Any]:
    return compare_flux("theta_per_axis.safetensors", guidance_embed=False, theta=(46.7, 300.0))


def flux_guidance_theta_per_axis() -> dict[str, Any]:
    return compare_flux("guidance_theta_per_axis.safetensors", guidance_embed=True, theta=(46.7, 300.0))


def flux_small_heads() -> dict[str, Any]:
    """Heads of 32 = 4 + 14 + 14 channels, which no host detects by itself."""
    return compare_flux("small_heads.safetensors", guidance_embed=True, num_heads=8, axes_dim=(4, 14, 14))


def positions() -> dict[str, bool]:
    """Our embedder with the model's own theta against the host's, bit for bit."""
    ids = position_ids(7, 33, 130).expand(2, -1, -1)
    same: dict[str, bool] = {}
    for axes in ([16, 56, 56], [4, 14, 14]):
        for theta in (10000, 46.7):
            host = EmbedND(dim=sum(axes), theta=theta, axes_dim=axes)(ids)
            same[f"{axes} {theta}"] = torch.equal(RescaledEmbedND(axes, theta)(ids), host)
    return same


def positions_per_axis() -> bool:
    ids, axes, thetas = position_ids(7, 33, 130), (16, 56, 56), (46.7, 46.7, 300.0)
    host = torch.cat([rope(ids[..., i], axes[i], thetas[i]) for i in range(3)], dim=-3).unsqueeze(1)
    return torch.equal(RescaledEmbedND(axes, (46.7, 300.0))(ids), host)


CASES = (
    positions,
    positions_per_axis,
    f8,
    f8_through_vae,
    f16_shift_0,
    f16_shift_1,
    flux_plain,
    flux_guidance,
    flux_theta_per_axis,
    flux_guidance_theta_per_axis,
    flux_small_heads,
)
