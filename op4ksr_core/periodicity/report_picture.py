"""The report picture: whether there is a mesh, where, how sure, of which period, and what to try next."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional as F

from ..images.resize import resize
from .autocorrelation import SMALLEST_SIDE
from .drawing import (
    ALARM,
    BACK,
    CLEAR,
    FAINT,
    FRAME,
    INK,
    PANEL,
    colours,
    draw_axes,
    draw_colour_bar,
    draw_paragraph,
    draw_ring,
    draw_title,
    enlarged,
    font,
)
from .local_mean import box_mean
from .meter import grey_plane
from .report import PeriodicityReport, in_words
from .suppress import find_artifact
from .thresholds import MAYBE_REAL

#: Size of the report, px.
WIDTH, HEIGHT = 1280, 1096

#: Margins of the report, and gaps between its panels, px.
MARGIN, GAP = 26, 29

#: Largest lag drawn, px; side of the close-up, px of the picture.
REACH, CLOSE_UP = 96, 130

#: Side of the crop around the close-up in which the strength is estimated, px.
STRENGTH_CROP = 640

_NEXT = {
    "none": "Nothing to do.",
    "jpeg": "An 8 px grid is what JPEG leaves, and enlarging: start from a less compressed file, and save as PNG.",
    "tile": "Take it out of this picture with 'suppress'. If you train: the loss L_AP (PeriodicityLoss) penalises it;"
    " another RoPE base (RFR) is the paper's other cure.",
    "comb": "Take the lines out with 'suppress'. If you train: the loss L_AP (PeriodicityLoss) penalises them;"
    " another RoPE base (RFR) is the paper's other cure.",
    "blocks": "Steps at block borders: decode without tiles or with more overlap, and try another autoencoder; if you"
    " train, add the loss L_AP.",
}

_REAL = "So strong, it may be real (bricks, cloth): give the small picture as reference, and it is not blamed."


def draw_report(image: Tensor, report: PeriodicityReport, reference: Tensor | None = None) -> Image.Image:
    """RGB of 1280 x 1096 px for one picture of any size.

    image: the batch (B, 3 or 1, H, W) in [0, 1] that the report is on; reference: as it was measured with.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), BACK)
    draw = ImageDraw.Draw(canvas)
    picture = image[report.picture].detach().cpu().float()
    before = None if reference is None else reference[min(report.picture, len(reference) - 1)].detach().cpu().float()
    centre = _best_seen(report, picture)
    _headline(draw, report)
    top = 184
    _where(canvas, (MARGIN, top), picture, report)
    repeats = _what_repeats(picture, before, report, centre)
    views = _close_ups(picture, before, centre, repeats)
    for i, (title, view) in enumerate(views):
        left = MARGIN + (i + 1) * (PANEL + GAP)
        draw_title(draw, left, top, title)
        canvas.paste(view, (left, top))
    top += PANEL + 58
    if report.correlation is not None:
        _correlation_panel(canvas, (MARGIN + 44, top), report)
        _spectrum_panel(canvas, (MARGIN + 44 + PANEL + 70, top), report)
    else:
        draw_paragraph(draw, MARGIN, top, WIDTH - 2 * MARGIN, "The picture is too small for a spectrum.", 20, FAINT)
    _legend(draw, (MARGIN + 2 * (PANEL + 70) + 20, top), report, repeats)
    return canvas


