"""Train the bundled weights on procedural pictures, on a CPU, in about an hour on two cores.

    python -m op4ksr_core.training scenes      -> <run>/scenes.npy
    python -m op4ksr_core.training autoencoder -> <run>/autoencoder.safetensors
    python -m op4ksr_core.training flux        -> <run>/flux.safetensors

Everything here is our choice: the paper's training is not public. Each stage reads what the one
before it wrote into the run folder, and everything is seeded.
"""

from __future__ import annotations

import argparse
import copy
import logging
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from torch import Tensor, autocast, nn

from .autoencoder import AutoEncoder, AutoEncoderParams
from .checkpoint import load_autoencoder, save_autoencoder, save_flux
from .flux import Flux, FluxParams, OneStepSettings
from .latent import LATENT_SCALE, LATENT_SHIFT, PATCH, process_in, process_out
from .one_step import one_step
from .procedural import scene
from .resize import resize
from .rope import fit_theta

log = logging.getLogger(__name__)

Model = TypeVar("Model", bound=nn.Module)

SMALL_AUTOENCODER = AutoEncoderParams(widths=(24, 48, 96, 96), norm_groups=6, mid_attention=False)


def make_scenes(path: Path, count: int, side: int, workers: int) -> None:
    """Write ``count`` procedural pictures as one uint8 array (count, side, side, 3)."""
    with ProcessPoolExecutor(workers) as pool:
        pictures = list(pool.map(scene, range(count), [side] * count, [side] * count, chunksize=8))
    np.save(path, np.stack(pictures))


def sample_crops(scenes: np.ndarray, rng: np.random.Generator, batch: int, side: int) -> Tensor:
    """(batch, 3, side, side) in [0, 1]: random crops, half of them shrunk by 2, turned and mirrored."""
    crops: list[Tensor] = []
    for _ in range(batch):
        reach = side * int(rng.integers(1, 3))
        reach = min(reach, scenes.shape[1])
        top, left = rng.integers(0, scenes.shape[1] - reach + 1, 2)
        crop = scenes[int(rng.integers(len(scenes))), top : top + reach, left : left + reach]
        crop = np.rot90(crop, int(rng.integers(4)))
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        picture = torch.from_numpy(crop.copy()).permute(2, 0, 1)[None].float() / 255
        crops.append(resize(picture, side, side))
    return torch.cat(crops)


