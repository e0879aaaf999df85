"""``ablation``: RFR and L_AP, with and without, and a sweep of theta."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.bundled import BUNDLED_AUTOENCODER
from op4ksr_core.cli.console import say
from op4ksr_core.cli.options import number, whole
from op4ksr_core.cli.train import show_steps
from op4ksr_core.images.paths import gather
from op4ksr_core.training.trainer import OnStep

from ..ablation import run_ablation
from ..ablation_runs import PARTS, Ablation


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    parser = kinds.add_parser("ablation", help="train small models with and without RFR and L_AP, and measure them")
    parser.set_defaults(command=run)
    add = parser.add_argument
    add("-o", "--output", type=Path, default=Path("runs/ablation"), metavar="FOLDER")
    add("--only", nargs="+", choices=PARTS, default=tuple(PARTS), help="the four variants, the sweep of theta, or both")
    add("--quick", action="store_true", help="a tiny run of minutes, which proves the command and nothing else")
    add("--photos", nargs="+", type=Path, default=[], help="measure these as well; never trained on")
    add("--vae", type=Path, default=BUNDLED_AUTOENCODER)
    for name in (
        "steps",
        "latent_steps",
        "batch",
        "crop",
        "pictures",
        "measured",
        "large_tokens",
        "large_measured",
        "hidden",
        "heads",
    ):
        add("--" + name.replace("_", "-"), type=whole, help=f"default: {getattr(_DEFAULT, name)}")
    add("--periodicity", type=number, help=f"weight of L_AP where it is on; default: {_DEFAULT.periodicity}")
    add("--seeds", nargs="+", type=whole, help="default: 0 1 2")
    add("--sweep-seeds", nargs="+", type=whole, help="default: 0")
    add("--device", default="")
    add("--precision", choices=("bf16", "fp32"), default="bf16")
    add("--threads", type=whole, default=0)
    add("--workers", type=whole, default=0, help="processes that make batches")


_DEFAULT = Ablation(Path())

#: --quick: sizes for a minute or two on one core.
QUICK = {
    "steps": 6,
    "batch": 2,
    "crop": 128,
    "pictures": 8,
    "measured": 2,
    "large_tokens": 8,
    "hidden": 128,
    "heads": 1,
    "seeds": (0,),
}


def run(options: argparse.Namespace) -> int:
    """Train, measure and print the report. Returns the exit status, 0."""
    sizes = dict(QUICK) if options.quick else {}
    for name in (*QUICK, "latent_steps", "large_measured", "periodicity", "sweep_seeds"):
        if (value := getattr(options, name)) is not None:
            sizes[name] = tuple(value) if isinstance(value, list) else value
    chosen = Ablation(
        options.output,
        photos=tuple(gather(options.photos)) if options.photos else (),
        autoencoder=options.vae,
        device=options.device,
        precision=options.precision,
        threads=options.threads,
        workers=options.workers,
        **sizes,  # pyright: ignore
    )
    report = run_ablation(chosen, options.only, _named)
    say(report.read_text("utf-8"))
    return 0


def _named(name: str) -> OnStep:
    show = show_steps()
    return lambda done, total, line: show(done, total, f"{name}: {line}")
