"""``benchmarks/gpu/weights.sh``: better bundled weights in so many minutes, whatever the machine's speed.

Each recipe runs twice: a start of a few seconds shows how many steps fit into its share of the time; then it goes on
for so many, its rate falling over the last third. A run that is over its time is asked to stop, and saves.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from op4ksr_core.cli.console import say, tell
from op4ksr_core.errors import Op4ksrError

ROOT = Path(__file__).resolve().parents[2]

#: No file may be larger, bytes.
LARGEST = 16 * 2**20

#: Of a recipe's share: the start, seconds at most and share; and what is kept for loading and saving.
START, START_SHARE, SPARE = 45.0, 0.2, 0.12

#: Share of the steps at whose end the rate falls.
FALLING = 1 / 3

#: Seconds that a run which was asked to stop may take to save.
PATIENCE = 60.0


@dataclass(frozen=True)
class Recipe:
    """A config, its share of the time, and the names of the weights it makes."""

    config: str
    share: float
    makes: tuple[str, ...]


RECIPES = (
    Recipe("enlarger_h200.toml", 0.45, ("enlarger",)),
    Recipe("detail_h200.toml", 0.55, ("flux", "vae")),
)


def main(arguments: list[str] | None = None) -> int:
    """Train by both recipes and leave the files in the output folder. Returns 0, or 1 with a sentence on stderr."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/weights.sh", description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--minutes", type=float, default=9.0, help="in all (default: 9)")
    parser.add_argument("--photos", type=Path, help="folder of squares; default: procedural pictures")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of both recipes")
    parser.add_argument("-o", "--output", type=Path, default=Path(os.environ.get("OUT", "benchmark_output/weights")))
    options = parser.parse_args(arguments)
    try:
        options.output.mkdir(parents=True, exist_ok=True)
        made: list[Path] = []
        for recipe in RECIPES:
            run = Run(recipe, options, made[:1])
            made += run.train(60 * options.minutes * recipe.share)
        for file in made:
            say(f"{file}: {file.stat().st_size:,} bytes")
    except (Op4ksrError, OSError) as error:
        tell(f"error: {error}")
        return 1
    return 0


class Run:
    """One recipe, in a run folder of its own in the output folder. enlarger: the file that detail is made upon."""

    def __init__(self, recipe: Recipe, options: argparse.Namespace, enlarger: list[Path]) -> None:
        self.recipe, self.output = recipe, options.output
        self.folder = options.output / recipe.config.removesuffix(".toml")
        shutil.rmtree(self.folder, ignore_errors=True)
        changes = [
            f"train.device={json.dumps(options.device)}",
            f"data.cache={json.dumps(str(options.output / 'cache'))}",
        ]
        if options.photos is not None:
            changes += ['data.source="folder"', f"data.path={json.dumps(str(options.photos))}"]
        if "flux" in recipe.makes:
            changes += [f"model.enlarger={json.dumps(str(file))}" for file in enlarger]
        self.changes = [*changes, *options.set]

    def train(self, seconds: float) -> list[Path]:
        """Both parts within the time; the files that it made, in the output folder. Raises Op4ksrError."""
        ends = time.monotonic() + seconds
        self._command([], min(START, START_SHARE * seconds))
        done, each = self._speed()
        left = ends - time.monotonic() - SPARE * seconds
        steps = done + max(2, int(left / each))
        falling = max(1, int(FALLING * (steps - done)))
        self._command(
            ["--resume", "--steps", str(steps), "--set", f"train.decay_steps={falling}"], ends - time.monotonic()
        )
        return self._files()

    def _command(self, more: list[str], seconds: float) -> None:
        """``op4ksr train``, asked to stop after so many seconds."""
        command = [sys.executable, "-m", "op4ksr_core", "train", str(ROOT / "configs" / self.recipe.config)]
        command += ["--run", str(self.folder), *more]
        for change in self.changes:
            command += ["--set", change]
        with subprocess.Popen(command) as process:
            try:
                process.wait(max(1.0, seconds))
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()
        if process.returncode not in (0, 128 + signal.SIGINT):
            raise Op4ksrError(f"{self.recipe.config}: its run ended with {process.returncode}; see what it said above")

    def _speed(self) -> tuple[int, float]:
        """Steps done, and seconds of one, by the log's last rows (the first are slower)."""
        with (self.folder / "log.csv").open(newline="") as file:
            rows = [(int(row["step"]), float(row["seconds"])) for row in csv.DictReader(file)]
        if len(rows) < 2 or rows[-1][0] == 0:
            raise Op4ksrError(
                f"{self.recipe.config}: its start was too short for output.log_every steps; give more --minutes, or "
                "--set output.log_every=1"
            )
        middle = rows[len(rows) // 2 - 1] if len(rows) > 3 else rows[0]
        return rows[-1][0], (rows[-1][1] - middle[1]) / (rows[-1][0] - middle[0])

    def _files(self) -> list[Path]:
        """The newest weights, copied beside the run's folder. Raises Op4ksrError for one that is too large."""
        shutil.copyfile(self.folder / "log.csv", self.output / f"{self.recipe.makes[0]}_log.csv")
        made: list[Path] = []
        for name in self.recipe.makes:
            newest = max((self.folder / "checkpoints").glob(f"{name}_*.safetensors"))
            if newest.stat().st_size >= LARGEST:
                raise Op4ksrError(f"{newest}: expected less than {LARGEST:,} bytes, got {newest.stat().st_size:,}")
            made.append(Path(shutil.copyfile(newest, self.output / f"op4ksr_small_{name}.safetensors")))
        shutil.rmtree(self.folder)
        return made


if __name__ == "__main__":
    sys.exit(main())
