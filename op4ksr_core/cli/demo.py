"""The README's demonstration: the bundled photo to 4096 px, and what changed, side by side."""

from __future__ import annotations

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..images.io import Picture, to_pil
from ..images.resize import resize

#: The crop that shows eye, beak and feathers: its centre (row, column) as shares of the sides, and its side, px.
CROP_CENTRE = (0.22, 0.42)
CROP_SIDE = 640


def before_after(low: Tensor, high: Tensor) -> Image.Image:
    """The same crop of the input enlarged by bicubic and of the output, labelled, side by side.

    low (1, 3, h, w) and high (1, 3, H, W) in [0, 1].
    """
    height, width = high.shape[-2:]
    side = min(CROP_SIDE, height, width)
    top, left = (
        min(max(0, round(share * length) - side // 2), length - side)
        for share, length in zip(CROP_CENTRE, (height, width), strict=True)
    )
    views = [resize(low, height, width).clamp(0, 1), high]
    crops = [view[..., top : top + side, left : left + side] for view in views]
    return label(to_pil(Picture(torch.cat(crops, dim=-1))), ("bicubic", "OP4KSR, one step"))


def label(picture: Image.Image, names: tuple[str, ...]) -> Image.Image:
    """Write a name into the top left corner of each of the equally wide views."""
    draw = ImageDraw.Draw(picture)
    size = max(12, picture.height // 28)
    for i, name in enumerate(names):
        at = (i * picture.width // len(names) + size // 2, size // 2)
        draw.text(at, name, fill="white", stroke_fill="black", stroke_width=2, font_size=size)
    return picture
