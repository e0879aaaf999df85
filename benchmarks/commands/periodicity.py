"""``periodicity``: the meter, the remover and the loss on photos with artifacts put in."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.cli.console import say, tell
from op4ksr_core.images.paths import gather

from ..periodicity import HALVES, PARTS, run_part
from ..tables import write_report


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    kind = kinds.add_parser("periodicity", help="detection, false alarms, suppression, loss and cost, on photos")
    kind.set_defaults(command=run_benchmark)
    kind.add_argument("photos", nargs="+", type=Path, metavar="PHOTOS", help="pictures, or folders of them")
    kind.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")
    kind.add_argument("--more", nargs="+", type=Path, default=[], metavar="PHOTOS", help="photos to add, taken whole")
    kind.add_argument("--half", choices=HALVES, default=HALVES[0], help="of the photos (default: held-out)")
    kind.add_argument("--part", choices=PARTS, action="append", help="default: all but calibration")


def run_benchmark(options: argparse.Namespace) -> int:
    """Measure the parts asked for; each is written and printed when it is done. Returns the exit status, 0."""
    photos = gather(options.photos)

    def show(photo: str) -> None:
        tell(photo)

    more = gather(options.more)
    for part in options.part or [part for part in PARTS if part != "calibration"]:
        table, details = run_part(part, photos, options.half, show, more)
        path = write_report(options.output, f"periodicity_{part}", {part: table}, details)
        say(path.read_text("utf-8"))
    return 0
