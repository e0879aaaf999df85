"""Training on a GPU: one step of a LoRA on 12 B (random weights), and the training command with the H200's recipes.

``--start`` runs ``op4ksr_core train`` itself for a few steps on pictures made here: that it starts, seconds of a step
with its data, and the peak. The few steps train nothing worth keeping.
"""

from __future__ import annotations

import csv
import shlex
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from op4ksr_core.cli.main import main as op4ksr
from op4ksr_core.cli.options import parse_device
from op4ksr_core.machine import peak_memory
from op4ksr_core.planning.geometries import GEOMETRIES
from op4ksr_core.training.config_file import read_config

from ..tables import Row
from .step import StepReport, step_parser

CONFIGS = Path(__file__).resolve().parents[2] / "configs"

#: Steps of a recipe that is only started; a row of its log for each of so many.
STEPS, LOGGED = 20, 5

#: What a started recipe does not need in full; and what is smaller with the small geometry.
_SHORT = f"data.pictures=64 output.log_every={LOGGED} output.samples=0 train.warmup={LOGGED} train.linear_steps=10"
_SMALL = "data.workers=0 data.pictures=4 data.picture_side=128 data.crop=128 data.late_crop=128 train.batch=1"


#: Those of better bundled weights (``weights.sh``), each by itself.
RECIPES = ("enlarger_h200.toml", "detail_h200.toml")

#: The step that is timed, and what of it is smaller.
LORA, SMALL_LORA = "lora_flux_80gb.toml", ["data.crop=256", "train.accumulate=1"]


def start_rows(recipe: str, geometry: str, device: str, folder: Path) -> Iterator[Row]:
    """Run the command in ``folder``; a row for each of the log's. Exits as the command does where that fails."""
    name = Path(recipe).stem
    changes = shlex.split(f"{_SHORT} {_SMALL}" if geometry == "small" else _SHORT)
    changes += [f"data.cache='{folder / 'cache'}'", f"train.device='{device}'"]
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    words = ["train", str(CONFIGS / recipe), "--run", str(folder / name), "--steps", str(STEPS)]
    code = op4ksr([*words, *(word for change in changes for word in ("--set", change))])
    if code:
        sys.exit(code)  # the command has said why
    peak = peak_memory(torch.device(device))
    with (folder / name / "log.csv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file):
            if line["pictures_per_second"]:
                yield {
                    "recipe": recipe,
                    "steps done": int(line["step"]),
                    "pictures/s": float(line["pictures_per_second"]),
                    "loss": float(line["loss"]),
                    "GB at peak": None if peak is None else peak / 1e9,
                }


def start(report: StepReport, geometry: str, device: str) -> None:
    """Start every recipe."""
    answers: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        for recipe in RECIPES:
            rows = list(start_rows(recipe, geometry, device, Path(folder)))
            report.add("training, started", *rows)
            answers.append(f"{recipe}: starts, {rows[-1]['pictures/s']:.3g} pictures/s")
            report.conclude("; ".join(answers))


def one_step(report: StepReport, geometry: str, device: str) -> None:
    """Time a step of the LoRA's recipe with random weights."""
    from ..train import train_rows

    config = read_config(CONFIGS / LORA, SMALL_LORA if geometry == "small" else [])
    rows, _ = train_rows(config, GEOMETRIES[geometry], random=True, device=parse_device(device), repeats=3)
    report.add("one training step", *rows)
    row = rows[0]
    report.conclude(
        f"{LORA}: {row['seconds']:.3g} s, {row['share of it']:.0%} of the ceiling; peak {row['GB at peak']:.2f} GB, "
        f"planned {row['GB planned']:.2f} GB"
    )


def main() -> int:
    """The step's command line."""
    parser = step_parser("training: one step of a LoRA, or the recipes started")
    parser.add_argument("--start", action="store_true", help="run the training command for a few steps")
    options = parser.parse_args()
    (start if options.start else one_step)(StepReport(options.output), options.geometry, options.device)
    return 0


if __name__ == "__main__":
    sys.exit(main())
