"""The transformer in pieces in the host: against the published tiling, the core, and the plan; cancelled anywhere."""

from __future__ import annotations

import importlib
import shutil
from functools import lru_cache
from typing import Any

import comfy.model_management
import comfy.sd
import harness
import torch
from safetensors.torch import load_file
from seeded_models import seeded
from torch import Tensor
from weights import difference, picture, prompt, relative_error, write_flux, write_vae

import nodes
from op4ksr_core import AutoEncoder, AutoEncoderParams, OneStepOptions, Target, load_autoencoder, load_flux, upscale
from op4ksr_core.pieces import Pieces, in_pieces

PACK = nodes.NODE_CLASS_MAPPINGS["OP4KSR_OneStepUpscale"].__module__
VAE, FLUX = "window_vae.safetensors", "window_flux.safetensors"


@lru_cache
def models() -> tuple[Any, Any]:
    """MODEL and a 16x VAE."""
    write_vae(VAE)
    write_flux(FLUX, settings=prompt(sigma=0.4, train_tokens=2))
    return harness.load_model(FLUX), harness.load_vae(VAE)


def stages_of(model: Any, vae: Any = None) -> Any:
    stages = importlib.import_module(PACK.replace("nodes.upscale", "nodes.host.stages"))
    return stages.HostStages(model, vae or models()[1], None, None, None)


def published() -> dict[str, Any]:
    """Latents of the host's own Flux in pieces, against numbers of diffusers' in the published tiling."""
    folder, name = harness.FOLDER / "published", "omgsr.safetensors"
    shutil.copy(folder / "flux.safetensors", harness.FOLDER / "diffusion_models" / name)
    given = load_file(folder / "latents.safetensors")
    core = seeded(lambda: AutoEncoder(AutoEncoderParams(stride=1)), 6)
    stages = stages_of(harness.load_model(name), comfy.sd.VAE(sd=dict(core.state_dict())))  # Flux's own, of which
    assert stages.ratio == 8  # nothing is run here

    def cut(overlap: int) -> Tensor:
        return in_pieces(given["raw"], stages.transform, Pieces(128, overlap), stages.ratio, lambda done, total: None)

    return {
        "in_pieces": relative_error(cut(64), given["in_tiles"]),
        "whole": relative_error(stages.transform(given["raw"], lambda done, total: None), given["in_tiles"]),
        "another_overlap": relative_error(cut(32), given["in_tiles"]),
    }


def node() -> dict[str, Any]:
    """One-Step Upscale in pieces is the core's; left alone it is the whole picture."""
    model, vae = models()
    image, pair = picture(80, 144), (model, vae)
    core = load_flux(harness.FOLDER / "diffusion_models" / FLUX), load_autoencoder(harness.FOLDER / "vae" / VAE)
    whole, _ = harness.upscale_node(image, model, vae)
    cut, _ = harness.upscale_node(image, model, vae, pieces=128, pieces_overlap=64)
    options = OneStepOptions(Target(scale=2), color="none", fidelity=0.0, pieces=Pieces(128, 64))
    return {
        "difference": difference(cut, upscale(image.movedim(-1, 1), *core, options).movedim(1, -1)),
        "shows": difference(cut, whole),
        "zero_is_whole": torch.equal(whole, harness.upscale_node(image, model, vae, pieces=0, pieces_overlap=9)[0]),
        "no_larger_is_whole": torch.equal(whole, harness.upscale_node(image, *pair, pieces=288, pieces_overlap=0)[0]),
        "no_tokens": harness.refusal(lambda: harness.upscale_node(image, *pair, pieces=80, pieces_overlap=16)),
        "overlap": harness.refusal(lambda: harness.upscale_node(image, model, vae, pieces=64, pieces_overlap=64)),
    }


def plan() -> dict[str, Any]:
    """The node's plan, the one that One-Step Upscale logs, and what both say beyond the trained side."""
    model, vae = models()
    given: dict[str, Any] = {"model": model, "vae": vae, "width": 144, "height": 80, "target": "factor"}
    given |= {"pixels": 4096, "factor": 2.0, "megapixels": 16.0, "vae_only": False}
    whole = harness.run("OP4KSR_Plan", **given)[0]
    cut = harness.run("OP4KSR_Plan", **given, pieces=64, pieces_overlap=32)[0]
    known = harness.run("OP4KSR_Plan", **{**given, "model": harness.apply_rfr(model, "ntk")})[0]
    with harness.Log() as log:
        harness.upscale_node(picture(80, 144), model, vae, pieces=64, pieces_overlap=32)
    return {"whole": whole, "cut": cut, "known": known, "logged": "\n".join(log.lines), "warned": log.warnings}


def cancelled() -> dict[str, Any]:
    """How many windows had begun when a cancelled run ended: between two, and inside one by the host's layers."""
    stages, raw = stages_of(models()[0]), torch.randn(1, 16, 8, 16)
    management = comfy.model_management

    def begun(before: int, inside: int) -> int | None:
        windows: list[Tensor] = []

        def transform(part: Tensor, tell: Any) -> Tensor:
            windows.append(part)
            if len(windows) == inside:
                management.interrupt_current_processing()
            return stages.transform(part, tell)

        def tell(done: int, total: int) -> None:
            if (done, total) == (before, 3):
                management.interrupt_current_processing()
                management.throw_exception_if_processing_interrupted()

        try:
            in_pieces(raw, transform, Pieces(128, 64), stages.ratio, tell)
        except management.InterruptProcessingException:
            return len(windows)
        finally:
            management.interrupt_current_processing(False)
        return None

    return {"before": [begun(index, 0) for index in range(3)], "inside": begun(9, 2), "not": begun(9, 9)}


CASES = (published, node, plan, cancelled)
