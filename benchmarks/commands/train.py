"""``train``: one training step, timed."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.cli.console import say
from op4ksr_core.cli.options import parse_device, whole
from op4ksr_core.cli.train import add_config
from op4ksr_core.machine import explain_out_of_memory
from op4ksr_core.planning.geometries import GEOMETRIES
from op4ksr_core.training.config_file import read_config
from op4ksr_core.training.step_plan import geometry_of

from ..stage_clock import PeakMeter
from ..tables import setting_rows, write_report
from ..train import train_rows

_TITLE = "One training step"


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    parser = kinds.add_parser("train", help="one step of a training config: seconds, memory, share of the ceiling")
    parser.set_defaults(command=run_train_benchmark)
    add_config(parser)
    parser.add_argument("--geometry", choices=GEOMETRIES, help="random weights instead of the config's files")
    parser.add_argument("--device", help="cpu, cuda (default: the config's, else the best there is)")
    parser.add_argument("--repeats", type=whole, choices=range(1, 100), default=5, metavar="N", help="default: 5")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_train_benchmark(options: argparse.Namespace) -> int:
    """Time, write and print. Returns the exit status, 0."""
    config = read_config(options.config, options.set)
    device = parse_device(options.device or config.train.device or None)
    geometry = geometry_of(config, options.geometry)
    with explain_out_of_memory("benchmarks train"):
        rows, turns = train_rows(
            config, geometry, random=options.geometry is not None, device=device, repeats=options.repeats
        )
    weights = "random: time and memory, never quality" if options.geometry else "the config's files"
    settings = {
        "geometry": options.geometry or "the config's files",
        "weights": weights,
        "GB at peak": PeakMeter.how(device),
    }
    tables = {_TITLE: rows, "Settings": setting_rows(settings)}
    say(write_report(options.output, "train", tables, turns).read_text("utf-8"))
    return 0
