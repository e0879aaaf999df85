"""``python -m benchmarks``: measure, and write the tables as JSON and Markdown."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from op4ksr_core.cli.main import Parser, run_command

from ..page import gather_reports, page, read_report, slim, write_slim
from ..tables import write_text
from . import ablation, compare, crops, memory, periodicity, pipeline, quality, sky, smooth, train, whole

_DESCRIPTION = """\
Measure, and write the tables: KIND.json and KIND.md in benchmark_output, or in the folder that -o names.
Without models or pictures named, the bundled ones are taken. KIND --help tells the options of each."""

_EPILOG = "All that waits for a GPU, in one run of nine minutes: benchmarks/gpu/run.sh (docs/full_size.md)."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one benchmark; 0 if all went well, 1 if the input was at fault (one sentence on stderr)."""
    return run_command(build_parser(), arguments)


def build_parser() -> argparse.ArgumentParser:
    """All benchmarks with their options; each sets ``command``, a function of the parsed options -> exit status."""
    parser = Parser(
        prog="python -m benchmarks",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--verbose", action="store_true", help="log every default that is taken")
    kinds = parser.add_subparsers(required=True, metavar="KIND")
    for module in (quality, compare, smooth, crops, periodicity, ablation, pipeline, memory, sky, train, whole):
        module.add_benchmark(kinds)
    _add_page(kinds)
    return parser


def _add_page(kinds: Any) -> None:
    slim_parser = kinds.add_parser("slim", help="a report's copy for docs/reports: its tables, without rows per photo")
    slim_parser.set_defaults(command=run_slim)
    slim_parser.add_argument("report", type=Path, metavar="REPORT", help=".json that a benchmark wrote")
    slim_parser.add_argument("--only", nargs="+", default=[], metavar="TABLE", help="these, by title (default: all)")
    slim_parser.add_argument("--note", default="", help="what the report does not know, as that the code has changed")
    slim_parser.add_argument("-o", "--output", required=True, type=Path, metavar="COPY.json")
    page_parser = kinds.add_parser("page", help="one Markdown page from such copies, as docs/benchmarks.md")
    page_parser.set_defaults(command=run_page)
    page_parser.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help=".json, or folders of them")
    page_parser.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE.md")


def run_page(options: argparse.Namespace) -> int:
    """Write the page. Returns the exit status, 0."""
    write_text(options.output, page([read_report(path) for path in gather_reports(options.reports)]))
    return 0


def run_slim(options: argparse.Namespace) -> int:
    """Write the copy. Returns the exit status, 0."""
    write_slim(options.output, slim(read_report(options.report), options.only, options.note))
    return 0
