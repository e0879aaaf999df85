"""``inspect``: what a weights file is, and whether it will work."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..plain_text import plain
from ..weights.inspect import inspect_file
from .console import say, say_json


def add_inspect(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_inspect)
    parser.add_argument("file", type=Path, metavar="FILE", help="safetensors file, shard index, or model folder")
    parser.add_argument("--probe", type=Path, metavar="PHOTO", help="round-trip a photo at every stride and shift")
    parser.add_argument("--json", action="store_true")


def run_inspect(options: argparse.Namespace) -> int:
    """Print what a weights file is. Returns the exit status, 0."""
    report = inspect_file(options.file, options.probe)
    if options.json:
        say_json(report)
        return 0
    for key, value in report.items():
        if key == "probe":
            for fit in value:
                geometry = f"stride {fit['stride']} shift {fit['shift']}"
                say(f"probe: {geometry}: {fit['psnr']:.2f} dB, finest detail {fit['detail']:+.2f}")
        elif key == "probe_says" and value is None:
            say("probe_says: cannot tell; too little detail comes back at any geometry")
        elif isinstance(value, dict):
            for name, item in value.items():
                say(f"{key}.{plain(name)}: {plain(item)}")
        elif value not in (None, []):
            say(f"{key}: {plain(value)}")
    return 0
