"""``train``: run what a TOML file describes, with one line of progress."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path

from .train_config import read_config
from .trainer import OnStep, Trainer

#: Seconds between two lines where the output is no terminal.
QUIET = 30.0


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_train)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the config's folder")
    parser.add_argument("--run", metavar="FOLDER", help="another run folder than the config's")
    parser.add_argument("--steps", type=int, help="another number of steps than the config's")


def run_train(options: argparse.Namespace) -> int:
    config = read_config(options.config)
    text = options.config.read_text("utf-8")
    if options.run:
        config = replace(config, run=options.run)
    if options.steps:
        config = replace(config, train=replace(config.train, steps=options.steps))
    weights = Trainer(config, text, options.resume, show_steps()).run()
    print(weights)
    return 0


def show_steps() -> OnStep:
    """Progress on stderr: one line that changes on a terminal, a line now and then elsewhere."""
    live = sys.stderr.isatty()
    last = [-QUIET]

    def tell(done: int, total: int, line: str) -> None:
        now = time.monotonic()
        if not live and now - last[0] < QUIET and done != total:
            return
        last[0] = now
        text = f"step {done} of {total}: {line}"
        print(f"\r{text:<78}" if live else text, end="\n" if not live or done == total else "", file=sys.stderr)
        sys.stderr.flush()

    return tell
