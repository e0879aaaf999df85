"""``benchmark page`` and ``benchmark slim``: reports as one page, and the copies of them that are kept."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ..page import gather_reports, page, read_report, slim, write_slim, write_text


def add_benchmark(kinds: Any) -> None:
    """Add both to argparse's subparsers."""
    whole = kinds.add_parser("page", help="one Markdown page from the .json of other benchmarks")
    whole.set_defaults(command=run_page)
    whole.add_argument("reports", nargs="+", type=Path, metavar="REPORT", help=".json, or folders of them")
    whole.add_argument("-o", "--output", required=True, type=Path, metavar="PAGE.md")
    copy = kinds.add_parser("slim", help="a report's copy for such a page: its tables, without rows per photo")
    copy.set_defaults(command=run_slim)
    copy.add_argument("report", type=Path, metavar="REPORT", help=".json that a benchmark wrote")
    copy.add_argument("--only", nargs="+", default=[], metavar="TABLE", help="these tables, by title (default: all)")
    copy.add_argument("--note", default="", help="what the report does not know, as that the code has changed since")
    copy.add_argument("-o", "--output", required=True, type=Path, metavar="COPY.json")


def run_page(options: argparse.Namespace) -> int:
    """Write the page. Returns the exit status, 0."""
    write_text(options.output, page([read_report(path) for path in gather_reports(options.reports)]))
    return 0


def run_slim(options: argparse.Namespace) -> int:
    """Write the copy. Returns the exit status, 0."""
    write_slim(options.output, slim(read_report(options.report), options.only, options.note))
    return 0