def _headline(draw: ImageDraw.ImageDraw, report: PeriodicityReport) -> None:
    """Alarm or not, the verdict, and the score on its scale."""
    word, colour = ("ARTIFACT FOUND", ALARM) if report.alarm else ("CLEAR", CLEAR)
    if min(report.size) < SMALLEST_SIDE:
        word, colour = "CANNOT BE JUDGED", FAINT
    draw.rectangle((0, 0, WIDTH, 10), fill=colour)
    draw.text((MARGIN, 30), word, fill=colour, font=font(40))
    draw_paragraph(draw, MARGIN, 84, 800, report.verdict, 22, INK)
    left, right, y = 880, WIDTH - MARGIN - 6, 62
    full = 6.0
    draw.text(
        (left, 28), f"score {report.score:.1f}" if report.score < 100 else "score above 100", fill=INK, font=font(22)
    )
    draw.rectangle((left, y, right, y + 16), outline=FRAME, fill=(255, 255, 255))
    draw.rectangle((left, y, left + (right - left) * min(report.score, full) / full, y + 16), fill=colour)
    for value, text in ((0, "0"), (2, "2: 1 in 100"), (4, "4"), (6, "6+")):
        x = left + (right - left) * value / full
        draw.line((x, y - 3, x, y + 19), fill=INK)
        draw.text((x, y + 22), text, fill=FAINT, font=font(15), anchor="ma" if value < 6 else "ra")
    draw.text((left, y + 44), "clean pictures that score as much", fill=FAINT, font=font(15))


def _where(canvas: Image.Image, at: tuple[int, int], picture: Tensor, report: PeriodicityReport) -> None:
    """The picture, paled, with the heat over it."""
    draw = ImageDraw.Draw(canvas)
    left, top = at
    draw_title(draw, left, top, "Where" if report.alarm else "Where (nothing found)")
    factor = min(PANEL / picture.shape[-1], PANEL / picture.shape[-2])
    size = (max(1, round(picture.shape[-2] * factor)), max(1, round(picture.shape[-1] * factor)))
    small = resize(picture[None], *size).clamp(0, 1).expand(1, 3, *size)[0]
    heat = F.interpolate(report.heatmap.float(), size, mode="bilinear", align_corners=False)[0, 0]
    glow = torch.from_numpy(np.asarray(colours(0.35 + 0.65 * heat)).copy()).permute(2, 0, 1).float() / 255
    grey = small.mean(0, keepdim=True).expand(3, *size)
    base = torch.lerp(small, 0.2 + 0.6 * grey, 0.6 if report.alarm else 0.0)
    mixed = torch.lerp(base, glow, 0.6 * heat)
    pixels = mixed.mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    canvas.paste(Image.fromarray(pixels), (left, top))
    draw.rectangle((left, top, left + size[1] - 1, top + size[0] - 1), outline=FRAME)
    label = f"{report.size[1]} x {report.size[0]} px"
    draw.text((left, top + size[0] + 6), label, fill=FAINT, font=font(15))
    if report.alarm:
        draw_colour_bar(canvas, (left + PANEL - 262, top + size[0] + 8), ("elsewhere", "surely here"))


def _best_seen(report: PeriodicityReport, picture: Tensor) -> tuple[float, float]:
    """Where to look, as shares of height and width: of the hot places the one with least else in it.

    The middle where nothing is hot.
    """
    heat = report.heatmap[0, 0]
    if float(heat.max()) <= 0:
        return 0.5, 0.5
    plane = grey_plane(picture)
    clipped = ((plane < 4) | (plane > 251)).float() * 1e4
    busy = (_detail(plane).square() + clipped)[None, None]
    energy = F.adaptive_avg_pool2d(busy, (heat.shape[0], heat.shape[1]))
    around = F.avg_pool2d(energy, 5, 1, 2, count_include_pad=False)[0, 0]
    around = around.masked_fill(heat < 0.95 * heat.max(), math.inf)
    y, x = divmod(int(around.argmin()), heat.shape[1])
    return (y + 0.5) / heat.shape[0], (x + 0.5) / heat.shape[1]


def _box_around(size: tuple[int, int], centre: tuple[float, float], side: int) -> tuple[int, int, int]:
    """(top, left, side) of a square around a place, moved and shrunk to lie inside."""
    side = min(side, *size)
    top, left = (min(max(0, round(c * n - side / 2)), n - side) for c, n in zip(centre, size, strict=True))
    return top, left, side


