"""The one-step node against the core's ``upscale`` on the same files, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import comfy.ldm.wan.vae
import comfy.model_management
import comfy.sd
import comfy.utils
import harness
import torch
from torch import Tensor
from weights import difference, noise, picture, prompt, seeded, unet_model, write_flux, write_vae

import nodes
from op4ksr_core import AutoEncoder, AutoEncoderParams, Flux, OneStepOptions, Target, load_autoencoder, load_flux
from op4ksr_core import upscale as core_upscale
from op4ksr_core.one_step import Frame

VAE, FLUX, GUIDED = "f16.safetensors", "flux.safetensors", "guided.safetensors"


@lru_cache
def host_models() -> tuple[Any, Any, Any]:
    """MODEL (sigma 0.3), MODEL with guidance, and VAE."""
    write_vae(VAE)
    write_flux(FLUX, settings=prompt(sigma=0.3))
    write_flux(GUIDED, guidance_embed=True, settings=prompt(sigma=0.6, guidance=2.0))
    return harness.load_model(FLUX), harness.load_model(GUIDED), harness.load_vae(VAE)


@lru_cache
def core_models() -> tuple[Flux, Flux, AutoEncoder]:
    host_models()
    models = harness.FOLDER / "diffusion_models"
    return load_flux(models / FLUX), load_flux(models / GUIDED), load_autoencoder(harness.FOLDER / "vae" / VAE)


def from_core(image: Tensor, flux: Flux, vae: AutoEncoder, sigma: float | None = None, **options: Any) -> Tensor:
    """The core's result as ComfyUI IMAGE; by default x2 and nothing after the decoder, like the harness."""
    options = {"target": Target(scale=2), "color": "none", "fidelity": 0.0, **options}
    low = image[..., :3].movedim(-1, 1)
    alpha = image[..., 3:].movedim(-1, 1) if image.shape[-1] == 4 else None
    return core_upscale(low, flux, vae, OneStepOptions(**options), sigma=sigma, alpha=alpha).movedim(1, -1)


