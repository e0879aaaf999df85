"""Scores beside the usual ones, where what they need is installed; what is missing is told, and nothing is fetched."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

from op4ksr_core.errors import OptionError

from .measure import More
from .naturalness import load_natural


def more_scores() -> tuple[dict[str, More], dict[str, str]]:
    """By name, and by name why others are left out."""
    found: dict[str, More] = {}
    missing: dict[str, str] = {}
    for name, make in _MAKERS.items():
        try:
            found[name] = make()
        except (OptionError, ImportError) as error:
            missing[name] = str(error)
    return found, missing


def _features() -> More:
    """How far output and sharp photo are apart to EfficientNet-Lite0, trained on ImageNet: 0 is equal."""
    distance = _network()
    return lambda output, low, high: {"features": float(distance(output * 2 - 1, high * 2 - 1))}


@lru_cache(maxsize=1)
def _network() -> Any:
    from op4ksr_core.training.tasks.features import FeatureDistance

    return FeatureDistance()


def _niqe() -> More:
    """Of the output alone: how far it is from natural pictures; None where it is too small."""
    natural = load_natural()
    return lambda output, low, high: {"niqe": natural.distance(output)}


_MAKERS: dict[str, Callable[[], More]] = {"features": _features, "niqe": _niqe}