def _what_repeats(
    picture: Tensor, before: Tensor | None, report: PeriodicityReport, centre: tuple[float, float]
) -> Tensor | None:
    """(h, w) in grey levels, of up to 640 px around a place: the artifact alone; None where it cannot be estimated."""
    if report.kind not in ("tile", "comb"):
        return None
    size = (picture.shape[-2], picture.shape[-1])
    top, left, side = _box_around(size, centre, STRENGTH_CROP)
    known = None if before is None else resize(before[None], *size)[..., top : top + side, left : left + side]
    crop = picture[None, :, top : top + side, left : left + side]
    artifact = grey_plane(find_artifact(crop, known, (report.period[0] or 0.0, report.period[1] or 0.0))[0])
    return artifact if bool(artifact.any()) else None


def _close_ups(
    picture: Tensor, before: Tensor | None, centre: tuple[float, float], repeats: Tensor | None
) -> list[tuple[str, Image.Image]]:
    """Two titles and panels, 130 px around a place.

    The detail before and after where there is a reference; else the picture, and what repeats in it
    (or, where that cannot be estimated, its detail).
    """
    size = (picture.shape[-2], picture.shape[-1])
    top, left, side = _box_around(size, centre, CLOSE_UP)
    crop = picture[:, top : top + side, left : left + side]
    grey = _detail(grey_plane(crop))
    if before is not None:
        known = resize(grey_plane(before)[None, None], *size)[0, 0, top : top + side, left : left + side]
        span = _span(grey)
        name = f", contrast x {255 / span:.1f}"
        return [
            ("Detail before" + name, _stretched(_detail(known), span)),
            ("Detail after" + name, _stretched(grey, span)),
        ]
    shown, name = grey, "Its detail"
    if repeats is not None:
        y, x, _ = _box_around(size, centre, STRENGTH_CROP)
        shown, name = repeats[top - y : top - y + side, left - x : left - x + side], "What repeats in it"
    span = _span(shown)
    return [("Close-up", enlarged(crop)), (f"{name}, contrast x {255 / span:.1f}", _stretched(shown, span))]


def _span(plane: Tensor) -> float:
    """Grey levels that are drawn from black to white, about 0."""
    return max(2 * float(plane.abs().quantile(0.98)), 4.0)


def _stretched(plane: Tensor, span: float) -> Image.Image:
    return enlarged((plane / span + 0.5)[None])


def _detail(plane: Tensor) -> Tensor:
    """(h, w) minus its mean over 25 px: shading hides a mesh."""
    return plane - box_mean(plane, 25)


def _marks(period: float | None, reach: float) -> list[float]:
    """Multiples of a period, both signs, 0 among them, within a reach; without a period, 0 alone."""
    if not period:
        return [0.0]
    count = math.ceil(reach / period - 0.2) - 1
    return [k * period for k in range(-count, count + 1)]


def _correlation_panel(canvas: Image.Image, at: tuple[int, int], report: PeriodicityReport) -> None:
    """Autocorrelation by lag: bright where the picture, moved by so much, resembles itself; rings at the multiples."""
    assert report.correlation is not None
    draw = ImageDraw.Draw(canvas)
    values = report.correlation.values / report.correlation.sd
    ly, lx = report.correlation.reach
    reach = min(REACH, ly, lx)
    near = values[ly - reach : ly + reach + 1, lx - reach : lx + reach + 1]
    near = F.max_pool2d(near[None, None], 3, 1, 1)[0, 0]
    panel = colours(near.sub(1).div(8)).resize((PANEL, PANEL), Image.Resampling.BILINEAR)
    canvas.paste(panel, at)
    draw_title(draw, at[0], at[1], "Autocorrelation: the picture against itself, moved")
    scale = PANEL / (2 * reach + 1)
    middle = (at[0] + PANEL / 2, at[1] + PANEL / 2)
    if report.alarm and report.kind != "blocks":
        for y in _marks(report.period[0], reach):
            for x in _marks(report.period[1], reach):
                if x or y:
                    draw_ring(draw, middle[0] + x * scale, middle[1] + y * scale, 9)
    token = _token(report)
    step = 32.0 if token is None else token * max(1, math.ceil(16 / token))
    count = int(reach / step)
    lags = [k * step for k in range(-count, count + 1)]
    ticks = [(middle[0] - at[0] + lag * scale, _tick(lag, token and lag / token)) for lag in lags]
    draw_axes(draw, at, ticks, "moved by, px" if token is None else "moved by: px, under it tokens")


