"""What the autoencoder's encoder says of a picture's latent, a normal distribution, and a sample drawn from it."""

from __future__ import annotations

import torch
from torch import Tensor

#: Bounds of the log variance, as diffusers' DiagonalGaussianDistribution has them.
_LOWEST, _HIGHEST = -30.0, 20.0

#: As many seeds as PyTorch's generators know.
_SEEDS = 2**64


def posterior_mean(moments: Tensor) -> Tensor:
    """Moments (B, 2 C, h, w), the encoder's output -> the mean (B, C, h, w), as a view."""
    return moments.chunk(2, dim=1)[0]


def posterior_sample(moments: Tensor, seed: int) -> Tensor:
    """Moments (B, 2 C, h, w), mean then log variance -> mean + standard deviation * noise, (B, C, h, w).

    The noise is drawn on the CPU in float32, for picture i of the batch with ``seed`` + i (any whole number, modulo
    2^64), so that neither the device nor the rest of the batch changes a picture. Computed in float32 at least; the
    result has the moments' dtype and device.
    """
    mean, log_variance = moments.to(torch.promote_types(moments.dtype, torch.float32)).chunk(2, dim=1)
    deviation = (log_variance.clamp(_LOWEST, _HIGHEST) / 2).exp()
    noise = torch.stack([_noise(mean.shape[1:], seed + i) for i in range(len(mean))])
    return (mean + deviation * noise.to(mean)).to(moments.dtype)


def _noise(shape: torch.Size, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed % _SEEDS))
