"""Colours under transparency: what is hidden there must not be seen at the visible edges after resampling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .resize import resize

#: Transparency below which a colour that was resampled with it is taken from around instead: its own is rounding.
_FAINT = 1 / 512

#: Against division by 0: far below any transparency, and its square a number still.
_LEAST = 1e-12


#: Side in px of the square in which a pixel is compared with the most visible one: bicubic resizes reach 2 px.
_AROUND = 7


def visible_colors(image: Tensor, alpha: Tensor) -> Tensor:
    """(1, 3, H, W) with the colours that alpha (1, 1, H, W) in [0, 1] hides replaced by the visible ones around.

    The image itself where nothing is hidden, or all. A pixel keeps its colour by its share of the most visible around
    it; the rest comes from half the size, where each pixel is the mean of four by how visible they are, and so on. One
    as visible as all around it keeps its own to the bit. Our choice, after pull-push (Gortler et al., "The Lumigraph").
    """
    if bool((alpha >= 1).all()) or not bool((alpha > 0).any()):
        return image
    return _filled(image, alpha)


def _filled(colors: Tensor, alpha: Tensor) -> Tensor:
    height, width = alpha.shape[-2:]
    if max(height, width) == 1:
        return colors
    share = alpha / F.max_pool2d(alpha, _AROUND, 1, _AROUND // 2).clamp(min=_LEAST)
    sides = (0, width % 2, 0, height % 2)
    weight = F.avg_pool2d(F.pad(alpha, sides), 2)
    smaller = F.avg_pool2d(F.pad(colors * alpha, sides), 2) / weight.clamp(min=_LEAST)
    around = F.interpolate(_filled(smaller, weight), (height, width), mode="bilinear", align_corners=False)
    return colors * share + around * (1 - share)


def shrink_visible(image: Tensor, filled: Tensor, alpha: Tensor, height: int, width: int) -> Tensor:
    """(1, 3, H, W) at a smaller size, each pixel weighted by its alpha (1, 1, H, W); ``filled``: where none is left."""
    weight = resize(alpha, height, width)
    colors = resize(image * alpha, height, width) / weight.clamp(min=_FAINT)
    return torch.where(weight > _FAINT, colors, resize(filled, height, width)).clamp(0, 1)
