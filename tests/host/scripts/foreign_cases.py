"""What other packs do to a MODEL, done here as they do it: tried without any of them installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import comfy.ldm.flux.layers
import harness
import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from model_cases import FLUX, PE_EMBEDDER, TARGETS, THETA, lora, lora_weights, models, result
from safetensors.torch import save_file
from torch import Tensor
from weights import difference, noise, prompt, write_flux

FRESH, SR_LORA = "foreign_fresh.safetensors", "foreign_sr.safetensors"


class ForeignEmbedder(comfy.ldm.flux.layers.EmbedND):
    """Another pack's positions, over the theta that it found: three times as far apart."""

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(3 * ids)


def foreign(model: Any) -> Any:
    """Patched as DyPE does it: what is there is read off the model itself, not off its patches."""
    clone = model.clone()
    found = clone.model.diffusion_model.pe_embedder
    clone.add_object_patch(PE_EMBEDDER, ForeignEmbedder(dim=128, theta=found.theta, axes_dim=found.axes_dim))
    clone.set_model_unet_function_wrapper(lambda apply, args: apply(args["input"], args["timestep"], **args["c"]))
    return clone


def rfr(model: Any) -> Any:
    return harness.apply_rfr(model, "theta", 80.0)


def fresh() -> Any:
    """A MODEL with its file's own theta, which never ran."""
    models()
    write_flux(FRESH, theta=THETA, settings=prompt(sigma=0.3))
    return harness.load_model(FRESH)


def told(model: Any, sample: Callable[[Any], Tensor] = result) -> tuple[Tensor, str]:
    """A run's picture, and what of it is a warning about positions."""
    with harness.Log() as log:
        picture = sample(model)
    return picture, " ".join(line for line in log.warnings if "positions" in line)


def sampled(model: Any) -> Tensor:
    conditioning = harness.run("OP4KSR_LoadFluxSR", FLUX)[1]
    latent = {"samples": noise(1, 16, 6, 8)}
    (out,) = harness.run("KSampler", model, 1, 2, 1.0, "euler", "simple", conditioning, conditioning, latent, 1.0)
    return out["samples"]


def last_wins() -> dict[str, Any]:
    """Two packs patch the positions, in both orders, in one step and in KSampler."""
    model = models()[0]
    ours, theirs = result(rfr(model)), result(foreign(model))
    foreign_last, warning = told(foreign(rfr(model)))
    rfr_last, silence = told(rfr(foreign(model)))
    many_steps, sampler_warning = told(foreign(rfr(model)), sampled)
    return {
        "differ": difference(ours, theirs),
        "foreign_last": torch.equal(foreign_last, theirs),
        "rfr_last": torch.equal(rfr_last, ours),
        "sampler_foreign_last": torch.equal(many_steps, sampled(foreign(model))),
        "warning": warning,
        "sampler_warning": sampler_warning,
        "silence": silence,
        "report": harness.run("OP4KSR_ApplyRFR", foreign(model), "theta", 80.0, 90.0)[1],
        "report_of_two": harness.run("OP4KSR_ApplyRFR", rfr(model), "theta", 80.0, 90.0)[1],
        "report_alone": harness.run("OP4KSR_ApplyRFR", model, "theta", 80.0, 90.0)[1],
    }


def own_theta() -> dict[str, Any]:
    """The file's own theta: found by a pack that reads the model, and never lost behind its patch."""
    model, plain = fresh(), result(models()[0])
    before = foreign(model).get_model_object(PE_EMBEDDER).theta
    result(rfr(model))  # leaves its patch in the model
    after = foreign(model).get_model_object(PE_EMBEDDER).theta
    back, report = harness.run("OP4KSR_ApplyRFR", foreign(fresh()), "checkpoint", 80.0, 80.0)
    return {
        "found": [before, after],
        "back": torch.equal(result(back), plain),
        "report": report,
        "hidden": told(foreign(model))[1],
    }


