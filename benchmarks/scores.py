"""How near two pictures are: PSNR, and SSIM, GMSD and HaarPSI, which are piq's (extra ``bench``)."""

from __future__ import annotations

from torch import Tensor

from op4ksr_core.images.metrics import load_piq, psnr


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
