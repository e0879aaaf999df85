"""Which stride and shift an autoencoder was trained with: the finest detail of a round trip tells.

Not the PSNR: an F16 model run at stride 1 sees the picture as if enlarged twice and returns it even
better than at stride 2 (measured: the bundled model by 1.1 dB on one photo, 1.7 dB on a procedural picture).
But an F8 model run at stride 2 sees every second pixel only, so that its output's finest octave has
nothing in common with the picture's: correlation 0.01, against 0.22 at stride 1 (a small F8 model
trained for the purpose), where an F16 model at stride 2 has 0.22. Between the shifts the PSNR decides.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import Tensor

from ..bundled import SAMPLE_PHOTO
from ..errors import ImageError
from ..images.io import load_image
from ..images.metrics import psnr
from ..images.resize import middle, resize
from ..vae.autoencoder import AutoEncoder
from .description import Description

#: (stride, shift) that exist: 8x has no shift.
STRIDES_AND_SHIFTS = ((2, 0), (2, 1), (1, 0))

#: Our choice: finest detail that counts as kept at stride 2, and that an 8x model must keep at stride 1.
KEPT_DETAIL, KEPT_DETAIL_8X = 0.05, 0.15

#: Largest side that is probed: the middle of the picture tells as much as all of it.
PROBE_SIDE = 512


@dataclass(frozen=True)
class Fit:
    """How well a picture survives encode and decode at one geometry."""

    stride: int
    shift: int
    psnr: float
    #: Correlation, -1 to 1, of the finest octave of output and picture.
    detail: float


def set_geometry(model: AutoEncoder, stride: int, shift: int) -> None:
    """Run the same weights at another stride and shift from now on."""
    model.bounded.params = replace(model.params, stride=stride, shift=shift)
    model.encoder.conv_in.stride = (stride, stride)
    model.decoder.stride, model.decoder.shift = stride, shift


def probe(model: AutoEncoder, image: Tensor) -> list[Fit]:
    """Round trips of the picture's middle at every geometry. image (1, 3, H, W) in [0, 1], on any device."""
    own = model.params.stride, model.params.shift
    image = _middle(image).float().cpu()
    fits: list[Fit] = []
    try:
        for stride, shift in STRIDES_AND_SHIFTS:
            set_geometry(model, stride, shift)
            output = model.decode(model.encode(image)).float().cpu()
            fits.append(Fit(stride, shift, psnr(output, image), _correlation(_finest(output), _finest(image))))
    finally:
        set_geometry(model, *own)
    return fits


def verdict(fits: list[Fit]) -> Fit | None:
    """The geometry that the round trips speak for; None if they do not tell (an untrained model, say)."""
    sixteen = max((fit for fit in fits if fit.stride == 2), key=lambda fit: fit.psnr)
    eight = next(fit for fit in fits if fit.stride == 1)
    if sixteen.detail >= KEPT_DETAIL:
        return sixteen
    return eight if eight.detail >= KEPT_DETAIL_8X else None


def doubt(found: Description, model: AutoEncoder) -> str | None:
    """A sentence if the stride was only assumed and the round trip speaks for the other; None otherwise.

    Costs three round trips of 256 px, and only where nothing in the file states its stride.
    """
    if "stride" not in found.assumed:
        return None
    fit = verdict(probe(model, sample_picture()))
    if fit is None or fit.stride == model.params.stride:
        return None
    return (
        f"a test picture keeps its finest detail at stride {fit.stride} only (correlation {fit.detail:.2f}): "
        f"this looks like an {8 * fit.stride}x VAE"
    )


def sample_picture(side: int = 256) -> Tensor:
    """(1, 3, side, side) in [0, 1]: the middle of the bundled photo."""
    return middle(load_image(SAMPLE_PHOTO).image, side, side)


def _finest(image: Tensor) -> Tensor:
    """What is lost when the picture is halved and doubled again."""
    height, width = image.shape[-2:]
    return image - resize(resize(image, height // 2, width // 2), height, width)


def _correlation(a: Tensor, b: Tensor) -> float:
    norm = (a.norm() * b.norm()).item()
    return 0.0 if norm == 0 else (a * b).sum().item() / norm


def _middle(image: Tensor) -> Tensor:
    """The picture's middle, at most 512 px, sides whole multiples of 32 px."""
    if min(image.shape[-2:]) < 32:
        raise ImageError(f"probe: the picture is {image.shape[-1]}x{image.shape[-2]} px; give one of at least 32x32")
    height, width = (min(PROBE_SIDE, length // 32 * 32) for length in image.shape[-2:])
    return middle(image, height, width)
