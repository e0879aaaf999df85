"""What enlarges before the one step: the user's upscale models, the bundled network, and the host's memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from typing import Any
from unittest import mock

import comfy.model_management
import comfy.utils
import harness
import torch
import upscalers
from safetensors.torch import save_file
from torch import Tensor
from weights import difference, noise, picture, prompt, write_flux, write_lora, write_vae

import nodes
from op4ksr_core import OneStepOptions, Target, load_autoencoder, load_flux
from op4ksr_core import upscale as core_upscale
from op4ksr_core.base import Base, Bicubic, Foreign, Learned
from op4ksr_core.bundled import BUNDLED_ENLARGER
from op4ksr_core.images.resize import resize
from op4ksr_core.weights.enlarger import load_enlarger
from op4ksr_core.weights.sr_lora import describe_sr_lora

VAE = "enlarge_vae.safetensors"
KINDS: dict[str, dict[str, Any]] = {
    "picture": {"sigma": 0.3},
    "detail": {"sigma": 0.3, "output": "detail", "repair": 0.25, "sigma_repair": 0.9},
}
ALONE = {"detail": 0.0}


def pack_module(name: str) -> Any:
    """A module of the pack as the host has loaded it: another than that of the core that the cases import."""
    pack = nodes.NODE_CLASS_MAPPINGS["OP4KSR_OneStepUpscale"].__module__
    return importlib.import_module(pack.replace("nodes.upscale", name))


@lru_cache
def models(kind: str) -> tuple[Any, Any]:
    """MODEL and VAE of the host's."""
    write_flux(f"{kind}.safetensors", settings=prompt(**KINDS[kind]))
    return harness.load_model(f"{kind}.safetensors"), harness.load_vae(_vae())


@lru_cache
def _vae() -> str:
    return write_vae(VAE)


def by_node(kind: str, image: Tensor, **widgets: Any) -> Tensor:
    """x2 and nothing after the decoder unless the widgets say so."""
    return harness.upscale_node(image, *models(kind), **widgets)[0]


def by_core(kind: str, image: Tensor, base: Base | None, sigma: float | None = None, **options: Any) -> Tensor:
    models(kind)
    options = {"target": Target(scale=2), "color": "none", "fidelity": 0.0, **options}
    flux = load_flux(harness.FOLDER / "diffusion_models" / f"{kind}.safetensors")
    vae = load_autoencoder(harness.FOLDER / "vae" / VAE)
    chosen = OneStepOptions(**options)
    return core_upscale(image.movedim(-1, 1), flux, vae, chosen, sigma=sigma, base=base).movedim(1, -1)


def core_bundled() -> Base:
    return Learned(load_enlarger(BUNDLED_ENLARGER, dtype=torch.float32), "bundled")


def core_foreign(name: str) -> Foreign:
    """The same file's network, as spandrel gives it."""
    model = upscalers.load(name)
    return Foreign(model, model.scale, name)


def resized(image: Tensor, height: int, width: int) -> Tensor:
    return resize(image.movedim(-1, 1), height, width).clamp(0, 1).movedim(1, -1)


@contextmanager
def strips_of(pixels: int) -> Any:
    """The pack's strips as small as that many px allow."""
    with mock.patch.object(pack_module("op4ksr_core.base"), "PIXELS_AT_ONCE", pixels):
        yield


def is_the_hosts() -> dict[str, Any]:
    """A connected model at detail 0 and fidelity 0 is the host's Upscale Image (using Model), resized to the size."""
    image = picture(200, 150)
    found: dict[str, Any] = {}
    for name, factor in (
        ("esrgan_x4", 4.0),
        ("esrgan_x4", 2.7),
        ("span_x4", 1.5),
        ("compact_x2", 2.0),
        ("compact_x2", 5.0),
        ("compact_x1", 2.0),
        ("compact_x8", 3.0),
        ("compact_x1", 0.5),
        ("swinir_x2", 2.0),
    ):
        model = upscalers.load(name)
        ours = by_node("picture", image, upscale_model=model, factor=factor, **ALONE)
        host = resized(upscalers.by_host(model, image), *ours.shape[1:3])
        calls: list[Any] = []
        with strips_of(1), counted(model, calls):
            strips = by_node("picture", image, upscale_model=model, factor=factor, **ALONE)
        found[f"{name} {factor:g}"] = {
            "whole": difference(ours, host),
            "strips": difference(strips, host),
            "count": len(calls),
            "spread": float(host.std()),
        }
    return found