def _token(report: PeriodicityReport) -> float | None:
    """px per token, where it was given and a period was found."""
    sizes = zip(report.period, report.tokens, strict=True)
    return next((p / t for p, t in sizes if p is not None and t), None)


def _tick(value: float, tokens: float | None) -> str:
    return f"{value:g}" if tokens is None else f"{value:g}\n{tokens:g}"


def _spectrum_panel(canvas: Image.Image, at: tuple[int, int], report: PeriodicityReport) -> None:
    """Line power over its neighbourhood by frequency; rings where the period's lattice has its lines."""
    assert report.correlation is not None
    draw = ImageDraw.Draw(canvas)
    right = report.correlation.power
    whole = torch.cat([right[1:].flip(0, 1)[:, :-1], right[1:]], 1) if right.shape[1] > 2 else right
    whole = F.adaptive_max_pool2d(whole[None, None], PANEL // 2)[0, 0]
    panel = colours((whole - 2) / 8).resize((PANEL, PANEL), Image.Resampling.NEAREST)
    canvas.paste(panel, at)
    draw_title(draw, at[0], at[1], "Spectrum: lines over their surroundings")
    middle = (at[0] + PANEL / 2, at[1] + PANEL / 2)
    if report.alarm and report.kind != "blocks":
        rows = _marks(None if not report.period[0] else 1 / report.period[0], 0.13)
        columns = _marks(None if not report.period[1] else 1 / report.period[1], 0.13)
        for y in rows:
            for x in columns:
                if x or y:
                    draw_ring(draw, middle[0] + x * PANEL, middle[1] + y * PANEL, 6)
    token = _token(report)
    frequencies = (-0.5, -0.25, -0.125, 0.0, 0.125, 0.25, 0.5)
    waves = ("2", "4", "8", "mean", "8", "4", "2")
    rates = ["" if token is None else f"\n{abs(f) * token:g}" for f in frequencies]
    ticks = [(PANEL / 2 + f * PANEL, wave + rate) for f, wave, rate in zip(frequencies, waves, rates, strict=True)]
    draw_axes(draw, at, ticks, "wavelength, px" if token is None else "wavelength, px; under it waves per token")


def _legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], report: PeriodicityReport, repeats: Tensor | None) -> None:
    """What was found in figures, how to read the panels, and what to try next."""
    left, top = at
    width = WIDTH - MARGIN - left
    found = in_words(report.period, report.tokens) if any(report.period) else "none"
    kind = {"none": "no artifact", "jpeg": "JPEG grid", "comb": "lines in one direction"}.get(report.kind, report.kind)
    facts = [("kind", kind), ("period", found), ("reference", "used" if report.with_reference else "none given")]
    if repeats is not None:
        rms = float(repeats.square().mean().sqrt())
        facts.insert(2, ("strength, there", f"about {rms:.1f} of 255 grey levels (RMS)"))
    y = float(top) - 4
    for name, value in facts:
        draw.text((left, y), name, fill=FAINT, font=font(15))
        y = draw_paragraph(draw, left, y + 17, width, value, 18, INK) + 6
    if report.alarm and report.kind != "blocks":
        y = draw_paragraph(draw, left, y + 8, width, "Rings: where that period repeats.", 15, FAINT)
    draw.text((left, y + 12), "What next", fill=ALARM if report.alarm else CLEAR, font=font(18))
    y = draw_paragraph(draw, left, y + 38, width, _NEXT[report.kind], 16, INK)
    if repeats is not None and not report.with_reference and float(repeats.square().mean()) > MAYBE_REAL**2:
        draw_paragraph(draw, left, y + 6, width, _REAL, 16, INK)
