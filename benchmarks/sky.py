"""``sky``: what the transformer in pieces does to a smooth sky, in numbers and as a picture.

A sky shows seams that texture hides. It is procedural; the weights are the ones given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core.files import make_folder, written_whole
from op4ksr_core.images.metrics import luma
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.models.flux import Flux
from op4ksr_core.models.latent import PATCH
from op4ksr_core.one_step import CoreStages, OneStepOptions, run
from op4ksr_core.periodicity.drawing import BACK, FAINT, INK, draw_paragraph, font
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.pieces import Pieces, windows
from op4ksr_core.planning.cost import image_tokens
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams

from .tables import FACTOR, Row

#: Of the sky, grey levels of 255 in the root mean square: a camera's, so that 8 bits do not make bands of it.
_GRAIN = 0.5

#: Of the sky above and below, and what the sun adds.
_COLOURS = ((0.16, 0.36, 0.7), (0.72, 0.83, 0.93), (0.2, 0.15, 0.05))

#: Px a side of the cells whose means are compared across a seam, over which grain averages out.
_CELL = 32


def sky(side: int) -> Tensor:
    """(1, 3, side, side) in [0, 1]: blue above, pale below, a glow low on the right, and faint seeded grain."""
    down = torch.linspace(0, 1, side)[:, None].expand(side, side)
    across = down.T
    height = down.pow(0.8)
    above, below, glow = (torch.tensor(c).view(3, 1, 1) for c in _COLOURS)
    sun = torch.exp(-((across - 0.72).square() + (down - 0.85).square()) / 0.08)
    grain = torch.randn(1, side, side, generator=torch.Generator().manual_seed(0)) * _GRAIN / 255
    return (above * (1 - height) + below * height + glow * sun + grain).clamp(0, 1)[None]


@dataclass(frozen=True)
class Skies:
    """The sky, enlarged: bicubic, in one pass, and in pieces; (1, 3, H, W) each, float in [0, 1]."""

    low: Tensor
    bicubic: Tensor
    whole: Tensor
    cut: Tensor
    #: Rows and columns, px, at which two windows weigh alike.
    lines: tuple[list[int], list[int]]

    def rows(self, finish: str) -> list[Row]:
        """What the meter says of each, and how far it is from the whole, in grey levels of 255."""
        ways = {"bicubic": self.bicubic, "whole, one pass": self.whole, "in pieces": self.cut}
        return [{"finish": finish, "picture": name, **self._figures(image)} for name, image in ways.items()]

    def _figures(self, image: Tensor) -> Row:
        report = measure_periodicity(image.mul(255).round().div(255), self.low)  # as it is saved
        levels = self.levels(image, self.whole)
        at, elsewhere = seam_steps(levels, self.lines)
        return {
            "meter's score": round(report.score, 2),
            "alarm": "yes" if report.alarm else "no",
            "RMS to the whole": levels.square().mean().sqrt().item(),
            "largest": levels.abs().max().item(),
            "largest seam": at,
            "largest elsewhere": elsewhere,
        }

    @staticmethod
    def levels(image: Tensor, reference: Tensor) -> Tensor:
        """The luma's difference (H, W), grey levels of 255."""
        return luma(image - reference)[0, 0] * 255


def enlarged_skies(flux: Flux, autoencoder: AutoEncoder, side: int, pieces: Pieces, finished: bool) -> Skies:
    """The sky of ``side`` px, x4. finished: with colour fix and back-projection, as ``upscale`` comes."""
    low, stages, out = sky(side), CoreStages(flux, autoencoder), side * FACTOR
    plain: dict[str, Any] = {} if finished else {"color": "none", "fidelity": 0.0}

    def enlarged(cut: Pieces | None) -> Tensor:
        return run(low, stages, OneStepOptions(Target(scale=FACTOR), pieces=cut, **plain))

    lines = seam_lines((out, out), pieces, autoencoder.params)
    return Skies(low, resize(low, out, out).clamp(0, 1), enlarged(None), enlarged(pieces), lines)


# --- seams ------------------------------------------------------------------------------------


