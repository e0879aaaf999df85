"""The paper's central claim at a scale anyone can rerun: does RFR, or L_AP, take the mesh away?

A small model is trained anew with neither, with each and with both, everything else equal, and again
with other seeds; then once per theta. All are measured on pictures that none was trained on, at the
grid they were trained on and at a large one (128 x 128 tokens are 4096 px). Each run has its own
folder and is not repeated where it is finished, so the command may be stopped and begun again.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from op4ksr_core.bundled import BUNDLED_AUTOENCODER
from op4ksr_core.errors import OptionError
from op4ksr_core.images.io import from_array, load_image, to_8_bit
from op4ksr_core.images.metrics import fidelity_scores, load_piq, psnr
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.models.flux import Flux
from op4ksr_core.models.latent import PATCH
from op4ksr_core.models.rope import FLUX_THETA, fit_theta, ntk_theta
from op4ksr_core.one_step import OneStepOptions, upscale
from op4ksr_core.periodicity.local_mean import high_pass
from op4ksr_core.periodicity.loss import PeriodicityLoss, lattice_correlation, periods_nearby
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.training.config import (
    DataConfig,
    LoopConfig,
    LossConfig,
    ModelConfig,
    OutputConfig,
    RfrConfig,
    TrainConfig,
)
from op4ksr_core.training.config_ranges import FROM_0, FROM_1, FROM_32, check_ranges
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.training.data.sources import HELD_OUT
from op4ksr_core.training.samples import centre
from op4ksr_core.training.tasks.objectives import inner
from op4ksr_core.training.trainer import OnStep, Trainer
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

from . import ablation_figure
from .tables import Row, write_report

#: Channels per image axis of a head of 128, and tokens per side of 4096 px: for the thetas below.
DIM, TOKENS = 56, 128

#: What the sweep compares, by name.
THETAS: dict[str, float] = {
    "40000": 40000.0,
    "20520 (ntk, s = 2)": ntk_theta(FLUX_THETA, DIM, 2.0),
    "10000 (Flux)": FLUX_THETA,
    "1000": 1000.0,
    "256": 256.0,
    "100": 100.0,
    "fit, 1 turn": fit_theta(TOKENS, 1.0, DIM),
    "fit, 1/2 turn": fit_theta(TOKENS, 0.5, DIM),
    "16": 16.0,
}

#: The parts of the experiment -> the titles of their tables.
PARTS = {"variants": "RFR and L_AP", "theta": "Theta"}

#: Name -> (RFR, L_AP).
VARIANTS: dict[str, tuple[bool, bool]] = {
    "neither": (False, False),
    "RFR": (True, False),
    "L_AP": (False, True),
    "both": (True, True),
}

#: Whole pictures whose latents the latent steps cut from.
GRID_PICTURES = 96

#: The border that L_AP does not look at here, px: there an autoencoder errs most.
BORDER = 32

#: Held-out pictures measured here begin at this number, so that they are not the runs' samples.
FIRST = HELD_OUT + 1000


@dataclass(frozen=True)
class Ablation:
    """The sizes of the experiment. The defaults are for hours on two cores or minutes on a GPU."""

    folder: Path
    steps: int = 1500
    #: Of these, the first on latents alone, which are cheap (no L_AP there: it looks at pictures).
    latent_steps: int = 0
    batch: int = 4
    crop: int = 256
    rate: float = 6e-4
    seeds: tuple[int, ...] = (0, 1, 2)
    sweep_seeds: tuple[int, ...] = (0,)
    hidden: int = 256
    heads: int = 2
    depth: int = 1
    single: int = 2
    pictures: int = 240
    #: Weight of L_AP in the variants that have it.
    periodicity: float = 0.5
    #: Theta of the variants with RFR.
    theta: float = THETAS["fit, 1/2 turn"]
    thetas: dict[str, float] = field(default_factory=lambda: dict(THETAS))
    #: Pictures measured at the training grid, and at the large one of so many tokens (0: not at all).
    measured: int = 24
    large_tokens: int = TOKENS
    large_measured: int = 1
    #: Photos to measure at the training grid besides; never trained on.
    photos: tuple[Path, ...] = ()
    autoencoder: Path = BUNDLED_AUTOENCODER
    device: str = ""
    precision: str = "bf16"
    threads: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        amounts = ("large_tokens", "latent_steps", "pictures", "periodicity", "threads", "workers")
        check_ranges("ablation", self, {FROM_1: ("heads", "large_measured"), FROM_0: amounts, FROM_32: ("crop",)})
        if not self.seeds or self.steps < 1 or self.measured < 1:
            raise OptionError(
                "ablation: expected at least one seed, one step and one picture, "
                f"got {len(self.seeds)}, {self.steps} and {self.measured}; ask for more"
            )
        if self.hidden // self.heads != 128:
            raise OptionError(
                f"ablation: expected heads of 128 channels, got {self.hidden} over {self.heads} heads; "
                "take a hidden size of 128 times the heads"
            )


def config_of(ablation: Ablation, seed: int, theta: float, periodicity: float) -> TrainConfig:
    """One run: nothing but its theta and the weight of L_AP differs from the others of its seed."""
    a = ablation
    name = f"theta_{theta:.5g}" + ("_l_ap" if periodicity else "")
    return TrainConfig(
        kind="one_step",
        run=str(a.folder / "runs" / f"{name}_{seed}"),
        seed=seed,
        model=ModelConfig(
            autoencoder=str(a.autoencoder),
            hidden_size=a.hidden,
            num_heads=a.heads,
            depth=a.depth,
            depth_single_blocks=a.single,
            train_tokens=a.crop // 32,
        ),
        rfr=RfrConfig("theta", (theta,)),
        data=DataConfig(
            pictures=a.pictures,
            picture_side=2 * a.crop if a.latent_steps else max(256, a.crop),
            crop=a.crop,
            shrunk=0.0,
            workers=a.workers,
            cache=str(a.folder / "cache"),
        ),
        loss=LossConfig(periodicity=periodicity),
        train=LoopConfig(
            steps=a.steps,
            latent_steps=a.latent_steps,
            grid_pictures=min(GRID_PICTURES, a.pictures),
            batch=a.batch,
            rate=a.rate,
            warmup=min(100, a.steps // 5),
            precision="bf16" if a.precision == "bf16" else "fp32",
            device=a.device,
            threads=a.threads,
        ),
        output=OutputConfig(save_every=max(1, a.steps // 4), sample_every=0, keep=0, dtype="fp32"),
    )


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
            raise OptionError(f"ablation: none of the photos has {side} px on both sides; name larger ones")
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


def mesh(output: Tensor, high: Tensor) -> float:
    """What repeats every 32 px (a token) in the error, beyond what chance gives at periods nearby: RMS, levels of 255.

    Of (1, 3, H, W) pictures in [0, 1], without the outer 32 px; the error high-passed, its mean over the channels.
    """
    error = high_pass(inner(output - high, BORDER).mean(1, keepdim=True) * 255)
    own = lattice_correlation(error, 32)
    nearby = [u for p in periods_nearby(32) if (u := lattice_correlation(error, p)) is not None]
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


def run_ablation(ablation: Ablation, parts: Sequence[str] = tuple(PARTS), tell: OnName | None = None) -> Path:
    """Train and measure all. Returns the report, which is written anew after each run, so that nothing is lost."""
    measure = Measure(ablation)
    details: list[Row] = [{"part": "", "name": "autoencoder alone", **row} for row in measure.rows(None)]
    report = write(ablation, details)
    known: dict[str, list[Row]] = {}
    for part, name, config in jobs(ablation, parts):
        if config.run not in known:
            flux, seconds = trained(config, None if tell is None else tell(f"{name}, seed {config.seed}"))
            head: Row = {"seed": config.seed, "theta": flux.params.theta[0], "train_seconds": seconds}
            known[config.run] = [head | row for row in measure.rows(flux)]
        details += [{"part": part, "name": name} | row for row in known[config.run]]
        report = write(ablation, details)
    return report


#: Gives, for a run's name, what is told of its steps.
OnName = Callable[[str], OnStep]


def jobs(ablation: Ablation, parts: Sequence[str]) -> list[tuple[str, str, TrainConfig]]:
    """(part, name, config) of every row; a run that stands in both parts is the same run."""
    a = ablation
    found: list[tuple[str, str, TrainConfig]] = []
    if "variants" in parts:
        for seed in a.seeds:
            for name, (rfr, l_ap) in VARIANTS.items():
                theta, weight = a.theta if rfr else FLUX_THETA, a.periodicity if l_ap else 0.0
                found.append(("variants", name, config_of(a, seed, theta, weight)))
    if "theta" in parts:
        for seed in a.sweep_seeds:
            for name, theta in a.thetas.items():
                found.append(("theta", name, config_of(a, seed, theta, 0.0)))
    return found


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
        ablation_figure.draw(details, ablation.folder / "ablation.png")
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
