"""The plan in the host: its node, what the one-step node does with it, and the plan against a real run."""

from __future__ import annotations

import dataclasses
import importlib
import re
from dataclasses import fields
from functools import lru_cache
from typing import Any
from unittest import mock

import comfy.ldm.flux.math
import comfy.ldm.flux.model
import comfy.ldm.modules.attention
import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.taesd.taesd
import harness
import torch
import upscalers
from weights import noise, picture, write_flux, write_vae

import nodes
from op4ksr_core import FluxParams, OneStepSettings, Target
from op4ksr_core.machine import AllocationTracker

#: An autoencoder's geometry, of a size that shows in memory.
WIDE: dict[str, Any] = {"widths": (24, 48, 96, 96), "norm_groups": 6, "layers_per_block": 2, "mid_attention": False}


@lru_cache
def models() -> tuple[Any, Any]:
    settings = OneStepSettings(txt=torch.zeros(3, 64), train_tokens=2)
    model = harness.load_model(write_flux("plan_flux.safetensors", settings=settings))
    return model, harness.load_vae(write_vae("plan_vae.safetensors"))


def plan_node(**changes: Any) -> tuple[Any, ...]:
    model, vae = models()
    given: dict[str, Any] = {"model": model, "vae": vae, "width": 100, "height": 60, "target": "factor"}
    given |= {"pixels": 4096, "factor": 2.0, "megapixels": 16.0, "vae_only": False}
    return harness.run("OP4KSR_Plan", **{**given, **changes})


def node() -> dict[str, Any]:
    text, width, height, fits = plan_node()
    by_picture = plan_node(image=picture(60, 100), width=7, height=7)
    return {
        "text": text,
        "size": [width, height],
        "fits": fits,
        "by_picture": list(by_picture[1:3]),
        "vae_only": "transformer" in plan_node(vae_only=True)[0],
        "other_channels": harness.refusal(lambda: plan_node(vae=four_channels())),
        "other_layers": harness.refusal(lambda: plan_node(vae=small_vae())),
        "not_ours": harness.refusal(lambda: plan_node(vae=comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)}))),
    }


def enlarging() -> dict[str, Any]:
    """What the plan says of what enlarges, of detail, and of what then does not run; and the run says the same."""
    _, vae = models()
    settings = OneStepSettings(txt=torch.zeros(3, 64), output="detail")
    model = harness.load_model(write_flux("plan_detail.safetensors", settings=settings))
    settings = dataclasses.replace(settings, repair=0.5)
    restoring = harness.load_model(write_flux("plan_restoring.safetensors", settings=settings))
    upscaler = upscalers.load("compact_x2")
    found = {
        "picture": plan_node(),
        "bundled": plan_node(enlarger="bundled"),
        "own": plan_node(upscale_model=upscaler, enlarger="bundled"),
        "detail": plan_node(model=model),
        "detail_bicubic": plan_node(model=model, enlarger="bicubic"),
        "alone": plan_node(model=model, detail=0.0),
        "alone_bicubic": plan_node(detail=0.0),
        "vae_only": plan_node(model=model, vae_only=True, detail=0.0),
        "repaired": plan_node(model=model, repair=0.5),
        "recommended": plan_node(model=restoring),
    }
    texts = {name: text for name, (text, *_) in found.items()}
    with harness.Log() as log:
        harness.upscale_node(picture(60, 100), model, vae, upscale_model=upscaler)
    own = plan_node(model=model, upscale_model=upscaler)[0]
    return texts | {"run": own.splitlines()[1:5] == [line for line in log.lines if line in own][1:5]}


def whole_runs() -> dict[str, float]:
    """Live tensors of whole runs on the CPU, with the weights, over what the plan says of all stages together."""
    base, found = upscalers.load("esrgan_x2"), dict[str, float]()
    for output in ("picture", "detail"):
        settings = OneStepSettings(txt=torch.zeros(3, 64), output=output)
        model = harness.load_model(write_flux(f"plan_{output}_whole.safetensors", settings=settings))
        for name, widgets in {
            "as_trained": {},
            "half": {"detail": 0.5},
            "own": {"upscale_model": base},
            "own_alone": {"upscale_model": base, "detail": 0.0},
        }.items():
            found[f"{output} {name}"] = _share_of_plan(model, widgets)
    return found


def _share_of_plan(model: Any, widgets: dict[str, Any]) -> float:
    module, plans = importlib.import_module(nodes.NODE_CLASS_MAPPINGS["OP4KSR_Plan"].__module__), list[Any]()
    vae, make = harness.load_vae(write_vae("plan_wide_vae.safetensors", **WIDE)), module.make_plan

    def kept(*given: Any) -> Any:
        plans.append(make(*given))
        return plans[-1]

    with mock.patch.object(module, "make_plan", kept), AllocationTracker() as tracker:
        harness.upscale_node(picture(256, 256), model, vae, factor=4.0, fidelity=1.0, **widgets)
    (plan,) = plans
    return (tracker.peak + sum(weight.size for weight in plan.weights)) / plan.peak


