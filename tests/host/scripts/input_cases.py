"""What other nodes may give: each input of each node with what it cannot take. Cases for ``run_cases.py``."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from functools import lru_cache
from typing import Any

import comfy.model_management
import harness
import numpy as np
import torch
from weights import noise, picture, prompt, write_flux, write_vae

import nodes

VAE, FLUX = "f16.safetensors", "flux.safetensors"


@lru_cache
def valid() -> dict[str, Any]:
    """By an input's id, what it takes."""
    write_vae(VAE)
    write_flux(FLUX, settings=prompt())
    model, conditioning = harness.run("OP4KSR_LoadFluxSR", FLUX)
    pictures = dict.fromkeys(("image", "images", "reference"), picture(16, 16))
    files = {"vae_name": VAE, "model_name": FLUX}
    files |= dict.fromkeys(("lora_name", "embedding_name"), "no_such_file.safetensors")
    more = {"model": model, "vae": harness.load_vae(VAE), "conditioning": conditioning, "mask": torch.zeros(1, 16, 16)}
    return {**pictures, **files, **more, "picture": "photo"}


#: Of no input's type, each with a word that a refusal may name.
FOREIGN: dict[str, Any] = {
    "object": object(),
    "class": dict,
    "dict": {"samples": None},
    "bytes": b"\xff",
    "complex": 1j,
    "nested": [[[]]],
    "array": np.zeros((2, 2)),
    "no_dimension": torch.tensor(0.5),
    "five_dimensions": torch.zeros(1, 1, 2, 2, 2),
    "meta": torch.zeros(1, 4, 4, 3, device="meta"),
    "sparse": torch.zeros(1, 4, 4, 3).to_sparse(),
}

_NUMBERS = {"bool": True, "text": "64", "nan": math.nan, "inf": math.inf, "minus_inf": -math.inf, "huge": 10**5000}

#: By type, what is nearly right.
NEARLY: dict[str, dict[str, Any]] = {
    "INT": {**_NUMBERS, "fraction": 1.5, "minus_2_63": -(2**63)},
    "FLOAT": {**_NUMBERS, "1e308": 1e308},
    "STRING": {"number": 5, "list": ["a"]},
    "BOOLEAN": {"text": "true", "two": 2, "nan": math.nan},
    "COMBO": {"number": 8, "list": ["auto"], "huge_text": "x" * 10**6, "escape": "\x1b[2J\ud800\n"},
    "MODEL": {"text": "flux", "vae": "a vae"},
    "VAE": {"text": "vae", "model": "a model"},
    "UPSCALE_MODEL": {"text": "4x.pth", "model": "a model", "vae": "a vae", "network": torch.nn.Identity()},
    "IMAGE": {
        **{"text": "a.png", "empty": torch.zeros(0, 4, 4, 3), "bytes": torch.zeros(1, 4, 4, 3).byte()},
        **{"nan": torch.full((1, 4, 4, 3), math.nan), "inf": torch.full((1, 4, 4, 3), math.inf)},
        **{"float8": torch.zeros(1, 4, 4, 3).to(torch.float8_e4m3fn), "alpha": torch.full((1, 4, 4, 4), math.nan)},
        **{"hidden_nan": torch.cat((torch.zeros(1, 4, 4, 3), torch.full((1, 4, 4, 1), math.nan)), -1)},
        **{"no_batch": torch.zeros(4, 4, 3), "two_channels": torch.zeros(1, 4, 4, 2)},
    },
    "MASK": {
        **{"text": "a.png", "empty": torch.zeros(0, 4, 4), "ints": torch.zeros(1, 4, 4).int()},
        **{"nan": torch.full((1, 4, 4), math.nan), "inf": torch.full((1, 4, 4), -math.inf)},
        **{"last_channel": torch.zeros(1, 4, 4, 1), "picture": torch.zeros(1, 4, 4, 3)},
    },
    "CONDITIONING": {
        **{"text": "a prompt", "none": [[None, {}]], "alone": [[noise(1, 2, 64)]], "flat": [[noise(2, 64), {}]]},
        **{
            "no_tokens": [[noise(1, 0, 64), {}]],
            "nan": [[noise(1, 2, 64) / 0, {}]],
            "settings": [[noise(1, 2, 64), 5]],
        },
        "pooled": [[noise(1, 2, 64), {"pooled_output": "a"}]],
        "pooled_nan": [[noise(1, 2, 64), {"pooled_output": noise(1, 32) / 0}]],
        "guidance": [[noise(1, 2, 64), {"guidance": "a"}]],
        "guidance_nan": [[noise(1, 2, 64), {"guidance": math.nan}]],
    },
}


