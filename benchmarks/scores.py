"""How near two pictures are: PSNR, and SSIM, GMSD and HaarPSI, which are piq's (extra ``bench``)."""

from __future__ import annotations

from torch import Tensor

from op4ksr_core.images.io import to_8_bit
from op4ksr_core.images.metrics import load_piq, psnr
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.loss import shared_tile_energy
from op4ksr_core.periodicity.meter import measure_periodicity

#: Periods, px, beside the factor's whose mean tile is told: of the VAE, and of a token.
TILES = (16, 32)

#: Scores where less is better; of those of ``fidelity_scores``.
LESS = ("gmsd",)


def fidelity_scores(image: Tensor, target: Tensor) -> dict[str, float]:
    """PSNR (dB), SSIM and HaarPSI (1 is best) and GMSD (0 is best) of one pair (1, 3, H, W) in [0, 1]."""
    piq = load_piq()
    image, target = image.float().clamp(0, 1), target.float()
    return {
        "psnr": psnr(image, target),
        "ssim": float(piq.ssim(image, target, data_range=1.0)),  # pyright: ignore
        "gmsd": float(piq.gmsd(image, target, data_range=1.0)),  # pyright: ignore
        "haarpsi": float(piq.haarpsi(image, target, data_range=1.0)),  # pyright: ignore
    }


def photo_scores(output: Tensor, low: Tensor, high: Tensor) -> dict[str, float]:
    """All that is measured of an enlarged photo, all (1, 3, ., .) in [0, 1], the output rounded to 8 bit first.

    ``fidelity_scores``; lr_psnr: dB between the output, shrunk, and what it was made from; alarms: 1 where the meter
    alarms, with that as reference; tile, tile_16, tile_32: see ``mean_tile``, of the factor's period and these.
    """
    output = to_8_bit(output)
    factor = high.shape[-1] // low.shape[-1]
    back = resize(output, *low.shape[-2:]).clamp(0, 1)
    found = fidelity_scores(output, high)
    found |= {"lr_psnr": psnr(back, low), "alarms": float(measure_periodicity(output, low).alarm)}
    found["tile"] = mean_tile(output, high, factor)
    return found | {f"tile_{period}": mean_tile(output, high, period) for period in TILES}


def mean_tile(output: Tensor, high: Tensor, period: int) -> float:
    """RMS of the mean tile of that period in output - high, its own mean taken off; grey levels of 255.

    Of (1, 3, H, W) pictures in [0, 1], the error's mean over the channels. With n tiles chance alone gives an error
    of standard deviation s about s / sqrt(n). 0 where fewer than two tiles fit.
    """
    error = (output - high).mean(1, keepdim=True).double() * 255
    height, width = (length // period * period for length in error.shape[-2:])
    cut = error[..., :height, :width]
    energy = shared_tile_energy(cut - cut.mean(), period) if cut.numel() else None
    return 0.0 if energy is None else float(energy.sqrt())
