"""The periodicity meter: is there a mesh in a picture that should not be there, where, and of which period?

The answer comes with a false-alarm rate: the share of clean pictures that would look as periodic.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ImageError, OptionError
from ..images.metrics import is_finite, luma
from ..images.resize import resize
from .autocorrelation import SMALLEST_SIDE, Autocorrelation
from .block_steps import block_map
from .calibration import evidence_scores, false_alarm_rate, score_of
from .evidence import JPEG_STEPS, PERIODS, Evidence, gather_evidence, same_period

Kind = Literal["none", "tile", "comb", "blocks", "jpeg"]
Period = tuple[float | None, float | None]

#: False-alarm rate at which a picture is called periodic, unless the caller says otherwise.
ALARM_RATE = 0.01

#: Range in grey levels under which a picture is flat: nothing but rounding is in it.
FLAT = 0.05

#: How far the reference's aspect ratio may be off; a small one's sides are rounded, so 1 / shorter side more.
LARGEST_STRETCH = 0.03

#: Grey levels that a row or column of a frame may vary by.
FRAME_RANGE = 0.75

#: Side of the heat map's cells, px: one token of a 16x autoencoder with 2x2 patches.
HEAT_CELL = 32

#: z of a window where the heat begins, and where it is 1.
HEAT_FROM, HEAT_FULL = 3.0, 10.0

_FAMILY: dict[str, Kind] = {
    "tile": "tile",
    "free_tile": "tile",
    "lines": "comb",
    "free_lines": "comb",
    "block": "blocks",
}


@dataclass(frozen=True)
class PeriodicityReport:
    """What one picture shows. ``measure_periodicity`` makes it.

    score: -log10 of the false-alarm rate, 0 and up: 2 is what 1 clean picture in 100 reaches; the
        more, the surer. Beyond about 3 it is extrapolated.
    false_alarm_rate: share of clean pictures that score as much (calibration.py says on what).
    alarm: false_alarm_rate <= alarm_rate.
    kind: "tile", "comb" (lines in one direction), "blocks" (steps at block borders); without an alarm
        "none", or "jpeg" where JPEG's own 8 px grid shows.
    period: px (rows, columns); None on an axis without one.
    tokens: the same in tokens, where a token size was given.
    heatmap: (1, 1, H', W') in [0, 1], one value per 32 px cell: how surely the artifact is there.
    jpeg_grid: z of JPEG's 8 px steps, whatever the kind; above 4 it is there.
    size: (H, W) px. with_reference: whether what was there before was left out.
    picture: index in the batch. correlation: for the report picture; None for pictures under 64 px.
    """

    score: float
    false_alarm_rate: float
    alarm: bool
    kind: Kind
    period: Period
    tokens: Period
    heatmap: Tensor
    jpeg_grid: float
    alarm_rate: float
    size: tuple[int, int]
    with_reference: bool
    picture: int = 0
    correlation: Autocorrelation | None = None

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        if min(self.size) < SMALLEST_SIDE:
            return f"Too small to tell: a picture of at least {SMALLEST_SIDE} px on each side is needed."
        rate = rate_in_words(self.false_alarm_rate)
        if not self.alarm:
            grid = " It has an 8 px grid, as JPEG and enlarging leave." if self.kind == "jpeg" else ""
            return f"No periodic artifact found; {rate}.{grid}"
        what = {"tile": "A repeating mesh", "comb": "Repeating lines", "blocks": "A block grid"}[self.kind]
        return f"{what} every {in_words(self.period, self.tokens)}; {rate}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values under the same names, for JSON; the heat map as rows of numbers."""
        return {
            "score": round(self.score, 3),
            "false_alarm_rate": self.false_alarm_rate,
            "alarm": self.alarm,
            "kind": self.kind,
            "period": list(self.period),
            "tokens": list(self.tokens),
            "heatmap": [[round(v, 3) for v in row] for row in self.heatmap[0, 0].tolist()],
            "jpeg_grid": round(self.jpeg_grid, 2),
            "alarm_rate": self.alarm_rate,
            "size": list(self.size),
            "with_reference": self.with_reference,
            "verdict": self.verdict,
        }