def seam_lines(size: tuple[int, int], pieces: Pieces, params: AutoEncoderParams) -> tuple[list[int], list[int]]:
    """The rows and columns of a picture of ``size`` (height, width) half-way between the middles of two windows."""
    found = windows(image_tokens(params, *size), pieces, params.ratio)
    token = params.ratio * PATCH

    def between(starts: set[int], length: int) -> list[int]:
        places = sorted(starts)
        return [(a + b + length) * token // 2 for a, b in zip(places, places[1:], strict=False)]

    return between({w.top for w in found}, found[0].rows), between({w.left for w in found}, found[0].columns)


def seam_steps(levels: Tensor, lines: tuple[Sequence[int], Sequence[int]]) -> tuple[float, float]:
    """The largest step of a map (H, W) across the lines, and across lines more than 100 px from all of them.

    A step is the difference between the means of two cells of 32 px, on either side of a line and 32 px from it.
    """
    cells = F.avg_pool2d(levels[None, None], _CELL)[0, 0]
    at, elsewhere = [0.0], [0.0]
    for axis, chosen in enumerate(lines):
        along = cells.movedim(axis, 0)
        near = [round(line / _CELL) for line in chosen]
        for line in range(2, len(along) - 1):
            step = (along[line + 1] - along[line - 2]).abs().max().item()
            distance = min((abs(line - seam) for seam in near), default=len(along))
            if distance == 0:
                at.append(step)
            elif distance > 3:
                elsewhere.append(step)
    return max(at), max(elsewhere)


# --- the picture ------------------------------------------------------------------------------

#: Of a panel, px; of the space for its words; between panels.
_PANEL, _WORDS, _GAP = 480, 92, 16


def draw(skies: Skies, path: Path, title: str) -> None:
    """Whole, in pieces, and their difference: as they are, and with the sky taken away and what is left stretched.

    Raises OutputError where the picture cannot be written.
    """
    figures = {row["picture"]: row for row in skies.rows("")}
    own, cut = (skies.levels(image, skies.bicubic) for image in (skies.whole, skies.cut))
    between = skies.levels(skies.cut, skies.whole)
    gain, closer = _gain(own, cut), _gain(between)
    whole, pieces = figures["whole, one pass"], figures["in pieces"]
    panels = [
        (_shown(skies.whole), "Whole: one pass", f"meter's score {whole[_SCORE]:.2f} (alarm: {whole['alarm']})"),
        (_shown(skies.cut), "In pieces", f"meter's score {pieces[_SCORE]:.2f} (alarm: {pieces['alarm']})"),
        (
            _with_lines(_shown(skies.cut), skies),
            "Where two windows weigh alike",
            "a seam would lie along these lines",
        ),
        (_stretched(own, gain), f"Whole, less the smooth sky, x {gain:.3g}", "grey: no difference from bicubic"),
        (_stretched(cut, gain), f"In pieces, less the smooth sky, x {gain:.3g}", "grey: no difference from bicubic"),
        (
            _stretched(between, closer),
            f"In pieces less whole, x {closer:.3g}",
            f"largest seam {pieces['largest seam']:.2f} of 255 grey levels, elsewhere "
            f"{pieces['largest elsewhere']:.2f}; largest difference of a pixel {pieces['largest']:.1f}",
        ),
    ]
    canvas = Image.new("RGB", (3 * _PANEL + 4 * _GAP, 56 + 2 * (_PANEL + _WORDS)), BACK)
    brush = ImageDraw.Draw(canvas)
    brush.text((_GAP, 14), title, fill=INK, font=font(24))
    for index, (picture, name, words) in enumerate(panels):
        left, top = _GAP + index % 3 * (_PANEL + _GAP), 56 + index // 3 * (_PANEL + _WORDS)
        canvas.paste(picture, (left, top))
        brush.text((left, top + _PANEL + 6), name, fill=INK, font=font(20))
        draw_paragraph(brush, left, top + _PANEL + 34, _PANEL, words, 16, FAINT)
    make_folder(path.parent)
    with written_whole(path, ".jpg") as temporary:
        canvas.save(temporary, quality=90)


_SCORE = "meter's score"


def _gain(*maps: Tensor) -> float:
    """So that all but one cell in a hundred, averaged as a panel shows them, stay within 110 levels of grey."""
    shown = torch.cat([_panel(levels[None, None]).abs().flatten() for levels in maps])
    return 110 / max(shown.quantile(0.99).item(), 1e-3)


def _panel(image: Tensor) -> Tensor:
    return resize(image, _PANEL, _PANEL)


def _shown(image: Tensor) -> Image.Image:
    pixels = _panel(image)[0].clamp(0, 1).mul(255).round().to(torch.uint8).movedim(0, -1)
    return Image.fromarray(pixels.contiguous().numpy())


def _stretched(levels: Tensor, gain: float) -> Image.Image:
    grey = _panel(levels[None, None]).mul(gain / 255).add(0.5)
    return _shown(grey.expand(-1, 3, -1, -1))


def _with_lines(picture: Image.Image, skies: Skies) -> Image.Image:
    brush, side = ImageDraw.Draw(picture), skies.whole.shape[-1]
    for axis, lines in enumerate(skies.lines):
        for line in (round(line * _PANEL / side) for line in lines):
            ends = ((0, line), (_PANEL, line)) if axis == 0 else ((line, 0), (line, _PANEL))
            brush.line(ends, fill=INK)
    return picture
