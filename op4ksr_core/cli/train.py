"""``train``: run what a TOML file describes, with one line of progress."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

from ..machine import default_device, free_memory
from ..plain_text import plain, plain_logger
from ..planning.geometries import GEOMETRIES
from ..training.config import TrainConfig
from ..training.config_file import read_config, read_text
from ..training.sigma import PAIRS, suggest_sigma
from ..training.step_plan import StepPlan, geometry_of, plan_step, refuse_if_hopeless
from ..training.stopping import Stopped
from ..training.trainer import OnStep, Trainer
from .console import say, say_json, tell
from .options import whole

log = plain_logger(__name__)

#: Seconds between two lines where the output is no terminal.
QUIET = 30.0

#: Runs on the CPU from a smaller file than this, bytes, start without a plan.
WORTH_A_PLAN = 1e9


def add_train(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_train)
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="resume the run in the config's folder")
    parser.add_argument("--run", metavar="FOLDER", help="another run folder than the config's")
    parser.add_argument("--steps", type=whole, help="another number of steps than the config's")
    parser.add_argument("--anyway", action="store_true", help="start even where one step will not fit into memory")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--plan", action="store_true", help="count what one step needs, and train nothing")
    instead.add_argument(
        "--suggest-sigma", action="store_true", help="measure which sigma fits the run's pictures, and train nothing"
    )
    parser.add_argument("--pairs", type=whole, default=PAIRS, help=f"--suggest-sigma: of how many (default: {PAIRS})")
    parser.add_argument("--geometry", choices=GEOMETRIES, help="--plan: these models instead of the config's files")
    parser.add_argument("--json", action="store_true", help="--plan and --suggest-sigma: as JSON")


def add_config(parser: argparse.ArgumentParser) -> None:
    """The file, and what may be changed in it."""
    parser.add_argument("config", type=Path, metavar="CONFIG.toml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as train.batch=2")


def run_plan(config: TrainConfig, options: argparse.Namespace) -> int:
    """Print what one step needs: on CUDA unless the config says otherwise."""
    device = "cpu" if config.train.device == "cpu" else "cuda"
    plan = plan_step(config, geometry_of(config, options.geometry), device)
    if options.json:
        say_json(plan.report())
    else:
        say(plan.text())
    return 0


def run_suggestion(config: TrainConfig, options: argparse.Namespace) -> int:
    """Print which sigma fits the run's pictures and its autoencoder."""
    show = show_steps()
    found = suggest_sigma(config, options.pairs, lambda done, total: show(done, total, "pairs encoded"))
    if options.json:
        say_json(found.report())
    else:
        say(found.text())
    return 0


def check_memory(config: TrainConfig) -> StepPlan | None:
    """Raise OutOfMemoryError where one step cannot fit; the plan, or None where none was made.

    None for kinds and places that are not counted (no transformer, several processes, MPS), and for small models on
    the CPU, which would wait longer for the plan than it is worth.
    """
    name = config.train.device or str(default_device())
    kind = name.partition(":")[0]
    start = Path(config.model.start)
    large = start.is_file() and start.stat().st_size > WORTH_A_PLAN
    counted = config.has_transformer and not config.train.accelerate
    if not counted or not (torch.cuda.is_available() if kind == "cuda" else kind == "cpu" and large):
        return None
    try:
        plan = plan_step(config, geometry_of(config), kind)
    except (RuntimeError, AttributeError, TypeError) as error:  # fake tensors are PyTorch's internals
        log.warning("what one step needs could not be counted (%s); the run starts without", error)
        return None
    refuse_if_hopeless(plan, free_memory(torch.device(name)), name)
    return plan


def run_train(options: argparse.Namespace) -> int:
    """Train, or plan, and print the last weights' file. Returns 0, or 128 more than the signal that stopped it."""
    changes = list(options.set)
    if options.run:
        changes.append(f"run = {json.dumps(options.run)}")
    if options.steps is not None:
        changes.append(f"train.steps = {options.steps}")
    config = read_config(options.config, changes)
    if options.plan:
        return run_plan(config, options)
    if options.suggest_sigma:
        return run_suggestion(config, options)
    if not options.anyway:
        check_memory(config)
    changed = "".join(f"# changed by the command: {change}\n" for change in changes)
    trainer = Trainer(config, changed + read_text(options.config), options.resume, show_steps())
    try:
        weights = trainer.run()
    except Stopped as stopped:
        tell(f"stopped after step {trainer.step}, which is saved; resume with --resume")
        return stopped.exit_code
    if trainer.main:
        say(plain(weights))
    return 0


def show_steps() -> OnStep:
    """Progress on stderr: one line that changes on a terminal, a line now and then elsewhere."""
    live = sys.stderr.isatty()
    last = [-QUIET]

    def show(done: int, total: int, line: str) -> None:
        now = time.monotonic()
        if not live and now - last[0] < QUIET and done != total:
            return
        last[0] = now
        text = f"step {done} of {total}: {line}"
        print(f"\r{text:<78}" if live else text, end="\n" if not live or done == total else "", file=sys.stderr)
        sys.stderr.flush()

    return show
