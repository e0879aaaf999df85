"""The report picture: whether there is a mesh, where, how sure, of which period, and what to try next.

Drawn with Pillow alone; the colours are cividis', which the colour-blind read like everybody else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from .autocorrelation import box_mean
from .periodicity import PeriodicityReport, grey_plane, in_words
from .resize import resize

#: Size of the report, px.
WIDTH, HEIGHT = 1280, 1096

#: Side of the square panels, the margins, and the gaps between panels, px.
PANEL, MARGIN, GAP = 390, 26, 29

#: Largest lag drawn, px; side of the close-up, px of the picture.
REACH, CLOSE_UP = 96, 130

_BACK, _INK, _FAINT, _FRAME = (250, 250, 247), (28, 32, 38), (104, 110, 118), (206, 208, 205)
_ALARM, _CLEAR, _MARK = (190, 75, 0), (0, 92, 150), (255, 255, 255)

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

_NEXT = {
    "none": "Nothing to do.",
    "jpeg": "An 8 px grid is what JPEG leaves: start from a less compressed file, and save as PNG.",
    "tile": "Take it out of this picture with 'suppress'. If you train: the loss L_AP (PeriodicityLoss) punishes it;"
    " another RoPE base (RFR) removes a cause.",
    "comb": "Take the lines out with 'suppress'. If you train: the loss L_AP (PeriodicityLoss) punishes them;"
    " another RoPE base (RFR) removes a cause.",
    "blocks": "Steps at block borders: decode without tiles or with more overlap, and try another autoencoder; if you"
    " train, add the loss L_AP.",
}


def colours(values: Tensor) -> Image.Image:
    """(H, W) in [0, 1] -> RGB in cividis."""
    table = np.asarray(_CIVIDIS, np.float32)
    at = values.clamp(0, 1).numpy() * (len(table) - 1)
    channels = [np.interp(at, np.arange(len(table)), table[:, i]) for i in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def draw_report(image: Tensor, report: PeriodicityReport, reference: Tensor | None = None) -> Image.Image:
    """RGB of 1280 x 1096 px for one picture of any size.

    image: the batch (B, 3 or 1, H, W) in [0, 1] that the report is on; reference: as it was measured with.
    """
    canvas = Image.new("RGB", (WIDTH, HEIGHT), _BACK)
    draw = ImageDraw.Draw(canvas)
    picture = image[report.picture].detach().cpu().float()
    before = None if reference is None else reference[min(report.picture, len(reference) - 1)].detach().cpu().float()
    _headline(draw, report)
    top = 184
    _where(canvas, (MARGIN, top), picture, report)
    views = _close_ups(picture, before, _hottest(report))
    for i, (title, view) in enumerate(views):
        left = MARGIN + (i + 1) * (PANEL + GAP)
        _title(draw, left, top, title)
        canvas.paste(view, (left, top))
    top += PANEL + 58
    if report.correlation is not None:
        _correlation_panel(canvas, (MARGIN + 44, top), report)
        _spectrum_panel(canvas, (MARGIN + 44 + PANEL + 70, top), report)
    else:
        _paragraph(draw, MARGIN, top, WIDTH - 2 * MARGIN, "The picture is too small for a spectrum.", 20, _FAINT)
    _legend(draw, (MARGIN + 2 * (PANEL + 70) + 20, top), report)
    return canvas


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _headline(draw: ImageDraw.ImageDraw, report: PeriodicityReport) -> None:
    """Alarm or not, the verdict, and the score on its scale."""
    word, colour = ("ARTIFACT FOUND", _ALARM) if report.alarm else ("CLEAR", _CLEAR)
    draw.rectangle((0, 0, WIDTH, 10), fill=colour)
    draw.text((MARGIN, 30), word, fill=colour, font=_font(40))
    _paragraph(draw, MARGIN, 84, 800, report.verdict, 22, _INK)
    left, right, y = 880, WIDTH - MARGIN - 6, 62
    full = 6.0
    draw.text(
        (left, 28), f"score {report.score:.1f}" if report.score < 100 else "score above 100", fill=_INK, font=_font(22)
    )
    draw.rectangle((left, y, right, y + 16), outline=_FRAME, fill=(255, 255, 255))
    draw.rectangle((left, y, left + (right - left) * min(report.score, full) / full, y + 16), fill=colour)
    for value, text in ((0, "0"), (2, "2: 1 in 100"), (4, "4"), (6, "6+")):
        x = left + (right - left) * value / full
        draw.line((x, y - 3, x, y + 19), fill=_INK)
        draw.text((x, y + 22), text, fill=_FAINT, font=_font(15), anchor="ma" if value < 6 else "ra")
    draw.text((left, y + 44), "clean pictures that score as much", fill=_FAINT, font=_font(15))


def _title(draw: ImageDraw.ImageDraw, left: float, top: float, text: str) -> None:
    draw.text((left, top - 8), text, fill=_INK, font=_font(18), anchor="ls")


def _paragraph(
    draw: ImageDraw.ImageDraw, left: float, top: float, width: float, text: str, size: int, fill: tuple[int, int, int]
) -> float:
    """Write wrapped text; returns the y under it."""
    line = ""
    for word in [*text.split(), ""]:
        longer = f"{line} {word}".strip()
        if line and (not word or draw.textlength(longer, font=_font(size)) > width):
            draw.text((left, top), line, fill=fill, font=_font(size))
            top += size * 1.35
            longer = word
        line = longer
    return top


def _where(canvas: Image.Image, at: tuple[int, int], picture: Tensor, report: PeriodicityReport) -> None:
    """The picture, paled, with the heat over it."""
    draw = ImageDraw.Draw(canvas)
    left, top = at
    _title(draw, left, top, "Where" if report.alarm else "Where (nothing found)")
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
    draw.rectangle((left, top, left + size[1] - 1, top + size[0] - 1), outline=_FRAME)
    label = f"{report.size[1]} x {report.size[0]} px"
    draw.text((left, top + size[0] + 6), label, fill=_FAINT, font=_font(15))
    if report.alarm:
        _colour_bar(canvas, (left + PANEL - 262, top + size[0] + 8), ("elsewhere", "surely here"))


def _colour_bar(canvas: Image.Image, at: tuple[int, int], ends: tuple[str, str]) -> None:
    draw = ImageDraw.Draw(canvas)
    canvas.paste(colours(torch.linspace(0, 1, 90).expand(12, 90)), (at[0] + 80, at[1]))
    draw.text((at[0] + 74, at[1] - 2), ends[0], fill=_FAINT, font=_font(15), anchor="ra")
    draw.text((at[0] + 176, at[1] - 2), ends[1], fill=_FAINT, font=_font(15))


def _hottest(report: PeriodicityReport) -> tuple[float, float]:
    """Centre of the hottest cell as shares of height and width; the middle where nothing is hot."""
    heat = report.heatmap[0, 0]
    if float(heat.max()) <= 0 or float(heat.min()) == 1:
        return 0.5, 0.5
    hot = (heat >= 0.95 * heat.max()).nonzero().float()
    y, x = hot[(hot - hot.mean(0)).square().sum(1).argmin()].tolist()
    return (y + 0.5) / heat.shape[0], (x + 0.5) / heat.shape[1]


def _close_ups(picture: Tensor, before: Tensor | None, centre: tuple[float, float]) -> list[tuple[str, Image.Image]]:
    """Titles and panels: 130 px around a place; the reference's and the picture's, or the picture's twice."""
    height, width = picture.shape[-2:]
    side = min(CLOSE_UP, height, width)
    top = min(max(0, round(centre[0] * height - side / 2)), height - side)
    left = min(max(0, round(centre[1] * width - side / 2)), width - side)
    crop = picture[:, top : top + side, left : left + side]
    grey = _detail(grey_plane(crop))
    low, high = (float(grey.quantile(q)) for q in (0.02, 0.98))
    span = max(high - low, 8.0)

    def stretched(plane: Tensor) -> Image.Image:
        return _enlarged(((plane - (low + high - span) / 2) / span)[None])

    title = f"Its detail, contrast x {255 / span:.1f}"
    if before is None:
        return [("Close-up", _enlarged(crop)), (title, stretched(grey))]
    known = resize(grey_plane(before)[None, None], height, width)[0, 0, top : top + side, left : left + side]
    known = _detail(known)
    return [
        (f"Detail before, contrast x {255 / span:.1f}", stretched(known)),
        (f"Detail after, contrast x {255 / span:.1f}", stretched(grey)),
    ]


