"""The periodicity meter and the suppressor as nodes, on clean and gridded pictures."""

from __future__ import annotations

from typing import Any

import harness
import torch
from weights import difference, picture

import nodes
from op4ksr_core import measure_periodicity
from op4ksr_core.periodicity.artifacts import inject


def clean() -> Any:
    return picture(384, 448, seed=5)


def gridded(levels: float = 6.0) -> Any:
    return inject(clean().movedim(-1, 1), "white32", levels, 1).movedim(1, -1)


def diagnose(*args: Any, **kwargs: Any) -> Any:
    return nodes.NODE_CLASS_MAPPINGS["OP4KSR_PeriodicityDiagnostic"].execute(*args, **kwargs)


def diagnostic() -> dict[str, Any]:
    """A batch of a clean and a gridded picture; each alone."""
    report, heat, mask, score, period, verdict = diagnose(torch.cat([clean(), gridded()])).result
    alone = diagnose(clean()).result
    core = measure_periodicity(gridded().movedim(-1, 1), token=32)
    return {
        "report": list(report.shape),
        "heat": list(heat.shape),
        "mask": list(mask.shape),
        "masks": [float(one.mean()) for one in mask],
        "score": score,
        "core_score": core.score,
        "period": period,
        "verdict": verdict.splitlines(),
        "clean_score": alone[3],
        "clean_period": alone[4],
        "with_reference": diagnose(gridded(), reference=picture(96, 112, seed=5)).result[3],
        "blamed": diagnose(gridded(), reference=gridded()).result[3],
        "shows": sorted(diagnose(clean()).ui),
    }


def suppressor() -> dict[str, Any]:
    base, spoilt = clean(), gridded()
    low = torch.nn.functional.interpolate(base.movedim(-1, 1), scale_factor=0.25, mode="bicubic", antialias=True)
    image, mask, note = harness.run("OP4KSR_SuppressPeriodicity", spoilt, reference=low.movedim(1, -1).clamp(0, 1))
    same, none, refusal = harness.run("OP4KSR_SuppressPeriodicity", base)
    alpha = harness.run("OP4KSR_SuppressPeriodicity", torch.cat([spoilt, torch.ones_like(spoilt[..., :1])], -1))[0]
    return {
        "before": float((spoilt - base).square().mean().sqrt()),
        "after": float((image - base).square().mean().sqrt()),
        "mask": [list(mask.shape), float(mask.mean())],
        "note": note,
        "clean": [difference(same, base), float(none.max()), refusal],
        "alpha": list(alpha.shape),
        "strength_0": difference(harness.run("OP4KSR_SuppressPeriodicity", spoilt, strength=0.0)[0], spoilt),
    }


CASES = (diagnostic, suppressor)
