"""``smooth``: the mesh on smooth pictures."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.cli.console import say, tell
from op4ksr_core.cli.options import number, parse_device, whole_from

from .. import smooth
from ..tables import setting_rows, write_report
from .photo_run import OUTPUT, add_variant, variant_of


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    parser = kinds.add_parser("smooth", help="smooth pictures: mesh and alarms, by detail, repair and fidelity")
    parser.set_defaults(command=run_smooth, detail=1.0, repair=None)
    add_variant(parser, parts=False)
    add = parser.add_argument
    add("--details", nargs="+", type=number, default=smooth.DETAILS, help="default: 0 0.5 1 2")
    add("--repairs", nargs="+", type=number, default=smooth.REPAIRS, help="default: 0 0.5 1")
    add("--factor", type=whole_from(2, 16), default=4, metavar="X", help="default: 4")
    add("-o", "--output", type=Path, default=OUTPUT, metavar="FOLDER")


def run_smooth(options: argparse.Namespace) -> int:
    """Measure, write and print. Returns the exit status, 0."""
    variant = variant_of(options, parse_device("cpu"))
    rows = smooth.smooth_rows(variant, options.factor, options.details, options.repairs, tell)
    settings = {
        "VAE file": options.vae.name,
        "model file": options.model.name,
        "pictures": f"{smooth.COUNT} of {smooth.SIDE} px, procedural, x{options.factor}",
        "mesh of P": "largest of the pictures: RMS in grey levels of what repeats every P px, before 8 bits",
        "alarms": f"outputs of {smooth.COUNT} on which the meter alarms, rounded to 8 bit, with LR as reference",
    }
    tables = {f"Smooth pictures, x{options.factor}": rows, "Settings": setting_rows(settings)}
    say(write_report(options.output, "smooth", tables).read_text("utf-8"))
    return 0
