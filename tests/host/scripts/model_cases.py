"""The loaded MODEL in the host's own nodes: samplers, LoRA, object patches, RFR, clones, reloads."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import comfy.ldm.flux.layers
import comfy.model_detection
import harness
import torch
from torch import Tensor
from weights import TINY, difference, noise, picture, prompt, unet_model, write_flux, write_lora, write_vae

from op4ksr_core import Flux, OneStepOptions, Rfr, Target, load_autoencoder, load_flux
from op4ksr_core import upscale as core_upscale

VAE, FLUX, PLAIN = "f16.safetensors", "flux.safetensors", "plain.safetensors"
THETA = (46.7, 300.0)
PE_EMBEDDER = "diffusion_model.pe_embedder"

#: The two projections that the LoRAs change: BFL's name, kohya's name, diffusers' name.
TARGETS = (
    ("double_blocks.0.img_attn.proj", "double_blocks_0_img_attn_proj", "transformer_blocks.0.attn.to_out.0"),
    ("single_blocks.0.linear2", "single_blocks_0_linear2", "single_transformer_blocks.0.proj_out"),
)


@lru_cache
def models() -> tuple[Any, Any]:
    """MODEL with a theta per axis and a sigma of its own, and VAE."""
    write_vae(VAE)
    write_flux(FLUX, theta=THETA, settings=prompt(sigma=0.3))
    return harness.load_model(FLUX), harness.load_vae(VAE)


def core_flux() -> Flux:
    models()
    return load_flux(harness.FOLDER / "diffusion_models" / FLUX)


def result(model: Any, image: Tensor | None = None, **widgets: Any) -> Tensor:
    return harness.upscale_node(picture(96, 128) if image is None else image, model, models()[1], **widgets)[0]


def core_result(flux: Flux, image: Tensor | None = None, rfr: Rfr | None = None, **values: Any) -> Tensor:
    low = (picture(96, 128) if image is None else image).movedim(-1, 1)
    autoencoder = load_autoencoder(harness.FOLDER / "vae" / VAE)
    options = OneStepOptions(target=Target(scale=2), color="none", fidelity=0.0)
    return core_upscale(low, flux, autoencoder, options, rfr=rfr, **values).movedim(1, -1)


def sampler() -> dict[str, Any]:
    """KSampler takes MODEL and CONDITIONING as they are."""
    models()
    model, conditioning = harness.run("OP4KSR_LoadFluxSR", FLUX)
    latent = {"samples": noise(1, 16, 6, 8)}
    (out,) = harness.run("KSampler", model, 1, 2, 1.0, "euler", "simple", conditioning, conditioning, latent, 0.5)
    samples = out["samples"]
    return {
        "shape": list(samples.shape),
        "finite": bool(samples.isfinite().all()),
        "moved": difference(samples, latent["samples"]),
    }


def lora_weights() -> list[tuple[Tensor, Tensor]]:
    """(up, down) per target, of rank 4."""
    state = core_flux().state_dict()
    shapes = [state[f"{ours}.weight"].shape for ours, *_ in TARGETS]
    return [(noise(rows, 4, seed=i), 0.05 * noise(4, cols, seed=9 + i)) for i, (rows, cols) in enumerate(shapes)]


def merged_flux() -> Flux:
    flux = core_flux()
    for (ours, *_), (up, down) in zip(TARGETS, lora_weights(), strict=True):
        flux.get_submodule(ours).weight.add_(up @ down)
    return flux


def with_lora(name: str, strength: float = 1.0) -> Any:
    return harness.run("LoraLoaderModelOnly", models()[0], name, strength)[0]


def lora() -> dict[str, Any]:
    """LoRAs of both layouts, against the core with the same product merged into its weights."""
    kohya: dict[str, Tensor] = {}
    peft: dict[str, Tensor] = {}
    for (_, flat, dotted), (up, down) in zip(TARGETS, lora_weights(), strict=True):
        kohya |= {f"lora_unet_{flat}.lora_up.weight": up, f"lora_unet_{flat}.lora_down.weight": down}
        peft |= {f"transformer.{dotted}.lora_B.weight": up, f"transformer.{dotted}.lora_A.weight": down}
    write_lora("kohya.safetensors", kohya)
    write_lora("peft.safetensors", peft)
    before, merged = result(models()[0]), core_result(merged_flux())
    changed = result(with_lora("kohya.safetensors"))
    return {
        "changes": difference(before, changed),
        "kohya": difference(changed, merged),
        "peft": difference(result(with_lora("peft.safetensors")), merged),
        "strength_0": torch.equal(result(with_lora("kohya.safetensors", 0.0)), before),
        "gone_again": difference(result(models()[0]), before),
    }


def sampling_flux() -> dict[str, Any]:
    """ModelSamplingFlux shifts the schedule, which one step does not have."""
    model = models()[0]
    (patched,) = harness.run("ModelSamplingFlux", model, 1.15, 0.5, 4096, 4096)
    return {"identical": torch.equal(result(patched), result(model))}


def no_leak() -> dict[str, Any]:
    """A branch's theta stays in that branch, whichever ran last."""
    model = models()[0]
    branch = harness.apply_rfr(model, "theta", 50.0)
    first, patched, second = result(model), result(branch), result(model)
    return {"same_before_and_after": torch.equal(first, second), "branch_differs": difference(first, patched)}