@contextmanager
def counted(model: Any, calls: list[Any]) -> Any:
    """The shapes that a host's upscale model is called with."""
    works = model._call_fn

    def call(network: Any, picture: Tensor) -> Tensor:
        calls.append(tuple(picture.shape))
        return works(network, picture)

    model._call_fn = call
    try:
        yield
    finally:
        model._call_fn = works


def is_the_cores() -> dict[str, Any]:
    """The node's picture with each base, each kind of model and each knob, against the core's of the same files."""
    image = picture(48, 64)
    span = upscalers.load("span_x4")
    found: dict[str, Any] = {}
    for kind in KINDS:
        for knob, widgets in {
            "plain": {},
            "alone": {"detail": 0.0},
            "half": {"detail": 0.5},
            "double": {"detail": 2.0},
            "none": {"repair": 0.0},
            "repair": {"repair": 1.0},
            "fidelity": {"repair": 0.5, "fidelity": 1.0},
            "vae_only": {"vae_only": True},
            "sigma": {"repair": 0.5, "sigma": 0.7},
        }.items():
            options = {name: value for name, value in widgets.items() if name != "sigma"}
            for base, given, core in (
                ("auto", {}, core_bundled() if kind == "detail" else Bicubic()),
                ("bundled", {"enlarger": "bundled"}, core_bundled()),
                ("bicubic", {"enlarger": "bicubic"}, Bicubic()),
                ("own", {"upscale_model": span, "enlarger": "bundled"}, core_foreign("span_x4")),
            ):
                if base == "bicubic" and knob not in ("plain", "alone"):
                    continue
                ours = by_node(kind, image, **widgets, **given)
                theirs = by_core(kind, image, core, sigma=widgets.get("sigma"), **options)
                found[f"{kind} {knob} {base}"] = difference(ours, theirs)
    return found


def effects() -> dict[str, float]:
    """How far each of the new inputs moves the picture, or the cases above would prove nothing."""
    image = picture(48, 64)
    plain = {kind: by_node(kind, image) for kind in KINDS}
    changes: dict[str, dict[str, Any]] = {
        "bundled": {"enlarger": "bundled"},
        "own": {"upscale_model": upscalers.load("span_x4")},
        "alone": {"detail": 0.0},
        "half": {"detail": 0.5},
        "repair": {"repair": 1.0},
    }
    kinds = {"repair": "detail"}
    found = {name: (kinds.get(name, "picture"), change) for name, change in changes.items()}
    moved = {name: difference(plain[kind], by_node(kind, image, **change)) for name, (kind, change) in found.items()}
    return moved | {"kinds": difference(*plain.values())}


def as_before() -> dict[str, bool]:
    """Saved prompts, which name none of the new inputs: the same picture, to the bit, as with all defaults."""
    image, found = picture(48, 64), {}
    for kind in KINDS:
        for widgets in ({}, {"color_fix": "wavelet", "fidelity": 1.0}, {"vae_only": True}):
            old = by_node(kind, image, **widgets)
            new = by_node(kind, image, **widgets, enlarger="auto", detail=1.0, repair=-1.0, upscale_model=None)
            found[f"{kind} {widgets}"] = torch.equal(old, new)
    return found