def compare(image: Tensor, widgets: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    (model, _, vae), (flux, _, autoencoder) = host_models(), core_models()
    ours, mask = harness.upscale_node(image, model, vae, **widgets)
    return {
        "shape": list(ours.shape),
        "mask": list(mask.shape),
        "difference": difference(ours, from_core(image, flux, autoencoder, **options)),
    }


def options() -> dict[str, Any]:
    """Every option of the node, at the core's setting of the same name."""
    small, odd = picture(48, 64), picture(67, 101)
    batch = torch.cat([small, picture(48, 64, seed=4)])
    alpha = torch.cat([small, torch.rand(1, 48, 64, 1)], dim=-1)
    pixels = {"target": "long edge", "pixels": 160}
    return {
        "none": compare(small, {}, {}),
        "fidelity": compare(small, {"fidelity": 1.0}, {"fidelity": 1.0}),
        "half_fidelity": compare(small, {"fidelity": 0.5}, {"fidelity": 0.5}),
        "adain": compare(small, {"color_fix": "adain"}, {"color": "adain"}),
        "lab": compare(small, {"color_fix": "lab"}, {"color": "lab"}),
        "wavelet": compare(small, {"color_fix": "wavelet"}, {"color": "wavelet"}),
        "vae_only": compare(small, {"vae_only": True}, {"vae_only": True}),
        "sigma": compare(small, {"sigma": 0.9}, {"sigma": 0.9}),
        "long_edge": compare(small, pixels, {"target": Target(long_edge=160)}),
        "short_edge": compare(small, {**pixels, "target": "short edge"}, {"target": Target(short_edge=160)}),
        "megapixels": compare(small, {"target": "megapixels", "megapixels": 0.02}, {"target": Target(megapixels=0.02)}),
        "batch": compare(batch, {}, {}),
        "odd": compare(odd, {"factor": 3.0}, {"target": Target(scale=3)}),
        "odd_fidelity": compare(odd, {"fidelity": 1.0, "color_fix": "wavelet"}, {"fidelity": 1.0, "color": "wavelet"}),
        "rgba": compare(alpha, {}, {}),
    }


def effects() -> dict[str, float]:
    """How far each option moves the picture, or ``options`` would prove nothing."""
    model, _, vae = host_models()
    image = picture(48, 64)
    plain, _ = harness.upscale_node(image, model, vae)
    changes: dict[str, dict[str, Any]] = {
        "fidelity": {"fidelity": 1.0},
        "adain": {"color_fix": "adain"},
        "wavelet": {"color_fix": "wavelet"},
        "lab": {"color_fix": "lab"},
        "vae_only": {"vae_only": True},
        "sigma": {"sigma": 0.9},
    }
    return {n: difference(plain, harness.upscale_node(image, model, vae, **c)[0]) for n, c in changes.items()}


def masks() -> dict[str, Any]:
    """Transparency: the left third is transparent (1), enlarged beside the picture; 0 without one."""
    model, _, vae = host_models()
    image, mask = picture(67, 101), torch.zeros(1, 67, 101)
    mask[..., :33] = 1
    _, enlarged = harness.upscale_node(image, model, vae, mask=mask, factor=3.0)
    _, flat = harness.upscale_node(image, model, vae, mask=mask[0], factor=3.0)
    _, fourth = harness.upscale_node(image, model, vae, mask=mask[:, None], factor=3.0)
    _, none = harness.upscale_node(image, model, vae, factor=3.0)
    return {
        "shape": list(enlarged.shape),
        "left": float(enlarged[..., :90].min()),
        "right": float(enlarged[..., 110:].max()),
        "without_batch_axis_is_the_same": torch.equal(flat, enlarged),
        "with_a_channel_is_the_same": torch.equal(fourth, enlarged),
        "none": [list(none.shape), float(none.max())],
    }


def conditioning() -> dict[str, Any]:
    """Left open, the file's own prompt is used; a typed sigma and guidance win over the file's."""
    (model, guided, vae), (flux, core_guided, autoencoder) = host_models(), core_models()
    image, own = picture(48, 64), harness.run("OP4KSR_LoadFluxSR", FLUX)[1]
    other = [[noise(1, 3, 64), {"pooled_output": noise(1, 32, seed=5)}]]
    default, _ = harness.upscale_node(image, model, vae)
    typed, _ = harness.upscale_node(image, model, vae, sigma=0.8)
    guidance, _ = harness.upscale_node(image, guided, vae)
    prompt_of_file = guided.get_attachment("op4ksr")
    plain = [[prompt_of_file.txt[None], {"pooled_output": prompt_of_file.vec[None]}]]  # as CLIPTextEncode gives it
    strong, _ = harness.upscale_node(image, guided, vae, guidance=9.0)
    core_strong = load_flux(harness.FOLDER / "diffusion_models" / GUIDED)
    core_strong.settings = replace(core_strong.settings, guidance=9.0)
    return {
        "own_is_default": torch.equal(default, harness.upscale_node(image, model, vae, conditioning=own)[0]),
        "other_differs": difference(default, harness.upscale_node(image, model, vae, conditioning=other)[0]),
        "sigma_differs": difference(default, typed),
        "typed_sigma": difference(typed, from_core(image, flux, autoencoder, sigma=0.8)),
        "guidance_differs": difference(guidance, strong),
        "own_guidance": difference(guidance, from_core(image, core_guided, autoencoder)),
        "plain_prompt": difference(guidance, harness.upscale_node(image, guided, vae, conditioning=plain)[0]),
        "typed_guidance": difference(strong, from_core(image, core_strong, autoencoder)),
        "strength_of_prompt": float(own[0][0].abs().max()),
    }


def native_f8_vae() -> dict[str, Any]:
    """Flux's own VAE, full width, from the host's own VAE class."""
    (model, _, _), (flux, _, _) = host_models(), core_models()
    core = seeded(lambda: AutoEncoder(AutoEncoderParams(stride=1)), 6)
    vae = comfy.sd.VAE(sd=dict(core.state_dict()))
    image = picture(28, 40)
    ours, _ = harness.upscale_node(image, model, vae)
    return {"shape": list(ours.shape), "difference": difference(ours, from_core(image, flux, core))}


def progress() -> dict[str, Any]:
    """What the node tells its bar for a batch of two, and what the host (which may skip some) passes on."""
    model, _, vae = host_models()
    told: list[tuple[int, int]] = []
    passed_on: list[tuple[int, int]] = []
    update = comfy.utils.ProgressBar.update_absolute

    def recorded(bar: Any, value: int, total: int, *rest: Any) -> None:
        told.append((value, total))
        update(bar, value, total, *rest)

    def hook(value: int, total: int, *_: Any, **__: Any) -> None:
        passed_on.append((value, total))

    comfy.utils.ProgressBar.update_absolute = recorded
    comfy.utils.set_progress_bar_global_hook(hook)
    try:
        harness.upscale_node(torch.cat([picture(32, 32)] * 2), model, vae, fidelity=1.0)
    finally:
        comfy.utils.ProgressBar.update_absolute = update
        comfy.utils.set_progress_bar_global_hook(None)
    return {"values": [v for v, _ in told], "totals": sorted({t for _, t in told}), "last": passed_on[-1]}


def cancelled(attempt: Callable[[], Any]) -> bool:
    """Whether ``attempt`` ends at once, with the host's own exception, when the user has cancelled."""
    comfy.model_management.interrupt_current_processing()
    try:
        attempt()
    except comfy.model_management.InterruptProcessingException:  # a BaseException on newer hosts
        return True
    finally:
        comfy.model_management.interrupt_current_processing(False)
    return False


def cancelling() -> dict[str, bool]:
    """Each stage by itself and the node as a whole; afterwards everything works as before."""
    model, _, vae = host_models()
    image, raw = picture(48, 64), noise(1, 16, 4, 4)
    plain, _ = harness.upscale_node(image, model, vae)
    found = {
        "encode": cancelled(lambda: vae.encode(image)),
        "decode": cancelled(lambda: vae.decode(raw)),
        "node": cancelled(lambda: harness.upscale_node(image, model, vae)),
    }
    return found | {"works_again": torch.equal(plain, harness.upscale_node(image, model, vae)[0])}


def sd_vae() -> Any:
    """A Stable Diffusion VAE (4 channels, quant convs) as the host loads it."""
    core = seeded(lambda: AutoEncoder(AutoEncoderParams(stride=1, latent_channels=4)), 7)
    quant = {"quant_conv.weight": torch.eye(8)[..., None, None], "quant_conv.bias": torch.zeros(8)}
    post = {"post_quant_conv.weight": torch.eye(4)[..., None, None], "post_quant_conv.bias": torch.zeros(4)}
    return comfy.sd.VAE(sd={**core.state_dict(), **quant, **post})


def video_vae() -> Any:
    """Wan 2.1's VAE as the host loads it, which has 16 latent channels as Flux's has; its weights are zero."""
    with torch.device("meta"):
        wan = comfy.ldm.wan.vae.WanVAE(dim=96, z_dim=16, temperal_downsample=[False, True, True])
    return comfy.sd.VAE(sd={name: torch.zeros(()).expand(t.shape) for name, t in wan.state_dict().items()})


def grey() -> float:
    """A picture of one channel, as some mask nodes make it, is its grey in three."""
    model, _, vae = host_models()
    image = picture(48, 64)[..., :1]
    one, _ = harness.upscale_node(image, model, vae)
    three, _ = harness.upscale_node(image.repeat(1, 1, 1, 3), model, vae)
    return difference(one, three)


def hidden_colours() -> dict[str, bool]:
    """Whatever lies under the transparency, the picture is the same: by a MASK, and by an IMAGE of 4 channels."""
    model, _, vae = host_models()
    mask = torch.ones(1, 24, 32)
    mask[:, 6:18, 8:24] = 0
    results: list[tuple[Tensor, Tensor]] = []
    for hidden in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0), (1.0, 0.0, 0.0)):
        image = torch.where(mask[..., None] > 0.5, torch.tensor(hidden), torch.tensor(0.9)).expand(1, -1, -1, 3)
        whole = {"color_fix": "wavelet", "fidelity": 1.0}
        results.append(harness.upscale_node(image, model, vae, mask=mask, **whole))
        results.append(harness.upscale_node(torch.cat((image, 1 - mask[..., None]), -1), model, vae, **whole))
    first, alpha = results[0]
    return {
        "same": all(torch.equal(first, image) for image, _ in results),
        "masks": all(torch.equal(alpha, mask) for _, mask in results),
    }


