"""What the steps of the campaign have in common: their options, and the report that grows while they run."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, field
from pathlib import Path

from op4ksr_core.files import written_whole

from ..tables import Row

#: What can be run: FLUX.1-dev's sizes, or the small ones that prove the plumbing on a CPU.
GEOMETRY_NAMES = ("flux", "small")

#: Sides in px are divided by this.
SHRINK = {"flux": 1, "small": 16}


@dataclass
class StepReport:
    """Tables by title, and the answer in a few words; the file is whole after every change."""

    path: Path
    answer: str = ""
    tables: dict[str, list[Row]] = field(default_factory=dict[str, list[Row]])

    def add(self, title: str, *rows: Row) -> None:
        """Add rows, of the columns that the table has, and write."""
        self.tables.setdefault(title, []).extend(rows)
        self.write()

    def conclude(self, answer: str) -> None:
        """Give the answer, and write."""
        self.answer = answer
        self.write()

    def write(self) -> None:
        """Raises OSError."""
        with written_whole(self.path) as temporary:
            temporary.write_text(json.dumps({"answer": self.answer, "tables": self.tables}, indent=1), "utf-8")


def step_parser(description: str) -> argparse.ArgumentParser:
    """The options that every step takes."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--device", default="cuda", help="default: cuda")
    parser.add_argument("--geometry", choices=GEOMETRY_NAMES, default="flux", help="default: flux (12 B)")
    parser.add_argument("-o", "--output", type=Path, default=Path("step.json"), metavar="REPORT.json")
    return parser


def first_line(error: BaseException) -> str:
    """An error in a table's cell."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0][:160].replace("|", "/")
