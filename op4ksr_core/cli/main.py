"""``python -m op4ksr_core``, installed as ``op4ksr``: the commands, and what they all have in common.

Nothing heavy is imported before signals are handled: PyTorch alone takes seconds, in which people press Ctrl-C.
"""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NoReturn

from ..errors import Op4ksrError
from ..files import remove_unfinished
from ..plain_text import plain_message
from ..signals import Interrupted, handle, interruptible, leave_at_once
from ..version import __version__
from .console import (
    CLOSED_PIPE,
    OutputLostError,
    abandon_output,
    flush,
    in_one_line,
    prepare_streams,
    say,
    tell,
)


class Parser(argparse.ArgumentParser):
    """argparse's, whose errors are made plain, for arguments are any text, and whose help is output as any other."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout:
            say(message.removesuffix("\n"))
        else:
            with suppress(OSError):
                super()._print_message(message, file)

    def error(self, message: str) -> NoReturn:
        """Show the use and the error, and exit with status 2."""
        self.print_usage(sys.stderr)
        self.exit(2, f"{self.prog}: error: {plain_message(message)}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; 0 if all went well, 1 if the input was at fault (one sentence on stderr).

    arguments None: this process is the command's own, with the arguments it was started with.
    """
    return start(build_parser, arguments)


def start(build: Callable[[], argparse.ArgumentParser], arguments: Sequence[str] | None) -> int:
    """``run_command`` with a parser whose modules are imported here; for any command line of the project."""
    prepare_streams()
    own = arguments is None
    if own:
        handle(leave_at_once)
    try:
        parser = build()
    except ImportError as error:  # PyTorch or another requirement is missing, or does not fit into the memory
        words = f"cannot start, for a module cannot be imported ({error})"
        tell(f"error: {words}; install the requirements for {sys.executable}")
        return 1
    code = run_command(parser, arguments)
    if own:
        handle(signal.SIG_IGN)  # the command is done
    return code


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> int:
    """Parse, and run the chosen ``command``; for any command line of the project, ``python -m benchmarks`` too.

    0: all went well; 1: the input was at fault (one sentence on stderr); 130: cancelled, 143: terminated, 129: hung
    up; 141: nobody reads the output any more.
    """
    prepare_streams()
    with interruptible():
        try:
            return _run(parser, arguments)
        except KeyboardInterrupt as ended:
            remove_unfinished()
            told = ended if isinstance(ended, Interrupted) else Interrupted(signal.SIGINT)
            tell(told)
            return told.exit_code
        except OutputLostError as lost:
            abandon_output()
            if not lost.closed:
                tell(f"error: {lost}")
            return CLOSED_PIPE if lost.closed else 1


def _run(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    try:
        options = parser.parse_args(arguments)
        logging.basicConfig(level=logging.INFO if options.verbose else logging.WARNING, format="%(message)s")
        return options.command(options)
    except (OutputLostError, SystemExit):
        raise
    except Op4ksrError as error:
        tell(f"error: {error}")
    except Exception as error:
        tell(f"error: {in_one_line(error)}")
    finally:
        flush()
    return 1


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options; each sets ``command``, a function of the parsed options -> exit status."""
    from . import convert, demo, inspect, periodicity, plan, rope, tiles, train, upscale

    parser = Parser(prog="op4ksr", description="One-step, patch-free 4K super resolution.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="log every default that is taken")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    upscale.add_upscale(commands.add_parser("upscale", help="enlarge pictures"))
    plan.add_plan(commands.add_parser("plan", help="what a run will need, before anything is computed"))
    inspect.add_inspect(commands.add_parser("inspect", help="what is this weights file, and will it work"))
    convert.add_convert(
        commands.add_parser("convert", help="another layout, a LoRA merged in, metadata, prompt embedding")
    )
    rope.add_rope(commands.add_parser("rope", help="turns of each pair of channels on a grid, before and after RFR"))
    periodicity.add_commands(commands)
    train.add_train(
        commands.add_parser(
            "train", help="train an autoencoder, a one-step model, a LoRA or an enlarger (extra: train)"
        )
    )
    tiles.add_tiles(commands.add_parser("tiles", help="cut photos into squares to train on"))
    demo.add_demo(commands.add_parser("demo", help="upscale the bundled photo to 4096 px and show what changed"))
    return parser