def last_wins() -> dict[str, Any]:
    model = models()[0]
    twice = harness.apply_rfr(harness.apply_rfr(model, "theta", 5.0), "theta", 500.0)
    back = harness.apply_rfr(harness.apply_rfr(model, "theta", 5.0), "checkpoint")
    plain = result(model)
    return {
        "last": torch.equal(result(twice), result(harness.apply_rfr(model, "theta", 500.0))),
        "checkpoint_undoes": torch.equal(result(back), plain),
        "differs": difference(result(twice), plain),
    }


def checkpoint_policy() -> dict[str, bool]:
    """The policy ``checkpoint`` is the identity: with the file's own theta, and with Flux's."""
    model = models()[0]
    write_flux(PLAIN, settings=prompt())
    flux = harness.load_model(PLAIN)
    return {
        "own_theta": torch.equal(result(harness.apply_rfr(model, "checkpoint")), result(model)),
        "flux_theta": torch.equal(result(harness.apply_rfr(flux, "checkpoint")), result(flux)),
        "written_out": torch.equal(result(harness.apply_rfr(flux, "theta", 10000.0)), result(flux)),
    }


def policies() -> dict[str, Any]:
    """Every policy of the node against the same one in the core, parts at the model's own sigma and at another.

    ultraflux starts at 65 tokens.
    """
    model, flux = models()[0], core_flux()
    long = picture(16, 1056)
    cases: dict[str, tuple[Tensor, dict[str, Any], Rfr]] = {
        "theta": (picture(96, 128), {"theta": 80.0}, Rfr("theta", (80.0, 80.0))),
        "fit": (picture(96, 128), {"tokens_rows": 6, "tokens_columns": 8}, Rfr("fit", tokens=(6, 8))),
        "ntk": (picture(96, 128), {"train_tokens": 2}, Rfr("ntk", train_tokens=2)),
        "interpolate": (picture(96, 128), {"train_tokens": 2}, Rfr("interpolate", train_tokens=2)),
        "parts": (picture(96, 128), {"train_tokens": 2}, Rfr("parts", train_tokens=2, sigma=0.3)),
        "parts_at": (picture(96, 128), {"train_tokens": 2, "sigma": 0.9}, Rfr("parts", train_tokens=2, sigma=0.9)),
        "ultraflux": (long, {}, Rfr("ultraflux")),
    }
    found: dict[str, Any] = {}
    for case, (image, widgets, rfr) in cases.items():
        ours = result(harness.apply_rfr(model, rfr.policy, **widgets), image)
        found[case] = {
            "difference": difference(ours, core_result(flux, image, rfr)),
            "effect": difference(ours, result(model, image)),
        }
    return found


def reports() -> dict[str, str]:
    """What ApplyRFR says it did, also over somebody else's positions."""

    class ForeignEmbedder(comfy.ldm.flux.layers.EmbedND):
        pass

    model = models()[0]
    foreign = model.clone()
    embedder = ForeignEmbedder(dim=128, theta=10000, axes_dim=[16, 56, 56])
    foreign.add_object_patch(PE_EMBEDDER, embedder)
    return {
        "theta": harness.run("OP4KSR_ApplyRFR", model, "theta", 80.0, 90.0)[1],
        "foreign": harness.run("OP4KSR_ApplyRFR", foreign, "theta", 80.0, 90.0)[1],
    }


