"""What each statistic is on clean pictures, and with it the false-alarm rate of the loudest one.

Calibrated on 315 crops of up to 512 px from 35 photos (of BSD100, Set5, Set14, Urban100 and Sun-Hays80;
shrunk by 0.72 to 0.94, rounded to 8 bit), a third of them after JPEG quality 90; the reference was the
crop shrunk by 4. The other 35 photos of the same sets were left for the tables. Per statistic: the
90 % quantile u and the mean excess b over it, so that (z - u) / b has an exponential tail on clean
pictures. The largest of these has one too: P(largest > s) = 0.2 exp(-(s - START) / SCALE).
``fit`` makes such a table again from other pictures' statistics.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

Table = dict[str, dict[int, tuple[float, float]]]

#: Family -> period (0: any) -> (u, b), without a reference.
ALONE: Table = {
    "tile": {64: (1.4, 0.52), 32: (1.25, 0.66), 16: (1.28, 0.52), 8: (1.65, 0.66)},
    "tile_all": {64: (1.46, 0.62), 32: (1.31, 0.64), 16: (1.38, 0.58), 8: (1.65, 0.66)},
    "lines": {64: (1.16, 0.58), 32: (1.32, 0.42), 16: (1.27, 0.56), 8: (1.22, 0.69)},
    "tile_power": {64: (1.38, 0.91), 32: (1.4, 0.68), 16: (1.09, 0.53), 8: (1.25, 0.52)},
    "lines_power": {64: (0.82, 0.73), 32: (1.03, 0.53), 16: (1.01, 0.56), 8: (0.9, 0.59)},
    "tile_local1": {64: (1.95, 1.23), 32: (1.91, 0.76), 16: (1.13, 0.71), 8: (1.29, 0.76)},
    "tile_local2": {64: (1.4, 0.7), 32: (1.22, 0.72), 16: (0.74, 0.74), 8: (1.34, 0.8)},
    "tile_power_small": {32: (1.87, 0.63), 16: (1.46, 0.67), 8: (1.15, 0.5)},
    "lines_power_small": {32: (0.78, 0.45), 16: (0.73, 0.4), 8: (-0.15, 0.4)},
    "tile_local1_small": {32: (3.42, 1.04), 16: (2.55, 0.88), 8: (1.77, 1.05)},
    "tile_local2_small": {32: (2.23, 0.64), 16: (1.62, 0.82), 8: (1.7, 0.5)},
    "tile_local4_small": {32: (0.92, 0.75), 16: (0.95, 0.95), 8: (0.9, 0.78)},
    "block": {64: (4.39, 0.48), 32: (3.95, 0.4), 16: (3.54, 0.4)},
    "free_tile": {0: (4.59, 1.21)},
    "free_lines": {0: (3.97, 0.52)},
}

#: The same beside a reference.
BESIDE: Table = {
    "tile": {64: (1.49, 0.5), 32: (1.44, 0.55), 16: (1.2, 0.56), 8: (1.5, 0.73)},
    "tile_all": {64: (1.44, 0.66), 32: (1.3, 0.73), 16: (1.38, 0.51), 8: (1.5, 0.73)},
    "lines": {64: (1.4, 0.69), 32: (1.55, 0.64), 16: (1.7, 0.56), 8: (1.72, 0.7)},
    "tile_power": {64: (1.59, 0.85), 32: (1.48, 0.67), 16: (1.15, 0.57), 8: (1.27, 0.54)},
    "lines_power": {64: (1.06, 0.59), 32: (1.3, 0.49), 16: (1.46, 0.45), 8: (1.46, 0.63)},
    "tile_local1": {64: (1.95, 1.23), 32: (1.96, 0.64), 16: (1.15, 0.7), 8: (1.22, 0.73)},
    "tile_local2": {64: (1.5, 0.63), 32: (1.39, 0.69), 16: (0.89, 0.6), 8: (1.27, 0.85)},
    "tile_power_small": {32: (1.06, 0.7), 16: (0.98, 0.75), 8: (1.06, 0.5)},
    "lines_power_small": {32: (0.74, 0.46), 16: (1.0, 0.4), 8: (1.06, 0.41)},
    "tile_local1_small": {32: (3.23, 0.93), 16: (2.49, 0.83), 8: (2.11, 0.8)},
    "tile_local2_small": {32: (1.99, 0.67), 16: (1.68, 0.71), 8: (1.51, 0.65)},
    "tile_local4_small": {32: (0.78, 0.7), 16: (0.97, 1.13), 8: (0.86, 0.76)},
    "block": {64: (4.44, 0.49), 32: (3.93, 0.4), 16: (3.55, 0.4)},
    "free_tile": {0: (4.65, 0.95)},
    "free_lines": {0: (4.1, 0.52)},
}

#: The largest scaled statistic's 80 % quantile on clean pictures, and its mean excess: (alone, beside).
START, SCALE = (2.671, 2.732), (0.889, 1.014)

#: Share of clean pictures above START.
SHARE = 0.2

#: Smallest mean excess that is believed: fewer than 40 crops are behind it.
SMALLEST_EXCESS = 0.4

#: The rate is not told below this: the table's tail is an extrapolation from 1 in 300 on.
SMALLEST_RATE = 1e-12


def split_name(name: str) -> tuple[str, int]:
    """ "lines_rows_32" -> ("lines", 32); "free_tile" -> ("free_tile", 0): the key into a table."""
    family, _, period = name.replace("_rows", "").replace("_columns", "").rpartition("_")
    return (family, int(period)) if period.isdigit() else (name, 0)


def evidence_scores(statistics: Mapping[str, float], beside: bool) -> dict[str, float]:
    """Statistics by name -> (z - u) / b each; those without an entry are left out."""
    table = BESIDE if beside else ALONE
    scores: dict[str, float] = {}
    for name, z in statistics.items():
        family, period = split_name(name)
        if (entry := table.get(family, {}).get(period)) is not None:
            scores[name] = (z - entry[0]) / entry[1]
    return scores


def score_of(scores: Mapping[str, float], beside: bool) -> float:
    """The loudest statistic -> -log10 of the share of clean pictures that reach it; 0 and up."""
    loudest = max(scores.values())
    start, scale = START[beside], SCALE[beside]
    return max(0.0, (loudest - start) / scale / math.log(10) - math.log10(SHARE))


def false_alarm_rate(score: float) -> float:
    """10^-score: the share of clean pictures that score as much; not below 1e-12."""
    return max(SMALLEST_RATE, 10.0**-score)


def fit(samples: Sequence[Mapping[str, float]]) -> tuple[Table, float, float]:
    """Clean pictures' statistics -> (table, start, scale), as stored above. At least 50 samples."""
    pooled: dict[tuple[str, int], list[float]] = {}
    for sample in samples:
        for name, z in sample.items():
            pooled.setdefault(split_name(name), []).append(z)
    table: Table = {}
    for (family, period), values in pooled.items():
        if any(values):
            table.setdefault(family, {})[period] = _tail(values, 0.9, SMALLEST_EXCESS)
    loudest: list[float] = []
    for sample in samples:
        scaled: list[float] = []
        for name, z in sample.items():
            family, period = split_name(name)
            if (entry := table.get(family, {}).get(period)) is not None:
                scaled.append((z - entry[0]) / entry[1])
        loudest.append(max(scaled))
    return table, *_tail(loudest, 1 - SHARE, 0.0)


def _tail(values: Sequence[float], share: float, smallest: float) -> tuple[float, float]:
    """(quantile, mean excess over it)."""
    ordered = sorted(values)
    at = share * (len(ordered) - 1)
    low = int(at)
    quantile = ordered[low] + (at - low) * (ordered[min(low + 1, len(ordered) - 1)] - ordered[low])
    above = [v - quantile for v in ordered if v > quantile]
    return quantile, max(smallest, sum(above) / max(1, len(above)))
