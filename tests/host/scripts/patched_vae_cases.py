"""Changed weights of a VAE, by the host's patcher: exact in strips, however it is loaded, and in one branch."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import harness
import torch
from exact_cases import host_vae
from torch import Tensor
from weights import difference, noise, picture, write_vae

import nodes

STRENGTH = 0.7

#: Those of ``vaes`` that are ours.
STRIPS = ("exact_vae", "load_f16_vae")


def module_of(name: str) -> Any:
    """A module of ``nodes.host``; the host calls a pack's modules by its path."""
    loaders = nodes.NODE_CLASS_MAPPINGS["OP4KSR_LoadSRLoRA"].__module__
    return sys.modules[loaders.replace("nodes.loaders", f"nodes.host.{name}")]


@lru_cache
def vaes() -> dict[str, Any]:
    """An 8x VAE of the host's loader, with and without Exact VAE, and ours at 16x."""
    theirs = host_vae("flux")
    return {
        "load_vae": theirs,
        "exact_vae": harness.run("OP4KSR_ExactVAE", theirs, "auto")[0],
        "load_f16_vae": harness.load_vae(write_vae("patched.safetensors")),
    }


def changes_of(vae: Any, half: str = "encoder") -> dict[str, Tensor]:
    """A change of every convolution and norm of a half, large enough to show."""
    state = vae.patcher.model.state_dict()
    names = [name for name in sorted(state) if name.startswith(f"{half}.")]
    return {name: noise(*state[name].shape, seed=i) * state[name].std() / 3 for i, name in enumerate(names)
            if state[name].ndim == 4 or half == "decoder"}  # fmt: skip


def patched(vae: Any, half: str = "encoder") -> Any:
    return module_of("patched_vae").patched_vae(vae, changes_of(vae, half), STRENGTH)


class Written:
    """The changes written into the shared weights, while entered: what a patched VAE must compute."""

    def __init__(self, vae: Any, half: str = "encoder") -> None:
        self.model, self.changes = vae.patcher.model, changes_of(vae, half)

    def add(self, strength: float) -> None:
        state = self.model.state_dict()
        for name, change in self.changes.items():
            state[name].add_(strength * change)

    def __enter__(self) -> Written:
        self.kept = {name: self.model.state_dict()[name].clone() for name in self.changes}
        self.add(STRENGTH)
        return self

    def __exit__(self, *_: Any) -> None:
        state = self.model.state_dict()
        for name, weight in self.kept.items():
            state[name].copy_(weight)


def both(vae: Any) -> tuple[Tensor, Tensor]:
    """A latent and a picture: of several strips where the VAE is narrow, of few pixels where it is of full width."""
    ratio = vae.spacial_compression_decode()
    rows, columns = (10, 6) if ratio == 16 else (2, 3)
    return vae.encode(picture(rows * ratio, columns * ratio)), vae.decode(noise(1, 16, rows, columns))