def _detail(plane: Tensor) -> Tensor:
    """(h, w) minus its mean over 25 px: shading hides a mesh."""
    return plane - box_mean(plane, 25)


def _enlarged(crop: Tensor) -> Image.Image:
    """(3 or 1, h, w) in [0, 1] -> PANEL x PANEL px, pixels as squares."""
    pixels = crop.clamp(0, 1).mul(255).round().to(torch.uint8).expand(3, *crop.shape[-2:]).permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy()).resize((PANEL, PANEL), Image.Resampling.NEAREST)


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
    _title(draw, at[0], at[1], "Autocorrelation: the picture against itself, moved")
    scale = PANEL / (2 * reach + 1)
    middle = (at[0] + PANEL / 2, at[1] + PANEL / 2)
    if report.alarm and report.kind != "blocks":
        for y in _marks(report.period[0], reach):
            for x in _marks(report.period[1], reach):
                if x or y:
                    _ring(draw, middle[0] + x * scale, middle[1] + y * scale, 9)
    ticks = [(lag, f"{lag:g}") for lag in range(-reach // 32 * 32, reach + 1, 32) if abs(lag) <= reach]
    _axes(draw, at, [(middle[0] - at[0] + lag * scale, text) for lag, text in ticks], "moved by, px")
    if report.tokens[0] or report.tokens[1]:
        sizes = zip(report.period, report.tokens, strict=True)
        token = next(p / t for p, t in sizes if p is not None and t)
        text = f"1 token = {token:g} px"
        draw.text((at[0] + PANEL, at[1] + PANEL + 24), text, fill=_FAINT, font=_font(15), anchor="ra")


def _spectrum_panel(canvas: Image.Image, at: tuple[int, int], report: PeriodicityReport) -> None:
    """Line power over its neighbourhood by frequency; rings where the period's lattice has its lines."""
    assert report.correlation is not None
    draw = ImageDraw.Draw(canvas)
    right = report.correlation.power
    whole = torch.cat([right[1:].flip(0, 1)[:, :-1], right[1:]], 1) if right.shape[1] > 2 else right
    whole = F.adaptive_max_pool2d(whole[None, None], PANEL // 2)[0, 0]
    panel = colours((whole - 2) / 8).resize((PANEL, PANEL), Image.Resampling.NEAREST)
    canvas.paste(panel, at)
    _title(draw, at[0], at[1], "Spectrum: lines over their surroundings")
    middle = (at[0] + PANEL / 2, at[1] + PANEL / 2)
    if report.alarm and report.kind != "blocks":
        rows = _marks(None if not report.period[0] else 1 / report.period[0], 0.13)
        columns = _marks(None if not report.period[1] else 1 / report.period[1], 0.13)
        for y in rows:
            for x in columns:
                if x or y:
                    _ring(draw, middle[0] + x * PANEL, middle[1] + y * PANEL, 6)
    names = ((-0.5, "2"), (-0.25, "4"), (-0.125, "8"), (0, "mean"), (0.125, "8"), (0.25, "4"), (0.5, "2"))
    _axes(draw, at, [(PANEL / 2 + f * PANEL, text) for f, text in names], "wavelength, px")


def _ring(draw: ImageDraw.ImageDraw, x: float, y: float, radius: float) -> None:
    draw.ellipse((x - radius - 1, y - radius - 1, x + radius + 1, y + radius + 1), outline=(0, 0, 0))
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), outline=_MARK)


def _axes(draw: ImageDraw.ImageDraw, at: tuple[int, int], ticks: Sequence[tuple[float, str]], name: str) -> None:
    """The same ticks (px from the panel's corner, text) along the left and the bottom."""
    left, top = at
    draw.rectangle((left, top, left + PANEL, top + PANEL), outline=_FRAME)
    for place, text in ticks:
        draw.line((left + place, top + PANEL, left + place, top + PANEL + 5), fill=_INK)
        draw.text((left + place, top + PANEL + 7), text, fill=_FAINT, font=_font(15), anchor="ma")
        draw.line((left - 5, top + place, left, top + place), fill=_INK)
        draw.text((left - 8, top + place), text, fill=_FAINT, font=_font(15), anchor="rm")
    draw.text((left, top + PANEL + 24), name, fill=_FAINT, font=_font(15))


def _legend(draw: ImageDraw.ImageDraw, at: tuple[int, int], report: PeriodicityReport) -> None:
    """What was found in figures, how to read the panels, and what to try next."""
    left, top = at
    width = WIDTH - MARGIN - left
    found = in_words(report.period, report.tokens) if any(report.period) else "none"
    kind = {"none": "no artifact", "jpeg": "JPEG grid", "comb": "lines in one direction"}.get(report.kind, report.kind)
    facts = (("kind", kind), ("period", found), ("reference", "used" if report.with_reference else "none given"))
    y = float(top) - 4
    for name, value in facts:
        draw.text((left, y), name, fill=_FAINT, font=_font(15))
        y = _paragraph(draw, left, y + 17, width, value, 18, _INK) + 6
    y = _paragraph(draw, left, y + 8, width, "Rings: where that period repeats.", 15, _FAINT)
    draw.text((left, y + 12), "What next", fill=_ALARM if report.alarm else _CLEAR, font=_font(18))
    _paragraph(draw, left, y + 38, width, _NEXT[report.kind], 16, _INK)