def in_words(period: Period, tokens: Period = (None, None)) -> str:
    """ "32 px (1 token)", "24 x 31.5 px", "8 px down"."""
    rows, columns = period
    if rows is None or columns is None:
        axis = "across" if rows is None else "down"
        length = rows or columns or 0.0
        token = tokens[0] or tokens[1]
        return f"{length:.4g} px {axis}" + (f" ({_tokens(token)})" if token else "")
    if abs(rows - columns) < 0.01 * rows:
        return f"{rows:.4g} px" + (f" ({_tokens(tokens[0])})" if tokens[0] else "")
    return f"{rows:.4g} px down and {columns:.4g} px across"


def _tokens(count: float) -> str:
    return "1 token" if abs(count - 1) < 0.01 else f"{count:.3g} tokens"


def rate_in_words(rate: float) -> str:
    """ "1 clean photo in 250 scores as high"."""
    if rate >= 0.5:
        return "most clean photos score as high"
    if rate > 1e-3:
        return f"1 clean photo in {1 / rate:.0f} scores as high"
    return "fewer than 1 clean photo in 1,000 scores as high"


def measure_periodicity(
    image: Tensor,
    reference: Tensor | None = None,
    *,
    alarm_rate: float = ALARM_RATE,
    token: float | None = None,
) -> PeriodicityReport:
    """Report on a picture; of a batch, on its worst picture (``report.picture`` says which).

    image: (B, 3, H, W) or (B, 1, H, W) float in [0, 1]. reference: what it was made from, (B or 1, 3 or 1,
    h, w), any size not larger; enlarged bicubically, so that what repeats in it is not blamed on the
    image. token: px per token, to report the period in tokens too. Pictures under 64 px on a side
    cannot be judged and get score 0. Raises ImageError (shape, channels, NaN), OptionError (rates).
    """
    reports = measure_each(image, reference, alarm_rate=alarm_rate, token=token)
    return max(reports, key=lambda report: report.score)


def measure_each(
    image: Tensor,
    reference: Tensor | None = None,
    *,
    alarm_rate: float = ALARM_RATE,
    token: float | None = None,
) -> list[PeriodicityReport]:
    """One report per picture of the batch, in order. Arguments and errors as ``measure_periodicity``."""
    check_pictures(image, reference)
    if not 0 < alarm_rate < 1:
        raise OptionError(f"alarm rate: expected a share between 0 and 1 (0.01 is 1 %), got {alarm_rate}")
    if token is not None and not token > 0:
        raise OptionError(f"token: expected a size in px above 0, got {token}")
    reports: list[PeriodicityReport] = []
    with torch.no_grad():
        for i, picture in enumerate(image):
            before = None if reference is None else reference[min(i, len(reference) - 1)]
            reports.append(_measure(picture, before, alarm_rate, token, i))
    return reports


def check_pictures(image: Tensor, reference: Tensor | None) -> None:
    """Raise ImageError unless both can be measured together."""
    for name, picture in (("image", image), ("reference", reference)):
        if picture is None:
            continue
        if picture.ndim != 4 or picture.shape[1] not in (1, 3) or 0 in picture.shape:
            raise ImageError(f"{name}: expected (B, 3, H, W) or (B, 1, H, W), got {tuple(picture.shape)}")
        if not picture.is_floating_point():
            raise ImageError(f"{name}: expected floats in [0, 1], got {picture.dtype}; divide 8-bit values by 255")
        if not is_finite(picture):
            raise ImageError(f"{name}: holds NaN or infinite values; whatever made it has failed")
    if reference is None:
        return
    if len(reference) not in (1, len(image)):
        raise ImageError(
            f"reference: {len(reference)} pictures for {len(image)} to look at; give one for all, or one for each"
        )
    if reference.shape[-2] > image.shape[-2] or reference.shape[-1] > image.shape[-1]:
        sizes = [f"{p.shape[-1]}x{p.shape[-2]}" for p in (reference, image)]
        raise ImageError(f"reference: {sizes[0]} px is larger than the image, {sizes[1]} px; are they swapped?")
    height, width = reference.shape[-2:]
    if abs(height * image.shape[-1] / (width * image.shape[-2]) - 1) > LARGEST_STRETCH + 1 / min(height, width):
        raise ImageError(
            f"reference: {width}x{height} px has another shape than the image, {image.shape[-1]}x{image.shape[-2]} px; "
            "give the whole picture that the image was made from"
        )


