"""``train``: run what a TOML file describes, with one line of progress."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from .train_config import read_config, read_text
from .trainer import OnStep, Trainer

#: Seconds between two lines where the output is no terminal.
QUIET = 30.0


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_train)
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the config's folder")
    parser.add_argument("--run", metavar="FOLDER", help="another run folder than the config's")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.batch=2")
    parser.add_argument("--steps", type=int, help="another number of steps than the config's")


def run_train(options: argparse.Namespace) -> int:
    changes = list(options.set)
    if options.run:
        changes.append(f"run = {json.dumps(options.run)}")
    if options.steps:
        changes.append(f"train.steps = {options.steps}")
    config = read_config(options.config, changes)
    told = "".join(f"# changed by the command: {change}\n" for change in changes)
    trainer = Trainer(config, told + read_text(options.config), options.resume, show_steps())
    try:
        weights = trainer.run()
    except KeyboardInterrupt:
        if not trainer.step:
            raise
        print(f"stopped after step {trainer.step}, which is saved; go on with --resume", file=sys.stderr)
        return 130
    if trainer.main:
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
