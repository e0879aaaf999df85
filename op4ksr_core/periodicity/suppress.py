"""Take a periodic artifact out of a picture again, without training; clean pictures and real texture stay.

``suppress_periodicity`` is the public function; the command ``suppress`` and the node take ``suppress_with_report``.
The meter says whether and with which period (meter.py), folding.py estimates what repeats, and the result is kept only
where the meter's score falls.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError
from ..images.color import TO_YCC
from ..images.resize import resize
from .autocorrelation import SMALLEST_SIDE
from .folding import FEWEST_PERIODS, WIDE_BOX, Folded, Phases, estimate_artifact, phases_of, quietness
from .local_mean import BOX, box_mean, local_contrast
from .meter import measure_each, measure_periodicity
from .report import PeriodicityReport
from .thresholds import ALARM_RATE, CLEAR_HEAT, LEAST_AFTER_ALARM, LEAST_CONFIDENCE, MASK_FULL, SMALLEST_FALL

#: Box mean taken off first, px: what a reference explains needs little; a picture alone, much.
TREND_ALONE, TREND_WITH_REFERENCE = BOX, WIDE_BOX

#: How much more an artifact in proportion to the local contrast must explain to be believed.
CONTRAST_MARGIN = 1.2


@dataclass(frozen=True)
class Suppression:
    """image: as given, the artifact taken out; the very same tensor where nothing was done.

    mask: (B, 1, H, W) in [0, 1]: where something was changed, 1 from a whole grey level (of 255) on.
    report: on the picture as it came (of a batch, the worst one). acted: whether anything was changed.
    note: one sentence that says what was done, or why nothing was.
    """

    image: Tensor
    mask: Tensor
    report: PeriodicityReport
    acted: bool
    note: str


def suppress_periodicity(image: Tensor, reference: Tensor | None = None, strength: float = 1.0) -> Tensor:
    """The image without its periodic artifact; the image itself where none raises the alarm (at 1 %).

    image: (B, 3, H, W) or (B, 1, H, W) float in [0, 1]; reference: what it was made from, any size not
    larger; strength: share of the estimate that is taken out, 0 to 1. Raises ImageError, OptionError.
    """
    return suppress_with_report(image, reference, strength).image


def suppress_with_report(
    image: Tensor,
    reference: Tensor | None = None,
    strength: float = 1.0,
    *,
    alarm_rate: float = ALARM_RATE,
    period: tuple[float, float] | None = None,
) -> Suppression:
    """As ``suppress_periodicity``, and what was found and done.

    period: px (rows, columns; 0: does not vary along it) to take out whether or not there is an alarm.
    """
    if not 0 <= strength <= 1:
        raise OptionError(f"strength: expected 0 to 1, got {strength}")
    reports = measure_each(image, reference, alarm_rate=alarm_rate)
    report = max(reports, key=lambda r: r.score)
    out, masks, notes = image, image.new_zeros(len(image), 1, *image.shape[-2:]), [""] * len(image)
    with torch.no_grad():
        for i, found in enumerate(reports):
            wanted = period or tuple(p or 0.0 for p in found.period)
            if period is None and (not found.alarm or found.kind == "blocks"):
                notes[i] = _refusal(found)
                continue
            if any(p and n < FEWEST_PERIODS * p for p, n in zip(wanted, image.shape[-2:], strict=True)):
                notes[i] = f"Nothing changed: fewer than {FEWEST_PERIODS} periods fit into the picture."
                continue
            before = None if reference is None else reference[min(i, len(reference) - 1)][None]
            if strength == 0:
                notes[i] = "Nothing changed: strength is 0."
                continue
            cleaned, notes[i] = _cleaned(image[i : i + 1], before, (wanted[0], wanted[1]), found, period is not None)
            if cleaned is None:
                continue
            cleaned = cleaned if strength == 1 else image[i : i + 1].lerp(cleaned, strength)
            out = image.clone() if out is image else out
            out[i : i + 1] = cleaned
            masks[i] = ((cleaned - image[i : i + 1]).abs().amax(1) * 255 / MASK_FULL).clamp(0, 1)
            rms = float((cleaned - image[i : i + 1]).square().mean().sqrt()) * 255
            notes[i] = f"Took out {rms:.2f} grey levels (RMS) of what repeats."
    return Suppression(out, masks, report, out is not image, notes[report.picture])


def for_8_bit(cleaned: Tensor, image: Tensor) -> Tensor:
    """A cleaned picture, rounded to 8 bit by chance (seeded) where it was changed; as it is unless the image was 8 bit.

    Both (B, C, H, W) in [0, 1]. Whole numbers less a tile, rounded as usual, leave what the rounding
    does to the tile: up to half a grey level, the same in every period, and the meter finds it again.
    """
    if not is_8_bit(image):
        return cleaned
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(cleaned.shape[-2:], generator=generator).to(cleaned)
    rounded = (cleaned * 255 + chance).floor().div(255).clamp(0, 1)
    return torch.where(cleaned == image, image, rounded)


def is_8_bit(image: Tensor) -> bool:
    """Whether all values are multiples of 1/255, as a picture read from an 8-bit file has them."""
    return float((image * 255 - (image * 255).round()).abs().max()) <= 1e-3


def _refusal(report: PeriodicityReport) -> str:
    if report.alarm:
        return "Nothing changed: block steps do not repeat, so no tile can be taken out."
    if min(report.size) < SMALLEST_SIDE:
        return f"Nothing changed: too small to judge, at least {SMALLEST_SIDE} px on each side are needed."
    return "Nothing changed: no periodic artifact found."


def _cleaned(
    image: Tensor, before: Tensor | None, period: tuple[float, float], found: PeriodicityReport, forced: bool
) -> tuple[Tensor | None, str]:
    """One picture without its artifact, or None, and why. Not forced: only where its score falls.

    What the meter calls a period may be half of it, so its double is tried where it does not do.
    """
    least = LEAST_AFTER_ALARM if found.alarm and before is not None else LEAST_CONFIDENCE
    why = "Nothing changed: what repeats could not be separated from the picture."
    for times in (1,) if forced else (1, 2):
        artifact = find_artifact(
            image, before, (times * period[0], times * period[1]), None if forced else _place(found), least
        )
        if not bool(artifact.any()):
            continue
        cleaned = (image - artifact.to(image)).clamp(0, 1)
        if forced or measure_periodicity(cleaned, before).score <= found.score - SMALLEST_FALL:
            return cleaned, ""
        why = "Nothing changed: taking it out would hardly have lowered the score."
    return None, why


def _place(report: PeriodicityReport) -> Tensor | None:
    """(H, W) in [0.02, 1]: where the artifact shows, if it shows clearly anywhere; else None."""
    heat = report.heatmap
    if float(heat.max()) < CLEAR_HEAT:
        return None
    heat = (heat / heat.max()).clamp(min=0.02)
    return F.interpolate(heat, report.size, mode="bilinear", align_corners=False)[0, 0]


def find_artifact(
    image: Tensor,
    reference: Tensor | None,
    period: tuple[float, float],
    place: Tensor | None = None,
    least: float = LEAST_CONFIDENCE,
) -> Tensor:
    """(1, C, H, W), as the image, in [-1, 1]: what repeats with that period in one picture; 0 where nothing.

    place: (H, W) in [0, 1], where to look for it; least: confidence that the luma's estimate must have.
    Luma and the two colour differences are looked at one by one.
    """
    size = (image.shape[-2], image.shape[-1])
    phases = phases_of(size, period)
    planes = _opponent(image)
    known = None if reference is None else [resize(p[None, None], *size)[0, 0] for p in _opponent(reference)]
    contrast = None if known is None else _relative_contrast(planes[0])  # alone, texture itself is what it would fit
    side = TREND_ALONE if known is None else TREND_WITH_REFERENCE
    found: list[Tensor] = []
    for i, plane in enumerate(planes):
        detail = plane if known is None or i >= len(known) else plane - known[i]
        detail = detail - detail.mean()
        best = _best_estimate(detail, place, contrast, phases, side)
        if best.confidence < (LEAST_CONFIDENCE if i else least):
            if not i:  # what the luma does not show is no reason to touch the colours
                return torch.zeros_like(image)
            best = replace(best, artifact=torch.zeros_like(detail))
        found.append(best.artifact)
    if len(found) == 1:
        return found[0][None, None].expand_as(image) / 255
    back = torch.linalg.inv(torch.tensor(TO_YCC, dtype=torch.float64)).float()
    return torch.einsum("ij,jhw->ihw", back, torch.stack(found))[None] / 255


def _best_estimate(detail: Tensor, place: Tensor | None, contrast: Tensor | None, phases: Phases, side: int) -> Folded:
    """Equally strong everywhere, or in proportion to the contrast, whichever explains more.

    Confidence 0 where nothing is explained, and where taking it out would add detail to the picture.
    """
    wide, detail = detail - box_mean(detail, WIDE_BOX), detail - box_mean(detail, side)
    weight = quietness(detail)
    best = estimate_artifact(detail, wide, weight, place, None, phases, side)
    if contrast is not None:
        scaled = estimate_artifact(detail, wide, weight, place, contrast, phases, side)
        if scaled.explained > CONTRAST_MARGIN * best.explained:
            best = scaled
    fine = best.artifact - box_mean(best.artifact, side)
    adds = float((detail - fine).square().sum()) >= float(detail.square().sum())
    return replace(best, confidence=0.0) if adds or best.explained <= 0 else best


def _relative_contrast(plane: Tensor) -> Tensor:
    """(H, W): the local contrast over its mean."""
    deviation = local_contrast(plane)
    return deviation / deviation.mean().clamp(min=1e-6)


def _opponent(picture: Tensor) -> list[Tensor]:
    """(1, 3 or 1, H, W) in [0, 1] -> luma and, unless it is grey, two colour differences, each (H, W), 255 = full."""
    picture = picture.detach().cpu().float()[0] * 255
    if len(picture) == 1 or bool((picture[0] == picture[1]).all() and (picture[1] == picture[2]).all()):
        return [picture[0]]
    return list(torch.einsum("ij,jhw->ihw", torch.tensor(TO_YCC), picture))
