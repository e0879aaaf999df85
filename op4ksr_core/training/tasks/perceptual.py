"""Perceptual terms of the loss, from piq (extra: bench) and ``features``. Weights are read from this disk only."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, autocast

from ...errors import OptionError
from ...images.metrics import load_piq
from .features import FeatureDistance

_MEASURES: dict[str, Callable[[Any], Any]] = {
    "gmsd": lambda piq: piq.GMSDLoss(data_range=1.0),
    "ms_gmsd": lambda piq: piq.MultiScaleGMSDLoss(data_range=1.0),
    "haarpsi": lambda piq: piq.HaarPSILoss(data_range=1.0),
    "ssim": lambda piq: piq.SSIMLoss(data_range=1.0),
    "lpips": lambda piq: piq.LPIPS(),
    "dists": lambda piq: piq.DISTS(),
}

#: The measures that are networks: their classes in piq, each of which names its own weights' address.
_NETWORKS = {"lpips": "LPIPS", "dists": "DISTS"}

#: The network beneath both, as torchvision names its file.
_BACKBONE = "https://download.pytorch.org/models/vgg16-397923af.pth"


def perceptual_loss(kind: str) -> Callable[[Tensor, Tensor], Tensor]:
    """A differentiable measure, piq's or "efficientnet", 0 best, for pictures (B, 3, H, W) in [-1, 1].

    lpips and dists need their networks' weights in torch's hub folder; the others need no file. Raises OptionError for
    another kind, where piq is not installed, and for a file of weights that is not there: nothing is fetched.
    """
    if kind == "efficientnet":
        return FeatureDistance()
    if kind not in _MEASURES:
        raise OptionError(f"perceptual loss: expected one of {', '.join((*_MEASURES, 'efficientnet'))}; got {kind!r}")
    piq = load_piq()
    if kind in _NETWORKS:
        _check_weights(kind, getattr(piq, _NETWORKS[kind])._weights_url)
    measure = _MEASURES[kind](piq)

    def loss(output: Tensor, target: Tensor) -> Tensor:
        with autocast(output.device.type, enabled=False):
            measure.to(output.device)
            pair = [picture if picture.dtype == torch.float64 else picture.float() for picture in (output, target)]
            return measure(*(((picture + 1) / 2).clamp(0, 1) for picture in pair))

    return loss


def _check_weights(kind: str, own: str) -> None:
    """Raise OptionError unless both files lie where piq and torchvision look before they fetch."""
    for address in (own, _BACKBONE):
        path = Path(torch.hub.get_dir()) / "checkpoints" / address.rpartition("/")[2]
        if not path.is_file():
            raise OptionError(
                f"loss.perceptual_kind: {kind!r} needs {path}, which is not there, and nothing is fetched; "
                f"put {address} there, or choose gmsd, ms_gmsd, haarpsi or ssim, which need no file"
            )
