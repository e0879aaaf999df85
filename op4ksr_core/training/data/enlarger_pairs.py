"""Pairs to train the enlarger on: sharp crops -> small ones, some of them damaged, each with its strength.

Every number is drawn from the batch's seed. A clean small picture is made as the quality benchmark makes it: bicubic,
antialiased, 8-bit levels. Our choice: the strength is drawn first and commands the damage (``milder``), so that it is a
bound on what is wrong with the picture, which a user can turn, and not an estimate of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from ..config_sections import EnlargerConfig
from .degradation import CLEAN, Degradation, Range, degrade

#: What the random numbers of a batch are for is a part of their seed.
FACTOR, STRENGTH, DAMAGE = 101, 102, 103


def milder(params: Degradation, strength: float) -> Degradation:
    """The same damage, each range ending at that share (0 to 1) of its way from harmless to worst.

    Harmless: the least blur, no noise, quality 95 (or better), the size kept, no ringing (sinc filters of cut-off pi).
    """

    def blur(r: Range) -> Range:
        return r[0], r[0] + strength * (r[1] - r[0])

    def size(r: Range) -> Range:
        return 1 - strength * (1 - min(1.0, r[0])), 1 + strength * (max(1.0, r[1]) - 1)

    def quality(r: Range) -> Range:
        best = max(95.0, r[1])
        return best - strength * (best - r[0]), best

    return replace(
        params,
        blur_deviation=tuple(map(blur, params.blur_deviation)),
        resize_range=tuple(map(size, params.resize_range)),
        noise_level=tuple((strength * r[0], strength * r[1]) for r in params.noise_level),
        jpeg_quality=tuple(map(quality, params.jpeg_quality)),
        sinc=strength * params.sinc,
        sinc_cutoff=(math.pi - strength * (math.pi - params.sinc_cutoff[0]), math.pi),
        final_sinc=strength * params.final_sinc,
    )


def after_shrinking(params: Degradation) -> Degradation:
    """One round of the damage for a picture that is small already: the last round's ranges, size and rings left out."""
    return replace(
        params,
        factor=(1.0, 1.0),
        clean=0.0,
        order=1,
        blur=params.blur[-1:],
        blur_deviation=params.blur_deviation[-1:],
        resize=(0.0, 0.0, 1.0),
        resize_range=params.resize_range[-1:],
        noise=params.noise[-1:],
        noise_level=params.noise_level[-1:],
        jpeg=params.jpeg[-1:],
        jpeg_quality=params.jpeg_quality[-1:],
        final_sinc=0.0,
    )


def small(high: Tensor, factor: int, config: EnlargerConfig, damage: Degradation, seed: tuple[int, ...]) -> Tensor:
    """One sharp picture (1, 3, H, W) in [0, 1] -> (1, 4, H / factor, W / factor): colours, and the strength's plane."""
    rng = np.random.default_rng((*seed, STRENGTH))
    own = (*seed, DAMAGE)
    shrink = replace(CLEAN, factor=(float(factor),) * 2)
    if rng.random() < damage.clean:
        strength, low = 0.0, degrade(high, shrink, own).low
    else:
        strength = float(rng.random())
        params = milder(replace(damage, clean=0.0, factor=shrink.factor), strength)
        if rng.random() < config.simple:
            low = degrade(degrade(high, shrink, own).low, after_shrinking(params), own).low
        else:
            low = degrade(high, params, own).low
    return torch.cat([low, torch.full_like(low[:, :1], strength)], 1)


def factor_of(config: EnlargerConfig, seed: tuple[int, ...]) -> int:
    """The factor of a batch."""
    shares = np.asarray(config.often, np.float64)
    return int(np.random.default_rng((*seed, FACTOR)).choice(config.factors, p=shares / shares.sum()))


def enlarger_pairs(
    high: Tensor, config: EnlargerConfig, damage: Degradation, seed: tuple[int, ...]
) -> tuple[Tensor, Tensor]:
    """Sharp crops (B, 3, S, S) -> sharp ones (B, 3, s * factor, s * factor) and small ones (B, 4, s, s).

    s is S over the largest factor, whatever the batch's: steps of one cost. What a smaller factor does not need is cut.
    """
    factor = factor_of(config, seed)
    side = high.shape[-1] // config.factors[-1] * factor
    high = high[..., :side, :side].contiguous()
    lows = [small(one, factor, config, damage, (*seed, i)) for i, one in enumerate(high.split(1))]
    return high, torch.cat(lows)
