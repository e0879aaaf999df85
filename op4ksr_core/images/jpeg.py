"""JPEG's losses in torch: 4:2:0 chroma, 8x8 DCT, quantization with the standard's tables (ITU-T T.81, annex K)."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

_LUMA = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
) + ((99,) * 8,) * 4

#: RGB -> luma and two colour differences (Rec. 601), as JPEG has them.
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))


def jpeg(image: Tensor, quality: float) -> Tensor:
    """(B, 3, H, W) float in [0, 1] -> the same, as libjpeg would return it at that quality (1 to 100)."""
    height, width = image.shape[-2:]
    ycc = _mixed(image * 255, TO_YCC)
    padded = F.pad(ycc, (0, -width % 16, 0, -height % 16), mode="replicate")
    luma = _coded(padded[:, :1] - 128, _table(_LUMA, quality)) + 128
    chroma = _coded(F.avg_pool2d(padded[:, 1:], 2), _table(_CHROMA, quality))
    chroma = F.interpolate(chroma, scale_factor=2.0, mode="bilinear", align_corners=False)
    rgb = _mixed(torch.cat([luma, chroma], 1)[..., :height, :width], _TO_RGB)
    return (rgb.clamp(0, 255).round()) / 255


def _mixed(x: Tensor, weights: tuple[tuple[float, ...], ...]) -> Tensor:
    return torch.einsum("oc,bchw->bohw", torch.tensor(weights, dtype=x.dtype, device=x.device), x)


def _table(base: tuple[tuple[int, ...], ...], quality: float) -> Tensor:
    """libjpeg's scaling of the standard's tables."""
    scale = 5000 / quality if quality < 50 else 200 - 2 * quality
    return ((torch.tensor(base, dtype=torch.float32) * scale + 50) / 100).floor().clamp(1, 255)


def _dct_matrix() -> Tensor:
    k = torch.arange(8, dtype=torch.float64)
    matrix = torch.cos((2 * k[None] + 1) * k[:, None] * math.pi / 16) / 2
    matrix[0] /= math.sqrt(2)
    return matrix.float()


def _coded(plane: Tensor, table: Tensor) -> Tensor:
    """(B, C, H, W), sides multiples of 8: there and back through quantized DCT coefficients."""
    b, c, height, width = plane.shape
    dct, table = _dct_matrix().to(plane), table.to(plane)
    blocks = plane.reshape(b, c, height // 8, 8, width // 8, 8).transpose(3, 4)
    kept = ((dct @ blocks @ dct.T) / table).round() * table
    return (dct.T @ kept @ dct).transpose(3, 4).reshape(b, c, height, width)
