"""Which stride and shift an autoencoder was trained with: the round trip of a picture tells."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .autoencoder import AutoEncoder
from .checkpoint import Description
from .metrics import psnr
from .procedural import scene

#: (stride, shift) that exist: 8x has no shift.
GEOMETRIES = ((2, 0), (2, 1), (1, 0))

#: Our choice: the round trip must be this good at all, and this much better, to speak against a file.
CONVINCING_PSNR, CONVINCING_GAP = 18.0, 1.5

#: Largest side that is probed: the middle of the picture tells as much as all of it.
PROBE_SIDE = 512


@dataclass(frozen=True)
class Fit:
    """How well a picture survives encode and decode at one geometry."""

    stride: int
    shift: int
    psnr: float


def set_geometry(model: AutoEncoder, stride: int, shift: int) -> None:
    """Run the same weights at another stride and shift from now on."""
    model.params = replace(model.params, stride=stride, shift=shift)
    model.encoder.conv_in.stride = (stride, stride)
    model.decoder.stride, model.decoder.shift = stride, shift


def probe(model: AutoEncoder, image: Tensor) -> list[Fit]:
    """Round trips of the picture's middle at every geometry, best first. image (1, 3, H, W) in [0, 1]."""
    own = model.params.stride, model.params.shift
    image = _middle(image)
    fits: list[Fit] = []
    try:
        for stride, shift in GEOMETRIES:
            set_geometry(model, stride, shift)
            fits.append(Fit(stride, shift, psnr(model.decode(model.encode(image)).float().cpu(), image)))
    finally:
        set_geometry(model, *own)
    return sorted(fits, key=lambda fit: -fit.psnr)


def test_picture(side: int = 256) -> Tensor:
    """(1, 3, side, side) in [0, 1]: a procedural scene."""
    return torch.from_numpy(scene(1, side, side).copy()).permute(2, 0, 1)[None].float() / 255


def _middle(image: Tensor) -> Tensor:
    side = min(PROBE_SIDE, *(length // 32 * 32 for length in image.shape[-2:]))
    side = max(side, 32)
    top, left = ((length - side) // 2 for length in image.shape[-2:])
    return image[..., max(0, top) :, max(0, left) :][..., :side, :side]


def doubt(found: Description, model: AutoEncoder) -> str | None:
    """A sentence if a geometry that was only assumed fits clearly worse than another; None otherwise.

    Costs three round trips of 256 px, and only where nothing in the file states its stride.
    """
    if "stride" not in found.assumed:
        return None
    fits = probe(model, test_picture())
    own = next(fit for fit in fits if (fit.stride, fit.shift) == (model.params.stride, model.params.shift))
    best = fits[0]
    if best.psnr < CONVINCING_PSNR or best.psnr - own.psnr < CONVINCING_GAP or best.stride == own.stride:
        return None
    return (
        f"a test picture comes back at {best.psnr:.1f} dB with stride {best.stride} but at {own.psnr:.1f} dB "
        f"with stride {own.stride}: this looks like an {8 * best.stride}x VAE"
    )
