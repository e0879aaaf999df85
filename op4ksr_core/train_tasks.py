"""The three things that can be trained: what one step computes, what is saved, what is shown.

A task is the module whose ``forward`` gives the loss's terms, so that several GPUs can share it. Only
``trained`` parameters change; everything random in a step comes from the seed it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn
from torch import autocast as mixed_precision
from torch.utils.checkpoint import checkpoint

from . import linear_start, lora
from .autoencoder import AutoEncoder, AutoEncoderParams
from .autoencoder_layers import ResnetBlock
from .checkpoint import BUNDLED_AUTOENCODER, load_autoencoder, save_autoencoder, save_flux
from .color import back_project
from .degradation import degrade
from .flux import DEFAULT_SIGMA, Flux, FluxParams, OneStepSettings, check_sigma
from .latent import LATENT_SCALE, LATENT_SHIFT, PATCH, process_in, process_out
from .latent_cache import EncodedBatch, LatentCache, rounded
from .layers import DoubleStreamBlock, SingleStreamBlock
from .linear_start import trunk_decode, trunk_encode
from .model_source import Files, ModelSource, file_of
from .objectives import Objective, distance
from .one_step import OneStepOptions, check_pair, one_step, upscale
from .resize import Target, resize
from .rope import FLUX_THETA, RescaledEmbedND, resolve
from .sources import Source
from .train_config import RIM, TrainConfig

#: Weight of the latents' distance in the steps on a grid of 4K's size.
GRID_WEIGHT = 0.2

#: The factor of the back-projection that ``projected`` terms look through. Our choice: x4 for every input.
PROJECTED_FACTOR = 4

#: Kinds of seeds, so that no two uses draw the same numbers.
CROPS, DAMAGE, NOISE, GRID, UNIT, SAMPLES = range(1, 7)

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Judged:
    """A step's terms (weighted), and the pictures in [-1, 1] that an adversarial term looks at, if any."""

    terms: dict[str, Tensor]
    output: Tensor | None = None
    target: Tensor | None = None


