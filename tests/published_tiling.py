"""OMGSR-F's inference in tiles, written from its published code (``_forward_tile``) in words of our own.

With diffusers' FluxTransformer2DModel: velocities of square tiles of the latent, weighted, averaged, and one step.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from op4ksr_core import Flux, OneStepSettings, load_flux
from op4ksr_core.models.latent import position_ids


def strong_pair(make: Callable[..., nn.Module], folder: Path) -> tuple[Any, Flux]:
    """One set of seeded weights, whose positions and velocities show: diffusers' model, and ours of its files.

    make: the fixture ``make_diffusers_flux``. Ours has OMGSR-F's sigma and guidance, and a prompt embedding.
    """
    published: Any = make(seed=5, guidance_embeds=True)
    with torch.no_grad():
        for name, parameter in published.named_parameters():
            if "norm_q" in name or "norm_added_q" in name:
                parameter.mul_(4)
        published.proj_out.weight.mul_(3)
    published.save_pretrained(folder)
    ours = load_flux(folder / "diffusion_pytorch_model.safetensors")
    generator = torch.Generator().manual_seed(9)
    txt, vec = torch.randn(5, 24, generator=generator), torch.randn(12, generator=generator)
    ours.settings = OneStepSettings(sigma=0.5051, guidance=1.0, txt=txt, vec=vec)
    return published, ours


def starts(length: int, side: int, overlap: int) -> list[int]:
    """Of tiles along a side, as the published loop has them: until one reaches the end; the last is flush with it."""
    count, end = 0, 0
    while end < length:
        end = count * (side - overlap) + side
        count += 1
    return [index * (side - overlap) for index in range(count - 1)] + [length - side]


def velocity(model: Any, latent: Tensor, settings: OneStepSettings) -> Tensor:
    """Packed 2 x 2, run at the sigma with positions from 0 on, and unpacked. latent: processed (1, 16, h, w)."""
    assert settings.txt is not None and settings.vec is not None
    rows, columns = latent.shape[2] // 2, latent.shape[3] // 2
    tokens = latent.reshape(1, 16, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5).reshape(1, rows * columns, 64)
    with torch.no_grad():
        out = model(
            hidden_states=tokens,
            timestep=torch.tensor([settings.sigma]),
            guidance=torch.tensor([settings.guidance]),
            pooled_projections=settings.vec[None],
            encoder_hidden_states=settings.txt[None],
            txt_ids=torch.zeros(len(settings.txt), 3),
            img_ids=position_ids(0, rows, columns)[0],
            return_dict=False,
        )[0]
    return out.reshape(1, rows, columns, 16, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(latent.shape)


def in_tiles(model: Any, raw: Tensor, settings: OneStepSettings, tile: int, overlap: int) -> Tensor:
    """Raw latent (1, 16, h, w) -> that of one step, in tiles of so many latent px; float64 sums."""
    latent = (raw - 0.1159) * 0.3611
    index = np.arange(tile)
    along = np.exp(-((index - (tile - 1) / 2) ** 2) / tile**2 / 0.02)
    down = np.exp(-((index - tile / 2) ** 2) / tile**2 / 0.02)
    bell = torch.from_numpy(np.outer(down, along))
    total, weight = torch.zeros(latent.shape, dtype=torch.float64), torch.zeros(latent.shape, dtype=torch.float64)
    for left in starts(latent.shape[3], tile, overlap):
        for top in starts(latent.shape[2], tile, overlap):
            place = (..., slice(top, top + tile), slice(left, left + tile))
            total[place] += velocity(model, latent[place], settings) * bell
            weight[place] += bell
    return (latent - settings.sigma * total / weight) / 0.3611 + 0.1159
