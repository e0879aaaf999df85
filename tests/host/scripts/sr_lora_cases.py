"""Load SR LoRA with a VAE and a CONDITIONING: what it refuses, what travels with the MODEL, and what comes after it."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import comfy.model_management
import harness
import torch
from model_cases import needs_a_host_that_detects_sizes
from safetensors.torch import load_file, save_file
from torch import Tensor
from weights import TINY, difference, noise, picture, prompt, write_flux, write_lora, write_omgsr, write_vae

from op4ksr_core import OneStepOptions, Target, load_autoencoder, load_flux
from op4ksr_core import upscale as core_upscale
from op4ksr_core.pieces import Pieces
from op4ksr_core.weights.checkpoint import save_prompt
from op4ksr_core.weights.sr_lora import describe_sr_lora

FLUX, VAE, PROMPT = "sr_base.safetensors", "sr_vae.safetensors", "sr_prompt.safetensors"
GUIDED = {"guidance_embed": True}


@lru_cache
def omgsr() -> str:
    """The base models, a prompt embedding and the folder of a LoRA for them; a file of that folder."""
    write_flux(FLUX, **GUIDED)
    write_vae(VAE, stride=1)
    settings = prompt()
    assert settings.txt is not None and settings.vec is not None
    save_prompt(harness.FOLDER / "embeddings" / PROMPT, settings.txt, settings.vec)
    return write_omgsr("OMGSR", GUIDED, stride=1)


@lru_cache
def base() -> tuple[Any, Any, Any]:
    """MODEL, VAE, CONDITIONING."""
    omgsr()
    return (
        harness.load_model(FLUX),
        harness.load_vae(VAE, compression="8x"),
        harness.run("OP4KSR_LoadPromptEmbedding", PROMPT)[0],
    )


def load(name: str | None = None, strength: float = 1.0, **changes: Any) -> tuple[Any, Any, Any]:
    """MODEL, CONDITIONING, VAE."""
    model, vae, conditioning = base()
    given: dict[str, Any] = {"model": model, "vae": vae, "conditioning": conditioning, **changes}
    return harness.run("OP4KSR_LoadSRLoRA", given.pop("model"), name or omgsr(), strength, **given)


def result(model: Any, vae: Any, image: Tensor | None = None, **widgets: Any) -> Tensor:
    return harness.upscale_node(picture(24, 32) if image is None else image, model, vae, **widgets)[0]


def core(
    strength: float = 1.0,
    image: Tensor | None = None,
    seed: int = 0,
    merged: str | None = None,
    pieces: Pieces | None = None,
) -> Tensor:
    """The core's own on the same files; merged: a base model that holds another LoRA already."""
    found, settings = describe_sr_lora(harness.FOLDER / "loras" / omgsr()), prompt()
    assert settings.txt is not None and settings.vec is not None
    flux = load_flux(harness.FOLDER / "diffusion_models" / (merged or FLUX), lora=found, strength=strength,
                     prompt=(settings.txt, settings.vec))  # fmt: skip
    vae = load_autoencoder(harness.FOLDER / "vae" / VAE, lora=found, strength=strength)
    options = OneStepOptions(target=Target(scale=2), color="none", fidelity=0.0, seed=seed, pieces=pieces)
    low = (picture(24, 32) if image is None else image).movedim(-1, 1)
    return core_upscale(low, flux, vae, options).movedim(1, -1)