class Task(nn.Module, ABC):
    """What the trainer knows of what it trains."""

    #: File name of the weights it makes.
    name = "weights"
    #: Whether batches hold degraded pictures beside the sharp ones.
    pairs = True

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.objective = Objective(config.loss)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that change, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def term_names(self) -> list[str]:
        return self.objective.names(self.pairs)

    def autocast(self, device: torch.device) -> mixed_precision:
        return mixed_precision(device.type, torch.bfloat16, enabled=self.config.train.precision == "bf16")

    def prepare(self, source: Source) -> None:
        """Once, before the first step."""

    def before(self, step: int) -> bool:
        """Before each step; True if the weights were changed, so that running means and the optimizer begin anew."""
        return False

    @abstractmethod
    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        """One step on pictures (B, 3, H, W) in [0, 1]: sharp ones and, if ``pairs``, degraded and enlarged ones."""

    def pictures(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms on pictures (B, 3, H, W) in [-1, 1], a share of them on the output as fidelity 1 leaves it."""
        share, terms = self.config.loss.projected, self.objective.pictures(output, target)
        if not share:
            return terms
        after = self.objective.pictures(projected(output, target), target)
        return {name: torch.lerp(term, after[name], share) for name, term in terms.items()}

    def finish(self) -> None:
        """Once, with the running mean's weights in place, before they are saved for the last time."""

    @abstractmethod
    def save(self, path: Path, line: str) -> None:
        """Write the weights as a user loads them."""

    @abstractmethod
    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """A sharp picture (1, 3, H, W) in [0, 1] -> (input enlarged, output, input as it is)."""


def generator_of(seed: tuple[int, ...]) -> torch.Generator:
    """A CPU generator for a tuple of whole numbers."""
    value = 0
    for number in seed:
        value = (value * 1_000_003 + number + 0x9E3779B9) % (2**63 - 25)
    return torch.Generator().manual_seed(value)


#: What is recomputed where ``train.checkpointing`` is set.
BLOCKS = (DoubleStreamBlock, SingleStreamBlock, ResnetBlock)


def checkpoint_blocks(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass instead of keeping them."""
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # pyright: ignore


# --- autoencoder ------------------------------------------------------------------------------


class AutoencoderTask(Task):
    """Pictures through the latent and back; half of them sharp, half as the one step's encoder sees them."""

    name = "autoencoder"
    pairs = False

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        model = config.model
        if model.start:
            self.model = load_autoencoder(file_of(model.start, BUNDLED_AUTOENCODER)).train().requires_grad_(True)
        else:
            torch.manual_seed(config.seed)
            params = AutoEncoderParams(
                widths=model.widths,
                layers_per_block=model.layers_per_block,
                norm_groups=model.norm_groups,
                mid_attention=model.mid_attention,
            )
            self.model = AutoEncoder(params)
        #: The steps that train the trunk alone.
        self.linear_steps = config.linear_steps
        if self.linear_steps:
            linear_start.begin(self.model)
        self.whole = model.part == "all"
        if not self.whole:
            self.model.encoder.requires_grad_(False)
        #: The step from which latents have unit deviation; after linear steps only the finished model's have.
        share = 1.0 if self.linear_steps else config.train.unit_at
        self.unit_step = 0 if model.start else int(share * config.train.steps)
        #: (64, 3, 96, 96) in [0, 1], by which latents are scaled.
        self.typical = torch.empty(0)
        self.to(memory_format=torch.channels_last)  # pyright: ignore
        if config.train.checkpointing:
            checkpoint_blocks(self.model)

    def prepare(self, source: Source) -> None:
        """Before the first batch, of a run that is gone on with too: a stream then stands at the same place."""
        self.typical = source.crops((self.config.seed, UNIT), 64, 96).to(self.model.device)

    def before(self, step: int) -> bool:
        if self.linear_steps and step == self.linear_steps:
            linear_start.bend(self.model, self.typical)
            return True
        if step == self.unit_step and not self.config.model.start:
            unit_latents(self.model, self.typical, centre=True)
            return True
        return False

    def deviation(self, latent: Tensor) -> Tensor | float:
        """Of the latents: the fixed constants' once they are scaled, until then this batch's, per channel."""
        if not self.linear_steps:
            return 1 / LATENT_SCALE
        return latent.detach().std((0, 2, 3), keepdim=True)

    def finish(self) -> None:
        if self.whole:
            unit_latents(self.model, self.typical, centre=bool(self.linear_steps))

    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        pixels = (high * 2 - 1).contiguous(memory_format=torch.channels_last)
        noise = self.config.train.latent_noise
        if step < self.linear_steps:
            with self.autocast(pixels.device):
                decoded = trunk_decode(self.model.decoder, trunk_encode(self.model.encoder, pixels)).float()
            return Judged({"pixel": distance(decoded, pixels, "l2")}, decoded, pixels)
        with self.autocast(pixels.device):
            with torch.set_grad_enabled(self.whole and torch.is_grad_enabled()):
                latent = self.model.encode_pixels(pixels)
            if noise and step >= (self.linear_steps or self.unit_step):
                fresh = torch.randn(latent.shape, generator=generator_of((*seed, NOISE))).to(latent)
                latent = latent + noise * self.deviation(latent) * fresh
            decoded = self.model.decode_pixels(latent)
        return Judged(self.pictures(decoded, pixels), decoded.float(), pixels)

    def save(self, path: Path, line: str) -> None:
        save_autoencoder(path, self.model, dtype=DTYPES[self.config.output.dtype], training=line)

    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        with torch.no_grad():
            output = self.model.decode(self.model.encode(high.to(self.model.device))).cpu()
        return high, output, high


def unit_latents(model: AutoEncoder, images: Tensor, centre: bool) -> None:
    """Scale each latent channel, in the weights, to the deviation (and mean) that the fixed constants expect.

    After it, ``(raw - 0.1159) * 0.3611`` has deviation 1 per channel over ``images`` (B, 3, H, W) in
    [0, 1], and the decoder gets the inverse. ``centre``: mean 0 as well, which the decoder's zero
    padding makes inexact along the border of a picture: train on a while after it, or leave it to the
    margin, which ``upscale`` cuts off.
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


# --- one step ---------------------------------------------------------------------------------


class OneStepTask(Task):
    """The degraded picture's latent to the sharp one's in one step, judged through the frozen decoder."""

    name = "flux"

    def __init__(self, config: TrainConfig, models: ModelSource | None = None) -> None:
        super().__init__(config)
        self.models = models or Files(config)
        self.autoencoder = self.models.autoencoder()
        self.flux = self.start()
        check_pair(self.flux.params, self.autoencoder.params)
        #: Processed latents (N, 16, h, w) of whole pictures, degraded and sharp, for the grid steps.
        self.tiles: tuple[Tensor, Tensor] | None = None
        #: The crops, if they are encoded once.
        self.cache: LatentCache | None = None
        if config.data.cached:
            self.cache = LatentCache(config, file_of(config.model.autoencoder, BUNDLED_AUTOENCODER))
        if config.train.checkpointing:
            checkpoint_blocks(self)

    def start(self) -> Flux:
        config = self.config
        flux = self.models.flux(None).train().requires_grad_(True) if config.model.start else new_flux(config)
        return with_constants(flux, config)

    def prepare(self, source: Source) -> None:
        train, data = self.config.train, self.config.data
        if not (train.grid_every or train.latent_steps):
            return
        lows: list[Tensor] = []
        highs: list[Tensor] = []
        device = self.autoencoder.device
        for i in range(train.grid_pictures):
            high = source.crops((self.config.seed, GRID, i), 1, data.picture_side)
            low = degraded(high, self.config, (self.config.seed, GRID, i))
            lows.append(self.encode(low.to(device)))
            highs.append(self.encode(high.to(device)))
        self.tiles = (torch.cat(lows), torch.cat(highs))

    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        train = self.config.train
        every, sizes = train.grid_every, train.grid_tokens
        if every and step % every == every // 2:
            start, goal = self.grid(sizes[step // every % len(sizes)], (*seed, GRID))
            return Judged({"grid": GRID_WEIGHT * distance(self.predict(start), goal)})
        if step < train.latent_steps:
            start, goal = self.latent_crops(len(high), (*seed, GRID))
            return Judged(self.objective.latents(self.predict(start), goal))
        if self.cache is None:
            start, goal = self.encode(low), self.encode(high)
        else:
            start, goal, high = self.cached(seed[1], high.device)
        predicted = self.predict(start)
        if not self.config.loss.sees_pictures:
            return Judged(self.objective.latents(predicted, goal))
        with self.autocast(high.device):
            decoded = self.autoencoder.decode_pixels(process_out(predicted)).float()
        terms = {**self.pictures(decoded, high * 2 - 1), **self.objective.latents(predicted, goal)}
        return Judged(terms, decoded, high * 2 - 1)

    def encode(self, pictures: Tensor) -> Tensor:
        """Processed latents (B, 16, h, w) float32 of pictures (B, 3, H, W) in [0, 1]; no gradient."""
        with torch.no_grad(), self.autocast(pictures.device):
            return process_in(self.autoencoder.encode_pixels(pictures * 2 - 1).float())

    def encoded(self, high: Tensor, low: Tensor) -> EncodedBatch:
        """What ``cached`` gives back for a batch, on the CPU; the sharp pictures are rounded to 8 bits first."""
        picture = rounded(high)
        return EncodedBatch(self.encode(low).cpu(), self.encode(picture.float() / 255).cpu(), picture.cpu())

    def cached(self, index: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """Batch number ``index``: both latents, and the sharp pictures (B, 3, H, W) in [0, 1]."""
        assert self.cache is not None
        batch = self.cache.read(index)
        low, high, picture = (t.to(device) for t in (batch.low, batch.high, batch.picture))
        return low, high, picture.float() / 255

    def predict(self, latent: Tensor) -> Tensor:
        """One step on processed latents (B, 16, h, w), float32."""
        flux = self.flux
        sigma = torch.full((len(latent),), flux.settings.sigma, device=latent.device)
        txt, vec = flux.prompt(len(latent))
        with self.autocast(latent.device):
            velocity = flux(latent.to(flux.dtype), sigma, txt, vec)
        return one_step(latent, velocity.float(), sigma)

    def grid(self, tokens: int, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """A grid of ``tokens`` x ``tokens`` laid out of whole pictures, (1, 16, 2 tokens, 2 tokens) twice.

        Shows the transformer the positions of 4K at the cost of no 4K picture.
        """
        assert self.tiles is not None
        low, high = self.tiles
        across = tokens * PATCH // low.shape[-1]
        chosen = torch.randint(0, len(low), (across * across,), generator=generator_of(seed)).to(low.device)

        def lay(source: Tensor) -> Tensor:
            return rearrange(source[chosen], "(rows columns) c h w -> 1 c (rows h) (columns w)", rows=across)

        return lay(low), lay(high)

    def latent_crops(self, count: int, seed: tuple[int, ...]) -> tuple[Tensor, Tensor]:
        """``count`` crops of the grid's pictures, (count, 16, h, w) twice: no autoencoder has to run."""
        assert self.tiles is not None
        ratio = self.autoencoder.params.ratio
        side, rim = self.config.data.crop // ratio, RIM // ratio
        random = generator_of(seed)
        chosen = torch.randint(0, len(self.tiles[0]), (count,), generator=random).tolist()
        corners = torch.randint(rim, self.tiles[0].shape[-1] - side - rim + 1, (count, 2), generator=random).tolist()
        places = [(i, ..., slice(y, y + side), slice(x, x + side)) for i, (y, x) in zip(chosen, corners, strict=True)]
        low, high = (torch.stack([tiles[place] for place in places]) for tiles in self.tiles)
        return low, high

    def term_names(self) -> list[str]:
        return super().term_names() + (["grid"] if self.config.train.grid_every else [])

    def save(self, path: Path, line: str) -> None:
        save_flux(path, self.flux, dtype=DTYPES[self.config.output.dtype], training=line)

    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        device = self.autoencoder.device
        low = degrade(high, self.config.degradation, (self.config.seed, SAMPLES, index)).low
        options = OneStepOptions(target=Target(short_edge=min(high.shape[-2:])), color="none", fidelity=0.0)
        output = upscale(low.to(device), self.flux, self.autoencoder, options).cpu()
        return resize(low, *output.shape[-2:]).clamp(0, 1), output, low


class LoraTask(OneStepTask):
    """The same with adapters on a frozen model."""

    name = "lora"
    adapters: dict[str, lora.LoraLinear]

    def start(self) -> Flux:
        model = self.config.model
        dtype = torch.bfloat16 if self.config.train.precision == "bf16" and _on_cuda(self.config) else None
        flux = with_constants(self.models.flux(dtype), self.config)
        self.adapters = lora.attach(flux, model.lora_rank, model.lora_alpha, model.lora_targets, self.config.seed)
        return flux

    def save(self, path: Path, line: str) -> None:
        lora.save_lora(path, self.flux, self.adapters, dtype=DTYPES[self.config.output.dtype], training=line)


def new_flux(config: TrainConfig) -> Flux:
    """A seeded Flux that starts as the identity: velocity 0."""
    torch.manual_seed(config.seed)
    model = config.model
    params = FluxParams(
        hidden_size=model.hidden_size,
        num_heads=model.num_heads,
        depth=model.depth,
        depth_single_blocks=model.depth_single_blocks,
        context_in_dim=model.context_in_dim,
        vec_in_dim=model.vec_in_dim,
        guidance_embed=False,
        axes_dim=_axes(model.hidden_size // model.num_heads),
        theta=(FLUX_THETA, FLUX_THETA),
    )
    txt = torch.randn(model.prompt_tokens, model.context_in_dim)
    flux = Flux(params, OneStepSettings(sigma=DEFAULT_SIGMA, txt=txt, vec=torch.zeros(model.vec_in_dim)))
    nn.init.zeros_(flux.final_layer.linear.weight)
    nn.init.zeros_(flux.final_layer.linear.bias)
    return flux


def _axes(head: int) -> tuple[int, int, int]:
    """Flux's split of a head's channels, as ``checkpoint.axes_of_head`` reads it back."""
    image = head * 7 // 16
    return head - 2 * image, image, image


def with_constants(flux: Flux, config: TrainConfig) -> Flux:
    """The config's sigma, grid and RFR, as numbers, in the model and so in every file it is saved to."""
    sigma = flux.settings.sigma if config.model.sigma is None else check_sigma(config.model.sigma)
    flux.settings = replace(flux.settings, sigma=sigma, train_tokens=config.model.train_tokens)
    rfr, axes = config.rfr.rfr(), flux.params.axes_dim
    theta = resolve(rfr, flux.params.theta, (axes[1], axes[2]), rfr.tokens)
    flux.params = replace(flux.params, theta=theta)
    flux.pe_embedder = RescaledEmbedND(axes, theta)
    return flux


def degraded(high: Tensor, config: TrainConfig, seed: tuple[int, ...]) -> Tensor:
    """(B, 3, H, W) -> the degraded ones, enlarged again by bicubic: what the encoder will see."""
    lows = [degrade(one, config.degradation, (*seed, DAMAGE, i)).low for i, one in enumerate(high.split(1))]
    return torch.cat([resize(low, *high.shape[-2:]) for low in lows]).clamp(0, 1)


def projected(output: Tensor, target: Tensor) -> Tensor:
    """What fidelity 1 makes of the output if the input is the target, shrunk and nothing else.

    Both (B, 3, H, W), any range, sides from PROJECTED_FACTOR up. Back-projection is linear, and takes the same
    from the output whatever the input: other damage moves the result by what no model could change.
    """
    error = output - target
    height, width = (side // PROJECTED_FACTOR for side in error.shape[-2:])
    return target + back_project(error, error.new_zeros(*error.shape[:2], height, width), 1.0)


def _on_cuda(config: TrainConfig) -> bool:
    return config.train.device.startswith("cuda") or (not config.train.device and torch.cuda.is_available())


def make_task(config: TrainConfig) -> Task:
    """The task of the config's kind, on the CPU. Raises UnsupportedCheckpointError for files that do not fit."""
    tasks: dict[str, Any] = {"autoencoder": AutoencoderTask, "one_step": OneStepTask, "lora": LoraTask}
    return tasks[config.kind](config)