def refused() -> dict[str, Any]:
    model, _, vae = host_models()
    image = picture(48, 64)
    holes = image.clone()
    holes[0, 3, 3, 0] = float("nan")

    def attempt(image: Tensor, vae: Any, model: Any = model, **widgets: Any) -> dict[str, Any]:
        return harness.refusal(lambda: harness.upscale_node(image, model, vae, **widgets))

    def prompt_of(channels: int, pooled: int) -> list[Any]:
        return [[noise(1, 3, channels), {"pooled_output": noise(1, pooled)}]]

    return {
        "nan": attempt(holes, vae),
        "empty": attempt(image[:0], vae),
        "ceiling": attempt(image, vae, factor=64.0, max_megapixels=0.5),
        "four_channels": attempt(image, sd_vae()),
        "video": attempt(image, video_vae()),
        "no_batch": attempt(image[0], vae),
        "no_vae": attempt(image, None),
        "no_prompt": attempt(image, vae, conditioning=[]),
        "stable_diffusion": attempt(image, vae, unet_model()),
        "stable_diffusion_both": attempt(image, sd_vae(), unet_model()),
        "other_prompt": attempt(image, vae, conditioning=prompt_of(2048, 32)),
        "other_pooled": attempt(image, vae, conditioning=prompt_of(64, 1280)),
    }


def retreats() -> dict[str, Any]:
    """Pictures are fixed at home where the device runs out of memory; another error is not swallowed."""
    stages = sys.modules[
        nodes.NODE_CLASS_MAPPINGS["OP4KSR_OneStepUpscale"].__module__.replace("nodes.upscale", "nodes.host.stages")
    ]
    full, home, given, tried = torch.device("meta"), torch.device("cpu"), torch.zeros(2), []

    def compute(picture: torch.Tensor) -> torch.Tensor:
        tried.append(picture.device.type)
        if picture.device == full:
            raise torch.OutOfMemoryError("full")
        return picture + 1

    def wrong(picture: torch.Tensor) -> torch.Tensor:
        raise RuntimeError(f"wrong on {picture.device}")

    result = stages.with_retreat(compute, full, home, given)
    asked = stages.on_free_device(compute, Frame(1, 2, 32, 32), given)  # no GPU here
    other = harness.refusal(lambda: stages.with_retreat(wrong, full, home, given))
    return {"result": result.tolist(), "tried": tried, "asked": asked.tolist(), "other": other["message"]}


CASES = (
    grey,
    retreats,
    options,
    effects,
    masks,
    hidden_colours,
    conditioning,
    native_f8_vae,
    progress,
    cancelling,
    refused,
)
