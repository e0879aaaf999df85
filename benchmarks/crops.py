"""The same piece of a photo by several methods, side by side, at 100 % and at 300 %, for people to look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core.errors import ImageError
from op4ksr_core.files import make_folder, written_whole
from op4ksr_core.images.io import Picture, load_image, to_8_bit, to_pil
from op4ksr_core.plain_text import plain

from .damages import damaged, set_of
from .methods import Method, bicubic

FACTOR = 4

#: Of a view, px; how much larger the lower row is; between views; of the names above them.
VIEW, CLOSER, GAP, WORDS = 288, 3, 8, 26

#: Where the lower row's piece is cut: where bicubic errs most, where the model gains most on it, or loses most.
Place = Literal["hard", "best", "worst"]
PLACES: tuple[Place, ...] = get_args(Place)

#: The last view's name.
PHOTO = "the photo"

#: Quality of a JPEG, whose chroma is kept whole.
_QUALITY = 92

_INK, _BACK = (20, 20, 20), (255, 255, 255)


def chosen(paths: Sequence[Path], count: int) -> list[Path]:
    """``count`` of the photos, evenly through the list."""
    if len(paths) <= count:
        return list(paths)
    return [paths[index * len(paths) // count] for index in range(count)]


def draw_crops(path: Path, methods: Sequence[Method], place: Place, damage: str = "clean") -> Image.Image:
    """One photo's views. The last method is the one that ``place`` speaks of.

    Raises ImageError for a photo that is too small.
    """
    high = load_image(path).image
    height, width = (length // FACTOR * FACTOR for length in high.shape[-2:])
    if min(height, width) < VIEW:
        raise ImageError(f"{plain(path)}: is under {VIEW} px a side, too small to show; take it out")
    high = high[..., :height, :width]
    low = damaged(high, FACTOR, damage, path)
    with torch.no_grad():
        outputs = {method.name: to_8_bit(method.enlarge(low, FACTOR)) for method in methods}
    error = (high - bicubic(low, FACTOR)).square().mean(1, keepdim=True)
    if place != "hard":
        error = error - (high - outputs[methods[-1].name]).square().mean(1, keepdim=True)
    error = -error if place == "worst" else error
    return _sheet(outputs | {PHOTO: high}, _most(error, VIEW // CLOSER))


def _most(error: Tensor, side: int) -> tuple[int, int]:
    """(top, left) of the square of that side whose mean is the largest."""
    means = F.avg_pool2d(error, side, stride=FACTOR)[0, 0]
    row, column = divmod(int(means.argmax()), means.shape[1])
    return row * FACTOR, column * FACTOR


def _sheet(views: dict[str, Tensor], at: tuple[int, int]) -> Image.Image:
    canvas = Image.new("RGB", (len(views) * (VIEW + GAP) + GAP, WORDS + 2 * (VIEW + GAP)), _BACK)
    brush = ImageDraw.Draw(canvas)
    for index, (name, view) in enumerate(views.items()):
        left = GAP + index * (VIEW + GAP)
        brush.text((left, 5), name, fill=_INK, font_size=15)
        near = _piece(view, at, VIEW // CLOSER)
        canvas.paste(_around(view, at), (left, WORDS))
        canvas.paste(near.resize((VIEW, VIEW), Image.Resampling.NEAREST), (left, WORDS + VIEW + GAP))
    return canvas


def _piece(view: Tensor, at: tuple[int, int], side: int) -> Image.Image:
    return to_pil(Picture(view[..., at[0] : at[0] + side, at[1] : at[1] + side]))


def _around(view: Tensor, at: tuple[int, int]) -> Image.Image:
    """The larger square around the smaller one, within the picture."""
    aside = (VIEW - VIEW // CLOSER) // 2
    top, left = (min(max(0, a - aside), length - VIEW) for a, length in zip(at, view.shape[-2:], strict=True))
    return _piece(view, (top, left), VIEW)


def write_crops(
    paths: Sequence[Path], methods: Sequence[Method], folder: Path, place: Place, damage: str, ending: str
) -> list[Path]:
    """A picture <set>_<photo> for each, ``.jpg`` or ``.png``. Raises ImageError, OutputError."""
    make_folder(folder)
    written: list[Path] = []
    for path in paths:
        sheet = draw_crops(path, methods, place, damage)
        target = folder / f"{set_of(path)}_{path.stem}{ending}"
        with written_whole(target, ending) as temporary:
            sheet.save(temporary, **({"quality": _QUALITY, "subsampling": 0} if ending == ".jpg" else {}))
        written.append(target)
    return written
