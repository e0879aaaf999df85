"""``benchmarks/gpu/run.sh``: the steps one after the other, each a process with a time limit, the decisive ones first.

The report (``gpu.md``, ``gpu.json``) is written again whenever a step has more to tell. A step that fails, or runs
over its limit, is a row with what it had found; the next one begins.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..tables import Row, without_places, write_report
from .step import GEOMETRY_NAMES

ROOT = Path(__file__).resolve().parents[2]

#: A step is not begun with less time left, seconds: starting Python and CUDA takes most of it.
LEAST = 20.0

#: Seconds between two looks at the report of the step that runs.
GLANCE = 1.0


@dataclass(frozen=True)
class Step:
    """A module of this folder with its options, and the most seconds that it may take."""

    name: str
    question: str
    #: The module and its options, as after ``python -m``; the campaign adds ``--device``, ``--geometry`` and ``-o``.
    command: str
    limit: float


#: What is run, in this order. A new script is a line here; it takes ``step_parser``'s options and leaves a
#: ``StepReport``. The limits are our guesses for an H200, several times what the work should take.
STEPS = (
    Step("checks", "Does the GPU compute what the CPU does?", "benchmarks.gpu.checks", 90),
    Step("tests", "Do the tests marked gpu pass?", "benchmarks.gpu.marked_tests", 60),
    Step("attention", "Which kernel for the VAE's middle, and how exact?", "benchmarks.gpu.attention", 60),
    Step("4096-bf16", "Seconds and memory of 4096 px in bf16?", "benchmarks.gpu.upscale --side 4096", 70),
    Step("4096-fp8", "And with the blocks in fp8?", "benchmarks.gpu.upscale --side 4096 --weights fp8", 70),
    Step("peaks", "Are the VAE's peaks what the plan says?", "benchmarks.gpu.checks --only peaks", 60),
    Step("training-start", "Does training start?", "benchmarks.gpu.training --start", 80),
    Step("training-step", "Seconds and memory of one step of a LoRA on 12 B?", "benchmarks.gpu.training", 90),
    Step("2048-bf16", "Seconds and memory of 2048 px?", "benchmarks.gpu.upscale --side 2048", 50),
    Step("8192-bf16", "And of 8192 px?", "benchmarks.gpu.upscale --side 8192 --repeats 1", 120),
)


def run_step(step: Step, options: argparse.Namespace, limit: float, report: Path, update: Callable[[], None]) -> str:
    """Run one step in a process group of its own, calling ``update`` now and then. Returns what became of it."""
    ours = ["--device", options.device, "--geometry", options.geometry, "-o", str(report)]
    command = [sys.executable, "-m", *shlex.split(step.command), *ours]
    began = time.monotonic()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=errors, env=_environment(), start_new_session=True
        )
        try:
            while time.monotonic() - began < limit:
                try:
                    code = process.wait(GLANCE)
                except subprocess.TimeoutExpired:
                    update()
                    continue
                errors.seek(0)
                return "done" if code == 0 else f"failed ({code}): {_last_line(errors.read())}"
            return f"stopped after {limit:.0f} s"
        finally:
            _end(process)


def _environment() -> dict[str, str]:
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(places)}


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the process and its children (data workers), which may outlive it."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _last_line(errors: bytes) -> str:
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["no message"]
    return lines[-1][:200].replace("|", "/")


class Campaign:
    """What there is so far: a row for each step, and the tables of the steps behind it."""

    def __init__(self, options: argparse.Namespace, steps: Sequence[Step], words: Sequence[str]) -> None:
        self.options, self.steps = options, steps
        self.command = without_places(["benchmarks/gpu/run.sh", *words])
        self.rows: list[Row] = [
            {"step": s.name, "question": s.question, "outcome": "not run yet", "s": None, "answer": ""} for s in steps
        ]
        self.tables: dict[str, list[Row]] = {}

    def run(self, folder: Path) -> None:
        """All steps; ``folder`` holds their reports meanwhile."""
        end = time.monotonic() + 60 * self.options.minutes
        for step, row in zip(self.steps, self.rows, strict=True):
            began, report = time.monotonic(), folder / f"{step.name}.json"
            left = end - began
            if left < LEAST:
                row["outcome"] = "no time left"
                continue
            row["outcome"] = "running"
            row["outcome"] = run_step(step, self.options, min(step.limit, left), report, partial(self._update, report))
            row["s"] = round(time.monotonic() - began, 1)
            self._update(report)
            sys.stderr.write(f"{step.name}: {row['outcome']}, {row['s']} s. {row['answer']}\n")
        self.write()

    def _update(self, report: Path) -> None:
        """Take over what the step has written by now."""
        found: dict[str, Any] = json.loads(report.read_text("utf-8")) if report.exists() else {}
        row = next(row for row in self.rows if row["step"] == report.stem)
        row["answer"] = found.get("answer", "")
        for title, rows in found.get("tables", {}).items():
            if rows:
                self.tables[f"{report.stem}: {title}"] = rows
        self.write()

    def write(self) -> Path:
        """The whole report. Raises OutputError."""
        return write_report(self.options.output, "gpu", {"Steps": self.rows, **self.tables}, command=self.command)


def parser() -> argparse.ArgumentParser:
    """The options of ``run.sh``."""
    parser = argparse.ArgumentParser(prog="benchmarks/gpu/run.sh", description="All that waits for a GPU, in one run.")
    parser.add_argument("--device", default="cuda", help="default: cuda; cpu proves the plumbing")
    parser.add_argument("--geometry", choices=GEOMETRY_NAMES, default="flux", help="default: flux (12 B)")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all steps together; default: 9")
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], metavar="STEP", help="these steps")
    folder = Path(os.environ.get("OUT") or "benchmark_output/gpu")
    parser.add_argument("-o", "--output", type=Path, default=folder, metavar="FOLDER", help=f"default: {folder}")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign; 0 if every step was done, else 1."""
    words = sys.argv[1:] if arguments is None else list(arguments)
    options = parser().parse_args(words)
    if importlib.util.find_spec("torch") is None:
        print(f"error: torch is not installed for {sys.executable}; set PYTHON to one that has it", file=sys.stderr)  # noqa: T201
        return 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the step that runs is ended too
    campaign = Campaign(options, [s for s in STEPS if not options.only or s.name in options.only], words)
    with tempfile.TemporaryDirectory() as folder:
        campaign.run(Path(folder))
    sys.stdout.write(campaign.write().read_text("utf-8"))
    return 0 if all(row["outcome"] == "done" for row in campaign.rows) else 1


if __name__ == "__main__":
    sys.exit(main())