def degrade(image: Tensor, factor: int = 4) -> Tensor:
    """(B, 3, H, W) -> the same size, shrunk by ``factor`` and enlarged again, both bicubic."""
    height, width = image.shape[-2:]
    return resize(resize(image, height // factor, width // factor), height, width)


def picture_loss(output: Tensor, target: Tensor) -> Tensor:
    """L1 on the picture plus half the L1 on its horizontal and vertical differences."""
    loss = (output - target).abs().mean()
    for axis in (-1, -2):
        loss = loss + 0.25 * (output.diff(dim=axis) - target.diff(dim=axis)).abs().mean()
    return loss


class Ema(Generic[Model]):
    """A running mean of the weights, with a short memory at the beginning."""

    def __init__(self, model: Model, decay: float = 0.999) -> None:
        self.model: Model = copy.deepcopy(model).requires_grad_(False)
        self.decay, self.step = decay, 0

    def restart(self, model: Model) -> None:
        """Forget everything but the present weights."""
        self.model.load_state_dict(model.state_dict())
        self.step = 0

    def update(self, model: Model) -> None:
        self.step += 1
        weight = 1 - min(self.decay, self.step / (self.step + 10))
        for mean, parameter in zip(self.model.parameters(), model.parameters(), strict=True):
            mean.lerp_(parameter.detach(), weight)


def cosine(step: int, steps: int, warmup: int = 100) -> float:
    """Learning rate factor: linear warm-up, then a cosine down to 1 %."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def training_steps(model: nn.Module, steps: int, rate: float, ema: Ema[Any]) -> Iterator[tuple[int, torch.optim.AdamW]]:
    """Yield (step, optimizer); the caller calls backward; the step itself is taken here."""
    optimizer = torch.optim.AdamW(model.parameters(), rate, betas=(0.9, 0.99), weight_decay=1e-3)
    began = time.monotonic()
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * cosine(step, steps)
        optimizer.zero_grad(set_to_none=True)
        yield step, optimizer
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        ema.update(model)
        if step % 100 == 0:
            log.info("step %d of %d, %.0f s", step, steps, time.monotonic() - began)


def unit_latents(model: AutoEncoder, images: Tensor, centre: bool) -> None:
    """Scale each latent channel, in the weights, to the std (and mean) that the fixed constants expect.

    After it, ``(raw - 0.1159) * 0.3611`` has std 1 per channel over ``images``, and the decoder gets
    the inverse. ``centre``: mean 0 as well, which the decoder's zero padding makes inexact along the
    border of a picture: train on a while after it.
    """
    with torch.no_grad():
        raw = model.encode_pixels(images * 2 - 1)
        mean, std = raw.mean((0, 2, 3)), raw.std((0, 2, 3))
        gain = 1 / (LATENT_SCALE * std)
        channels = model.params.latent_channels
        shift = (mean, LATENT_SHIFT) if centre else (0.0, 0.0)
        out, inward = model.encoder.conv_out, model.decoder.conv_in
        out.weight[:channels] *= gain[:, None, None, None]
        out.bias[:channels] = (out.bias[:channels] - shift[0]) * gain + shift[1]
        if centre:
            offset = mean - LATENT_SHIFT / gain
            inward.bias += (inward.weight * offset[None, :, None, None]).sum((1, 2, 3))
        inward.weight /= gain[None, :, None, None]


def train_autoencoder(scenes: np.ndarray, output: Path, steps: int, start: Path | None, seed: int = 0) -> None:
    """L1 and gradient L1, half of the pictures sharp and half x4-upsampled; larger crops at the end.

    start: weights to go on from, with unit latents already.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    model = load_autoencoder(start).requires_grad_(True).train() if start else AutoEncoder(SMALL_AUTOENCODER)
    model = model.to(memory_format=torch.channels_last)  # pyright: ignore
    ema = Ema(model)
    late = int(0.7 * steps)
    running = 0.0
    for step, _ in training_steps(model, steps, 1.5e-3, ema):
        if step == late and start is None:
            unit_latents(model, sample_crops(scenes, rng, 64, 96), centre=True)
            ema.restart(model)
        batch, side = (8, 96) if step < late else (3, 160)
        images = sample_crops(scenes, rng, batch, side)
        images[: batch // 2] = degrade(images[: batch // 2])
        pixels = (images * 2 - 1).contiguous(memory_format=torch.channels_last)
        with autocast("cpu", torch.bfloat16):
            latent = model.encode_pixels(pixels)
            if start or step >= late:  # so that the decoder bears a transformer's small errors
                latent = latent + 0.05 / LATENT_SCALE * torch.randn_like(latent)
            decoded = model.decode_pixels(latent)
        loss = picture_loss(decoded.float(), pixels)
        loss.backward()
        running = 0.99 * running + 0.01 * loss.item()
        if step % 100 == 0:
            log.info("autoencoder loss %.4f", running / (1 - 0.99 ** (step + 1)))
        if step % 1000 == 999 or step == steps - 1:
            if step == steps - 1:
                unit_latents(ema.model, sample_crops(scenes, rng, 64, 96), centre=False)
            save_autoencoder(output, ema.model, dtype=torch.float16, training=f"{step + 1} steps")


# --- transformer ------------------------------------------------------------------------------

#: RFR "fit": the slowest pair makes half a turn over the 128 tokens of 4096 px.
SMALL_FLUX = FluxParams(
    hidden_size=256,
    num_heads=2,
    depth=1,
    depth_single_blocks=2,
    context_in_dim=64,
    vec_in_dim=32,
    guidance_embed=False,
    theta=(fit_theta(128, 0.5, 56), fit_theta(128, 0.5, 56)),
)
PROMPT_TOKENS = 4
#: Scenes whose latents are kept, for the latent steps and the mosaics.
MOSAIC_SCENES = 192


def new_flux(seed: int) -> Flux:
    """A seeded small Flux that starts as the identity: velocity 0."""
    torch.manual_seed(seed)
    txt, vec = torch.randn(PROMPT_TOKENS, SMALL_FLUX.context_in_dim), torch.zeros(SMALL_FLUX.vec_in_dim)
    model = Flux(SMALL_FLUX, OneStepSettings(sigma=0.5, txt=txt, vec=vec, train_tokens=128))
    nn.init.zeros_(model.final_layer.linear.weight)
    nn.init.zeros_(model.final_layer.linear.bias)
    return model


def predict(model: Flux, latent: Tensor) -> Tensor:
    """One step on processed latents (B, 16, h, w), with gradients."""
    sigma = torch.full((len(latent),), model.settings.sigma)
    txt, vec = model.prompt(len(latent))
    with autocast("cpu", torch.bfloat16):
        velocity = model(latent, sigma, txt, vec)
    return one_step(latent, velocity.float(), sigma)


def encode_scenes(autoencoder: AutoEncoder, scenes: np.ndarray) -> tuple[Tensor, Tensor]:
    """Processed latents (N, 16, 32, 32) of the x4-degraded and of the sharp 512 px scenes."""
    lows: list[Tensor] = []
    highs: list[Tensor] = []
    for picture in scenes:
        image = torch.from_numpy(picture.copy()).permute(2, 0, 1)[None].float() / 255
        with autocast("cpu", torch.bfloat16):
            lows.append(process_in(autoencoder.encode_pixels(degrade(image).clamp(0, 1) * 2 - 1).float()))
            highs.append(process_in(autoencoder.encode_pixels(image * 2 - 1).float()))
    return torch.cat(lows), torch.cat(highs)


def mosaic(latents: tuple[Tensor, Tensor], rng: np.random.Generator, tokens: int) -> tuple[Tensor, Tensor]:
    """A grid of ``tokens`` x ``tokens`` laid out of whole scenes, (1, 16, 2 tokens, 2 tokens) each.

    Shows the transformer the grids of 4K at the cost of no 4K picture.
    """
    across = tokens * PATCH // latents[0].shape[-1]
    chosen = torch.from_numpy(rng.integers(0, len(latents[0]), across * across))

    def lay(source: Tensor) -> Tensor:
        rows = source[chosen].unflatten(0, (across, across)).permute(2, 0, 3, 1, 4)
        return rows.flatten(3, 4).flatten(1, 2)[None]

    return lay(latents[0]), lay(latents[1])


def train_flux(scenes: np.ndarray, run: Path, output: Path, steps: int, seed: int = 0) -> None:
    """Latent L1 first, then pixel and latent L1 through the frozen decoder; mosaics up to 128 x 128 tokens."""
    autoencoder = load_autoencoder(run / "autoencoder.safetensors").to(memory_format=torch.channels_last)  # pyright: ignore
    latents = encode_scenes(autoencoder, scenes[:MOSAIC_SCENES])
    log.info("latents: std %.3f, x4 to sharp L1 %.4f", latents[1].std(), (latents[0] - latents[1]).abs().mean())
    rng = np.random.default_rng(seed)
    model = new_flux(seed)
    ema = Ema(model)
    running: dict[str, float] = {}
    for step, _ in training_steps(model, steps, 6e-4, ema):
        if step % 200 == 150:
            kind, loss = "mosaic 128", latent_loss(model, *mosaic(latents, rng, 128))
        elif step % 20 == 10:
            kind, loss = "mosaic 64", latent_loss(model, *mosaic(latents, rng, 64))
        elif step < 0.3 * steps:
            chosen = torch.from_numpy(rng.integers(0, len(latents[0]), 8))
            kind, loss = "latent", latent_loss(model, latents[0][chosen], latents[1][chosen])
        else:
            kind, loss = "pixel", pixel_loss(model, autoencoder, sample_crops(scenes, rng, 4, 256), rng)
        loss.backward()
        running[kind] = 0.95 * running.get(kind, loss.item()) + 0.05 * loss.item()
        if step % 100 == 0:
            log.info("flux %s", ", ".join(f"{k} {v:.4f}" for k, v in running.items()))
        if step % 500 == 499 or step == steps - 1:
            save_flux(output, ema.model, dtype=torch.float16, training=f"{step + 1} steps")


def latent_loss(model: Flux, low: Tensor, high: Tensor) -> Tensor:
    return 0.2 * (predict(model, low) - high).abs().mean()


def pixel_loss(model: Flux, autoencoder: AutoEncoder, images: Tensor, rng: np.random.Generator) -> Tensor:
    """Decoded picture against the sharp one, plus a little of the latents' distance."""
    factor = int(rng.choice([4, 4, 4, 2, 8]))
    with torch.no_grad(), autocast("cpu", torch.bfloat16):
        low = process_in(autoencoder.encode_pixels(degrade(images, factor).clamp(0, 1) * 2 - 1).float())
        high = process_in(autoencoder.encode_pixels(images * 2 - 1).float())
    predicted = predict(model, low)
    with autocast("cpu", torch.bfloat16):
        decoded = autoencoder.decode_pixels(process_out(predicted))
    return picture_loss(decoded.float(), images * 2 - 1) + 0.1 * (predicted - high).abs().mean()


def main() -> None:
    parser = argparse.ArgumentParser(prog="op4ksr_core.training", description=__doc__)
    parser.add_argument("stage", choices=("scenes", "autoencoder", "flux"))
    parser.add_argument("--run", type=Path, default=Path("runs/bundled"))
    parser.add_argument("--scenes", type=int, default=480, help="pictures of 512 px")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--start", type=Path, help="autoencoder weights to go on from")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    torch.set_num_threads(arguments.threads)
    arguments.run.mkdir(parents=True, exist_ok=True)
    scenes_path = arguments.run / "scenes.npy"
    if arguments.stage == "scenes":
        make_scenes(scenes_path, arguments.scenes, 512, arguments.threads)
        return
    scenes = np.load(scenes_path, mmap_mode="r")
    output = arguments.run / f"{arguments.stage}.safetensors"
    if arguments.stage == "autoencoder":
        train_autoencoder(scenes, output, arguments.steps, arguments.start)
    else:
        train_flux(scenes, arguments.run, output, arguments.steps)


if __name__ == "__main__":
    main()
