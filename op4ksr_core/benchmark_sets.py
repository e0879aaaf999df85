"""``benchmark quality`` on sets of pictures that are there as LR and HR, or as LR only: Syn, RealSquare, RealVary.

With HR pictures every score; without them those that need none. Seconds and bytes are of the enlarging alone.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from .artifacts import to_8_bit
from .autoencoder import AutoEncoder
from .benchmark import Row
from .benchmark_quality import BASE, Method, methods_of
from .flux import Flux
from .machine import wait_for
from .metrics import fidelity_scores, load_piq
from .perceptual import METRICS, Perceptual
from .periodicity import measure_periodicity
from .picture_sets import OnPicture, Pair, PictureSet, load_pair
from .stage_clock import PeakMeter

#: What every table of quality has, in order; and all that can be asked for.
USUAL = ("bicubic", BASE, "VAE only", "full")
CHOICES = ("bicubic", "Lanczos", BASE, "VAE only", "VAE only, fidelity 0", "full", "full, fidelity 0")

#: Columns after set, degradation of pictures and method; means but for seconds and GB.
SCORES = ("psnr", "ssim", "gmsd", "haarpsi", *METRICS, "periodicity", "alarms")


def set_quality(
    pictures: PictureSet,
    flux: Flux,
    autoencoder: AutoEncoder,
    perceptual: Perceptual,
    names: Sequence[str] = USUAL,
    factor: int = 4,
    on_picture: OnPicture | None = None,
) -> list[Row]:
    """A row per picture and method, whatever its size; every method's output is rounded to 8 bit.

    factor: where there is no HR picture; else it is the sizes'. Raises OptionError (piq is missing and there are HR
    pictures), ImageError (a picture that cannot be read, or does not fit its partner).
    """
    if pictures.highs:
        load_piq()
    rows: list[Row] = []
    for index, low in enumerate(pictures.lows):
        if on_picture is not None:
            on_picture(f"{pictures.name}: {low.name} ({index + 1} of {len(pictures.lows)})")
        pair = load_pair(low, pictures.highs[index] if pictures.highs else None, factor)
        methods = methods_of(flux, autoencoder, pair.factor)
        rows += [{"set": pictures.name, **_row(pair, name, methods[name], perceptual, autoencoder)} for name in names]
    return rows


def _row(pair: Pair, name: str, method: Method, perceptual: Perceptual, autoencoder: AutoEncoder) -> Row:
    device = autoencoder.device
    with torch.no_grad(), PeakMeter(device) as meter:
        meter.restart()
        before = time.perf_counter()
        output = method(pair.low)
        wait_for(device)
        seconds, peak = time.perf_counter() - before, meter.peak()
    output = to_8_bit(output)
    report = measure_periodicity(output, pair.low)
    scores = {} if pair.high is None else fidelity_scores(output, pair.high)
    scores |= perceptual.scores(output, pair.high)
    scores |= {"periodicity": report.score, "alarms": float(report.alarm)}
    size = f"{output.shape[-1]}x{output.shape[-2]}"
    return {"picture": pair.name, "px": size, "method": name, **scores, "s": seconds, "GB": peak / 1e9}


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
    sets: Sequence[PictureSet], autoencoder: AutoEncoder, perceptual: Perceptual, factor: int
) -> dict[str, str]:
    """What the table's columns stand for, and what is not in it."""
    told = {
        "models": f"{autoencoder.device.type}, {str(autoencoder.dtype).removeprefix('torch.')}",
        "HR": ", ".join(f"{s.name}: {'LR and HR' if s.highs else f'LR only, x{factor}'}" for s in sets),
        "ssim": "piq's, which shrinks pictures first until the shorter side is about 256 px",
        "periodicity": "the meter's score with the LR picture as reference; alarms: share of outputs above its alarm",
        "s": "mean seconds of enlarging one picture, one run each without warm-up, the memory being counted meanwhile",
        "GB": f"1e9 bytes, the highest of any picture: {PeakMeter.how(autoencoder.device)}",
        **{n: f"pyiqa's; above {METRICS[n].largest} px a side the mean of equal parts" for n in perceptual.networks},
    }
    return told | {f"{name} left out": reason for name, reason in perceptual.missing.items()}
