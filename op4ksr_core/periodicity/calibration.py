"""How a picture's statistics compare with clean pictures', and with it the false-alarm rate of the largest one.

meter.py calls ``calibration_of(with_reference)``, then its ``scores`` and ``score``, and ``false_alarm_rate``; whether
that rate is an alarm is thresholds.ALARM_RATE's.

Calibrated on crops of up to 512 px from 77 photos: every other one of BSD100, Set5, Set14, Urban100 and
Sun-Hays80 samples (35), Kodak (24) and McMaster (18); shrunk by 0.72 to 0.94, rounded to 8 bit; as
they are, after JPEG quality 90, and as if enlarged from a JPEG of quality 50 (1078 pictures). The
reference was the crop shrunk by 4. The other 35 photos were left for the tables. Per statistic: the
90 % quantile u and the scale b of the tail over it, so that (z - u) / b has an exponential tail on
clean pictures. The largest of these has one too: P(largest > s) = 0.2 exp(-(s - start) / scale), from
photos left out of the table in turn, scale stretched by a quarter (see STRETCH).
``benchmarks periodicity --part calibration`` makes the table again, or from other photos, with ``fit``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .statistic import ANY_PERIOD, Family, Statistic

#: Family -> period (ANY_PERIOD: any) -> (u, b): where the tail on clean pictures begins, and its scale.
Table = Mapping[Family, Mapping[int, tuple[float, float]]]


@dataclass(frozen=True)
class Calibration:
    """table: of each statistic. start, scale: 80 % quantile and tail scale of a clean picture's largest score."""

    table: Table
    start: float
    scale: float

    def scores(self, statistics: Iterable[Statistic]) -> dict[Statistic, float]:
        """(z - u) / b of each, in order; those without an entry in the table are left out."""
        found: dict[Statistic, float] = {}
        for statistic in statistics:
            entry = self.table.get(statistic.family, {}).get(statistic.period)
            if entry is not None:
                found[statistic] = (statistic.z - entry[0]) / entry[1]
        return found

    def score(self, scores: Mapping[Statistic, float]) -> float:
        """The largest of ``scores`` -> -log10 of the share of clean pictures that reach it; 0 and up."""
        return max(0.0, (max(scores.values()) - self.start) / self.scale / math.log(10) - math.log10(SHARE))


#: Of a picture alone.
ALONE = Calibration(
    {
        "tile": {64: (1.50, 0.60), 32: (1.35, 0.49), 16: (1.21, 0.53), 8: (1.41, 0.65)},
        "tile_all": {64: (1.53, 0.60), 32: (1.30, 0.53), 16: (1.30, 0.48)},
        "lines_power": {64: (1.56, 0.62), 32: (1.58, 0.55), 16: (1.56, 0.54), 8: (1.46, 0.58)},
        "lines": {64: (1.87, 0.61), 32: (1.89, 0.60), 16: (1.86, 0.63), 8: (1.82, 0.62)},
        "tile_local": {32: (3.26, 0.93)},
        "block": {64: (4.20, 0.45), 32: (3.88, 0.32), 16: (3.50, 0.42)},
        "free_tile": {ANY_PERIOD: (4.37, 0.82)},
        "free_lines": {ANY_PERIOD: (4.49, 0.48)},
    },
    start=1.77,
    scale=1.224,
)

#: Of a picture with a reference.
WITH_REFERENCE = Calibration(
    {
        "tile": {64: (1.54, 0.74), 32: (1.39, 0.55), 16: (1.23, 0.51), 8: (1.39, 0.62)},
        "tile_all": {64: (1.49, 0.82), 32: (1.32, 0.62), 16: (1.31, 0.45)},
        "lines_power": {64: (1.75, 0.58), 32: (1.81, 0.61), 16: (1.93, 0.58), 8: (2.02, 0.70)},
        "lines": {64: (2.14, 0.74), 32: (2.13, 0.68), 16: (2.21, 0.67), 8: (2.28, 0.79)},
        "tile_local": {32: (3.23, 0.86)},
        "block": {64: (4.16, 0.43), 32: (3.79, 0.31), 16: (3.42, 0.40)},
        "free_tile": {ANY_PERIOD: (4.44, 1.20)},
        "free_lines": {ANY_PERIOD: (4.64, 0.64)},
    },
    start=1.745,
    scale=1.194,
)