def as_the_core() -> dict[str, Any]:
    """The whole node, in a batch, by seed and by strength."""
    model, _, vae = load()
    batch = torch.cat([picture(24, 32), picture(24, 32, seed=4)])
    ours = result(model, vae, batch, seed=5)
    half_model, _, half_vae = load(strength=0.5)
    return {
        "batch": difference(ours, core(image=batch, seed=5)),
        "picture_1_is_seed_6": difference(ours[1:], result(model, vae, batch[1:], seed=6)),
        "seed_shows": difference(result(model, vae, seed=5), result(model, vae, seed=6)),
        "default_is_0": difference(result(model, vae), result(model, vae, seed=0)),
        "pieces": difference(result(model, vae, pieces=32, pieces_overlap=16), core(pieces=Pieces(32, 16))),
        "pieces_show": difference(core(pieces=Pieces(32, 16)), core()),
        "half": difference(result(half_model, half_vae), core(0.5)),
        "half_shows": difference(core(0.5), core()),
        "vae_only": difference(result(model, vae, seed=5, vae_only=True), result(model, vae, seed=6, vae_only=True)),
    }


def what_comes_after() -> dict[str, Any]:
    """Another LoRA on either side, fp8, Apply RFR, Exact VAE on either side, clones."""
    (model, vae, conditioning), (lora_model, _, lora_vae) = base(), load()
    plain, wanted = result(model, vae, conditioning=conditioning), result(lora_model, lora_vae)
    up, down = noise(128, 4) / 4, noise(4, 640, seed=2) / 4
    write_lora("other.safetensors", {"lora_unet_single_blocks_0_linear2.lora_up.weight": up,
                                     "lora_unet_single_blocks_0_linear2.lora_down.weight": down})  # fmt: skip
    path = harness.FOLDER / "diffusion_models" / FLUX
    state = load_file(path)
    state["single_blocks.0.linear2.weight"] += up @ down
    save_file(state, path.with_name("sr_merged.safetensors"))
    with_other = core(merged="sr_merged.safetensors")

    def other(model: Any) -> Any:
        return harness.run("LoraLoaderModelOnly", model, "other.safetensors", 1.0)[0]

    fp8 = harness.load_model(FLUX, weight_dtype="fp8_e4m3fn")
    rfr = harness.apply_rfr(lora_model, "theta", 50.0)
    rfr_before = load(model=harness.apply_rfr(model, "theta", 50.0))[0]
    exact = harness.run("OP4KSR_ExactVAE", lora_vae, "tiny")[0]
    exact_before = load(vae=harness.run("OP4KSR_ExactVAE", vae, "tiny")[0])[2]
    held = result(load(model=fp8)[0], lora_vae)
    return {
        "shows": difference(plain, wanted),
        "lora_shows": difference(with_other, wanted),
        "lora_after": difference(result(other(lora_model), lora_vae), with_other),
        "lora_before": difference(result(load(model=other(model))[0], lora_vae), with_other),
        "fp8": float((held - wanted).abs().mean()),
        "fp8_is_not_the_base": float((held - plain).abs().mean()),
        "rfr_shows": difference(result(rfr, lora_vae), wanted),
        "rfr_before": difference(result(rfr, lora_vae), result(rfr_before, lora_vae)),
        "exact_after": difference(result(lora_model, exact), wanted),
        "exact_before": difference(result(lora_model, exact_before), wanted),
        "clone": difference(result(lora_model.clone().clone(), lora_vae), wanted),
    }


def two_branches() -> dict[str, Any]:
    """Every mix of MODEL and VAE, in two orders, gives what it gave alone."""
    (model, vae, conditioning), (lora_model, _, lora_vae) = base(), load()
    runs: dict[str, Callable[[], Tensor]] = {
        "base": lambda: result(model, vae, conditioning=conditioning),
        "both": lambda: result(lora_model, lora_vae),
        "vae_alone": lambda: result(model, lora_vae, conditioning=conditioning),
        "model_alone": lambda: result(lora_model, vae),
    }
    first = {name: run() for name, run in runs.items()}
    again = [max(difference(runs[name](), first[name]) for name in order) for order in (list(runs)[::-1], list(runs))]
    names = list(runs)
    apart = [difference(first[a], first[b]) for i, a in enumerate(names) for b in names[i + 1 :]]
    return {"leaks": max(again), "apart": min(apart)}


