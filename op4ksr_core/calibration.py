"""What each statistic is on clean pictures, and with it the false-alarm rate of the loudest one.

Calibrated on 315 crops of up to 512 px from 35 photos (of BSD100, Set5, Set14, Urban100 and Sun-Hays80;
shrunk by 0.72 to 0.94, rounded to 8 bit), a third of them after JPEG quality 90; the reference was the
crop shrunk by 4. The other 35 photos of the same sets were left for the tables. Per statistic: the
90 % quantile u and the mean excess b over it, so that (z - u) / b has an exponential tail on clean
pictures. The largest of these has one too: P(largest > s) = 0.2 exp(-(s - START) / SCALE), fitted on
photos left out of the table in turn.
``fit`` makes such a table again from other pictures' statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Table = dict[str, dict[int, tuple[float, float]]]

#: Family -> period (0: any) -> (u, b), without a reference.
ALONE: Table = {
    "tile": {64: (1.36, 0.70), 32: (1.22, 0.70), 16: (1.27, 0.70), 8: (1.62, 0.70)},
    "tile_all": {64: (1.41, 0.70), 32: (1.22, 0.70), 16: (1.37, 0.70), 8: (1.62, 0.70)},
    "lines": {64: (1.08, 0.70), 32: (1.25, 0.70), 16: (1.19, 0.70), 8: (1.18, 0.70)},
    "tile_power": {64: (1.38, 0.91), 32: (1.40, 0.70), 16: (1.09, 0.70), 8: (1.25, 0.70)},
    "lines_power": {64: (0.82, 0.73), 32: (1.03, 0.70), 16: (1.01, 0.70), 8: (0.90, 0.70)},
    "tile_local1": {64: (1.95, 1.23), 32: (1.91, 0.76), 16: (1.13, 0.71), 8: (1.29, 0.76)},
    "tile_local2": {64: (1.40, 0.70), 32: (1.22, 0.72), 16: (0.74, 0.74), 8: (1.34, 0.80)},
    "tile_power_small": {32: (1.87, 0.70), 16: (1.46, 0.70), 8: (1.15, 0.70)},
    "lines_power_small": {32: (0.78, 0.70), 16: (0.73, 0.70), 8: (-0.15, 0.70)},
    "tile_local1_small": {32: (3.42, 1.04), 16: (2.55, 0.88), 8: (1.77, 1.05)},
    "tile_local2_small": {32: (2.23, 0.70), 16: (1.62, 0.82), 8: (1.70, 0.70)},
    "tile_local4_small": {32: (0.92, 0.75), 16: (0.95, 0.95), 8: (0.90, 0.78)},
    "block": {64: (4.34, 0.70), 32: (3.89, 0.70), 16: (3.54, 0.70)},
    "free_tile": {0: (4.42, 1.07)},
    "free_lines": {0: (3.87, 0.70)},
}

#: The same beside a reference.
BESIDE: Table = {
    "tile": {64: (1.45, 0.70), 32: (1.38, 0.70), 16: (1.15, 0.70), 8: (1.48, 0.70)},
    "tile_all": {64: (1.36, 0.70), 32: (1.24, 0.70), 16: (1.29, 0.70), 8: (1.48, 0.70)},
    "lines": {64: (1.32, 0.70), 32: (1.47, 0.70), 16: (1.62, 0.70), 8: (1.57, 0.73)},
    "tile_power": {64: (1.59, 0.85), 32: (1.48, 0.70), 16: (1.15, 0.70), 8: (1.27, 0.70)},
    "lines_power": {64: (1.06, 0.70), 32: (1.30, 0.70), 16: (1.46, 0.70), 8: (1.46, 0.70)},
    "tile_local1": {64: (1.95, 1.23), 32: (1.96, 0.70), 16: (1.15, 0.70), 8: (1.22, 0.73)},
    "tile_local2": {64: (1.50, 0.70), 32: (1.39, 0.70), 16: (0.89, 0.70), 8: (1.27, 0.85)},
    "tile_power_small": {32: (1.06, 0.70), 16: (0.98, 0.75), 8: (1.06, 0.70)},
    "lines_power_small": {32: (0.74, 0.70), 16: (1.00, 0.70), 8: (1.06, 0.70)},
    "tile_local1_small": {32: (3.23, 0.93), 16: (2.49, 0.83), 8: (2.11, 0.80)},
    "tile_local2_small": {32: (1.99, 0.70), 16: (1.68, 0.71), 8: (1.51, 0.70)},
    "tile_local4_small": {32: (0.78, 0.70), 16: (0.97, 1.13), 8: (0.86, 0.76)},
    "block": {64: (4.33, 0.70), 32: (3.85, 0.70), 16: (3.55, 0.70)},
    "free_tile": {0: (4.49, 0.95)},
    "free_lines": {0: (3.94, 0.70)},
}

#: The largest scaled statistic's 80 % quantile on clean pictures, and its mean excess: (alone, beside).
START, SCALE = (2.222, 2.349), (0.997, 1.002)

#: Parts into which the photos are split to see what the table does on photos it was not made from.
FOLDS = 5

#: Share of clean pictures above START.
SHARE = 0.2

#: Smallest mean excess that is believed: a few dozen crops are behind each.
SMALLEST_EXCESS = 0.7

#: The rate is not told below this: the table's tail is an extrapolation from 1 in 300 on.
SMALLEST_RATE = 1e-12


def split_name(name: str) -> tuple[str, int]:
    """ "lines_rows_32" -> ("lines", 32); "free_tile" -> ("free_tile", 0): the key into a table."""
    family, _, period = name.replace("_rows", "").replace("_columns", "").rpartition("_")
    return (family, int(period)) if period.isdigit() else (name, 0)


def evidence_scores(statistics: Mapping[str, float], beside: bool) -> dict[str, float]:
    """Statistics by name -> (z - u) / b each; those without an entry are left out."""
    return _scaled(statistics, BESIDE if beside else ALONE)


def score_of(scores: Mapping[str, float], beside: bool) -> float:
    """The loudest statistic -> -log10 of the share of clean pictures that reach it; 0 and up."""
    loudest = max(scores.values())
    start, scale = START[beside], SCALE[beside]
    return max(0.0, (loudest - start) / scale / math.log(10) - math.log10(SHARE))


def false_alarm_rate(score: float) -> float:
    """10^-score: the share of clean pictures that score as much; not below 1e-12."""
    return max(SMALLEST_RATE, 10.0**-score)


def fit(samples: Sequence[Mapping[str, float]], photos: Sequence[str]) -> tuple[Table, float, float]:
    """Clean pictures' statistics, and the photo each is from -> (table, start, scale), as stored above.

    start and scale come from scores of photos that the table was not made from, in FOLDS turns: a table
    of so many entries fits its own photos too well.
    """
    loudest: list[float] = []
    names = sorted(set(photos))
    for turn in range(FOLDS):
        left_out = set(names[turn::FOLDS])
        table = _fit_table([s for s, photo in zip(samples, photos, strict=True) if photo not in left_out])
        for sample, photo in zip(samples, photos, strict=True):
            if photo in left_out:
                loudest.append(max(_scaled(sample, table).values()))
    return _fit_table(samples), *_tail(loudest, 1 - SHARE, 0.0)


def _fit_table(samples: Sequence[Mapping[str, float]]) -> Table:
    pooled: dict[tuple[str, int], list[float]] = {}
    for sample in samples:
        for name, z in sample.items():
            pooled.setdefault(split_name(name), []).append(z)
    table: Table = {}
    for (family, period), values in pooled.items():
        if any(values):
            table.setdefault(family, {})[period] = _tail(values, 0.9, SMALLEST_EXCESS)
    return table


def _scaled(statistics: Mapping[str, float], table: Table) -> dict[str, float]:
    scores: dict[str, float] = {}
    for name, z in statistics.items():
        family, period = split_name(name)
        if (entry := table.get(family, {}).get(period)) is not None:
            scores[name] = (z - entry[0]) / entry[1]
    return scores


def _tail(values: Sequence[float], share: float, smallest: float) -> tuple[float, float]:
    """(quantile, mean excess over it)."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    quantile = ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
    above = [v - quantile for v in ordered if v > quantile]
    return quantile, max(smallest, sum(above) / max(1, len(above)))
