"""The periodicity meter: is there a mesh in a picture that should not be there, where, and of which period?

``measure_periodicity`` is what everybody calls (nodes, commands, benchmarks, training samples); the remover and the
nodes take ``measure_each``. The way of one picture: its luma, and the enlarged reference's -> evidence.py (29
statistics) -> calibration.py (their scores, and the false-alarm rate) -> kind, period and heat map here -> report.py.
The thresholds are thresholds.py's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import ImageError, OptionError
from ..images.metrics import is_finite, luma
from ..images.resize import resize
from .autocorrelation import SMALLEST_SIDE
from .block_steps import block_map
from .calibration import calibration_of, false_alarm_rate
from .evidence import Evidence, gather_evidence, same_period
from .lattice import PERIODS
from .report import HEAT_CELL, Kind, Period, PeriodicityReport
from .statistic import Family, Statistic
from .thresholds import (
    ALARM_RATE,
    FLAT,
    FRAME_RANGE,
    FREE_PERIOD,
    HEAT_FROM,
    HEAT_FULL,
    JPEG_STEPS,
    LOUD_PERIOD,
    LOUD_SHARE,
    SHARED_LINES,
    TILE_SHARE,
    TILE_SHARE_SHARED,
)

#: How far the reference's aspect ratio may be off; a small one's sides are rounded, so 1 / shorter side more.
LARGEST_STRETCH = 0.03

#: The kind of artifact that each family of statistics speaks for.
KIND_OF: dict[Family, Kind] = {
    "tile": "tile",
    "tile_all": "tile",
    "tile_local": "tile",
    "free_tile": "tile",
    "lines": "comb",
    "lines_power": "comb",
    "free_lines": "comb",
    "block": "blocks",
}

#: Statistic -> its score (calibration.py).
Scores = Mapping[Statistic, float]


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
    unjudged = _unjudged((height, width), before is not None, alarm_rate, index)
    if min(height, width) < SMALLEST_SIDE or float(plane.max() - plane.min()) < FLAT:
        return unjudged
    known = None if before is None else enlarged_plane(before, plane)
    part = _inside_frame(plane)
    plane, known = plane[part], None if known is None else known[part]
    evidence = gather_evidence(plane, known)
    calibration = calibration_of(known is not None)
    scores = calibration.scores(evidence.statistics)
    score = calibration.score(scores)
    rate = false_alarm_rate(score)
    alarm = rate <= alarm_rate
    kind, period = _kind_and_period(alarm, scores, evidence)
    heat = _heatmap(plane if known is None else plane - known, evidence, kind, period)
    return replace(
        unjudged,
        score=score,
        false_alarm_rate=rate,
        alarm=alarm,
        kind=kind,
        period=period,
        tokens=(_divided(period[0], token), _divided(period[1], token)),
        heatmap=_placed(heat, part, (height, width)),
        jpeg_grid=evidence.steps.full[8],
        correlation=evidence.correlation,
    )


def _unjudged(size: tuple[int, int], with_reference: bool, alarm_rate: float, index: int) -> PeriodicityReport:
    """The report on a picture that is too small, or flat: score 0."""
    return PeriodicityReport(
        score=0.0,
        false_alarm_rate=1.0,
        alarm=False,
        kind="none",
        period=(None, None),
        tokens=(None, None),
        heatmap=torch.zeros(1, 1, *_cells(size)),
        jpeg_grid=0.0,
        alarm_rate=alarm_rate,
        size=size,
        with_reference=with_reference,
        picture=index,
    )


def _cells(size: tuple[int, int]) -> tuple[int, int]:
    """Cells of the heat map of a picture (H, W)."""
    return math.ceil(size[0] / HEAT_CELL), math.ceil(size[1] / HEAT_CELL)


def _divided(length: float | None, token: float | None) -> float | None:
    return None if length is None or token is None else length / token


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
    cells = _cells(size)
    whole = heat.new_zeros(1, 1, *cells)
    rows, columns = (
        min(round(span.start / HEAT_CELL), count - own)
        for span, count, own in zip(part, cells, heat.shape[-2:], strict=True)
    )
    whole[..., rows : rows + heat.shape[-2], columns : columns + heat.shape[-1]] = heat
    return whole


# --- which kind, which period, where --------------------------------------------------------------


def _kind_and_period(alarm: bool, scores: Scores, evidence: Evidence) -> tuple[Kind, Period]:
    if alarm:
        kind = _kind(scores, evidence)
        return kind, _period(kind, scores, evidence)
    if evidence.steps.full[8] > JPEG_STEPS:
        return "jpeg", (8.0, 8.0)
    return "none", (None, None)


def _best(scores: Scores, *families: Family) -> float:
    return max(score for statistic, score in scores.items() if statistic.family in families)


def _loudest(scores: Scores, *families: Family) -> Statistic:
    return max((statistic for statistic in scores if statistic.family in families), key=lambda s: scores[s])


def _kind(scores: Scores, evidence: Evidence) -> Kind:
    """Tiles show as lines too, and strong lines a little as tiles and steps: the strongest, tiles preferred.

    Lines of an unforeseen period are also a tile of that period on one axis and of any on the other.
    """
    best = {
        kind: max(score for statistic, score in scores.items() if KIND_OF[statistic.family] == kind)
        for kind in ("tile", "comb", "blocks")
    }
    lines, tile = evidence.lines, evidence.tile
    shared = same_period(lines.rows, tile.rows) or same_period(lines.columns, tile.columns)
    share = TILE_SHARE
    if shared and best["comb"] > SHARED_LINES * best["tile"]:
        best["tile"] = _best(scores, "tile", "tile_all", "tile_local")
        share = TILE_SHARE_SHARED
    if best["tile"] >= share * best["comb"] and best["tile"] >= TILE_SHARE * best["blocks"]:
        return "tile"
    return "comb" if best["comb"] >= best["blocks"] else "blocks"


def _period(kind: Kind, scores: Scores, evidence: Evidence) -> Period:
    """px: the free period where it is clear, else the token lattice's with the highest score."""
    if kind == "tile":
        if _best(scores, "free_tile") > FREE_PERIOD:
            return evidence.tile.rows, evidence.tile.columns
        p = _lattice_period(scores)
        return p, p
    if kind == "comb":
        if _best(scores, "free_lines") > FREE_PERIOD:
            return evidence.lines.rows or None, evidence.lines.columns or None
        found = _loudest(scores, "lines", "lines_power")
        return (float(found.period), None) if found.axis == "rows" else (None, float(found.period))
    p = float(_loudest(scores, "block").period)
    return p, p