def settings_travel() -> dict[str, Any]:
    """Output, repair and its sigma reach the node through what stands between."""
    image, (model, vae) = picture(48, 64), models("detail")
    plain = by_node("detail", image)
    state = load_flux(harness.FOLDER / "diffusion_models" / "detail.safetensors").state_dict()
    key = "double_blocks.0.img_attn.qkv.weight"
    down, up = torch.zeros(2, state[key].shape[1]), torch.zeros(state[key].shape[0], 2)
    base = f"diffusion_model.{key.removesuffix('.weight')}"
    lora = write_lora("none.safetensors", {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up})
    patched = harness.run("LoraLoaderModelOnly", model, lora, 1.0)[0]
    sampling = harness.run("ModelSamplingFlux", model, 1.15, 0.5, 1024, 1024)[0]
    ways = {"clone": model.clone(), "lora": patched, "sampling": sampling}
    ways["rfr"] = harness.apply_rfr(model, "checkpoint")
    found = {name: torch.equal(plain, harness.upscale_node(image, way, vae)[0]) for name, way in ways.items()}
    bare = model.clone()
    bare.set_attachments("op4ksr", replace(model.get_attachment("op4ksr"), output="picture", repair=0.0))
    return found | {"matters": difference(plain, harness.upscale_node(image, bare, vae)[0])}


def lora_of_detail() -> dict[str, float]:
    """A one-step LoRA whose file says that it adds detail, over a model that gives pictures: the core's picture."""
    image, (model, vae) = picture(48, 64), models("picture")
    path, settings = harness.FOLDER / "diffusion_models" / "picture.safetensors", prompt(**KINDS["detail"])
    key = "double_blocks.0.img_attn.qkv"
    rows, columns = load_flux(path).state_dict()[f"{key}.weight"].shape
    tensors = {f"{key}.lora_A.weight": 0.1 * noise(2, columns), f"{key}.lora_B.weight": 0.1 * noise(rows, 2)}
    lora = harness.FOLDER / "loras" / "of_detail.safetensors"
    said = {f"op4ksr.{name}": str(value) for name, value in KINDS["detail"].items()}
    save_file({**tensors, "op4ksr.txt": settings.txt, "op4ksr.vec": settings.vec}, lora, said)
    patched = harness.run("OP4KSR_LoadSRLoRA", model, lora.name, 1.0)[0]
    ours = harness.upscale_node(image, patched, vae)[0]
    flux = load_flux(path, lora=describe_sr_lora(lora))
    options = OneStepOptions(target=Target(scale=2), color="none", fidelity=0.0)
    theirs = core_upscale(image.movedim(-1, 1), flux, load_autoencoder(harness.FOLDER / "vae" / VAE), options)
    return {"core": difference(ours, theirs.movedim(1, -1)), "base": difference(ours, by_node("picture", image))}


def sampler_alone() -> dict[str, Any]:
    """The one-step sampler's sigma by the recommended repair, and what it says, for each kind of model."""
    found: dict[str, Any] = {}
    for kind in KINDS:
        with harness.Log() as log:
            sigmas = harness.run("OP4KSR_OneStepSampler", models(kind)[0])[1]
        told = [line for line in log.warnings if "One-Step Upscale" in line]
        found[kind] = {"sigmas": [round(s, 4) for s in sigmas.tolist()], "told": told}
    return found


def other_models() -> dict[str, Any]:
    """Of one channel, of a factor of 1, in half precision, and of other packs: what they give."""
    image, found = picture(40, 56), {}
    grey = upscalers.load("grey_x2")
    result = by_node("picture", image, upscale_model=grey, **ALONE)
    found["grey"] = list(result.shape)
    half = upscalers.load("compact_x2")
    half.model.half()
    whole = by_node("picture", image, upscale_model=upscalers.load("compact_x2"), **ALONE)
    found["half"] = difference(whole, by_node("picture", image, upscale_model=half, **ALONE))
    found["half_file"] = difference(
        whole, by_node("picture", image, upscale_model=upscalers.load("compact_x2", torch.float16), **ALONE)
    )
    doubled = upscalers.Foreign(2, lambda picture: picture.repeat_interleave(2, -1).repeat_interleave(2, -2))
    nearest = by_node("picture", image, upscale_model=doubled, **ALONE)
    found["pack"] = difference(nearest, image.repeat_interleave(2, 1).repeat_interleave(2, 2))
    found["moves"] = doubled.moves
    shrunk = by_node("picture", image, upscale_model=upscalers.load("esrgan_x2"), factor=0.5, **ALONE)
    found["shrunk"] = difference(shrunk, resized(image, 20, 28))
    found["batch"] = list(by_node("picture", torch.cat([image] * 2), upscale_model=grey, **ALONE).shape)
    return found


