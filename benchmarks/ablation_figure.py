"""The ablation as a picture: what RFR, L_AP and theta do to the grid and to fidelity (extra: bench)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from op4ksr_core.errors import OptionError

from .tables import Row

#: Column of the details -> how its axis is named. The upper is the grid, the lower fidelity.
SHOWN = {"mesh": "what repeats every token (RMS, levels of 255)", "psnr": "PSNR (dB)"}


def draw(details: Sequence[Row], path: Path) -> None:
    """Rows of ``ablation.json`` -> a PNG: variants left, theta right; a colour per set of pictures.

    Every run is a point, the line goes through the means. Raises OptionError where matplotlib is missing.
    """
    try:
        from matplotlib.figure import Figure  # pyright: ignore
    except ImportError as error:
        raise OptionError(f"the figure needs matplotlib: pip install matplotlib ({error})") from error
    parts = [part for part in ("variants", "theta") if any(row.get("part") == part for row in details)]
    figure: Any = Figure(figsize=(6 * max(1, len(parts)), 7), layout="constrained")
    axes: Any = figure.subplots(len(SHOWN), max(1, len(parts)), squeeze=False)
    for column, part in enumerate(parts):
        rows = [row for row in details if row.get("part") == part]
        alone = [row for row in details if row.get("part") == ""]
        for line, (key, label) in enumerate(SHOWN.items()):
            _panel(axes[line][column], rows, alone, key, part == "theta")
            axes[line][column].set_ylabel(label)
        axes[0][column].set_title({"variants": "RFR and L_AP", "theta": "Theta, without L_AP"}[part])
    if parts:
        handles, labels = axes[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize="small")
    figure.savefig(path, dpi=110)


def _panel(axis: Any, rows: Sequence[Row], alone: Sequence[Row], key: str, by_theta: bool) -> None:
    names = list(dict.fromkeys(row["name"] for row in rows))
    for number, grid in enumerate(dict.fromkeys(row["grid"] for row in rows)):
        own = [row for row in rows if row["grid"] == grid]
        if by_theta:
            points = sorted((row["theta"], row[key]) for row in own)
            axis.set_xscale("log")
            axis.set_xlabel("theta")
        else:
            points = [(names.index(row["name"]), row[key]) for row in own]
            axis.set_xticks(range(len(names)), names)
        colour = f"C{number}"
        axis.plot([p[0] for p in points], [p[1] for p in points], ".", color=colour)
        places = sorted({p[0] for p in points})
        means = [_mean([value for at, value in points if at == place]) for place in places]
        axis.plot(places, means, "-" if by_theta else "_", color=colour, markersize=18, label=grid)
        for row in alone:
            if row["grid"] == grid:
                axis.axhline(row[key], color=colour, linestyle=":", linewidth=1)
    axis.grid(alpha=0.3)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
