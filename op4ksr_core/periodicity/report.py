"""What the meter reports on one picture, and the words for it.

``meter.measure_periodicity`` makes reports; the nodes, the commands, the remover (suppress.py) and the report picture
(report_picture.py) read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from .autocorrelation import SMALLEST_SIDE, Autocorrelation

Kind = Literal["none", "tile", "comb", "blocks", "jpeg"]
Period = tuple[float | None, float | None]

#: Side of the heat map's cells, px: one token of a 16x autoencoder with 2x2 patches.
HEAT_CELL = 32


@dataclass(frozen=True)
class PeriodicityReport:
    """What one picture shows.

    score: -log10 of the false-alarm rate, 0 and up: 2 is what 1 clean picture in 100 reaches; the
        more, the more certain. Beyond about 3 it is extrapolated.
    false_alarm_rate: share of clean pictures that score as much (calibration.py says on what).
    alarm: false_alarm_rate <= alarm_rate.
    kind: "tile", "comb" (lines in one direction), "blocks" (steps at block borders); without an alarm
        "none", or "jpeg" where JPEG's own 8 px grid shows.
    period: px (rows, columns); None on an axis without one.
    tokens: the same in tokens, where a token size was given.
    heatmap: (1, 1, H', W') in [0, 1], one value per 32 px cell: how certain it is that the artifact is there.
    jpeg_grid: z of JPEG's 8 px steps, whatever the kind; above 4 it is there.
    size: (H, W) px. with_reference: whether what was there before was left out.
    picture: index in the batch. correlation: for the report picture; None for pictures under 64 px.
    """

    score: float
    false_alarm_rate: float
    alarm: bool
    kind: Kind
    period: Period
    tokens: Period
    heatmap: Tensor
    jpeg_grid: float
    alarm_rate: float
    size: tuple[int, int]
    with_reference: bool
    picture: int = 0
    correlation: Autocorrelation | None = None

    @property
    def verdict(self) -> str:
        """One sentence for a person."""
        if min(self.size) < SMALLEST_SIDE:
            return f"Too small to judge: at least {SMALLEST_SIDE} px on each side are needed."
        rate = rate_in_words(self.false_alarm_rate)
        if not self.alarm:
            grid = " It has an 8 px grid, as JPEG and enlarging leave." if self.kind == "jpeg" else ""
            return f"No periodic artifact found; {rate}.{grid}"
        what = {"tile": "A repeating mesh", "comb": "Repeating lines", "blocks": "A block grid"}[self.kind]
        return f"{what} every {in_words(self.period, self.tokens)}; {rate}."

    def as_dict(self) -> dict[str, Any]:
        """Plain values under the same names, for JSON; the heat map as rows of numbers."""
        return {
            "score": round(self.score, 3),
            "false_alarm_rate": self.false_alarm_rate,
            "alarm": self.alarm,
            "kind": self.kind,
            "period": list(self.period),
            "tokens": list(self.tokens),
            "heatmap": [[round(v, 3) for v in row] for row in self.heatmap[0, 0].tolist()],
            "jpeg_grid": round(self.jpeg_grid, 2),
            "alarm_rate": self.alarm_rate,
            "size": list(self.size),
            "with_reference": self.with_reference,
            "verdict": self.verdict,
        }


def in_words(period: Period, tokens: Period = (None, None)) -> str:
    """ "32 px (1 token)", "24 x 31.5 px", "8 px down"."""
    rows, columns = period
    if rows is None or columns is None:
        axis = "across" if rows is None else "down"
        length = rows or columns or 0.0
        token = tokens[0] or tokens[1]
        return f"{length:.4g} px {axis}" + (f" ({_tokens(token)})" if token else "")
    if abs(rows - columns) < 0.01 * rows:
        return f"{rows:.4g} px" + (f" ({_tokens(tokens[0])})" if tokens[0] else "")
    return f"{rows:.4g} px down and {columns:.4g} px across"


def _tokens(count: float) -> str:
    return "1 token" if abs(count - 1) < 0.01 else f"{count:.3g} tokens"


def rate_in_words(rate: float) -> str:
    """ "1 clean photo in 250 scores as high"."""
    if rate >= 0.5:
        return "most clean photos score as high"
    if rate > 1e-3:
        return f"1 clean photo in {1 / rate:.0f} scores as high"
    return "fewer than 1 clean photo in 1,000 scores as high"
