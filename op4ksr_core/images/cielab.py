"""sRGB <-> CIELAB by formulas: L in [0, 100], a and b about -128 to 127; white point D65.

sRGB's curve: IEC 61966-2-1. Matrix: its primaries with the white D65. L*a*b*: CIE 15:2004, with the exact
constants 216/24389 and 24389/27. All pieces go on below 0 and above 1, so that the round trip is exact there too.
"""

from __future__ import annotations

import torch
from torch import Tensor

_RGB_TO_XYZ = torch.tensor(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]],
    dtype=torch.float64,
)
#: The XYZ of sRGB's white, so that greys have a = b = 0.
_WHITE = _RGB_TO_XYZ.sum(1)
_EPSILON, _KAPPA = 216 / 24389, 24389 / 27

#: L = 116 f(y) - 16, a = 500 (f(x) - f(y)), b = 200 (f(y) - f(z)); x, y, z relative to white.
_TO_LAB = torch.tensor([[0, 116, 0], [500, -500, 0], [0, 200, -200]], dtype=torch.float64)


def rgb_to_lab(image: Tensor) -> Tensor:
    """sRGB (B, 3, H, W), nominally in [0, 1] -> L*a*b* (B, 3, H, W), float32."""
    rgb = image.float()
    linear = torch.where(rgb <= 0.04045, rgb / 12.92, ((rgb.clamp(min=0.04045) + 0.055) / 1.055) ** 2.4)
    xyz = _mix(linear, _RGB_TO_XYZ / _WHITE[:, None])
    curve = torch.where(xyz > _EPSILON, xyz.clamp(min=_EPSILON) ** (1 / 3), (_KAPPA * xyz + 16) / 116)
    lab = _mix(curve, _TO_LAB)
    lab[:, 0] -= 16
    return lab


def lab_to_rgb(lab: Tensor) -> Tensor:
    """L*a*b* (B, 3, H, W) -> sRGB (B, 3, H, W) float32; outside [0, 1] where sRGB does not have the colour."""
    moved = lab.float().clone()
    moved[:, 0] += 16
    curve = _mix(moved, torch.linalg.inv(_TO_LAB))
    xyz = torch.where(curve > _EPSILON ** (1 / 3), curve.clamp(min=0) ** 3, (116 * curve - 16) / _KAPPA)
    linear = _mix(xyz, torch.linalg.inv(_RGB_TO_XYZ / _WHITE[:, None]))
    bent = 1.055 * linear.clamp(min=0.0031308) ** (1 / 2.4) - 0.055
    return torch.where(linear <= 0.0031308, linear * 12.92, bent)


def _mix(image: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("ij,bjhw->bihw", matrix.to(image.device, image.dtype), image)
