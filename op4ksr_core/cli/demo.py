"""``demo``: the bundled photo to 4096 px, and what changed, side by side."""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor

from ..bundled import SAMPLE_PHOTO
from ..files import make_folder
from ..images.io import Picture, from_pil, load_image, save_image, to_pil
from ..images.resize import resize
from ..plain_text import plain
from .console import say
from .upscale import add_upscale, run_upscale

#: The crop that shows the leaves' stripes: its centre (row, column) as shares of the sides, and its side, px.
CROP_CENTRE = (0.44, 0.53)
CROP_SIDE = 640


def add_demo(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_demo)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_output"), metavar="FOLDER")


def run_demo(options: argparse.Namespace) -> int:
    """Upscale the bundled photo and write the comparison beside it. Returns the exit status, 0."""
    output, comparison = options.output / "photo_4096.png", options.output / "before_after.png"
    make_folder(options.output)
    upscaling = argparse.ArgumentParser()
    add_upscale(upscaling)
    run_upscale(upscaling.parse_args([str(SAMPLE_PHOTO), "-o", str(output), "--long-edge", "4096"]))
    views = before_after(load_image(SAMPLE_PHOTO).image, load_image(output).image)
    save_image(comparison, from_pil(views))
    say(f"{plain(comparison)}: the same crop, bicubic and OP4KSR")
    return 0


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
    return label(to_pil(Picture(torch.cat(crops, dim=-1))), ("bicubic", "OP4KSR"))


def label(picture: Image.Image, names: tuple[str, ...]) -> Image.Image:
    """Write a name into the top left corner of each of the equally wide views."""
    draw = ImageDraw.Draw(picture)
    size = max(12, picture.height // 28)
    for i, name in enumerate(names):
        at = (i * picture.width // len(names) + size // 2, size // 2)
        draw.text(at, name, fill="white", stroke_fill="black", stroke_width=2, font_size=size)
    return picture
