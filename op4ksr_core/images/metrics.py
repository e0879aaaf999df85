"""How near two pictures are; piq, which has more such measures, where it is installed (extra ``bench``)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..errors import Op4ksrError, OptionError


def is_finite(image: Tensor) -> bool:
    """Whether it holds neither NaN nor infinity: they survive a sum, which needs no copies and a tenth of the time."""
    return bool(image.sum(dtype=torch.promote_types(image.dtype, torch.float32)).isfinite())


def check_finite_output(part: str, output: Tensor, where: str = "") -> None:
    """Raise Op4ksrError rather than go on to a black picture. where: what the message begins with."""
    if not is_finite(output):
        raise Op4ksrError(
            f"{where}the {part}'s output is not finite (NaN); if it runs in float16, run it in float32 or bfloat16, "
            "else its weights are damaged: fetch them again"
        )


def psnr(image: Tensor, target: Tensor) -> float:
    """Peak signal to noise in dB over all channels; both (B, C, H, W) in [0, 1]. inf if equal."""
    error = (image.double() - target.double()).square().mean().item()
    return math.inf if error == 0 else -10 * math.log10(error)


def luma(image: Tensor) -> Tensor:
    """(B, 3, H, W) RGB -> (B, 1, H, W), Rec. 601 weights."""
    weights = torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype, device=image.device)
    return (image * weights.view(1, 3, 1, 1)).sum(1, keepdim=True)


def load_piq() -> Any:
    """The piq library. Raises OptionError where it (or the torchvision it needs) is not installed."""
    try:
        import piq  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        raise OptionError(
            f"SSIM, GMSD and HaarPSI need piq and torchvision: pip install piq torchvision ({error})"
        ) from error
    return piq  # pyright: ignore