def cancelled() -> dict[str, Any]:
    """Within the encoder and within the decoder; then every branch is what it was."""
    (model, vae, conditioning), (lora_model, _, lora_vae) = base(), load()
    before = result(model, vae, conditioning=conditioning), result(lora_model, lora_vae)
    weights = {name: tensor.clone() for name, tensor in vae.get_sd().items()}
    check, found = comfy.model_management.throw_exception_if_processing_interrupted, dict[str, Any]()
    for strip in (8, 60):
        calls: list[int] = []

        def interrupted(strip: int = strip, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == strip:
                raise comfy.model_management.InterruptProcessingException()

        comfy.model_management.throw_exception_if_processing_interrupted = interrupted
        try:
            result(lora_model, lora_vae)
            found[f"ended_{strip}"] = "it ran on"
        except comfy.model_management.InterruptProcessingException:
            found[f"ended_{strip}"] = "interrupted"
        finally:
            comfy.model_management.throw_exception_if_processing_interrupted = check
        found[f"clean_{strip}"] = all(torch.equal(vae.get_sd()[name], weights[name]) for name in weights)
    after = result(model, vae, conditioning=conditioning), result(lora_model, lora_vae)
    return found | {"same": max(difference(a, b) for a, b in zip(before, after, strict=True))}


def own_file() -> dict[str, Any]:
    """A file of ours with a prompt: no CONDITIONING needed, one that is connected wins; without an encoder, any VAE."""
    model, vae, conditioning = base()
    up = {f"lora_unet_double_blocks_0_img_attn_proj.lora_{name}.weight": noise(*shape, seed=3) / 4
          for name, shape in (("up", (128, 4)), ("down", (4, 128)))}  # fmt: skip
    own = prompt()
    assert own.txt is not None and own.vec is not None
    other = [[noise(1, 2, TINY["context_in_dim"]), {"pooled_output": noise(1, TINY["vec_in_dim"]), "guidance": 7.0}]]
    save_file({**up, "op4ksr.txt": own.txt + 1, "op4ksr.vec": own.vec}, harness.FOLDER / "loras" / "ours.safetensors",
              {"op4ksr.sigma": "0.4", "op4ksr.guidance": "2.5", "op4ksr.encode": "mean"})  # fmt: skip
    mine, out, passed = load("ours.safetensors", conditioning=None)
    with harness.Log() as log:
        theirs, theirs_out, _ = load("ours.safetensors", conditioning=other)
    without_vae = load("ours.safetensors", vae=None)[2]
    pooled = [[other[0][0], {}]]
    return {
        "own_prompt": torch.equal(out[0][0], own.txt[None] + 1),
        "connected_wins": torch.equal(theirs_out[0][0], other[0][0]),
        "guidance": [out[0][1]["guidance"], theirs_out[0][1]["guidance"], theirs.get_attachment("op4ksr").guidance],
        "said": [line for line in log.lines if "guidance 2.5" in line and "7.0" in line],
        "travels": difference(result(theirs, vae), result(theirs, vae, conditioning=theirs_out)),
        "differ": difference(result(theirs, vae), result(mine, vae)),
        "vae_passes": passed is vae,
        "without_vae": without_vae is None,
        "seed_is_not_used": difference(result(mine, vae, seed=1), result(mine, vae, seed=2)),
        "without_pooled": float(load("ours.safetensors", conditioning=pooled)[1][0][1]["pooled_output"].abs().max()),
        "base_is_left_alone": model.get_attachment("op4ksr").sigma,
    }


def every_file_of_the_folder() -> dict[str, Any]:
    """Whichever the dropdown gives; strength 0 needs no VAE and gives it as it came."""
    wanted = result(load()[0], load()[2])
    names = [f"OMGSR/{half}/{file}" for half in ("flux_adapter", "vae_encoder_adapter")
             for file in ("adapter_model.safetensors", "adapter_config.json")]  # fmt: skip
    found = {name: difference(result(load(name)[0], load(name)[2]), wanted) for name in names}
    vae = base()[1]
    nothing = load(strength=0.0)
    return {"far": max(found.values()), "passed": nothing[2] is vae, "none": load(strength=0.0, vae=None)[2] is None}


class _NoStrips:
    """A VAE of another kind: it encodes and decodes, and that is all that is known of it."""

    def __init__(self, vae: Any) -> None:
        self.vae, self.first_stage_model = vae, object()
        self.device, self.latent_channels, self.latent_dim = vae.device, 16, 2

    def throw_exception_if_invalid(self) -> None:
        pass

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)


