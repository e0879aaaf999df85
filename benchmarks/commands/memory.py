"""``memory`` and ``speed``: the VAE in strips."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from op4ksr_core.cli.console import say
from op4ksr_core.cli.options import parse_device, whole

from .. import flux_peaks, memory
from ..tables import Row, Tables, write_report


def add_benchmark(kinds: Any) -> None:
    """Add both to argparse's subparsers."""
    parser = kinds.add_parser("memory", help="the VAE's strips: exactness, peaks counted and estimated, a whole run")
    parser.set_defaults(command=run_memory)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--only", nargs="+", choices=_TABLES, help="these tables; all take half an hour or more")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")
    speed = kinds.add_parser("speed", help="the VAE's strips: seconds over those of the plain pass")
    speed.set_defaults(command=run_speed)
    speed.add_argument("--quick", action="store_true", help="a small size only")
    speed.add_argument("--repeats", type=whole, choices=range(1, 100), default=3, metavar="N", help="default: 3")
    speed.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    speed.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


#: The tables of ``memory``, by the name that --only takes.
_TABLES: dict[str, Callable[[], list[Row]]] = {
    "peaks": memory.peaks,
    "run": memory.end_to_end,
    "sample": memory.tiles_on_the_sample,
    "exactness": memory.exactness,
    "transformer": flux_peaks.transformer_peaks,
}
_QUICK_TABLES: dict[str, Callable[[], list[Row]]] = {
    "peaks": lambda: memory.peaks(("F16, bundled",), (512,), (1024,)),
    "exactness": lambda: memory.exactness(memory.QUICK_CASES),
}


def run_memory(options: argparse.Namespace) -> int:
    """Each table is written as soon as it is there. Returns the exit status, 0."""
    chosen = _QUICK_TABLES if options.quick else _TABLES
    tables: Tables = {}
    for name in options.only or chosen:
        tables[name] = chosen.get(name, _TABLES[name])()
        write_report(options.output, "memory", tables)
    say(write_report(options.output, "memory", tables).read_text("utf-8"))
    return 0


def run_speed(options: argparse.Namespace) -> int:
    """Time, write and print the table. Returns the exit status, 0."""
    cases = memory.QUICK_SPEED_CASES if options.quick else memory.SPEED_CASES
    rows = memory.speed(cases, str(parse_device(options.device)), options.repeats)
    say(write_report(options.output, "speed", {"The VAE in strips, against the plain pass": rows}).read_text("utf-8"))
    return 0
