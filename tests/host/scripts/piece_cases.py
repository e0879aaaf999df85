"""The pieces apart: the one-step sampler in the host's own graph, the empty latent, a LoRA with its settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import harness
import torch
from safetensors.torch import save_file
from torch import Tensor
from weights import difference, noise, picture, prompt, unet_model, write_flux, write_lora, write_vae

from op4ksr_core import Flux, OneStepOptions, OneStepSettings, Target, load_autoencoder, load_flux
from op4ksr_core import upscale as core_upscale
from op4ksr_core.images.resize import mirror_frame, resize
from op4ksr_core.weights.header import read_header
from op4ksr_core.weights.lora import merged_weight, read_merge

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


def encoded() -> dict[str, Any]:
    """A picture's latent, by the host's VAEEncode."""
    return harness.run("VAEEncode", models()[2], picture(96, 128))[0]


def one_step_sampler() -> dict[str, Any]:
    """The same picture as the one-step node, out of the host's own nodes; the margin is the VAE's alone."""
    model, _, vae = models()
    image = picture(48, 64)
    large = resize(image.movedim(-1, 1), 96, 128).clamp(0, 1)
    framed = harness.run("VAEEncode", vae, mirror_frame(large, 32, 32).movedim(1, -1))[0]["samples"]
    latent = {"samples": framed[..., 2:-2, 2:-2].contiguous()}
    out, denoised = sampled(latent)
    strong, _ = sampled(latent, sigma=0.9)

    def decoded(inner: Tensor) -> Tensor:
        whole = framed.clone()
        whole[..., 2:-2, 2:-2] = inner
        return vae.decode(whole)[:, 32:-32, 32:-32]

    node, _ = harness.upscale_node(image, model, vae)
    node_strong, _ = harness.upscale_node(image, model, vae, sigma=0.9)
    return {
        "difference": difference(decoded(out), node),
        "typed_sigma": difference(decoded(strong), node_strong),
        "sigma_shows": difference(node, node_strong),
        "model_shows": difference(node, harness.upscale_node(image, model, vae, vae_only=True)[0]),
        "denoised_is_the_output": difference(out, denoised),
        "noise_is_ignored": torch.equal(out, sampled(latent, noise_node="RandomNoise")[0]),
        "sigmas": [round(s, 4) for s in harness.run("OP4KSR_OneStepSampler", model)[1].tolist()],
    }


def noise_mask() -> dict[str, float]:
    """Outside the mask the latent stays; inside it is the unmasked result."""
    latent = encoded()
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


# --- a LoRA with its settings -----------------------------------------------------------------

BASE, THETA = "base.safetensors", (80.0, 200.0)

#: Modules that the LoRAs change, by diffusers' names: whole ones, a part of a fused one, halves swapped.
DIFFUSERS = (
    "transformer_blocks.0.attn.to_k",
    "transformer_blocks.0.attn.to_out.0",
    "single_transformer_blocks.0.attn.to_v",
    "single_transformer_blocks.0.proj_mlp",
    "single_transformer_blocks.0.proj_out",
    "norm_out.linear",
)
BFL = ("double_blocks.0.img_attn.qkv", "double_blocks.0.txt_mlp.0", "single_blocks.0.linear1", "final_layer.linear")

#: Layout -> (modules, file name of a module's down and up).
LAYOUTS: dict[str, tuple[tuple[str, ...], Callable[[str], tuple[str, str]]]] = {
    "peft_diffusers": (DIFFUSERS, lambda m: (f"transformer.{m}.lora_A.weight", f"transformer.{m}.lora_B.weight")),
    "peft_bare": (DIFFUSERS, lambda m: (f"{m}.lora_A.default.weight", f"{m}.lora_B.default.weight")),
    "peft_wrapped": (BFL, lambda m: (f"base_model.model.{m}.lora_A.weight", f"base_model.model.{m}.lora_B.weight")),
    "bfl": (BFL, lambda m: (f"diffusion_model.{m}.lora_A.weight", f"diffusion_model.{m}.lora_B.weight")),
    "kohya": (
        BFL,
        lambda m: (
            f"lora_unet_{m.replace('.', '_')}.lora_down.weight",
            f"lora_unet_{m.replace('.', '_')}.lora_up.weight",
        ),
    ),
}

SIZES = {  # of the modules above in TINY: rows, columns
    "transformer_blocks.0.attn.to_k": (128, 128),
    "transformer_blocks.0.attn.to_out.0": (128, 128),
    "single_transformer_blocks.0.attn.to_v": (128, 128),
    "single_transformer_blocks.0.proj_mlp": (512, 128),
    "single_transformer_blocks.0.proj_out": (128, 640),
    "norm_out.linear": (256, 128),
    "double_blocks.0.img_attn.qkv": (384, 128),
    "double_blocks.0.txt_mlp.0": (512, 128),
    "single_blocks.0.linear1": (896, 128),
    "final_layer.linear": (64, 128),
}


def lora_of(layout: str) -> dict[str, Tensor]:
    """Rank 4, with an alpha of 2 where the layout has alphas."""
    modules, names = LAYOUTS[layout]
    tensors: dict[str, Tensor] = {}
    for i, module in enumerate(modules):
        rows, columns = SIZES[module]
        down, up = names(module)
        tensors |= {down: 0.05 * noise(4, columns, seed=i), up: noise(rows, 4, seed=20 + i)}
        if layout == "kohya":
            tensors[down.replace("lora_down.weight", "alpha")] = torch.tensor(2.0)
    return tensors


def settings() -> OneStepSettings:
    return prompt(sigma=0.7, guidance=2.0)


def write_sr_lora(name: str, tensors: dict[str, Tensor], **prompt_tensors: Tensor) -> str:
    own = settings()
    extra = prompt_tensors or {"op4ksr.txt": own.txt, "op4ksr.vec": own.vec}
    metadata = {"op4ksr.kind": "lora", "op4ksr.rope_theta": "80,200", "op4ksr.sigma": "0.7", "op4ksr.guidance": "2"}
    save_file({**tensors, **extra}, harness.FOLDER / "loras" / name, metadata)
    return name


@lru_cache
def base() -> Any:
    """A MODEL with guidance, Flux's own theta, and a prompt that is not the LoRA's."""
    models()
    write_flux(BASE, guidance_embed=True)
    return harness.load_model(BASE)


def core_merged(name: str, strength: float = 1.0) -> Flux:
    """The core's own merge, with the LoRA's theta and settings."""
    base()
    plain = load_flux(harness.FOLDER / "diffusion_models" / BASE)
    header = read_header(harness.FOLDER / "loras" / name)
    state = plain.state_dict()
    lora = read_merge(header, {name: tuple(weight.shape) for name, weight in state.items()}, strength)
    state = {name: merged_weight(name, weight, [lora]) for name, weight in state.items()}
    merged = Flux(replace(plain.params, theta=THETA), settings(), device="meta")
    merged.load_state_dict(state, assign=True)
    return merged.eval()


def result(model: Any, **widgets: Any) -> Tensor:
    return harness.upscale_node(picture(96, 128), model, models()[2], **widgets)[0]


def core_result(flux: Flux) -> Tensor:
    autoencoder = load_autoencoder(harness.FOLDER / "vae" / VAE)
    options = OneStepOptions(target=Target(scale=2), color="none", fidelity=0.0)
    return core_upscale(picture(96, 128).movedim(-1, 1), flux, autoencoder, options).movedim(1, -1)


def sr_lora() -> dict[str, Any]:
    """Every layout: weights, theta, sigma, guidance and prompt against the core's merge."""
    found: dict[str, Any] = {}
    before = result(base())
    for layout in LAYOUTS:
        name = write_sr_lora(f"{layout}.safetensors", lora_of(layout))
        model, conditioning, _ = harness.run("OP4KSR_LoadSRLoRA", base(), name)
        ours = result(model, conditioning=conditioning) if layout == "bfl" else result(model)
        constants_only = result(harness.run("OP4KSR_LoadSRLoRA", base(), name, 0.0)[0])
        found[layout] = {
            "difference": difference(ours, core_result(core_merged(name))),
            "weights_show": difference(ours, constants_only),
            "constants_only": difference(constants_only, core_result(core_merged(name, 0.0))),
            "constants_show": difference(constants_only, before),
        }
    return found | {"base_is_as_before": torch.equal(result(base()), before)}


