"""Training an autoencoder: what one step computes, and how its latents get the scale that the transformer expects."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...bundled import BUNDLED_AUTOENCODER
from ...models.latent import LATENT_SCALE, LATENT_SHIFT
from ...vae.autoencoder import AutoEncoder, AutoEncoderParams
from ...weights.checkpoint import save_autoencoder
from ..config import TrainConfig
from ..data.sources import Source
from . import linear_start
from .linear_start import trunk_decode, trunk_encode
from .model_source import autoencoder_of, file_of
from .objectives import distance
from .task import DTYPES, NOISE, UNIT, Judged, Task, checkpoint_blocks, generator_of


class AutoencoderTask(Task):
    """Pictures through the latent and back; half of them sharp, half as the one step's encoder sees them."""

    name = "autoencoder"
    pairs = False

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        model = config.model
        if model.start:
            self.model = autoencoder_of(config, file_of(model.start, BUNDLED_AUTOENCODER)).train().requires_grad_(True)
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
        """Before the first batch, of a resumed run too: a stream then stands at the same place."""
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