def our_inputs() -> dict[tuple[str, str], Any]:
    """(Node, input) -> what the schema says of it."""
    ours = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("OP4KSR_")}
    return {(name, one.id): one for name, cls in ours.items() for one in cls.define_schema().inputs}


def taken(node: str, **changes: Any) -> dict[str, Any]:
    """A node's inputs with which it runs, but for the changes."""
    inputs = [one for (name, _), one in our_inputs().items() if name == node]
    typed = {one.id: one.default for one in inputs if getattr(one, "default", None) is not None}
    return typed | {one.id: valid()[one.id] for one in inputs if one.id in valid()} | changes


def refused() -> dict[str, Any]:
    """Every input with everything that it cannot take."""
    found: dict[str, Any] = {}
    for (node, name), declared in our_inputs().items():
        odd = {**FOREIGN, **NEARLY[declared.get_io_type()], **({} if declared.optional else {"nothing": None})}
        if declared.get_io_type() in ("INT", "FLOAT"):
            odd |= {"below": declared.min - 1, "above": declared.max * 2 + 1}
        for case, value in odd.items():
            inputs = taken(
                node,
                **{name: valid().get(value.removeprefix("a ")) if value in ("a vae", "a model") else value}
                if isinstance(value, str)
                else {name: value},
            )
            found[f"{node} {name} {case}"] = harness.refusal(
                lambda node=node, inputs=inputs: harness.run(node, **inputs)
            )
    return found


def every_node_checks() -> dict[str, bool]:
    """Whether ``execute`` is the checked one: what wraps another says so."""
    return {node: hasattr(nodes.NODE_CLASS_MAPPINGS[node].execute, "__wrapped__") for node, _ in our_inputs()}


def bounds() -> dict[str, Any]:
    """The numbers without a least and a greatest value."""
    numbers = {key: one for key, one in our_inputs().items() if one.get_io_type() in ("INT", "FLOAT")}
    return {"numbers": len(numbers), "open": [key for key, one in numbers.items() if None in (one.min, one.max)]}


def passing() -> dict[str, Any]:
    """Numbers of other kinds, nothing where an input may be left open, and masks of other shapes."""

    def latent(**sizes: Any) -> list[int]:
        return list(harness.run("OP4KSR_EmptyLatent16x", **sizes)[0]["samples"].shape)

    mask = torch.zeros(1, 16, 16, dtype=torch.float64)
    mask[..., :8] = 1
    upscaled = [
        harness.run(
            "OP4KSR_OneStepUpscale", **taken("OP4KSR_OneStepUpscale", target="factor", factor=2, vae_only=1, mask=m)
        )
        for m in (mask, mask[0], mask[None], mask > 0.5, None)
    ]
    grid = taken("OP4KSR_SuppressPeriodicity", reference=None, alarm_rate=Fraction(1, 100))
    return {
        "whole_floats": latent(width=64.0, height=np.int64(32), batch_size=np.float32(2)),
        "masks": [float(mask.mean()) for _, mask in upscaled],
        "same": all(torch.equal(upscaled[0][0], image) for image, _ in upscaled[1:4]),
        "nothing": list(harness.run("OP4KSR_SuppressPeriodicity", **grid)[0].shape),
        "memory": type(harness.run("OP4KSR_ExactVAE", valid()["vae"], None)[0]).__name__,
    }


#: Nodes that compute no picture, of many numbers.
_NUMERIC = ("OP4KSR_ApplyRFR", "OP4KSR_FluxShift16x", "OP4KSR_Plan")


def extremes() -> dict[str, Any]:
    """Every number at each of its bounds, alone and all together, with every choice: what became of it."""
    found: dict[str, Any] = {}
    for node in _NUMERIC:
        mine = [one for (of, _), one in our_inputs().items() if of == node]
        numbers = [one for one in mine if one.get_io_type() in ("INT", "FLOAT")]
        bounds = [{one.id: value} for one in numbers for value in (one.min, one.max)]
        bounds += [{one.id: one.min for one in numbers}, {one.id: one.max for one in numbers}]
        choices = [{one.id: option} for one in mine if one.get_io_type() == "COMBO" for option in one.options]
        for changes in [{**bound, **choice} for bound in bounds for choice in choices]:
            inputs = taken(node, **changes)
            found[f"{node} {changes}"] = harness.refusal(lambda node=node, inputs=inputs: harness.run(node, **inputs))
    steep = taken("OP4KSR_FluxShift16x", mode="by tokens", width=32768, height=32768, base_shift=0.0, max_shift=100.0)
    return {**found, "steep": harness.refusal(lambda: harness.run("OP4KSR_FluxShift16x", **steep))}


