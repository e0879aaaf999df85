"""``quality`` on sets of pictures that are there as LR and HR, or as LR only: Syn, RealSquare, RealVary.

With HR pictures every score; without them those that need none. Seconds and bytes are of the enlarging alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from op4ksr_core.errors import ImageError, OptionError
from op4ksr_core.images.io import to_8_bit
from op4ksr_core.images.metrics import load_piq
from op4ksr_core.machine import dtype_name
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.vae.autoencoder import AutoEncoder

from .measure import SMALLEST, WARM_UP
from .methods import BASE, Method
from .perceptual import METRICS, Perceptual
from .picture_sets import OnPicture, Pair, PictureSet, load_pair
from .scores import fidelity_scores
from .stage_clock import PeakMeter, wait_for
from .tables import Row

#: What every table of sets has, in order.
USUAL = ("bicubic", BASE, "VAE only", "full")

#: Columns after set, method and number of pictures; means but for seconds and GB.
SCORES = ("psnr", "ssim", "gmsd", "haarpsi", *METRICS, "periodicity", "alarms")


@dataclass(frozen=True)
class SetChoices:
    """How the pictures of sets are taken.

    factor: where there is no HR picture; else it is the sizes'. largest: side in px of what is enlarged at most; of
    larger pictures the middle is taken, so that work and memory are bounded.
    """

    factor: int = 4
    largest: int = 4096

    def __post_init__(self) -> None:
        if self.largest < SMALLEST:
            raise OptionError(f"--largest: expected at least {SMALLEST} px, got {self.largest}")


def check_set(pictures: PictureSet, choices: SetChoices) -> None:
    """Read every picture once, before hours go into the others.

    Raises OptionError (piq is missing and there are HR pictures), ImageError (a picture that cannot be read, does not
    fit its partner, or is too small).
    """
    if pictures.highs:
        load_piq()
    for index in range(len(pictures.lows)):
        _pair(pictures, index, choices)


def _pair(pictures: PictureSet, index: int, choices: SetChoices) -> Pair:
    low, high = pictures.lows[index], pictures.highs[index] if pictures.highs else None
    pair = load_pair(low, high, choices.factor, choices.largest)
    if min(pair.low.shape[-2:]) * pair.factor < SMALLEST:
        raise ImageError(f"{low}: is under {SMALLEST} px a side even when enlarged, too small to score; take it out")
    return pair


def set_quality(
    pictures: PictureSet,
    methods: Sequence[Method],
    perceptual: Perceptual,
    choices: SetChoices,
    device: torch.device,
    on_picture: OnPicture | None = None,
) -> list[Row]:
    """A row per picture and method; every method's output is rounded to 8 bit. Raises what ``check_set`` does.

    device: of the methods' networks, whose memory is counted.
    """
    rows: list[Row] = []
    for index, low in enumerate(pictures.lows):
        if on_picture is not None:
            on_picture(f"{pictures.name}: {low.name} ({index + 1} of {len(pictures.lows)})")
        pair = _pair(pictures, index, choices)
        for method in methods:
            if not index:
                method.enlarge(pair.low[..., :WARM_UP, :WARM_UP], pair.factor)
            row = _row(pair, method, perceptual, device)
            rows.append({"set": pictures.name, "picture": pair.name, "method": method.name, **row})
    return rows


def _row(pair: Pair, method: Method, perceptual: Perceptual, device: torch.device) -> Row:
    with torch.no_grad(), PeakMeter(device) as meter:
        meter.restart()
        before = time.perf_counter()
        output = method.enlarge(pair.low, pair.factor)
        wait_for(device)
        seconds, peak = time.perf_counter() - before, meter.peak()
    output = to_8_bit(output)
    report = measure_periodicity(output, pair.low)
    scores = {} if pair.high is None else fidelity_scores(output, pair.high)
    scores |= perceptual.scores(output, pair.high)
    scores |= {"periodicity": report.score, "alarms": float(report.alarm)}
    size = f"{output.shape[-1]}x{output.shape[-2]}"
    return {"px": size, **scores, "s": seconds, "GB": peak / 1e9}


def by_set(rows: Sequence[Row]) -> list[Row]:
    """A row per set and method: means of scores and seconds, the highest peak. None where a set has no such score."""
    table: list[Row] = []
    present = [key for key in SCORES if any(key in row for row in rows)]
    for name, method in dict.fromkeys((row["set"], row["method"]) for row in rows):
        own = [row for row in rows if (row["set"], row["method"]) == (name, method)]
        means = {key: _mean([row[key] for row in own if key in row]) for key in (*present, "s")}
        table.append({"set": name, "method": method, "pictures": len(own), **means})
        table[-1] |= {"GB": max(row["GB"] for row in own)}
    return table


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None


def settings(
    sets: Sequence[PictureSet], autoencoder: AutoEncoder, perceptual: Perceptual, choices: SetChoices
) -> dict[str, str]:
    """What the table's columns stand for, and what is not in it."""
    values = {
        "models": f"{autoencoder.device.type}, {dtype_name(autoencoder.dtype)}",
        "sets": ", ".join(f"{s.name}: {'LR and HR' if s.highs else f'LR only, x{choices.factor}'}" for s in sets),
        "largest": f"{choices.largest} px a side when enlarged; the middle of larger pictures",
        "ssim": "piq's, which shrinks pictures first until the shorter side is about 256 px",
        "periodicity": "the meter's score with the LR picture as reference; alarms: share of outputs above its alarm",
        "s": "seconds of enlarging one picture, mean; one run each, memory being counted meanwhile, warmed up",
        "GB": f"1e9 bytes, the highest of any picture: {PeakMeter.how(autoencoder.device)}",
    }
    for name in perceptual.networks:
        metric = METRICS[name]
        values[name] = (
            f"pyiqa's; above {metric.largest} px a side the mean of equal parts, below {metric.smallest} px none"
        )
    return values | {f"{name} left out": reason for name, reason in perceptual.missing.items()}
