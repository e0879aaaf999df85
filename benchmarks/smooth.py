"""Smooth pictures, on which a mesh is seen first: what repeats in the models' error, by detail, repair and fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from op4ksr_core.images.io import to_8_bit
from op4ksr_core.periodicity.meter import measure_periodicity

from .ablation import mesh, smooth_picture
from .damages import shrunk
from .methods import PLAIN, Enlarge
from .picture_sets import OnPicture
from .tables import Row
from .variants import Variant

#: Six pictures of this side, px, as the bundled weights' card has them.
SIDE, COUNT = 384, 6

DETAILS, REPAIRS, FIDELITIES = (0.0, 0.5, 1.0, 2.0), (0.0, 0.5, 1.0), (0.0, 1.0)

#: Periods, px, beside the factor's.
PERIODS = (16, 32)


def smooth_rows(
    variant: Variant,
    factor: int = 4,
    details: Sequence[float] = DETAILS,
    repairs: Sequence[float] = REPAIRS,
    on_row: OnPicture | None = None,
) -> list[Row]:
    """A row per detail, repair and fidelity, and one of bicubic: the largest mesh of six pictures, by period.

    mesh of P: RMS in grey levels of what repeats every P px in output - picture, beyond chance (``ablation.mesh``), of
    the output before it is rounded. worst: the largest of all. alarms: of the six, the meter's, of the rounded output.
    """
    highs = [smooth_picture(number, SIDE // factor * factor) for number in range(COUNT)]
    rows = [
        {"method": "bicubic", "detail": "", "repair": "", "fidelity": ""}
        | _row(PLAIN["bicubic"].enlarge, highs, factor)
    ]
    for detail in details:
        for repair in repairs:
            for fidelity in FIDELITIES:
                own = replace(variant, detail=detail, repair=repair, fidelity=fidelity)
                words = {"detail": f"{detail:g}", "repair": f"{repair:g}", "fidelity": f"{fidelity:g}"}
                if on_row is not None:
                    on_row(", ".join(f"{key} {value}" for key, value in words.items()))
                rows.append({"method": variant.name, **words} | _row(own.enlarge, highs, factor))
    return rows


@torch.no_grad()
def _row(enlarge: Enlarge, highs: Sequence[Tensor], factor: int) -> Row:
    periods = (factor, *PERIODS)
    largest = dict.fromkeys(periods, 0.0)
    alarms = 0
    for high in highs:
        low = shrunk(high, factor)
        output = enlarge(low, factor)
        for period in periods:
            largest[period] = max(largest[period], mesh(output, high, period))
        alarms += measure_periodicity(to_8_bit(output), low).alarm
    found: Row = {f"mesh of {period}": value for period, value in largest.items()}
    return found | {"worst": max(largest.values()), "alarms": alarms}
