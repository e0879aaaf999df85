"""Training detail upon a base, end to end: transformer and autoencoder together, judged by the finished picture.

``result = finish(base + decode(z_hr) - decode(z_lr))``, as ``one_step`` makes it of a model whose output is "detail":
the enlarger that makes the base is frozen, the terms come after colour fix and back-projection. Our choice throughout.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor

from ...base import Learned
from ...bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from ...errors import OptionError
from ...images.color import BACK_PROJECTIONS, blur_a_trous, wavelet_levels
from ...images.io import to_8_bit
from ...images.resize import Target, resize
from ...models.enlarger import Enlarger, bicubic
from ...models.flux import Flux, sigma_at
from ...models.latent import PATCH, process_in, process_out
from ...one_step import OneStepOptions, check_pair, followed_fidelity, one_step, upscale
from ...vae.autoencoder import AutoEncoder, AutoEncoderParams
from ...weights.checkpoint import load_flux, save_autoencoder, save_flux
from ..config import TrainConfig
from ..data.enlarger_pairs import small
from ..data.sources import Source
from .enlarger import enlarger_of, whole
from .model_source import autoencoder_of, file_of
from .objectives import distance
from .one_step import GRID_WEIGHT, new_flux, with_constants
from .task import DTYPES, GRID, Judged, Task, checkpoint_blocks, generator_of


class DetailTask(Task):
    """Small pictures of every strength -> base -> one step's detail upon it, against the sharp ones."""

    name = "flux"
    also = ("vae",)
    pairs = False
    grid_steps = True

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.enlarger: Enlarger = enlarger_of(config, "enlarger").requires_grad_(False)
        self.autoencoder = _autoencoder(config)
        self.flux = _flux(config)
        check_pair(self.flux.params, self.autoencoder.params)
        check_sides(config, self.autoencoder.params.ratio * PATCH)
        #: Of grid steps: where fresh crops come from.
        self.source: Source | None = None
        self.to(memory_format=torch.channels_last)  # pyright: ignore
        if config.train.checkpointing:
            checkpoint_blocks(self)

    def prepare(self, source: Source) -> None:
        self.source = source

    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        """high: (B, 3, h * factor, w * factor); low: (B, 4, h, w), its last plane the strength; both in [0, 1]."""
        every, sizes = self.config.train.grid_every, self.config.train.grid_tokens
        oracle = step < self.config.train.oracle_steps
        if every and step % every == every // 2 and not oracle:
            return Judged({"grid": GRID_WEIGHT * self.uneven(sizes[step // every % len(sizes)], step, low.device)})
        colours, strength = low[:, :3], low[:, 3, 0, 0]
        base = self.base(low, high.shape[-1] // low.shape[-1])
        raw, terms = self.encoded(base), dict[str, Tensor]()
        if oracle:
            sharp = self.encoded(high)
        else:
            start = process_in(raw)
            predicted = self.predict(start, strength)
            sharp = process_out(predicted)
            if self.config.loss.common:
                terms["common"] = self.config.loss.common * common_to_tokens(predicted - start)
            if self.config.loss.latent:
                with torch.no_grad():
                    goal = process_in(self.encoded(high))
                terms |= self.objective.latents(predicted, goal)
        detail, decoded = self.difference(sharp, raw)
        output = finished(base, detail, colours, _fidelity(strength))
        output, target = output * 2 - 1, high * 2 - 1
        terms |= self.objective.pictures(output, target)
        if self.config.loss.reconstruction:
            terms["reconstruction"] = self.config.loss.reconstruction * distance(decoded, base * 2 - 1)
        return Judged(terms, output, target)

    def base(self, low: Tensor, factor: int) -> Tensor:
        """(B, 4, h, w), the last plane the strength -> the enlarged, (B, 3, h * factor, w * factor) in [0, 1]."""
        with torch.no_grad(), self.autocast(low.device):
            return self.enlarger(low[:, :3], factor, low[:, 3:]).float().clamp(0, 1)

    def difference(self, sharp: Tensor, raw: Tensor) -> tuple[Tensor, Tensor]:
        """Raw latents after the step and before (B, C, h, w) -> the detail in [0, 1]'s scale, and the base decoded
        again in [-1, 1], (B, 3, H, W) both."""
        with self.autocast(raw.device):
            both = self.autoencoder.decode_pixels(torch.cat([sharp, raw]))
        sharper, decoded = both.float().clamp(-1, 1).chunk(2)
        return (sharper - decoded) / 2, decoded

    def encoded(self, base: Tensor) -> Tensor:
        """Raw latents (B, C, h, w) float32 of pictures (B, 3, H, W) in [0, 1]."""
        pixels = (base * 2 - 1).contiguous(memory_format=torch.channels_last)
        whole = self.config.model.part == "all" and torch.is_grad_enabled()
        with torch.set_grad_enabled(whole), self.autocast(base.device):
            return self.autoencoder.encode_pixels(pixels).float()

    def predict(self, latent: Tensor, strength: Tensor) -> Tensor:
        """One step on processed latents (B, C, h, w), float32; strength (B,) in [0, 1] gives each its sigma."""
        settings = self.flux.settings
        sigma = settings.sigma + strength * (sigma_at(settings, 1.0) - settings.sigma)
        with self.autocast(latent.device):
            velocity = self.flux(latent, sigma, *self.flux.prompt(len(latent)))
        return one_step(latent, velocity.float(), sigma)

    def uneven(self, tokens: int, step: int, device: torch.device) -> Tensor:
        """How far the step on a grid of ``tokens`` x ``tokens`` is from the same on each of its crops alone.

        Shows the transformer the positions of 4K, where a crop's detail is to be what it is in a small picture.
        """
        assert self.source is not None
        config, side = self.config, self.config.data.crop
        across = tokens * PATCH * self.autoencoder.params.ratio // side
        seed, factor = (config.seed, GRID, step), config.enlarger.factors[-1]
        strength = torch.rand(1, generator=generator_of(seed)).to(device)
        with torch.no_grad():
            crops = self.source.crops(seed, across * across, side)
            damage = (factor, config.enlarger, config.degradation)
            lows = [small(one, *damage, (*seed, i)) for i, one in enumerate(crops.split(1))]
            starts = torch.cat([process_in(self.encoded(self.base(low.to(device), factor))) for low in lows])
            goal = torch.cat([self.predict(start, strength) for start in starts.split(1)])
        return distance(self.predict(_laid(starts, across), strength), _laid(goal, across))

    def loss_names(self) -> list[str]:
        own = [name for name in ("common", "latent", "reconstruction") if getattr(self.config.loss, name)]
        return super().loss_names() + own

    def save(self, path: Path, line: str) -> None:
        """The transformer's file, and the autoencoder's beside it."""
        dtype = DTYPES[self.config.output.dtype]
        save_flux(path, self.flux, dtype=dtype, training=line)
        beside = path.with_name(path.name.replace(self.name, self.also[0], 1))
        save_autoencoder(beside, self.autoencoder, dtype=dtype, training=line)

    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        factor, device = self.config.enlarger.factors[-1], self.autoencoder.device
        low = to_8_bit(resize(whole(high, factor), *(side // factor for side in high.shape[-2:])))
        options = OneStepOptions(Target(scale=factor), repair=0.0)
        base = Learned(self.enlarger, "enlarger")
        output = upscale(low.to(device), self.flux, self.autoencoder, options, base=base).cpu()
        return bicubic(low, factor).clamp(0, 1), output, low


def check_sides(config: TrainConfig, token: int) -> None:
    """Raise OptionError unless crops are whole tokens at each factor, and grids whole crops. token: its side, px."""
    factors = config.enlarger.factors
    for name, side in config.data.crops.items():
        if any(side // factors[-1] * factor % token for factor in factors):
            raise OptionError(
                f"data.{name}: expected whole tokens of {token} px at each of enlarger.factors, got {side}; use another"
            )
    uneven = [tokens for tokens in config.train.grid_tokens if tokens * token % config.data.crop]
    if config.train.grid_every and uneven:
        raise OptionError(
            f"train.grid_tokens: {uneven[0]} tokens of {token} px are no whole number of crops of "
            f"{config.data.crop} px; change one of the two"
        )


def finished(base: Tensor, detail: Tensor, low: Tensor, fidelity: Tensor) -> Tensor:
    """What colour fix ("wavelet") and back-projection make of base + detail, not clamped; gradients go through.

    base, detail (B, 3, H, W), low (B, 3, h, w) in [0, 1], fidelity (B,). The detail's low frequencies are the base's.
    """
    height, width = base.shape[-2:]
    output = base + detail - blur_a_trous(detail, wavelet_levels(height / low.shape[-2]))
    for _ in range(BACK_PROJECTIONS):
        error = (low - resize(output, *low.shape[-2:])) * fidelity[:, None, None, None]
        output = output + resize(error, height, width)
    return output


def common_to_tokens(change: Tensor) -> Tensor:
    """RMS of the mean token of latents (B, C, h, w), sides even: what repeats every 32 px whatever the picture is.

    Our choice. A feature loss rewards a mesh over pictures that lack texture, and crops of a few tokens are too small
    for L_AP to see it: without this term 99 % of the change (RMS) that a transformer learnt was the same everywhere.
    """
    tokens = rearrange(change.float(), "b c (h p) (w q) -> (b h w) (c p q)", p=PATCH, q=PATCH)
    return (tokens.mean(0).square().mean() + 1e-10).sqrt()


def _fidelity(strength: Tensor) -> Tensor:
    """What the default fidelity of 1 is at each strength, (B,)."""
    return torch.tensor([followed_fidelity(1.0, repair) for repair in strength.tolist()], device=strength.device)


def _laid(tiles: Tensor, across: int) -> Tensor:
    return rearrange(tiles, "(rows columns) c h w -> 1 c (rows h) (columns w)", rows=across)


def _autoencoder(config: TrainConfig) -> AutoEncoder:
    model = config.model
    if model.autoencoder:
        found = autoencoder_of(config, file_of(model.autoencoder, BUNDLED_AUTOENCODER))
    else:
        torch.manual_seed(config.seed)
        found = AutoEncoder(
            AutoEncoderParams(
                widths=model.widths,
                layers_per_block=model.layers_per_block,
                norm_groups=model.norm_groups,
                mid_attention=model.mid_attention,
            )
        )
    found.train().requires_grad_(False)
    found.encoder.requires_grad_(model.part == "all")
    found.decoder.requires_grad_(model.part != "none")
    return found


def _flux(config: TrainConfig) -> Flux:
    """The transformer, whose file will say that its output is detail."""
    model = config.model
    flux = load_flux(file_of(model.start, BUNDLED_FLUX)) if model.start else new_flux(config)
    flux = with_constants(flux.float(), config)
    worst = flux.settings.sigma_repair if model.sigma_repair is None else model.sigma_repair
    flux.settings = replace(flux.settings, output="detail", sigma_repair=worst)
    return flux.train().requires_grad_(True)
