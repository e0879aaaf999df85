"""The paper's central claim at a scale anyone can rerun: does RFR, or L_AP, take the mesh away?

A small model is trained from scratch with neither, with each and with both, everything else equal, and again
with other seeds; then once per theta. All are measured on pictures that none was trained on, at the
grid they were trained on and at a large one (128 x 128 tokens are 4096 px). Each run has its own
folder and is not repeated where it is finished, so the command may be stopped and begun again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from op4ksr_core.errors import OptionError
from op4ksr_core.images.io import from_array, load_image, to_8_bit
from op4ksr_core.images.metrics import load_piq, psnr
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.models.flux import Flux
from op4ksr_core.models.latent import PATCH
from op4ksr_core.one_step import OneStepOptions, upscale
from op4ksr_core.periodicity.local_mean import high_pass
from op4ksr_core.periodicity.loss import PeriodicityLoss, lattice_correlation, periods_nearby
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.training.config import TrainConfig
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.training.data.sources import HELD_OUT
from op4ksr_core.training.samples import centre
from op4ksr_core.training.tasks.objectives import inner
from op4ksr_core.training.trainer import OnStep, Trainer
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

from .ablation_runs import PARTS, Ablation, jobs
from .scores import fidelity_scores
from .tables import Row, write_report

#: Column of the details -> how its axis is named. The upper is the grid, the lower fidelity.
SHOWN = {"mesh": "what repeats every token (RMS, levels of 255)", "psnr": "PSNR (dB)"}

#: The border that L_AP does not look at here, px: there an autoencoder errs most.
BORDER = 32

#: Held-out pictures measured here begin at this number, so that they are not the runs' samples.
FIRST = HELD_OUT + 1000


def trained(config: TrainConfig, on_step: OnStep | None) -> tuple[Flux, float]:
    """Train, or go on with a run that was broken off. Returns the model and the seconds of training in all."""
    text = f"# One run of the ablation; {config!r}\n"
    folder = Path(config.run)
    trainer = Trainer(config, text, (folder / "log.csv").exists(), on_step)
    path = trainer.run()
    return load_flux(path), trainer.seconds


class Measure:
    """Scores models on held-out pictures, shrunk by 4 and nothing else, at both grids."""

    def __init__(self, ablation: Ablation) -> None:
        self.ablation = ablation
        self.autoencoder: AutoEncoder = load_autoencoder(ablation.autoencoder)
        self.piq = _has_piq()
        self.l_ap = PeriodicityLoss(margin=0.0)
        small, large = ablation.crop // 32, ablation.large_tokens
        #: What is measured, by name: sharp pictures (1, 3, side, side).
        self.sets = {
            f"{small} tokens": self._made(ablation.crop, ablation.measured),
            f"{small} tokens, smooth": [smooth_picture(i, ablation.crop) for i in range(ablation.measured)],
        }
        if ablation.photos:
            self.sets[f"{small} tokens, photos"] = self._photos(ablation.crop)
        if large:
            self.sets[f"{large} tokens"] = self._made(
                large * PATCH * self.autoencoder.params.ratio, ablation.large_measured
            )

    @staticmethod
    def _made(side: int, count: int) -> list[Tensor]:
        return [from_array(picture(FIRST + i, side, side)) for i in range(count)]

    def _photos(self, side: int) -> list[Tensor]:
        """The photos' middles. Raises OptionError where none is large enough; the smaller ones are left out."""
        images = (load_image(path).image for path in self.ablation.photos)
        found = [centre(image, side) for image in images if min(image.shape[-2:]) >= side]
        if not found:
            raise OptionError(f"benchmarks ablation: none of the photos has {side} px on both sides; name larger ones")
        return found

    def rows(self, flux: Flux | None) -> list[Row]:
        """A row per set of pictures: their means. ``flux`` None: the autoencoder alone."""
        return [{"grid": name, **self._mean(flux, pictures)} for name, pictures in self.sets.items()]

    def _mean(self, flux: Flux | None, pictures: Sequence[Tensor]) -> Row:
        scores = [self._one(flux, high) for high in pictures]
        mean = {name: sum(s[name] for s in scores) / len(scores) for name in scores[0]}
        return {"pictures": len(scores), **mean}

    def _one(self, flux: Flux | None, high: Tensor) -> dict[str, float]:
        """Of the model's own output: no colour fix, no back-projection, which would hide its faults."""
        side = high.shape[-1]
        low = to_8_bit(resize(high, side // 4, side // 4))
        options = OneStepOptions(target=Target(scale=4), color="none", fidelity=0.0, vae_only=flux is None)
        output = to_8_bit(upscale(low, flux, self.autoencoder, options))
        report = measure_periodicity(output, low)
        found = {"mesh": mesh(output, high), "periodicity": report.score, "alarms": float(report.alarm)}
        found["l_ap"] = float(self.l_ap(inner(output, BORDER), inner(high, BORDER)))
        return found | (fidelity_scores(output, high) if self.piq else {"psnr": psnr(output, high)})


def smooth_picture(number: int, side: int) -> Tensor:
    """(1, 3, side, side) in [0, 1], 8 bit: soft, coloured hills, a quarter of the side wide, where a mesh shows."""
    generator = torch.Generator().manual_seed(FIRST + number)
    hills = (
        0.5 + 0.12 * torch.randn(1, 1, 5, 5, generator=generator) + 0.03 * torch.randn(1, 3, 5, 5, generator=generator)
    )
    return to_8_bit(resize(hills, side, side))


def mesh(output: Tensor, high: Tensor, period: int = 32) -> float:
    """What repeats in the error every ``period`` px (a token), beyond what chance gives at periods nearby: RMS, levels.

    Of (1, 3, H, W) pictures in [0, 1], without the outer 32 px; the error high-passed, its mean over the channels.
    """
    error = high_pass(inner(output - high, BORDER).mean(1, keepdim=True) * 255)
    own = lattice_correlation(error, period)
    nearby = [u for p in periods_nearby(period) if (u := lattice_correlation(error, p)) is not None]
    if own is None or not nearby:
        return 0.0
    return float((own - torch.stack(nearby).mean(0)).clamp(min=0).sqrt())


def _has_piq() -> bool:
    """Whether piq is installed: without it the table has PSNR alone."""
    try:
        load_piq()
    except OptionError:
        return False
    return True


def run_ablation(ablation: Ablation, parts: Sequence[str] = tuple(PARTS), on_name: OnName | None = None) -> Path:
    """Train and measure all. Returns the report, which is written after each run, so that nothing is lost."""
    measure = Measure(ablation)
    details: list[Row] = [{"part": "", "name": "autoencoder alone", **row} for row in measure.rows(None)]
    report = write(ablation, details)
    known: dict[str, list[Row]] = {}
    for part, name, config in jobs(ablation, parts):
        if config.run not in known:
            flux, seconds = trained(config, None if on_name is None else on_name(f"{name}, seed {config.seed}"))
            head: Row = {"seed": config.seed, "theta": flux.params.theta[0], "train_seconds": seconds}
            known[config.run] = [head | row for row in measure.rows(flux)]
        details += [{"part": part, "name": name} | row for row in known[config.run]]
        report = write(ablation, details)
    return report


#: A run's name -> the callback for its steps.
OnName = Callable[[str], OnStep]


def write(ablation: Ablation, details: list[Row]) -> Path:
    """ablation.json, .md and .png: a table per part and grid, means and deviations over the seeds."""
    tables: dict[str, list[Row]] = {}
    alone = [row for row in details if not row["part"]]
    for part, title in PARTS.items():
        for grid in dict.fromkeys(row["grid"] for row in details):
            rows = [row for row in details if row["part"] == part and row["grid"] == grid]
            if rows:
                tables[f"{title}, at {grid}"] = summed(rows) + summed([r for r in alone if r["grid"] == grid])
    tables = tables or {"The autoencoder alone": summed(alone)}
    settings = {k: str(v) for k, v in vars(replace(ablation, thetas={})).items() if k != "thetas"}
    report = write_report(ablation.folder, "ablation", tables, [{"settings": settings}, *details])
    with contextlib.suppress(OptionError):  # without matplotlib there are the tables alone
        draw_figure(details, ablation.folder / "ablation.png")
    return report


def summed(rows: Sequence[Row]) -> list[Row]:
    """Runs of one name -> one row: means over its seeds, and the deviation of the periodicity score.

    mesh: RMS in grey levels of what repeats every token. periodicity: reference-aware score, 2 is what 1
    clean picture in 100 reaches. alarms: their share. l_ap: the share of the error against the sharp
    picture that repeats (no margin for chance).
    """
    found: list[Row] = []
    for name in dict.fromkeys(row["name"] for row in rows):
        own = [row for row in rows if row["name"] == name]
        row: Row = {"model": name, "theta": _text(own[0].get("theta")), "seeds": len(own)}
        for key in ("mesh", "periodicity", "alarms", "l_ap", "psnr", "ssim", "gmsd", "haarpsi", "train_seconds"):
            if key in own[0]:
                row[key] = sum(r[key] for r in own) / len(own)
            elif key == "train_seconds":
                row[key] = "-"
            if key == "periodicity":
                mean = row[key]
                row["+-"] = math.sqrt(sum((r[key] - mean) ** 2 for r in own) / max(1, len(own) - 1))
        found.append(row)
    return found


def _text(theta: Any) -> str:
    return "-" if theta is None else f"{theta:.5g}"


# --- the figure ------------------------------------------------------------------------------------


def draw_figure(details: Sequence[Row], path: Path) -> None:
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
        means = [fmean(value for at, value in points if at == place) for place in places]
        axis.plot(places, means, "-" if by_theta else "_", color=colour, markersize=18, label=grid)
        for row in alone:
            if row["grid"] == grid:
                axis.axhline(row[key], color=colour, linestyle=":", linewidth=1)
    axis.grid(alpha=0.3)