def too_large() -> dict[str, Any]:
    """All within the widgets' bounds: a terabyte."""
    sizes = {"width": 32768, "height": 32768, "batch_size": 4096}
    return harness.refusal(lambda: harness.run("OP4KSR_EmptyLatent16x", **sizes))


def latents() -> dict[str, Any]:
    """The VAE in the host's own nodes, with latents and pictures that it cannot take."""
    vae, good = valid()["vae"], noise(1, 16, 2, 2)
    odd = {
        "none": None,
        "text": "latent",
        "channels": noise(1, 4, 2, 2),
        "flat": noise(16, 2, 2),
        "nan": good / 0,
        "empty": good[:, :, :0],
        "ints": good.int(),
    }
    pictures = {"none": None, "grey": noise(1, 32, 32, 1), "nan": noise(1, 32, 32, 3) / 0, "flat": noise(32, 32, 3)}
    return {
        "decode": {case: harness.refusal(lambda v=v: vae.decode(v)) for case, v in odd.items()},
        "tiled": {
            case: harness.refusal(lambda v=v: vae.decode_tiled(v, tile_x=8, tile_y=8)) for case, v in odd.items()
        },
        "encode": {case: harness.refusal(lambda v=v: vae.encode(v)) for case, v in pictures.items()},
        "tiled_encode": {case: harness.refusal(lambda v=v: vae.encode_tiled(v)) for case, v in pictures.items()},
        "sampler": {
            case: harness.refusal(lambda v=v: sampled(v)) for case, v in odd.items() if case in ("channels", "nan")
        },
        "five_dimensions": list(vae.decode(good[:, :, None]).shape),
    }


def sampled(latent: Any) -> Any:
    model, conditioning = valid()["model"], valid()["conditioning"]
    sampler, sigmas = harness.run("OP4KSR_OneStepSampler", model)
    (guider,) = harness.run("BasicGuider", model, conditioning)
    (quiet,) = harness.run("DisableNoise")
    return harness.run("SamplerCustomAdvanced", quiet, guider, sampler, sigmas, {"samples": latent})


def words() -> list[str]:
    """What is said of a picture in [-1, 1], and of one that overshoots a little."""
    with harness.Log() as log:
        for lowest in (-1.0, -0.1):
            image = picture(16, 16)
            image[0, 0, 0, 0] = lowest
            harness.run(
                "OP4KSR_SuppressPeriodicity", **taken("OP4KSR_SuppressPeriodicity", image=image, reference=None)
            )
    return log.warnings


def sampler_node() -> Any:
    return nodes.NODE_CLASS_MAPPINGS["OP4KSR_OneStepSampler"]


def inputs_module() -> Any:
    """What checks the inputs; the host calls a pack's modules by its path."""
    return sys.modules[sampler_node().__module__.replace("nodes.one_step_sampler", "nodes.host.inputs")]


def interrupts() -> list[str]:
    """The host's own exceptions pass through a node as they are."""
    checked, raised = inputs_module().checked, list[str]()
    for error in (comfy.model_management.InterruptProcessingException, torch.OutOfMemoryError, KeyboardInterrupt):

        def execute(cls: Any, model: Any, sigma: float, error: type[BaseException] = error) -> Any:
            raise error("as it is")

        try:
            checked(execute)(sampler_node(), valid()["model"], 0.5)
        except BaseException as came:
            raised.append(type(came).__name__)
    return raised


def unwritable() -> dict[str, Any]:
    """Errors that would end the host's worker when it logs them: as they come, and as the cause of one of ours."""
    checked = inputs_module().checked

    def raised(*errors: Exception) -> dict[str, Any]:
        def execute(cls: Any, model: Any, sigma: float) -> Any:
            try:
                raise errors[-1]
            except Exception as cause:
                if errors[0] is cause:
                    raise
                raise errors[0] from cause

        found = harness.refusal(lambda: checked(execute)(sampler_node(), valid()["model"], 0.5))
        return found

    return {
        "raw": raised(ValueError("a\ud800b")),
        "cause": raised(inputs_module().OptionError("option: its value; the remedy"), ValueError("a\ud800b")),
        "plain": raised(ValueError("as it is")),
    }


CASES = (extremes, unwritable, refused, every_node_checks, bounds, passing, too_large, latents, words, interrupts)