def enlarging_on_a_gpu() -> list[str]:
    """With weights and pictures elsewhere, a plan in which nothing runs on the device is one, too."""
    module = importlib.import_module(nodes.NODE_CLASS_MAPPINGS["OP4KSR_Plan"].__module__)
    plan, found = module.make_plan, list[str]()

    def on_gpu(size: Any, target: Any, models: Any, machine: Any, batch: int) -> Any:
        away = {"device": "cuda:0", "holds_weights": False, "holds_pictures": False}
        return plan(size, target, models, dataclasses.replace(machine, **away), batch)

    with mock.patch.object(module, "make_plan", on_gpu):
        for changes in ({}, {"detail": 0.0}, {"detail": 0.0, "enlarger": "bundled"}):
            found.append(plan_node(**changes)[0])
    return found


def four_channels() -> Any:
    """A VAE whose latents the model does not take."""
    vae = harness.load_vae(write_vae("plan_four.safetensors"))
    vae.latent_channels = 4
    return vae


def small_vae() -> Any:
    """Of Flux's latents, with layers of its own (TAEF1); as the host loads it."""
    return comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD(latent_channels=16).state_dict())


def one_step_tells_it() -> dict[str, bool]:
    model, vae = models()
    with harness.Log() as log:
        harness.upscale_node(picture(60, 100), model, vae)
    text = plan_node()[0]
    return {
        "same_plan": "\n".join(text.splitlines()[:4]) in "\n".join(log.lines),
        "warned": any("more than the 2 per side this model was trained on" in line for line in log.lines),
    }


def logged_is_run() -> dict[str, Any]:
    """By the megabytes that are free at first, and less with every call, as beside other programs."""
    return {str(mega): _logged_and_run(mega * 1_000_000) for mega in (2, 4, 1000)}


