"""Whole runs, each in a process of its own: seconds and peak memory, beside those of other weights."""

from __future__ import annotations

import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from op4ksr_core.bundled import SAMPLE_PHOTO
from op4ksr_core.images.io import load_image
from op4ksr_core.images.resize import resize
from op4ksr_core.machine import peak_memory

from .own_process import in_own_process
from .picture_sets import OnPicture
from .tables import Row
from .variants import Variant


def whole_rows(
    variants: Sequence[Variant], side: int, factor: int, threads: int, repeats: int, on_row: OnPicture | None = None
) -> list[Row]:
    """A row per variant: the bundled photo of side x side px, enlarged on the CPU ``repeats`` times after a warm-up.

    s: the median; GB at peak: of the process, the models' and Python's own among it; over: both over the first row's.
    Raises Op4ksrError where a run ends early.
    """
    rows: list[Row] = []
    for variant in variants:
        if on_row is not None:
            on_row(variant.name)
        seconds, peak = _in_a_process(variant, side, factor, threads, repeats)
        rows.append({"run": variant.name, "px": f"{side} -> {side * factor}", "s": median(seconds), "GB at peak": peak})
    seconds, peak = rows[0]["s"], rows[0]["GB at peak"]
    return [row | {"s over": row["s"] / seconds, "GB over": row["GB at peak"] / peak if peak else None} for row in rows]


def _in_a_process(variant: Variant, side: int, factor: int, threads: int, repeats: int) -> tuple[list[float], float]:
    what = f"benchmarks whole: the run of {variant.name}"
    args = (variant, side, factor, threads, repeats)
    return in_own_process(_run_and_tell, args, what, "free memory, or take a smaller side")


def _run_and_tell(variant: Variant, side: int, factor: int, threads: int, repeats: int, results: Any) -> None:
    torch.set_num_threads(threads)
    image = resize(load_image(SAMPLE_PHOTO).image, side, side).clamp(0, 1)
    variant.enlarge(image[..., :64, :64], factor)
    seconds: list[float] = []
    for _ in range(repeats):
        before = time.perf_counter()
        variant.enlarge(image, factor)
        seconds.append(time.perf_counter() - before)
    results.put((seconds, (peak_memory(torch.device("cpu")) or 0) / 1e9))