def silent() -> dict[str, str]:
    """Nothing is hidden, so nothing is said: also after clones, LoRAs, and another branch's patch."""
    model = fresh()
    lora()
    ways: dict[str, Any] = {
        "plain": model,
        "rfr": rfr(model),
        "twice": rfr(rfr(model)),
        "clone": rfr(model).clone().clone(),
        "lora": harness.run("LoraLoaderModelOnly", rfr(model), "kohya.safetensors", 1.0)[0],
        "sr_lora": sr_lora(rfr(model)),
    }
    found = {name: told(way)[1] for name, way in ways.items()}
    result(foreign(rfr(model)))
    return found | {"after another branch": told(model)[1]}


def sr_lora(model: Any) -> Any:
    """Load SR LoRA: a LoRA with a theta of its own."""
    own = prompt()
    tensors = {"op4ksr.txt": own.txt, "op4ksr.vec": own.vec}
    for (ours, *_), (up, down) in zip(TARGETS, lora_weights(), strict=True):
        tensors |= {f"{ours}.lora_B.weight": up, f"{ours}.lora_A.weight": down}
    metadata = {"op4ksr.kind": "lora", "op4ksr.rope_theta": "80,200", "op4ksr.sigma": "0.7"}
    save_file(tensors, harness.FOLDER / "loras" / SR_LORA, metadata)
    return harness.run("OP4KSR_LoadSRLoRA", model, SR_LORA)[0]


def theta_of_a_lora() -> dict[str, Any]:
    """Load SR LoRA sets positions as well: it says what it replaced, and when it is replaced."""
    model = models()[0]
    with harness.Log() as log:
        last = sr_lora(foreign(model))
    return {
        "says": " ".join(log.warnings),
        "last_wins": torch.equal(result(last), result(sr_lora(model))),
        "hidden": told(foreign(sr_lora(model)))[1],
        "back": torch.equal(result(harness.apply_rfr(foreign(sr_lora(model)), "checkpoint")), result(sr_lora(model))),
    }


def attention() -> dict[str, Any]:
    """An attention of another pack's (SageAttention), as nodes put it into a MODEL's options."""
    model, calls = models()[0], []

    def override(func: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
        calls.append(1)
        return func(*args, **kwargs)

    def patch(model: Any) -> Any:
        clone = model.clone()
        clone.model_options["transformer_options"]["optimized_attention_override"] = override
        return clone

    plain = result(rfr(model))
    found: dict[str, Any] = {"without": len(calls)}
    for order, patched in {"before": rfr(patch(model)), "after": patch(rfr(model))}.items():
        calls.clear()
        found[order] = {"same": torch.equal(result(patched), plain), "calls": len(calls)}
    return found


def compiled() -> dict[str, Any]:
    """torch.compile as the host's and KJNodes' nodes do it; traced, but run by eager: no C compiler needed."""
    model = models()[0]
    keys = ["diffusion_model.double_blocks.0", "diffusion_model.single_blocks.0"]

    def patch(model: Any) -> Any:
        clone = model.clone()
        set_torch_compile_wrapper(clone, backend="eager", keys=keys)
        return clone

    plain, ours = result(model), result(rfr(model))
    once = patch(model)
    return {
        "effect": difference(plain, ours),
        "before": difference(result(rfr(once)), ours),
        "after": difference(result(patch(rfr(model))), ours),
        "other_branch": difference(result(once), plain),
    }


def loras() -> dict[str, Any]:
    """Ordinary LoRAs, two in a row, on either side of Apply RFR and of Load SR LoRA."""
    model = models()[0]
    lora()

    def two(model: Any) -> Any:
        (once,) = harness.run("LoraLoaderModelOnly", model, "kohya.safetensors", 0.7)
        return harness.run("LoraLoaderModelOnly", once, "peft.safetensors", 0.5)[0]

    found: dict[str, Any] = {}
    for name, ours in {"rfr": rfr, "sr_lora": sr_lora}.items():
        before, after = result(ours(two(model))), result(two(ours(model)))
        found[name] = {
            "orders": difference(before, after),
            "loras_show": difference(before, result(ours(model))),
            "ours_shows": difference(before, result(two(model))),
        }
    return found


CASES = (last_wins, own_theta, silent, theta_of_a_lora, attention, compiled, loras)