def _lattice_period(scores: Scores) -> float:
    """px: the longest of the tiles that are loud, else the loudest."""
    own = {
        period: max(score for s, score in scores.items() if s.period == period and s.family in ("tile", "tile_local"))
        for period in PERIODS
    }
    loud = [period for period in PERIODS if own[period] > max(LOUD_PERIOD, LOUD_SHARE * max(own.values()))]
    return float(loud[0] if loud else max(own, key=lambda period: own[period]))


def _heatmap(plane: Tensor, evidence: Evidence, kind: Kind, period: Period) -> Tensor:
    """(1, 1, H', W') in [0, 1] per 32 px cell; all 0 without an alarm. plane: (H, W) less the reference."""
    cells = _cells((plane.shape[0], plane.shape[1]))
    if kind in ("none", "jpeg"):
        return torch.zeros(1, 1, *cells)
    if kind == "blocks":
        z = block_map(plane, int(period[0] or HEAT_CELL), cells)
    else:
        z = evidence.heat if kind == "tile" else evidence.heat_lines
    heat = ((z - HEAT_FROM) / (HEAT_FULL - HEAT_FROM)).clamp(0, 1)
    if kind == "blocks":  # strong blocks raise the spread that their z is measured by
        heat = heat / heat.max().clamp(min=0.1)
    return F.interpolate(heat[None, None], cells, mode="bilinear", align_corners=False)