def not_flux() -> dict[str, Any]:
    """A MODEL without Flux's positions, as SD 1.5's is."""
    attempts: dict[str, Callable[[], Any]] = {
        "rfr": lambda: harness.apply_rfr(unet_model(), "theta", 50.0),
        "OP4KSR_OneStepSampler": lambda: harness.run("OP4KSR_OneStepSampler", unet_model()),
        "OP4KSR_FluxShift16x": lambda: harness.run("OP4KSR_FluxShift16x", unet_model(), "fixed", 3.0, 1024, 1024),
    }
    return {name: harness.refusal(attempt) for name, attempt in attempts.items()}


def survivors() -> dict[str, bool]:
    """sigma, prompt and theta of the file are still there after what other nodes do to a MODEL."""
    model, lora_name = models()[0], "nothing.safetensors"
    plain = result(model)
    write_lora(
        lora_name,
        {"lora_unet_single_blocks_0_linear2.lora_up.weight": torch.zeros(128, 4)}
        | {"lora_unet_single_blocks_0_linear2.lora_down.weight": torch.zeros(4, 640)},
    )
    ways: dict[str, Callable[[], Any]] = {
        "clone": lambda: model.clone().clone(),
        "lora": lambda: with_lora(lora_name),
        "sampling": lambda: harness.run("ModelSamplingFlux", model, 1.15, 0.5, 1024, 1024)[0],
        "rfr": lambda: harness.apply_rfr(model, "checkpoint"),
    }
    same = {name: torch.equal(result(way()), plain) for name, way in ways.items()}
    typed_default = difference(result(model, sigma=0.5), plain)
    return same | {"sigma_matters": typed_default > 0.01}


def fp8() -> dict[str, Any]:
    """Weights held in fp8, computed in fp32: close to, but not, the plain ones."""
    model = models()[0]
    held = harness.load_model(FLUX, weight_dtype="fp8_e4m3fn")
    weight = held.model.diffusion_model.double_blocks[0].img_attn.qkv.weight
    ours, plain = result(held), result(model)
    return {
        "dtype": str(weight.dtype),
        "finite": bool(ours.isfinite().all()),
        "difference": float((ours - plain).abs().mean()),
        "transformer": float((plain - result(model, vae_only=True)).abs().mean()),
    }


def reload() -> dict[str, Any]:
    """The host's way to load the same MODEL once more; patches of the first are copied onto it."""
    model = models()[0]
    if "model_override" not in inspect.signature(type(model).clone).parameters:
        raise harness.LackingError("this ComfyUI never loads a MODEL a second time")
    factory, args = model.cached_patcher_init
    again = factory(*args, disable_dynamic=True)
    copy = model.clone(model_override=(again.model, ({}, {}, {}, set())))
    return {"own_model": again.model is not model.model, "same": torch.equal(result(copy), result(model))}


def needs_a_host_that_detects_sizes() -> None:
    if comfy.model_detection.detect_unet_config(core_flux().state_dict(), "").get("num_heads") != TINY["num_heads"]:
        raise harness.LackingError("this ComfyUI's own loader takes every Flux model for a 12B one")


def foreign_loader() -> dict[str, Any]:
    """The same weights through the host's own UNETLoader: defaults, and ApplyRFR, work on it."""
    models()
    write_flux(PLAIN, settings=prompt())
    needs_a_host_that_detects_sizes()
    (model,) = harness.run("UNETLoader", PLAIN, "default")
    flux = load_flux(harness.FOLDER / "diffusion_models" / PLAIN)
    own = {"conditioning": harness.run("OP4KSR_LoadFluxSR", PLAIN)[1]}
    rescaled = result(harness.apply_rfr(model, "theta", 50.0), **own)
    return {
        "with_prompt": difference(result(model, **own), core_result(flux)),
        "with_rfr": difference(rescaled, core_result(flux, rfr=Rfr("theta", (50.0, 50.0)))),
        "rfr_effect": difference(rescaled, core_result(flux)),
        "without_prompt": list(result(model).shape),
    }


def core_agrees() -> float:
    """The file with a theta per axis, through the node and through the core."""
    return difference(result(models()[0]), core_result(core_flux()))


CASES = (
    core_agrees,
    sampler,
    lora,
    sampling_flux,
    no_leak,
    last_wins,
    checkpoint_policy,
    policies,
    reports,
    not_flux,
    survivors,
    fp8,
    reload,
    foreign_loader,
)
