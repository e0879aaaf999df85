"""Training the one step: a whole transformer, or a LoRA on a frozen one. The autoencoder is frozen in both."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from ...bundled import BUNDLED_AUTOENCODER
from ...errors import OptionError
from ...images.resize import Target, resize
from ...models.flux import DEFAULT_SIGMA, Flux, FluxParams, OneStepSettings, check_sigma, split_head
from ...models.latent import PATCH, process_in, process_out
from ...models.rope import FLUX_THETA, RescaledEmbedND, resolve
from ...one_step import OneStepOptions, check_pair, one_step, upscale
from ...vae.autoencoder import AutoEncoder
from ...weights.checkpoint import save_flux
from ..config import RIM, TrainConfig
from ..data.degradation import degrade
from ..data.latent_cache import EncodedBatch, LatentCache, rounded
from ..data.sources import Source
from . import lora
from .diversity import AttentionLikeness, check_reached
from .model_source import Files, ModelSource, file_of
from .objectives import distance
from .task import DTYPES, GRID, SAMPLES, Judged, Task, autocast, checkpoint_blocks, degraded, generator_of

#: Weight of the latents' distance in the steps on a grid of 4K's size.
GRID_WEIGHT = 0.2


class OneStepTask(Task):
    """The degraded picture's latent to the sharp one's in one step, judged through the frozen decoder."""

    name = "flux"
    grid_steps = True

    def __init__(self, config: TrainConfig, models: ModelSource | None = None) -> None:
        super().__init__(config)
        self.models = models or Files(config)
        self.autoencoder = self.models.autoencoder()
        self.flux = self.start()
        check_pair(self.flux.params, self.autoencoder.params)
        check_grids(config, self.autoencoder.params.ratio)
        #: Processed latents (N, 16, h, w) of whole pictures, degraded and sharp, for the grid steps.
        self.tiles: tuple[Tensor, Tensor] | None = None
        #: The crops, if they are encoded once.
        self.cache: LatentCache | None = None
        if config.data.cached:
            self.cache = LatentCache(config, file_of(config.model.autoencoder, BUNDLED_AUTOENCODER))
        #: How alike tokens are after attention, where the loss asks for it.
        self.alike: AttentionLikeness | None = None
        if config.loss.diversity:
            check_reached(self.flux)
            self.alike = AttentionLikeness(self.flux)
        if config.train.checkpointing:
            checkpoint_blocks(self)

    def start(self) -> Flux:
        """The transformer that is trained, with the config's constants in it."""
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
        if self.alike is None:
            return self._judged(high, low, step, seed)
        with self.alike.collected() as found:
            judged = self._judged(high, low, step, seed)
        return replace(judged, terms={**judged.terms, **self.objective.attention(found)})

    def _judged(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        """The step without what attention itself is judged by: on a grid, on latents alone, or on pictures."""
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
        return encoded(self.autoencoder, pictures, self.config)

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


def check_grids(config: TrainConfig, ratio: int) -> None:
    """Raise OptionError unless the grids' sides are whole pictures. ratio: px per latent px of the autoencoder."""
    side = config.data.picture_side
    uneven = [tokens for tokens in config.train.grid_tokens if tokens * PATCH * ratio % side]
    if config.train.grid_every and uneven:
        raise OptionError(
            f"train.grid_tokens: {uneven[0]} tokens are no whole number of pictures of {side} px with this {ratio}x "
            "autoencoder; change one of the two"
        )


def encoded(autoencoder: AutoEncoder, pictures: Tensor, config: TrainConfig) -> Tensor:
    """Processed latents (B, 16, h, w) float32 of pictures (B, 3, H, W) in [0, 1], as a run encodes; no gradient."""
    with torch.no_grad(), autocast(config, pictures.device):
        return process_in(autoencoder.encode_pixels(pictures * 2 - 1).float())


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
        axes_dim=split_head(model.hidden_size // model.num_heads),
        theta=(FLUX_THETA, FLUX_THETA),
    )
    txt = torch.randn(model.prompt_tokens, model.context_in_dim)
    flux = Flux(params, OneStepSettings(sigma=DEFAULT_SIGMA, txt=txt, vec=torch.zeros(model.vec_in_dim)))
    nn.init.zeros_(flux.final_layer.linear.weight)
    nn.init.zeros_(flux.final_layer.linear.bias)
    return flux


def with_constants(flux: Flux, config: TrainConfig) -> Flux:
    """The config's sigma, grid and RFR, as numbers, in the model and so in every file it is saved to.

    So is that a run encodes by the posterior's mean, whatever the start file was trained with.
    """
    sigma = flux.settings.sigma if config.model.sigma is None else check_sigma(config.model.sigma)
    flux.settings = replace(flux.settings, sigma=sigma, train_tokens=config.model.train_tokens, encode="mean")
    rfr, axes = config.rfr.rfr(), flux.params.axes_dim
    theta = resolve(rfr, flux.params.theta, (axes[1], axes[2]), rfr.tokens)
    flux.params = replace(flux.params, theta=theta)
    flux.pe_embedder = RescaledEmbedND(axes, theta)
    return flux


def _on_cuda(config: TrainConfig) -> bool:
    return config.train.device.startswith("cuda") or (not config.train.device and torch.cuda.is_available())
