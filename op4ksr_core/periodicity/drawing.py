"""What the report picture is drawn with: text, panels, axes and rings, by Pillow alone.

The colours of maps are cividis', which the colour-blind read like everybody else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

#: Side of the square panels, px.
PANEL = 390

#: Colours: of the ground, the text, what matters less, frames; an alarm, none; marks on a map.
BACK, INK, FAINT, FRAME = (250, 250, 247), (28, 32, 38), (104, 110, 118), (206, 208, 205)
ALARM, CLEAR, MARK = (190, 75, 0), (0, 92, 150), (255, 255, 255)

#: cividis at 0, 1/9, ... 1.
_CIVIDIS = (
    (0, 34, 78),
    (18, 53, 112),
    (59, 73, 108),
    (87, 93, 109),
    (112, 113, 115),
    (138, 134, 120),
    (165, 156, 116),
    (195, 179, 105),
    (225, 204, 85),
    (254, 232, 56),
)


def colours(values: Tensor) -> Image.Image:
    """(H, W) in [0, 1] -> RGB in cividis."""
    table = np.asarray(_CIVIDIS, np.float32)
    at = values.clamp(0, 1).numpy() * (len(table) - 1)
    channels = [np.interp(at, np.arange(len(table)), table[:, i]) for i in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """Pillow's own font at that size, px."""
    return ImageFont.load_default(size)


def draw_title(draw: ImageDraw.ImageDraw, left: float, top: float, text: str) -> None:
    """A heading over a panel whose top left corner is at (left, top)."""
    draw.text((left, top - 8), text, fill=INK, font=font(18), anchor="ls")


def draw_paragraph(
    draw: ImageDraw.ImageDraw, left: float, top: float, width: float, text: str, size: int, fill: tuple[int, int, int]
) -> float:
    """Write text, wrapped at ``width`` px; returns the y under it."""
    line = ""
    for word in [*text.split(), ""]:
        longer = f"{line} {word}".strip()
        if line and (not word or draw.textlength(longer, font=font(size)) > width):
            draw.text((left, top), line, fill=fill, font=font(size))
            top += size * 1.35
            longer = word
        line = longer
    return top


def draw_colour_bar(canvas: Image.Image, at: tuple[int, int], ends: tuple[str, str]) -> None:
    """A strip of the map's colours from 0 to 1, with a word at either end."""
    draw = ImageDraw.Draw(canvas)
    canvas.paste(colours(torch.linspace(0, 1, 90).expand(12, 90)), (at[0] + 80, at[1]))
    draw.text((at[0] + 74, at[1] - 2), ends[0], fill=FAINT, font=font(15), anchor="ra")
    draw.text((at[0] + 176, at[1] - 2), ends[1], fill=FAINT, font=font(15))


def enlarged(crop: Tensor) -> Image.Image:
    """(3 or 1, h, w) in [0, 1] -> PANEL x PANEL px, pixels as squares."""
    pixels = crop.clamp(0, 1).mul(255).round().to(torch.uint8).expand(3, *crop.shape[-2:]).permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy()).resize((PANEL, PANEL), Image.Resampling.NEAREST)


def draw_ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    """A white ring with a black rim, so that it shows on any ground."""
    draw.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), outline=(0, 0, 0))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=MARK)


def draw_axes(draw: ImageDraw.ImageDraw, at: tuple[int, int], ticks: Sequence[tuple[float, str]], name: str) -> None:
    """The same ticks (px from the panel's corner; px, or px and tokens in two lines) along the left and the bottom."""
    left, top = at
    draw.rectangle((left, top, left + PANEL, top + PANEL), outline=FRAME)
    for place, text in ticks:
        draw.line((left + place, top + PANEL, left + place, top + PANEL + 5), fill=INK)
        for i, line in enumerate(text.split("\n")):
            draw.text((left + place, top + PANEL + 7 + 17 * i), line, fill=FAINT, font=font(15), anchor="ma")
        draw.line((left - 5, top + place, left, top + place), fill=INK)
        draw.text((left - 8, top + place), text.split("\n")[0], fill=FAINT, font=font(15), anchor="rm")
    below = 24 if all("\n" not in text for _, text in ticks) else 43
    draw.text((left, top + PANEL + below), name, fill=FAINT, font=font(15))
