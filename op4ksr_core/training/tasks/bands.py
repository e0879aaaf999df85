"""Band-weighted wavelet supervision: each band of a picture or latent counts by how much of it is wrong.

After UniCSG's abstract (multi-scale frequency supervision); its formula could not be read, so all of it is our choice:
orthonormal Haar bands, each divided by its own natural strength, that of the target. A pixel distance sees fine bands
hardly at all, since natural pictures have the less in a band the finer it is.
"""

from __future__ import annotations

import torch
from torch import Tensor

#: Halvings of the sides, each of which gives three bands; the last one's coarse rest is the fourth of its level.
LEVELS = 3

#: A side below which there is no further level.
SMALLEST_SIDE = 8

#: What a band's strength is rounded up by, on a scale of 2 for the whole range: a band that the target has nothing of
#: would count without end. One grey level of 255.
FLOOR = 2 / 255


def haar(picture: Tensor) -> tuple[Tensor, Tensor]:
    """(B, C, h, w) -> coarse (B, C, h / 2, w / 2), and fine (B, 3, C, h / 2, w / 2): across, down and diagonal.

    Orthonormal: squares add up to the picture's. An odd last row or column is left out.
    """
    height, width = (side // 2 * 2 for side in picture.shape[-2:])
    a, b, c, d = (picture[..., y:height:2, x:width:2] for y in (0, 1) for x in (0, 1))
    fine = torch.stack([a - b + c - d, a + b - c - d, a - b - c + d], 1)
    return (a + b + c + d) / 2, fine / 2


def band_distance(output: Tensor, target: Tensor, levels: int = LEVELS) -> Tensor:
    """Mean over all bands of mean |error| over the RMS of the target's band, over the whole batch; a scalar >= 0.

    Both (B, C, H, W), one shape. The target's strengths have no gradient. Levels whose bands would be less than half
    of ``SMALLEST_SIDE`` on a side are left out, but for the first.
    """
    error, natural = output - target, target.detach()
    parts: list[Tensor] = []
    for _ in range(levels):
        if parts and min(error.shape[-2:]) < SMALLEST_SIDE:
            break
        (error, wrong), (natural, right) = haar(error), haar(natural)
        parts.append(_relative(wrong, right, (0, 2, 3, 4)))
    parts.append(_relative(error, natural - natural.mean((2, 3), keepdim=True), (0, 1, 2, 3))[None])
    return torch.cat(parts).mean()


def _relative(wrong: Tensor, right: Tensor, dims: tuple[int, ...]) -> Tensor:
    return wrong.abs().mean(dims) / (right.square().mean(dims).sqrt() + FLOOR)