def _logged_and_run(free: int) -> dict[str, Any]:
    """The strips in the one-step node's log, those that it ran, and whether a VAE node runs those it asks room for."""
    management, pack = comfy.model_management, nodes.NODE_CLASS_MAPPINGS["OP4KSR_Plan"].__module__
    bounded = importlib.import_module(pack.replace("nodes.plan", "op4ksr_core.vae.bounded"))
    exact_vae = importlib.import_module(pack.replace("nodes.plan", "nodes.host.exact_vae"))
    model, vae = models()
    total = model.model_size() + vae.patcher.model_size() + max(free, 20_000_000)
    readings = iter(range(free, 0, -free // 50))
    ran, asked = dict[str, str](), dict[str, str]()
    encode, decode, need = bounded.encode_picture, bounded.decode_picture, exact_vae.peak_bytes

    def described(given: tuple[Any, ...]) -> str:
        settings = next(value for value in given if isinstance(value, bounded.StripSettings))
        return f"strips of {settings.rows} rows, {settings.mode}"

    def recorded(into: dict[str, str], stage: str, works: Any) -> Any:
        def run(*given: Any) -> Any:
            into[stage] = described(given)
            return works(*given)

        return run

    def reading(device: Any = None, torch_free_too: bool = False) -> Any:
        value = next(readings)
        return (value, value) if torch_free_too else value

    def needed(params: Any, stage: str, *rest: Any) -> int:
        asked[stage] = described(rest)
        return need(params, stage, *rest)

    with (
        mock.patch.object(management, "get_total_memory", lambda *_, **__: total),
        mock.patch.object(management, "get_free_memory", reading),
        mock.patch.object(bounded, "encode_picture", recorded(ran, "encode", encode)),
        mock.patch.object(bounded, "decode_picture", recorded(ran, "decode", decode)),
        mock.patch.object(exact_vae, "peak_bytes", needed),
    ):
        with harness.Log() as log:
            harness.upscale_node(picture(60, 100), model, vae)
        one_step = dict(ran)
        vae.decode(noise(1, 16, 8, 12))
    text = "\n".join(log.lines)
    logged = re.findall(r"^(encode|decode) .*  (strips of \d+ rows, \w+)", text, re.MULTILINE)
    return {"logged": dict(logged), "ran": one_step, "alone": ran["decode"] == asked["decode"]}


def one_step_refuses() -> dict[str, Any]:
    """With a device far too small: before anything is computed."""
    model, vae = models()
    total, encode, calls = comfy.model_management.get_total_memory, type(vae).encode, []
    weights = model.model_size() + vae.patcher.model_size()
    comfy.model_management.get_total_memory = lambda *_, **__: weights + 1_000_000
    type(vae).encode = lambda *_: calls.append("encode")
    try:
        found = harness.refusal(lambda: harness.upscale_node(picture(60, 100), model, vae))
        fits = plan_node()[3]
    finally:
        comfy.model_management.get_total_memory, type(vae).encode = total, encode
    return {**found, "calls": calls, "fits": fits}


def prediction() -> dict[str, float]:
    """Live tensors of the host's own Flux and of its VAE in our strips, over what the plan says."""
    attention = comfy.ldm.modules.attention
    name = write_flux("plan_wide.safetensors", hidden_size=512, num_heads=4, depth_single_blocks=2)
    model, vae = harness.load_model(name), harness.load_vae(write_vae("plan_wide_vae.safetensors", **WIDE))
    comfy.model_management.load_models_gpu([model, vae.patcher])
    pack = nodes.NODE_CLASS_MAPPINGS["OP4KSR_Plan"].__module__
    module = importlib.import_module(pack)
    estimated, flux_params = module.flux_peak_bytes, module.flux_params
    plan = module.host_plan((256, 384), Target(scale=2), model, vae)
    stages = {stage.name: stage.peak for stage in plan.stages}
    flux, found = model.model.diffusion_model, {}
    works = comfy.ldm.flux.math.optimized_attention
    comfy.ldm.flux.math.optimized_attention = attention.attention_pytorch  # as on a GPU
    try:
        inner = noise(1, 16, 2 * plan.tokens[0], 2 * plan.tokens[1])
        for name, dtype in (("transformer", torch.float32), ("transformer_bf16", torch.bfloat16)):
            given = (inner, torch.tensor([0.5]), torch.zeros(1, 3, 64), torch.zeros(1, 32))
            flux.dtype, cast = dtype, [tensor.to(dtype) for tensor in given]
            flux.to(dtype)
            with AllocationTracker() as tracker:
                flux(*cast, transformer_options={})
            need = estimated(flux_params(model), plan.tokens[0] * plan.tokens[1], 3, dtype)
            assert dtype != torch.float32 or abs(need / stages["transformer"] - 1) < 0.01
            found[name] = tracker.peak / need
    finally:
        flux.to(torch.float32)
        flux.dtype = torch.float32
        comfy.ldm.flux.math.optimized_attention = works
    latent = noise(1, 16, *plan.latent)
    pixels, out = noise(1, 3, *plan.framed), torch.empty(1, 3, *plan.framed)
    with AllocationTracker() as tracker:
        vae.first_stage_model.encode(pixels)
    found["encode"] = tracker.peak / stages["encode"]
    with AllocationTracker() as tracker:
        vae.first_stage_model.decode(latent, output_buffer=out)
    found["decode"] = tracker.peak / stages["decode"]
    return found


def twelve_billion() -> dict[str, float]:
    """The same of FLUX.1-dev's geometry, on tensors without values: 4096 px at 8x, whole and a window of 1024 px."""
    module = importlib.import_module(nodes.NODE_CLASS_MAPPINGS["OP4KSR_Plan"].__module__)
    params, attention = FluxParams(), comfy.ldm.modules.attention
    config = {field.name: getattr(params, field.name) for field in fields(params) if field.name != "theta"}
    config |= {"out_channels": 16, "patch_size": 2, "theta": 10000, "qkv_bias": True, "axes_dim": list(params.axes_dim)}
    if "txt_ids_dims" in {field.name for field in fields(comfy.ldm.flux.model.FluxParams)}:  # not on older hosts
        config["txt_ids_dims"] = []
    with torch.device("meta"):
        flux = comfy.ldm.flux.model.Flux(dtype=torch.bfloat16, operations=comfy.ops.disable_weight_init, **config)
        given = torch.empty(1), torch.empty(1, 512, 4096, dtype=torch.bfloat16), torch.empty(1, 768).to(torch.bfloat16)
        latents = {side: torch.empty(1, 16, side, side, dtype=torch.bfloat16) for side in (512, 128)}
        guidance = torch.empty(1)
    found: dict[str, float] = {}
    with mock.patch.object(comfy.ldm.flux.math, "optimized_attention", attention.attention_pytorch):
        for side, latent in latents.items():
            with AllocationTracker() as tracker:
                flux(latent, *given, guidance, transformer_options={})
            found[str(side)] = tracker.peak / module.flux_peak_bytes(params, (side // 2) ** 2, 512, torch.bfloat16)
    return found


CASES = (
    node,
    enlarging,
    enlarging_on_a_gpu,
    whole_runs,
    one_step_tells_it,
    logged_is_run,
    one_step_refuses,
    prediction,
    twelve_billion,
)
