"""``whole``: seconds and memory of whole runs, beside other weights."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from op4ksr_core.cli.console import say, tell
from op4ksr_core.cli.options import parse_device, whole_from

from ..tables import setting_rows, write_report
from ..variants import OLD, Variant, loaded, old_files
from ..whole import whole_rows
from .photo_run import OUTPUT, add_variant, variant_of


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    parser = kinds.add_parser("whole", help="whole runs: seconds and memory over those of other weights")
    parser.set_defaults(command=run_whole)
    add_variant(parser)
    add = parser.add_argument
    add("--old", type=Path, metavar="FOLDER", help=f'other bundled weights, as the first row, "{OLD}"')
    add("--side", type=whole_from(64, 4096), default=1024, metavar="PX", help="of the input (default: 1024)")
    add("--factor", type=whole_from(2, 16), default=4, metavar="X", help="default: 4")
    add("--threads", type=whole_from(1, 256), default=2, metavar="N", help="default: 2")
    add("--repeats", type=whole_from(1, 100), default=3, metavar="N", help="default: 3")
    add("-o", "--output", type=Path, default=OUTPUT, metavar="FOLDER")


def run_whole(options: argparse.Namespace) -> int:
    """Time, write and print. Returns the exit status, 0."""
    new = variant_of(options, parse_device("cpu"))
    old = [] if options.old is None else [Variant(OLD, *old_files(options.old))]
    variants = [*old, new, replace(new, name="base alone", detail=0.0)]
    for variant in variants:  # refused here, in a sentence, and not in a process
        loaded(variant.vae, variant.model, variant.enlarger)
    loaded.cache_clear()
    rows = whole_rows(variants, options.side, options.factor, options.threads, options.repeats, tell)
    settings = {
        "VAE file": options.vae.name,
        "model file": options.model.name,
        "threads": str(options.threads),
        "s": f"median of {options.repeats} in one process, after a warm-up",
        "over": "over the first row's",
    }
    tables = {"Whole runs": rows, "Settings": setting_rows(settings)}
    say(write_report(options.output, "whole", tables).read_text("utf-8"))
    return 0
