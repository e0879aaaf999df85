"""A statistic of the meter: one number, like a z score, that speaks for a periodic artifact of one sort and period.

evidence.py makes 29 of a picture, calibration.py weighs them against clean pictures, meter.py reads the kind and
the period of the artifact off the loudest ones, and ``benchmarks periodicity --part calibration`` records them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

#: What is measured. Off the axes of the spectrum, so of tiles: "tile" (a period's lattice without that of half of it),
#: "tile_all" (with it), "tile_local" (the best small window), "free_tile" (autocorrelation at any period). On an axis,
#: so of lines: "lines" (in phase over the picture), "lines_power" (whatever the phase), "free_lines" (any period). In
#: the picture itself: "block" (steps at block borders).
Family = Literal["tile", "tile_all", "tile_local", "lines", "lines_power", "block", "free_tile", "free_lines"]

#: "rows": it repeats from row to row, down the picture (lying lines); "columns": across (standing lines).
Axis = Literal["rows", "columns"]

#: The period of a statistic that looks at no period in particular.
ANY_PERIOD = 0


@dataclass(frozen=True)
class Statistic:
    """z: about 0 on clean pictures, higher the more periodic. period: px, or ANY_PERIOD. axis: of lines only."""

    family: Family
    z: float
    period: int = ANY_PERIOD
    axis: Axis | None = None
