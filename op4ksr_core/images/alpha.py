"""Colours under transparency: what is hidden there must not be seen at the visible edges after resampling."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from .resize import resize

#: Transparency below which a colour that was resampled with it is taken from around instead: its own is rounding.
_FAINT = 1 / 512


def visible_colors(image: Tensor, alpha: Tensor) -> Tensor:
    """(1, 3, H, W) with the colours that alpha (1, 1, H, W) in [0, 1] hides replaced by the visible ones around.

    The image itself where nothing is hidden, or all. A pixel counts by its share of the most visible of its 3 x 3: one
    as visible as its neighbours keeps its colour, one that is clear gets theirs, and clear areas are filled from
    coarser and coarser averages of what is visible. Our choice, after pull-push (Gortler et al., "The Lumigraph").
    """
    if bool((alpha >= 1).all()) or not bool((alpha > 0).any()):
        return image
    seen = _mean3(alpha)
    near = _mean3(image * alpha) / seen.clamp(min=1e-12)
    share = alpha / F.max_pool2d(alpha, 3, 1, 1).clamp(min=1e-12)
    known = image * share + near * (1 - share)
    weight = (seen > 1e-9).to(image.dtype)
    return _spread(known.mul_(weight), weight)


def _mean3(image: Tensor) -> Tensor:
    """Means of 3 x 3 px, of zeros beyond the edge."""
    return F.avg_pool2d(image, 3, 1, 1)


def _spread(colors: Tensor, weight: Tensor) -> Tensor:
    """Colours times their weights -> colours everywhere: where the weight is 0 those of half the size."""
    out = colors / weight.clamp(min=1e-12)
    if bool((weight > 0).all()) or max(weight.shape[-2:]) == 1:
        return out
    sides = (0, weight.shape[-1] % 2, 0, weight.shape[-2] % 2)
    smaller = _spread(F.avg_pool2d(F.pad(colors, sides), 2), F.avg_pool2d(F.pad(weight, sides), 2))
    around = F.interpolate(smaller, weight.shape[-2:], mode="bilinear", align_corners=False)
    return torch.where(weight > 0, out, around)


def shrink_visible(image: Tensor, filled: Tensor, alpha: Tensor, height: int, width: int) -> Tensor:
    """(1, 3, H, W) at a smaller size, each pixel weighted by its alpha (1, 1, H, W); ``filled``: where none is left."""
    weight = resize(alpha, height, width)
    colors = resize(image * alpha, height, width) / weight.clamp(min=_FAINT)
    return torch.where(weight > _FAINT, colors, resize(filled, height, width)).clamp(0, 1)