def moves_off() -> dict[str, Any]:
    """A model that the memory manager does not know is put back to the CPU, whatever happened."""
    image, found = picture(40, 56), {}

    def fails(picture: Tensor) -> Tensor:
        raise RuntimeError("shapes cannot be multiplied")

    def cancelled(picture: Tensor) -> Tensor:
        raise comfy.model_management.InterruptProcessingException()

    for name, works in (("fails", fails), ("cancelled", cancelled)):
        model = upscalers.Foreign(2, works)
        try:
            by_node("picture", image, upscale_model=model)
            found[name] = "nothing was raised"
        except (Exception, comfy.model_management.InterruptProcessingException) as error:
            found[name] = [type(error).__name__, model.moves[-1]]
    return found


def memory() -> dict[str, Any]:
    """What the host's manager is asked for: room for the network, before it runs."""
    management, image, asked = comfy.model_management, picture(40, 56), list[Any]()
    load, free = management.load_models_gpu, management.free_memory

    def loaded(patchers: Any, memory_required: int = 0, **rest: Any) -> None:
        asked.append(("load", [type(patcher.model).__name__ for patcher in patchers], int(memory_required)))
        load(patchers, memory_required=memory_required, **rest)

    def freed(memory_required: int, device: Any, **rest: Any) -> Any:
        asked.append(("free", str(device), int(memory_required)))
        return free(memory_required, device, **rest)

    found: dict[str, Any] = {}
    own = upscalers.load("compact_x2")
    for name, widgets in {
        "own": {"upscale_model": own},
        "pack": {"upscale_model": upscalers.Foreign(2, lambda p: p.repeat(1, 1, 2, 2))},
        "bundled": {"enlarger": "bundled"},
        "bicubic": {"enlarger": "bicubic"},
    }.items():
        asked.clear()
        with (
            mock.patch.object(management, "load_models_gpu", loaded),
            mock.patch.object(management, "free_memory", freed),
        ):
            by_node("picture", image, **widgets, **ALONE)
        found[name] = list(asked)
    found["has_patcher"] = hasattr(own, "patcher")
    return found


def out_of_memory() -> dict[str, Any]:
    """Where a strip does not fit, smaller ones are tried: the same picture; where none does, one sentence."""
    image, found = picture(400, 64), {}
    model = upscalers.load("compact_x2")
    plain = by_node("picture", image, upscale_model=model, **ALONE)
    works, rows = model._call_fn, list[int]()

    def full(limit: int) -> Callable[..., Tensor]:
        def call(network: Any, strip: Tensor) -> Tensor:
            rows.append(strip.shape[-2])
            if strip.shape[-2] > limit:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return works(network, strip)

        return call

    try:
        model._call_fn = full(300)
        found["smaller"] = difference(plain, by_node("picture", image, upscale_model=model, **ALONE))
        found["rows"] = list(rows)
        model._call_fn = full(0)
        found["none"] = harness.refusal(lambda: by_node("picture", image, upscale_model=model, **ALONE))
    finally:
        model._call_fn = works
    return found


def retreats() -> dict[str, Any]:
    """The bundled network on a full device: all is moved out of it, and it runs again; else the error is told."""
    enlarge, asked = pack_module("nodes.host.enlarge"), list[str]()
    image = picture(16, 24).movedim(-1, 1)
    base = enlarge.bundled_enlarger()
    right, works = base.enlarge(image, 32, 48, 0.0, lambda *_: None), enlarge.Learned.enlarge

    def run(message: str, device: str) -> Any:
        asked.clear()
        pending = [torch.OutOfMemoryError(message) if message == "full" else RuntimeError(message)]

        def once(*given: Any) -> Tensor:
            if pending:
                raise pending.pop()
            return works(*given)

        with (
            mock.patch.object(enlarge.Learned, "enlarge", once),
            mock.patch.object(comfy.model_management, "load_models_gpu", lambda *_, **__: None),
            mock.patch.object(comfy.model_management, "free_memory", lambda *given: asked.append(str(given))),
            mock.patch.object(base.patcher, "load_device", torch.device(device)),
        ):
            return base.enlarge(image, 32, 48, 0.0, lambda *_: None)

    return {
        "same": torch.equal(run("full", "meta"), right),
        "asked": list(asked),
        "other": harness.refusal(lambda: run("wrong", "meta")),
        "cpu": harness.refusal(lambda: run("full", "cpu")),
    }


