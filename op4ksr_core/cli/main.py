"""``python -m op4ksr_core``, installed as ``op4ksr``: the commands, and what they all have in common."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

from ..errors import Op4ksrError
from ..version import __version__
from . import periodicity
from .convert import add_convert
from .demo import add_demo
from .inspect import add_inspect
from .plan import add_plan
from .rope import add_rope
from .train import add_train
from .upscale import add_upscale


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if all went well, 1 if the input was at fault (one sentence on stderr)."""
    return run_command(build_parser(), arguments)


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse, and run the chosen ``command``; for any command line of the project, ``python -m benchmarks`` too.

    0: all went well; 1: the input was at fault (one sentence on stderr); 130: cancelled.
    """
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
    try:
        return options.command(options)
    except Op4ksrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("cancelled; nothing was written for the current file", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options; each sets ``command``, a function of the parsed options -> exit status."""
    parser = argparse.ArgumentParser(prog="op4ksr", description="One-step, patch-free 4K super resolution.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log every default that is taken")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_upscale(commands.add_parser("upscale", help="enlarge pictures"))
    add_plan(commands.add_parser("plan", help="what a run will need, before anything is computed"))
    add_inspect(commands.add_parser("inspect", help="what is this weights file, and will it work"))
    add_convert(commands.add_parser("convert", help="another layout, a LoRA merged in, metadata, prompt embedding"))
    add_rope(commands.add_parser("rope", help="turns of each pair of channels on a grid, before and after RFR"))
    periodicity.add_commands(commands)
    add_train(
        commands.add_parser(
            "train", help="train an autoencoder, a one-step model, a LoRA or an enlarger (extra: train)"
        )
    )
    add_demo(commands.add_parser("demo", help="upscale the bundled photo to 4096 px and show what changed"))
    return parser
