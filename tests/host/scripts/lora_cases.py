"""A LoRA that the core's trainer made, through the host's own loader, against the core's own merge."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import harness
import torch
from weights import difference, picture, prompt, write_flux, write_vae

from op4ksr_core import OneStepOptions, Target, load_autoencoder, load_flux, upscale
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.weights.lora import describe_lora, merged_weight, read_merge

VAE, FLUX, LORA = "f16.safetensors", "flux.safetensors", "trained.safetensors"


def train_lora() -> Path:
    """A few fast steps: enough to change the picture, on a model with heads of 128."""
    models, run = harness.FOLDER / "diffusion_models", harness.FOLDER / "run"
    text = (
        f'kind = "lora"\nrun = "{run.as_posix()}"\n'
        f'[model]\nstart = "{(models / FLUX).as_posix()}"\n'
        f'autoencoder = "{(harness.FOLDER / "vae" / VAE).as_posix()}"\n'
        "lora_rank = 4\n[data]\npictures = 4\npicture_side = 64\ncrop = 64\n"
        '[train]\nsteps = 8\nbatch = 2\nrate = 0.03\nwarmup = 0\nprecision = "fp32"\ndevice = "cpu"\n'
        '[output]\nsample_every = 0\ndtype = "fp32"\n'
    )
    with torch.inference_mode(False):
        return Trainer(parse_config(text), text).run()


def trained_lora() -> dict[str, Any]:
    write_vae(VAE)
    write_flux(FLUX, settings=prompt(sigma=0.4), depth_single_blocks=2)
    shutil.copy(train_lora(), harness.FOLDER / "loras" / LORA)
    image, vae, model = picture(48, 64), harness.load_vae(VAE), harness.load_model(FLUX)
    plain, _ = harness.upscale_node(image, model, vae)
    (patched,) = harness.run("LoraLoaderModelOnly", model, LORA, 1.0)
    changed, _ = harness.upscale_node(image, patched, vae)
    core = load_flux(harness.FOLDER / "diffusion_models" / FLUX)
    state = core.state_dict()
    header = describe_lora(harness.FOLDER / "loras" / LORA).header
    lora = read_merge(header, {name: tuple(weight.shape) for name, weight in state.items()})
    core.load_state_dict({name: merged_weight(name, weight, [lora]) for name, weight in state.items()}, assign=True)
    options = OneStepOptions(target=Target(scale=2), color="none", fidelity=0.0)
    merged = upscale(image.movedim(-1, 1), core, load_autoencoder(harness.FOLDER / "vae" / VAE), options)
    return {
        "layers": sum(map(len, lora.parts.values())),
        "changes": difference(plain, changed),
        "as_merged": difference(changed, merged.movedim(1, -1)),
    }


CASES = [trained_lora]
