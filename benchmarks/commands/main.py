"""``python -m benchmarks``: measure, and write the tables as JSON and Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from op4ksr_core.cli.main import run_command
from op4ksr_core.cli.options import parse_device

from .. import memory as benchmark_memory
from .. import speed as benchmark_speed
from .. import tables as benchmark
from ..tables import Row
from . import ablation, full, page, periodicity, pipeline, quality, train


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; 0 if all went well, 1 if the input was at fault (one sentence on stderr)."""
    return run_command(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """All benchmarks with their options; each sets ``command``, a function of the parsed options -> exit status."""
    parser = argparse.ArgumentParser(
        prog="benchmarks", description="Measure, and write the table as JSON and Markdown."
    )
    parser.add_argument("--verbose", action="store_true", help="tell every default that is taken")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    quality.add_benchmark(kinds)
    _add_memory(kinds)
    _add_speed(kinds)
    for module in (pipeline, full, train, periodicity, page):
        module.add_benchmark(kinds)
    ablation.add_ablation(kinds.add_parser("ablation", help="train with and without RFR and L_AP, and measure"))
    return parser


def _add_memory(kinds: Any) -> None:
    memory = kinds.add_parser("memory", help="the VAE's strips: exactness, peaks counted and predicted, a whole run")
    memory.set_defaults(command=run_memory)
    memory.add_argument("--quick", action="store_true", help="small sizes only")
    memory.add_argument("--only", nargs="+", choices=_MEMORY_TABLES, help="these tables; all take half an hour or more")
    memory.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def _add_speed(kinds: Any) -> None:
    speed = kinds.add_parser("speed", help="the VAE's strips: seconds over those of the plain pass")
    speed.set_defaults(command=run_speed)
    speed.add_argument("--quick", action="store_true", help="a small size only")
    speed.add_argument("--repeats", type=int, choices=range(1, 100), default=3, metavar="N")
    speed.add_argument("--device")
    speed.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


#: The tables of ``benchmark memory``, by the name that --only takes.
_MEMORY_TABLES: dict[str, Callable[[], list[Row]]] = {
    "peaks": benchmark_memory.peaks,
    "run": benchmark_memory.end_to_end,
    "sample": benchmark_memory.tiles_on_the_sample,
    "exactness": benchmark_memory.exactness,
}
_QUICK_TABLES: dict[str, Callable[[], list[Row]]] = {
    "peaks": lambda: benchmark_memory.peaks(("F16, bundled",), (512,), (1024,)),
    "exactness": lambda: benchmark_memory.exactness(benchmark_memory.QUICK_CASES),
}


def run_memory(options: argparse.Namespace) -> int:
    """Each table is written as soon as it is there."""
    chosen = _QUICK_TABLES if options.quick else _MEMORY_TABLES
    tables: dict[str, list[Row]] = {}
    for name in options.only or chosen:
        tables[name] = chosen.get(name, _MEMORY_TABLES[name])()
        benchmark.write_report(options.output, "memory", tables)
    return _report(options.output, "memory", tables)


def run_speed(options: argparse.Namespace) -> int:
    """Time, write and print the table. Returns the exit status, 0."""
    cases = benchmark_speed.QUICK_CASES if options.quick else benchmark_speed.CASES
    rows = benchmark_speed.speed(cases, str(parse_device(options.device)), options.repeats)
    return _report(options.output, "speed", {"The VAE in strips, against the plain pass": rows})


def _report(folder: Path, name: str, tables: dict[str, list[Row]]) -> int:
    print(benchmark.write_report(folder, name, tables).read_text("utf-8"))
    return 0