def grey_plane(picture: Tensor) -> Tensor:
    """(3 or 1, H, W) in [0, 1] -> luma (H, W) float32, 0 to 255, on the CPU."""
    picture = picture.detach().cpu().float()
    return (picture[0] if len(picture) == 1 else luma(picture[None])[0, 0]) * 255


def enlarged_plane(before: Tensor, plane: Tensor) -> Tensor:
    """A reference (3 or 1, h, w) in [0, 1] -> luma as ``grey_plane``, bicubically of the plane's size (H, W)."""
    return resize(grey_plane(before)[None, None], plane.shape[-2], plane.shape[-1])[0, 0]


def _measure(
    picture: Tensor, before: Tensor | None, alarm_rate: float, token: float | None, index: int
) -> PeriodicityReport:
    plane = grey_plane(picture)
    height, width = plane.shape
    if min(height, width) < SMALLEST_SIDE or float(plane.max() - plane.min()) < FLAT:
        heat = torch.zeros(1, 1, -(-height // HEAT_CELL), -(-width // HEAT_CELL))
        none: Period = (None, None)
        return PeriodicityReport(
            score=0.0,
            false_alarm_rate=1.0,
            alarm=False,
            kind="none",
            period=none,
            tokens=none,
            heatmap=heat,
            jpeg_grid=0.0,
            alarm_rate=alarm_rate,
            size=(height, width),
            with_reference=before is not None,
            picture=index,
        )
    known = None if before is None else enlarged_plane(before, plane)
    part = _inside_frame(plane)
    plane, known = plane[part], None if known is None else known[part]
    evidence = gather_evidence(plane, known)
    scores = evidence_scores(evidence.statistics, known is not None)
    score = score_of(scores, known is not None)
    rate = false_alarm_rate(score)
    alarm = rate <= alarm_rate
    kind: Kind = "none"
    period: Period = (None, None)
    if alarm:
        kind = _kind(scores, evidence)
        period = _period(kind, scores, evidence)
    elif evidence.steps.full[8] > JPEG_STEPS:
        kind, period = "jpeg", (8.0, 8.0)
    tokens: Period = (None, None) if token is None else (_divided(period[0], token), _divided(period[1], token))
    heat = _heatmap(plane if known is None else plane - known, evidence, kind, period)
    return PeriodicityReport(
        score=score,
        false_alarm_rate=rate,
        alarm=alarm,
        kind=kind,
        period=period,
        tokens=tokens,
        heatmap=_placed(heat, part, (height, width)),
        jpeg_grid=evidence.steps.full[8],
        alarm_rate=alarm_rate,
        size=(height, width),
        with_reference=known is not None,
        picture=index,
        correlation=evidence.correlation,
    )


def _inside_frame(plane: Tensor) -> tuple[slice, slice]:
    """Rows and columns without the flat border (letterbox, black space): its edge is a step that means nothing.

    All of the plane where under 64 px would be left.
    """
    inside: list[slice] = []
    for axis in (1, 0):
        lively = (plane.amax(axis) - plane.amin(axis) > FRAME_RANGE).nonzero()[:, 0]
        first, last = (int(lively[0]), int(lively[-1]) + 1) if len(lively) else (0, 0)
        inside.append(slice(first, last) if last - first >= SMALLEST_SIDE else slice(0, plane.shape[1 - axis]))
    return inside[0], inside[1]


def _placed(heat: Tensor, part: tuple[slice, slice], size: tuple[int, int]) -> Tensor:
    """The heat of a part of the picture, in cells, at its place in the whole picture's; 0 around it."""
    cells = tuple(math.ceil(length / HEAT_CELL) for length in size)
    whole = heat.new_zeros(1, 1, *cells)
    rows, columns = (
        min(round(span.start / HEAT_CELL), count - own)
        for span, count, own in zip(part, cells, heat.shape[-2:], strict=True)
    )
    whole[..., rows : rows + heat.shape[-2], columns : columns + heat.shape[-1]] = heat
    return whole


def _divided(length: float | None, token: float) -> float | None:
    return None if length is None else length / token


def family(name: str) -> Kind:
    """The kind that a statistic speaks for."""
    return next(kind for start, kind in _FAMILY.items() if name.startswith(start))


def _kind(scores: dict[str, float], evidence: Evidence) -> Kind:
    """Tiles show as lines too, and strong lines a little as tiles and steps: the strongest, tiles preferred.

    Lines of an unforeseen period are also a tile of that period on one axis and of any on the other.
    """
    best = {kind: max(v for name, v in scores.items() if family(name) == kind) for kind in ("tile", "comb", "blocks")}
    lines, tile = evidence.lines, evidence.tile
    shared = same_period(lines.rows, tile.rows) or same_period(lines.columns, tile.columns)
    share = 0.35
    if shared and best["comb"] > 0.5 * best["tile"]:
        best["tile"] = max(v for name, v in scores.items() if name.startswith("tile"))
        share = 0.6
    if best["tile"] >= share * best["comb"] and best["tile"] >= 0.35 * best["blocks"]:
        return "tile"
    return "comb" if best["comb"] >= best["blocks"] else "blocks"


def _period(kind: Kind, scores: dict[str, float], evidence: Evidence) -> Period:
    """px: the free period where it is clear, else the token lattice's that speaks loudest."""
    if kind == "tile":
        if scores["free_tile"] > 2.5:
            return evidence.tile.rows, evidence.tile.columns
        own = {p: max(v for n, v in scores.items() if _names_period(n, p) and "_all" not in n) for p in PERIODS}
        loud = [p for p in PERIODS if own[p] > max(2.0, 0.3 * max(own.values()))]
        p = float(loud[0] if loud else max(own, key=lambda k: own[k]))
        return p, p
    if kind == "comb":
        if scores["free_lines"] > 2.5:
            return evidence.lines.rows or None, evidence.lines.columns or None
        name = max((n for n in scores if n.startswith("lines")), key=lambda n: scores[n])
        p = float(name.rsplit("_", 1)[1])
        return (p, None) if "_rows_" in name else (None, p)
    name = max((n for n in scores if n.startswith("block")), key=lambda n: scores[n])
    p = float(name.rsplit("_", 1)[1])
    return p, p


def _names_period(name: str, period: int) -> bool:
    return name.startswith("tile") and name.endswith(f"_{period}")


def _heatmap(plane: Tensor, evidence: Evidence, kind: Kind, period: Period) -> Tensor:
    """(1, 1, H', W') in [0, 1] per 32 px cell; all 0 without an alarm. plane: (H, W) less the reference."""
    cells = (math.ceil(plane.shape[0] / HEAT_CELL), math.ceil(plane.shape[1] / HEAT_CELL))
    if kind in ("none", "jpeg"):
        return torch.zeros(1, 1, *cells)
    if kind == "blocks":
        z = block_map(plane, int(period[0] or HEAT_CELL), cells)
    else:
        z = evidence.heat if kind == "tile" else evidence.heat_lines
    heat = ((z - HEAT_FROM) / (HEAT_FULL - HEAT_FROM)).clamp(0, 1)
    if kind == "blocks":  # strong blocks raise the spread that their z is told in
        heat = heat / heat.max().clamp(min=0.1)
    return F.interpolate(heat[None, None], cells, mode="bilinear", align_corners=False)