#: Parts into which the photos are split to see what the table does on photos it was not made from.
FOLDS = 5

#: Share of clean pictures above ``start``.
SHARE = 0.2

#: Smallest mean excess that is believed, and the quantile that a tail must reach too, however heavy it is.
SMALLEST_EXCESS, RARE = 0.3, 0.995

#: How much longer the last tail is taken to be than it was found. Our choice: sets of photos differ, and
#: a table without it, from 35 photos, raised two to four times the alarms it promised on 35 others.
STRETCH = 1.25

#: Mean excesses that lines must show more than the rest: fences and shutters are many, and a comb is strong.
LINES_MARGIN = 1.0

#: The families that LINES_MARGIN holds for.
LINES: tuple[Family, ...] = ("lines", "lines_power", "free_lines")

#: No smaller rate is reported: the table's tail is an extrapolation from 1 in 300 on.
SMALLEST_RATE = 1e-12


def calibration_of(with_reference: bool) -> Calibration:
    """The stored one for pictures with, or without, a reference."""
    return WITH_REFERENCE if with_reference else ALONE


def false_alarm_rate(score: float) -> float:
    """10^-score: the share of clean pictures that score as much; not below 1e-12."""
    return max(SMALLEST_RATE, 10.0**-score)


def fit(samples: Sequence[Sequence[Statistic]], photos: Sequence[str]) -> Calibration:
    """Clean pictures' statistics, and the photo each picture is from -> their calibration, as stored above.

    start and scale come from scores of photos that the table was not made from, in FOLDS turns: a table
    of so many entries fits its own photos too well.
    """
    largest: list[float] = []
    names = sorted(set(photos))
    for turn in range(FOLDS):
        left_out = set(names[turn::FOLDS])
        table = _fit_table([s for s, photo in zip(samples, photos, strict=True) if photo not in left_out])
        fitted = Calibration(table, 0.0, 1.0)
        for sample, photo in zip(samples, photos, strict=True):
            if photo in left_out:
                largest.append(max(fitted.scores(sample).values()))
    start, scale = _tail(largest, 1 - SHARE, 0.0)
    return Calibration(_fit_table(samples), start, STRETCH * scale)


def _fit_table(samples: Sequence[Sequence[Statistic]]) -> Table:
    pooled: dict[tuple[Family, int], list[float]] = {}
    for sample in samples:
        for statistic in sample:
            pooled.setdefault((statistic.family, statistic.period), []).append(statistic.z)
    table: dict[Family, dict[int, tuple[float, float]]] = {}
    for (family, period), values in pooled.items():
        if any(values):
            u, b = _tail(values, 0.9, SMALLEST_EXCESS)
            table.setdefault(family, {})[period] = (u + LINES_MARGIN * b if family in LINES else u, b)
    return table


def _tail(values: Sequence[float], share: float, smallest: float) -> tuple[float, float]:
    """(quantile, scale of the tail over it): the mean excess, or what reaches the RARE quantile if that is more."""
    ordered = sorted(values)
    quantile = _quantile(ordered, share)
    above = [v - quantile for v in ordered if v > quantile]
    heavy = (_quantile(ordered, RARE) - quantile) / math.log((1 - share) / (1 - RARE))
    return quantile, max(smallest, heavy, sum(above) / max(1, len(above)))


def _quantile(ordered: Sequence[float], share: float) -> float:
    at = share * (len(ordered) - 1)
    low = int(at)
    return ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
