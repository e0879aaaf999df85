"""Colours and coarse tones from the input, detail from the model; and fidelity to the input's pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from .resize import resize

ColorFix = Literal["wavelet", "adain", "none", "lab"]
COLOR_FIXES: tuple[ColorFix, ...] = get_args(ColorFix)

#: Rounds of back-projection: our choice, see the README's figures.
BACK_PROJECTIONS = 4

#: RGB -> luma and two colour differences (Rec. 601), as JPEG has them.
TO_YCC = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))

#: Rows at a time, so that scratch memory stays small and near the processor.
_BAND = 128


def wavelet_levels(factor: float) -> int:
    """Blurs that separate low from high: 5 at x4, one more per doubling of the factor; at least 1."""
    return max(1, 5 + round(math.log2(max(factor, 1e-6) / 4)))


def blur_a_trous(image: Tensor, levels: int) -> Tensor:
    """(B, C, H, W) blurred by 3x3 binomials of dilation 1, 2, ... 2^(levels-1); edges repeated."""
    for level in range(levels):
        for axis in (-1, -2):
            image = _binomial(image, 2**level, axis)
    return image


def _binomial(image: Tensor, reach: int, axis: int) -> Tensor:
    """1/4, 1/2, 1/4 at distance ``reach`` along one axis. By shifts: a convolution of 3 channels takes 2.4 GB of
    scratch memory at 4096 x 4096 px on a CPU (measured)."""
    length = image.shape[axis]
    wide = F.pad(image, (reach, reach, 0, 0) if axis == -1 else (0, 0, reach, reach), mode="replicate")
    out = wide.narrow(axis, reach, length).mul(0.5)
    out.add_(wide.narrow(axis, 0, length), alpha=0.25)
    return out.add_(wide.narrow(axis, 2 * reach, length), alpha=0.25)


def wavelet_fix(image: Tensor, reference: Tensor, levels: int) -> Tensor:
    """Low frequencies of the reference, high ones of the image; both (B, C, H, W), any range.

    Band by band, each with the neighbour rows that its blurs reach: the same numbers, faster and in less memory.
    """
    height, reach = image.shape[-2], 2**levels - 1
    out = torch.empty_like(image)
    for start in range(0, height, _BAND):
        stop = min(height, start + _BAND)
        first, last = max(0, start - reach), min(height, stop + reach)
        error = reference[..., first:last, :] - image[..., first:last, :]
        blurred = blur_a_trous(error, levels)[..., start - first : stop - first, :]
        out[..., start:stop, :] = image[..., start:stop, :] + blurred
    return out


def adain_fix(image: Tensor, reference: Tensor) -> Tensor:
    """The image with each channel's mean and standard deviation of the reference; both (B, C, H, W)."""
    axes = (-2, -1)
    mean, std = image.mean(axes, keepdim=True), image.std(axes, keepdim=True, correction=0)
    target, spread = reference.mean(axes, keepdim=True), reference.std(axes, keepdim=True, correction=0)
    return (image - mean) / std.clamp(min=1e-5) * spread + target


def lab_fix(image: Tensor, reference: Tensor) -> Tensor:
    """The image with the reference's mean and standard deviation of L*, a* and b*; both (B, 3, H, W) sRGB in [0, 1].

    After Reinhard, Ashikhmin, Gooch and Shirley, "Color Transfer between Images" (2001), in CIELAB instead of their
    l-alpha-beta. Unlike ``adain_fix`` it moves lightness and colour apart, as they are seen.
    """
    (mean, std), (target, spread) = _lab_statistics(image), _lab_statistics(reference)
    gain = spread / std.clamp(min=1e-3)
    out = torch.empty_like(image)
    for start in range(0, image.shape[-2], _BAND):
        rows = slice(start, start + _BAND)
        out[..., rows, :] = lab_to_rgb((rgb_to_lab(image[..., rows, :]) - mean) * gain + target)
    return out


def _lab_statistics(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of L*, a*, b*, (B, 3, 1, 1) each; sums in float64, in two passes."""
    bands = range(0, image.shape[-2], _BAND)
    count = image.shape[-2] * image.shape[-1]

    def mean_of(change: Callable[[Tensor], Tensor]) -> Tensor:
        sums = [change(rgb_to_lab(image[..., i : i + _BAND, :])).sum((-2, -1), keepdim=True) for i in bands]
        total = torch.stack(sums).cpu().double().sum(0)  # at once: each way to the CPU waits for the device
        return (total / count).to(image.device, torch.float32)

    mean = mean_of(lambda lab: lab)
    return mean, mean_of(lambda lab: (lab - mean).square()).sqrt()


def color_fix(image: Tensor, reference: Tensor, kind: ColorFix, factor: float) -> Tensor:
    """Apply one of ``COLOR_FIXES``; image and reference (the enlarged input) (B, C, H, W)."""
    if kind == "wavelet":
        return wavelet_fix(image, reference, wavelet_levels(factor))
    if kind == "lab":
        return lab_fix(image, reference)
    return adain_fix(image, reference) if kind == "adain" else image


def back_project(
    image: Tensor,
    low: Tensor,
    fidelity: float,
    rounds: int = BACK_PROJECTIONS,
    on_round: Callable[[int], None] | None = None,
) -> Tensor:
    """Make the image, shrunk again, equal the input: ``rounds`` times y += fidelity * up(low - down(y)).

    image (B, C, H, W), low (B, C, h, w), fidelity in [0, 1]; 0 returns the image itself. Where the
    input is not smaller there is nothing to project and the image is returned.
    """
    if fidelity == 0 or low.shape[-2] >= image.shape[-2] or low.shape[-1] >= image.shape[-1]:
        return image
    height, width = image.shape[-2:]
    for i in range(rounds):
        error = low - resize(image, *low.shape[-2:])
        change = resize(error, height, width)
        image = image.add_(change, alpha=fidelity) if i else torch.add(image, change, alpha=fidelity)
        if on_round:
            on_round(i + 1)
    return image


# --- CIELAB -----------------------------------------------------------------------------------
#
# L in [0, 100], a and b about -128 to 127; white point D65. sRGB's curve: IEC 61966-2-1. Matrix: its primaries with the
# white D65. L*a*b*: CIE 15:2004, with the exact constants 216/24389 and 24389/27. All pieces go on below 0 and above
# 1, so that the round trip is exact there too.

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