def refused_loras() -> dict[str, Any]:
    lora = lora_of("bfl")
    foreign = {
        "lora_unet_input_blocks_1.lora_up.weight": noise(4, 4),
        "lora_unet_input_blocks_1.lora_down.weight": noise(4, 4),
    }
    save_file({"op4ksr.vec": noise(32), "weight": noise(3)}, harness.FOLDER / "loras" / "none.safetensors")
    names = {
        "no_lora": "none.safetensors",
        "no_prompt": write_lora("plain_lora.safetensors", lora),
        "no_match": write_sr_lora("foreign.safetensors", foreign),
        "other_prompt": write_sr_lora(
            "other.safetensors", lora, **{"op4ksr.txt": noise(3, 7), "op4ksr.vec": noise(32)}
        ),
        "missing": "no_such_file.safetensors",
    }
    good = write_sr_lora("good.safetensors", lora)
    found = {"no_flux": harness.refusal(lambda: harness.run("OP4KSR_LoadSRLoRA", unet_model(), good))}
    return found | {
        case: harness.refusal(lambda name=name: harness.run("OP4KSR_LoadSRLoRA", base(), name))
        for case, name in names.items()
    }


CASES = (
    one_step_sampler,
    noise_mask,
    empty_latent,
    sr_lora,
    refused_loras,
)