def refused() -> dict[str, Any]:
    model, vae, conditioning = base()
    wide = [[noise(1, 3, 96), {"pooled_output": noise(1, 32)}]]
    two = [[noise(2, 3, 64), {"pooled_output": noise(2, 32)}]]
    pools = [[noise(1, 3, 64), {"pooled_output": noise(2, 32)}]]
    lora_model = load()[0]
    lone = harness.FOLDER / "loras" / "lone"
    lone.mkdir()
    (lone / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4}))
    other = harness.load_vae(write_vae("sr_other.safetensors", stride=1, widths=(16, 16, 16, 16)), compression="8x")
    return {
        "no_prompt": harness.refusal(lambda: load(conditioning=None)),
        "no_vae": harness.refusal(lambda: load(vae=None)),
        "two_prompts": harness.refusal(lambda: load(conditioning=conditioning * 2)),
        "batch": harness.refusal(lambda: load(conditioning=two)),
        "pooled_batch": harness.refusal(lambda: load(conditioning=pools)),
        "other_models": harness.refusal(lambda: load(conditioning=wide)),
        "other_vae": harness.refusal(lambda: load(vae=other)),
        "no_strips": harness.refusal(lambda: result(lora_model, _NoStrips(vae))),
    }


def plain_encoder() -> dict[str, Any]:
    """A warning where the LoRA's other half is missing, and none elsewhere."""
    (model, vae, conditioning), (lora_model, _, lora_vae) = base(), load()
    runs: dict[str, Callable[[], Any]] = {
        "half": lambda: result(harness.apply_rfr(lora_model, "theta", 50.0), vae),
        "whole": lambda: result(lora_model, harness.run("OP4KSR_ExactVAE", lora_vae, "auto")[0]),
        "none": lambda: result(model, vae, conditioning=conditioning),
    }
    runs["16x"] = lambda: load(vae=harness.load_vae(write_vae("sr_16x.safetensors")))
    runs["schnell"] = lambda: load(model=harness.load_model(write_flux("sr_schnell.safetensors")))
    found: dict[str, list[str]] = {}
    for name, run in runs.items():
        with harness.Log() as log:
            run()
        found[name] = [line for line in log.warnings if "VAE" in line or "guidance" in line]
    return found


def prompts_of_other_lengths() -> dict[str, list[str]]:
    """A prompt of as many tokens as were trained is taken without a word; shorter ones, and half of one, are not."""
    pooled = {"pooled_output": noise(1, 32)}
    given: dict[str, Any] = {"trained": (512, pooled), "by_itself": (256, pooled), "half": (512, {})}
    found: dict[str, list[str]] = {}
    for name, (tokens, extra) in given.items():
        with harness.Log() as log:
            load(conditioning=[[noise(1, tokens, 64), extra]])
        found[name] = log.warnings
    return found


def hosts_own_loader() -> dict[str, Any]:
    """The same folder over a MODEL of the host's own loader."""
    needs_a_host_that_detects_sizes()
    omgsr()
    (theirs,) = harness.run("UNETLoader", FLUX, "default")
    lora_model, _, vae = load()
    return {"far": difference(result(load(model=theirs)[0], vae), result(lora_model, vae))}


CASES = (
    as_the_core,
    what_comes_after,
    two_branches,
    cancelled,
    own_file,
    every_file_of_the_folder,
    refused,
    plain_encoder,
    prompts_of_other_lengths,
    hosts_own_loader,
)