def bundled_is_kept() -> dict[str, Any]:
    """Read once, at first use."""
    enlarge = pack_module("nodes.host.enlarge")
    enlarge.bundled_enlarger.cache_clear()
    reads, load = [], enlarge.load_enlarger

    def read(*given: Any, **named: Any) -> Any:
        reads.append(given)
        return load(*given, **named)

    with mock.patch.object(enlarge, "load_enlarger", read):
        by_node("picture", picture(16, 16), **ALONE)
        before = len(reads)
        for kind in ("picture", "detail"):
            by_node(kind, picture(16, 16), enlarger="bundled")
    return {"before": before, "reads": len(reads)}


def progress() -> dict[str, Any]:
    """What the node's bar is told while strips of the user's model run."""
    told: list[tuple[int, int]] = []
    update = comfy.utils.ProgressBar.update_absolute

    def recorded(bar: Any, value: int, total: int, *rest: Any) -> None:
        told.append((value, total))
        update(bar, value, total, *rest)

    model = upscalers.load("compact_x2")
    with mock.patch.object(comfy.utils.ProgressBar, "update_absolute", recorded), strips_of(1):
        by_node("picture", picture(400, 64), upscale_model=model, **ALONE)
    return {"values": [value for value, _ in told], "totals": sorted({total for _, total in told})}


def cancelling() -> dict[str, Any]:
    """A cancel between two strips ends the run at the next, and the model is as before."""
    model, image, calls = upscalers.load("compact_x2"), picture(800, 64), list[Any]()
    plain = by_node("picture", image, upscale_model=model, **ALONE)
    works = model._call_fn

    def call(network: Any, strip: Tensor) -> Tensor:
        calls.append(strip.shape[-2])
        comfy.model_management.interrupt_current_processing()
        return works(network, strip)

    ended = "no"
    model._call_fn = call
    try:
        with strips_of(1):
            by_node("picture", image, upscale_model=model, **ALONE)
    except comfy.model_management.InterruptProcessingException:
        ended = "at once"
    finally:
        model._call_fn = works
        comfy.model_management.interrupt_current_processing(False)
    again = by_node("picture", image, upscale_model=model, **ALONE)
    return {"ended": ended, "calls": len(calls), "works_again": torch.equal(plain, again)}


def refused() -> dict[str, Any]:
    image = picture(40, 56)

    def attempt(model: Any, **widgets: Any) -> dict[str, Any]:
        return harness.refusal(lambda: by_node("picture", image, upscale_model=model, **{**ALONE, **widgets}))

    def twice(picture: Tensor) -> Tensor:
        return picture.repeat(1, 1, 2, 2)

    def fails(picture: Tensor) -> Tensor:
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    masked = upscalers.Foreign(1, lambda picture: picture)
    masked.purpose = "Inpainting"  # pyright: ignore
    return {
        "four_channels": attempt(upscalers.load("four_x2")),
        "other_factor": attempt(upscalers.Foreign(4, twice)),
        "fraction": attempt(upscalers.Foreign(1.5, twice)),
        "zero": attempt(upscalers.Foreign(0, twice)),
        "nan_factor": attempt(upscalers.Foreign(float("nan"), twice)),
        "nan": attempt(upscalers.Foreign(2, lambda picture: twice(picture) / 0 * 0)),
        "no_picture": attempt(upscalers.Foreign(2, lambda picture: [picture])),
        "fails": attempt(upscalers.Foreign(2, fails)),
        "inpainting": attempt(masked),
        "a_model": attempt(models("picture")[0]),
        "text": attempt("4x.pth"),
    }


CASES = (
    is_the_hosts,
    is_the_cores,
    effects,
    as_before,
    settings_travel,
    lora_of_detail,
    sampler_alone,
    other_models,
    moves_off,
    memory,
    out_of_memory,
    retreats,
    bundled_is_kept,
    progress,
    cancelling,
    refused,
)
