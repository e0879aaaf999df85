"""What a training step is judged by: terms on pictures and latents, each alone, and their weighted sum.

Pictures are (B, 3, H, W) in [-1, 1] here, as the autoencoder has them. The paper names only L_AP
(``periodicity.loss``); the term on attention is FluxSR's (``diversity``); the others and all weights are our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import Conv2d
from torch.nn import functional as F

from ...periodicity.loss import PeriodicityLoss
from ..config_sections import LossConfig
from .bands import band_distance
from .perceptual import perceptual_loss

#: Charbonnier's rounding at 0, on a scale of 2 for the whole range.
CHARBONNIER = 1e-3

#: Scales of the frequency supervision, each half of the one before.
SCALES = 3


def distance(output: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """Mean ``l1``, ``l2`` or ``charbonnier`` (sqrt(d^2 + 1e-6) - 1e-3) of two tensors of one shape."""
    error = output - target
    if kind == "l2":
        return error.square().mean()
    if kind == "charbonnier":
        return ((error.square() + CHARBONNIER**2).sqrt() - CHARBONNIER).mean()
    return error.abs().mean()


def gradient_distance(output: Tensor, target: Tensor, kind: str = "l1") -> Tensor:
    """``distance`` of the horizontal and the vertical differences, mean of both."""
    error = output - target
    parts = [distance(d, torch.zeros_like(d), kind) for d in (error.diff(dim=-1), error.diff(dim=-2))]
    return (parts[0] + parts[1]) / 2


def frequency_distance(output: Tensor, target: Tensor, scales: int = SCALES) -> Tensor:
    """Mean magnitude of the difference's spectrum (orthonormal FFT), over scales halved by 2 x 2 means.

    Magnitudes are rounded at 0 as Charbonnier's. Scales of less than 8 px are left out.
    """
    error = (output - target).to(torch.float64 if output.dtype == torch.float64 else torch.float32)
    parts: list[Tensor] = []
    for _ in range(scales):
        if parts and min(error.shape[-2:]) < 8:
            break
        spectrum = torch.view_as_real(torch.fft.rfft2(error, norm="ortho"))
        parts.append(((spectrum.square().sum(-1) + CHARBONNIER**2).sqrt() - CHARBONNIER).mean())
        error = F.avg_pool2d(error, 2)
    return torch.stack(parts).mean()


def inner(picture: Tensor, border: int) -> Tensor:
    """(B, C, H, W) without ``border`` px on each side; the whole where less than 64 px would be left.

    An autoencoder errs most along the border, where its convolutions see zeros, and that hides a
    mesh from L_AP: measured on the bundled weights and flat pictures, 32 px less on each side made
    L_AP five to seven times as large.
    """
    if not border or min(picture.shape[-2:]) - 2 * border < 64:
        return picture
    return picture[..., border:-border, border:-border]


# --- adversarial, optional ----------------------------------------------------------------------


class PatchDiscriminator(nn.Module):
    """A small PatchGAN (Isola et al. 2017), spectrally normed: (B, 3, H, W) -> logits (B, 1, ~H/8, ~W/8)."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        widths = (3, width, 2 * width, 4 * width)
        layers: list[nn.Module] = []
        for a, b in zip(widths[:-1], widths[1:], strict=True):
            layers += [nn.utils.parametrizations.spectral_norm(Conv2d(a, b, 4, 2, 1)), nn.LeakyReLU(0.2)]
        self.body = nn.Sequential(*layers, Conv2d(widths[-1], 1, 3, 1, 1))

    def forward(self, pictures: Tensor) -> Tensor:
        return self.body(pictures)


def fool(judge: nn.Module, output: Tensor) -> Tensor:
    """The model's term: hinge GAN, -mean of the judge's logits."""
    return -judge(output).mean()


def judge_loss(judge: nn.Module, output: Tensor, target: Tensor) -> Tensor:
    """The judge's own: hinge, output detached."""
    real, fake = judge(target), judge(output.detach())
    return (F.relu(1 - real).mean() + F.relu(1 + fake).mean()) / 2


# --- together -----------------------------------------------------------------------------------


class Objective(nn.Module):
    """The terms that ``LossConfig`` gives a weight to, by name and weighted; their sum is the loss."""

    def __init__(self, config: LossConfig) -> None:
        super().__init__()
        self.config = config
        self.periodicity = PeriodicityLoss(margin=config.periodicity_margin)
        self.perceptual = perceptual_loss(config.perceptual_kind) if config.perceptual else None

    def names(self, latent: bool) -> list[str]:
        """The terms that will be there; ``latent``: with two latents to compare, as a transformer has."""
        transformers = ["latent", "diversity"]
        on_pictures = ["periodicity", "perceptual", "adversarial"]
        all_terms = ["pixel", "gradient", "frequency", "bands", *transformers, *on_pictures]
        return [name for name in all_terms if getattr(self.config, name) and (latent or name not in transformers)]

    def pictures(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """Terms on pictures (B, 3, H, W) in [-1, 1], each times its weight."""
        config, terms = self.config, dict[str, Tensor]()
        output, target = output.float(), target.float()
        if config.pixel:
            terms["pixel"] = config.pixel * distance(output, target, config.pixel_kind)
        if config.gradient:
            terms["gradient"] = config.gradient * gradient_distance(output, target, config.pixel_kind)
        if config.frequency:
            terms["frequency"] = config.frequency * frequency_distance(output, target)
        if config.bands:
            terms["bands"] = config.bands * band_distance(output, target)
        if config.periodicity:
            pair = [inner((picture + 1) / 2, config.periodicity_border) for picture in (output, target)]
            terms["periodicity"] = config.periodicity * self.periodicity(pair[0], pair[1])
        if self.perceptual is not None:
            terms["perceptual"] = config.perceptual * self.perceptual(output, target)
        return terms

    def latents(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The term on processed latents of one shape, times its weight."""
        if not self.config.latent:
            return {}
        output, target, kind = output.float(), target.float(), self.config.latent_kind
        apart = band_distance(output, target) if kind == "bands" else distance(output, target, kind)
        return {"latent": self.config.latent * apart}

    def attention(self, likenesses: Sequence[Tensor]) -> dict[str, Tensor]:
        """The term on attention, times its weight: the mean over the layers of how alike tokens are (``diversity``)."""
        return {"diversity": self.config.diversity * torch.stack(list(likenesses)).mean()}