def far(found: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> list[float]:
    return [difference(a, b) / float(b.std()) for a, b in zip(found, wanted, strict=True)]


def same_in_every_vae() -> dict[str, Any]:
    """Against the same numbers written into the weights; the given VAE computes and holds what it did."""
    found: dict[str, Any] = {}
    for name, vae in vaes().items():
        state = {key: tensor.clone() for key, tensor in vae.get_sd().items()}
        plain = both(vae)
        with Written(vae):
            wanted, wanted_state = both(vae), {key: tensor.clone() for key, tensor in vae.get_sd().items()}
        ours = patched(vae)
        strips = harness.run("OP4KSR_ExactVAE", ours, "tiny")[0]
        found[name] = {
            "same": max(*far(both(ours), wanted), *far(both(strips), wanted)),
            "shows": far(wanted, plain)[0],
            "weights_put_back": all(torch.equal(vae.get_sd()[key], state[key]) for key in state),
            "given": max(far(both(vae), plain)),
            "saved": max(difference(ours.get_sd()[key], wanted_state[key]) for key in state),
            "kind": isinstance(ours, type(vae)) and type(vae).__name__,
        }
    return found


def two_branches() -> dict[str, Any]:
    """With and without, in every order, on one VAE and through Exact VAE made before or after."""
    found: dict[str, float] = {}
    for name, vae in vaes().items():
        ours = patched(vae)
        ways: dict[str, Any] = {"plain": vae, "ours": ours}
        ways |= {f"{way}_exact": harness.run("OP4KSR_ExactVAE", ways[way], "auto")[0] for way in ("plain", "ours")}
        first = {way: both(one) for way, one in ways.items()}
        order = ("ours", "plain_exact", "ours_exact", "plain", "ours")
        found[name] = max(max(far(both(ways[way]), first[way])) for way in order)
        found[f"{name}_differ"] = far(first["ours"], first["plain"])[0]
        found[f"{name}_exact"] = max(far(first["ours_exact"], first["ours"]))
    return found


def partly_loaded(vae: Any, nbytes: int) -> tuple[tuple[Tensor, Tensor], int]:
    """What it computes, and how many weights are patched call by call: as the host loads where memory is short."""
    load, counts = comfy.model_management.load_models_gpu, list[int]()

    def partly(models: list[Any], *_: Any, **__: Any) -> None:
        for model in models:
            model.partially_load(model.load_device, nbytes)
            counts.append(sum(bool(getattr(module, "weight_function", ())) for module in model.model.modules()))

    comfy.model_management.unload_all_models()
    comfy.model_management.load_models_gpu = partly
    try:
        return both(vae), max(counts)
    finally:
        comfy.model_management.load_models_gpu = load


def low_memory() -> dict[str, Any]:
    """Nothing fits, a half fits, everything fits; an encoder's LoRA, and changes of norms and of upsampling layers."""
    found: dict[str, Any] = {}
    for name in STRIPS:
        vae = vaes()[name]
        for half in ("encoder", "decoder"):
            with Written(vae, half):
                wanted = both(vae)
            ours, case = patched(vae, half), f"{name}_{half}"
            size = ours.patcher.model_size()
            runs = [partly_loaded(ours, part) for part in (1, size // 2, 10 * size)]
            found[case] = {"far": [max(far(result, wanted)) for result, _ in runs], "patched": [n for _, n in runs]}
    return found


def tiles() -> dict[str, Any]:
    """The host's tiled nodes, too, compute with the changes, and put the weights back."""
    vae = vaes()["load_f16_vae"]
    image, latent = picture(96, 128), {"samples": noise(1, 16, 6, 8)}

    def tiled(vae: Any) -> tuple[Tensor, Tensor]:
        (encoded,) = harness.run("VAEEncodeTiled", vae, image, 64, 16, 64, 8)
        return encoded["samples"], harness.run("VAEDecodeTiled", vae, latent, 64, 16, 64, 8)[0]

    before, state = tiled(vae), {key: tensor.clone() for key, tensor in vae.get_sd().items()}
    with Written(vae):
        wanted = tiled(vae)
    found = tiled(patched(vae))
    clean = all(torch.equal(vae.get_sd()[key], state[key]) for key in state)
    return {"same": max(far(found, wanted)), "shows": far(wanted, before)[0], "clean": clean}


def twice() -> dict[str, Any]:
    """One LoRA after another: both are added."""
    vae = vaes()["load_f16_vae"]
    with Written(vae) as written:
        once = both(vae)
        written.add(STRENGTH)
        wanted = both(vae)
    return {"same": max(far(both(patched(patched(vae))), wanted)), "shows": far(wanted, once)[0]}


def dynamic_memory() -> dict[str, Any]:
    """Under dynamic VRAM a patch hangs beside the weight, and what a cast borrows is given back. Simulated."""
    if not hasattr(comfy.ops, "uncast_bias_weight"):
        raise harness.LackingError("this ComfyUI has no dynamic VRAM")
    conv, like, calls = comfy.ops.disable_weight_init.Conv2d(2, 2, 3), torch.zeros(1, 2, 4, 4), list[Any]()
    for name, parameter in conv.named_parameters():
        setattr(conv, name, torch.nn.Parameter(torch.ones_like(parameter), requires_grad=False))
    read, cast, uncast = module_of("exact_vae").read_weights, comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight
    plain = read(conv, like)
    conv.weight_lowvram_function = abs
    borrowed = torch.full_like(conv.weight, 3.0), torch.full_like(conv.bias, 4.0)
    comfy.ops.cast_bias_weight = lambda *_, **values: calls.append(values) or (*borrowed, "stream")
    comfy.ops.uncast_bias_weight = lambda *values: calls.append(values[3])
    try:
        weight, bias = read(conv, like)
    finally:
        comfy.ops.cast_bias_weight, comfy.ops.uncast_bias_weight = cast, uncast
    for tensor in borrowed:
        tensor.zero_()
    return {
        "own": plain[0] is conv.weight and plain[1] is conv.bias,
        "read": [float(weight.mean()), float(bias.mean())],
        "offloadable": calls[0]["offloadable"],
        "given_back": calls[1:] == ["stream"],
    }


def another_device() -> dict[str, Any]:
    """The host's way to load the VAE once more (Select VAE Device) copies the patches onto it."""
    vae = vaes()["load_f16_vae"]
    ours = patched(vae)
    if "model_override" not in inspect.signature(type(vae.patcher).clone).parameters:
        raise harness.LackingError("this ComfyUI never loads a VAE a second time")
    wanted = both(ours)
    factory, args = ours.patcher.cached_patcher_init
    again = ours.patcher.clone(model_override=(factory(*args).model, ({}, {}, {}, set())))
    (other,) = harness.run("SelectVAEDevice", ours, "default")
    other.patcher, other.first_stage_model = again, again.model
    return {
        "own_model": again.model is not vae.patcher.model,
        "same": max(far(both(other), wanted)),
        "kind": isinstance(other, module_of("patched_vae").PatchedVAE),
    }


def refused() -> dict[str, Any]:
    """What has no encoder that the host can patch."""
    pixel = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})

    class Foreign:
        first_stage_model = True

        def throw_exception_if_invalid(self) -> None:
            pass

    shapes: Callable[[Any], Any] = module_of("patched_vae").encoder_shapes
    vae = vaes()["load_f16_vae"]
    return {
        "pixel": harness.refusal(lambda: shapes(pixel)),
        "foreign": harness.refusal(lambda: shapes(Foreign())),
        "other_names": harness.refusal(
            lambda: module_of("patched_vae").patched_vae(vae, {"encoder.other.weight": noise(1)}, 1.0)
        ),
    }


CASES = (same_in_every_vae, two_branches, low_memory, tiles, twice, dynamic_memory, another_device, refused)
