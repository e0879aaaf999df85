"""``scaling``: how seconds and bytes grow with the picture, beside how cost and memory say they must.

Exponents of pixels, least squares in log-log. Theory's is fitted in the same way to the closed forms' own
figures at the same sides: the margin, strips and the text weigh more in small pictures, attention in large ones,
so that it is neither 1 nor 2.
"""

from __future__ import annotations

import logging
import math
import statistics
from collections.abc import Iterator, Sequence

from op4ksr_core.errors import OptionError
from op4ksr_core.images.resize import Target
from op4ksr_core.machine import dtype_name
from op4ksr_core.models.flux import Flux
from op4ksr_core.one_step import CoreStages, OneStepOptions
from op4ksr_core.planning.plan import Plan
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.vae.estimate import StripPlan

from .pipeline import meanings, photo, spread, turns_table
from .stage_times import Measured, core_way, estimated_bytes, measure, plan_of
from .tables import FACTOR, Row, Tables, setting_rows

log = logging.getLogger(__name__)

#: Output sides, in px. On a CPU the largest takes minutes by itself.
SIDES = (512, 1024, 2048, 4096, 8192)
CPU_SIDES = SIDES[:-1]
QUICK_SIDES = (64, 96, 128, 192)

#: How many of the largest sides are fitted by themselves.
UPPER = 3

#: Stages whose work and memory have closed forms.
_STAGES = ("encode", "transformer", "decode")


def fit_exponent(pixels: Sequence[float], values: Sequence[float]) -> float:
    """The p of values = c * pixels^p by least squares in log-log; all above 0, at least two different pixels."""
    return statistics.linear_regression([math.log(x) for x in pixels], [math.log(y) for y in values]).slope


def scaling(
    flux: Flux | None, autoencoder: AutoEncoder, sides: Sequence[int], repeats: int, strips: StripPlan | None = None
) -> tuple[Tables, list[Row]]:
    """Settings, figures by side, the exponents; and every turn's seconds. Whole runs without colour fix.

    flux None: the autoencoder alone. strips None: by the free memory, for each side. Raises, before anything is
    computed, OptionError (fewer than 2 sides, one beyond the ceiling) and OutOfMemoryError (one that cannot fit).
    """
    core, sides = CoreStages(flux, autoencoder, strips=strips), sorted(set(sides))
    if len(sides) < 2 or sides[0] < 1:
        raise OptionError(
            f"benchmarks scaling: expected 2 or more different sides from 1 px up, got {sides}; name more"
        )
    plans = {side: plan_of((_low(side), _low(side)), Target(long_edge=side), core) for side in sides}
    rows: list[Row] = []
    turns: list[Row] = []
    for side, plan in plans.items():
        log.info("scaling: %d px", side)
        options = OneStepOptions(Target(long_edge=side), color="none", fidelity=0.0, vae_only=flux is None)
        image = photo(_low(side), autoencoder.device)
        found = measure({f"{side} px": core_way(core, options, plan)}, image, repeats)
        rows += _side_rows(side, found[f"{side} px"], plan)
        turns += turns_table(found)
    tables = {
        "Settings": settings_rows(autoencoder, repeats),
        "By the output's side": rows,
        "Exponents of the output's pixels, fitted to the figures above": exponents(rows),
    }
    return tables, turns


def _low(side: int) -> int:
    return max(1, side // FACTOR)


def _side_rows(side: int, own: Measured, plan: Plan) -> Iterator[Row]:
    paths = {stage.name: stage.path for stage in plan.stages}
    for stage in _STAGES:
        work, estimated = own.work(stage), estimated_bytes(plan, stage)
        if work is None or estimated is None:
            continue
        yield {
            "stage": stage,
            "px": side,
            "tokens": plan.tokens[0] * plan.tokens[1],
            **spread(own, stage),
            "TFLOP": work / 1e12,
            "TFLOP/s": work / 1e12 / own.median(stage),
            "GB": own.peak(stage) / 1e9,
            "estimated GB": estimated / 1e9,
            "way": paths[stage],
        }


def exponents(rows: Sequence[Row]) -> list[Row]:
    """Of seconds beside FLOPs, and of bytes beside their estimate, over all sides and over the largest alone."""
    table: list[Row] = []
    for what, measured, theory in (("seconds", "s", "TFLOP"), ("bytes", "GB", "estimated GB")):
        for stage in dict.fromkeys(row["stage"] for row in rows):
            own = sorted((row for row in rows if row["stage"] == stage), key=lambda row: row["px"])
            for chosen in (own, own[-UPPER:]) if len(own) > UPPER else (own,):
                pixels = [row["px"] ** 2 for row in chosen]
                p, q = (fit_exponent(pixels, [row[key] for row in chosen]) for key in (measured, theory))
                sides = f"{chosen[0]['px']} to {chosen[-1]['px']}"
                head = {"of": what, "stage": stage, "sides": sides, "points": len(chosen)}
                table.append(head | {"measured": p, "theory": q, "measured / theory": p / q})
    return table


def settings_rows(model: AutoEncoder, repeats: int) -> list[Row]:
    """What was run, and what the figures mean."""
    values = {
        "picture": f"x{FACTOR} to the side named, as a square; with the VAE's margin, without colour fix",
        "models": f"{model.device}, {dtype_name(model.dtype)}; VAE {model.params.ratio}x",
        **meanings(model.device, repeats),
        "theory": "the same fit to TFLOP (of seconds) and to the estimate (of bytes) at the same sides",
    }
    return setting_rows(values)
