"""``pipeline`` and ``scaling``: the upscale's stages, timed."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from op4ksr_core.cli.console import say
from op4ksr_core.cli.options import DTYPES, add_models, load_models, parse_device, whole
from op4ksr_core.machine import explain_out_of_memory
from op4ksr_core.models.flux import Flux
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.vae.estimate import StripPlan, both

from ..patches import Cut
from ..pipeline import COMPARISONS, QUICK, PipelineSettings, f8_tables, upscale_tables
from ..scaling import CPU_SIDES, QUICK_SIDES, SIDES, scaling
from ..tables import Row, Tables, setting_rows, write_report

_RANDOM = {"bundled": "bundled", "full": "full width"}


def add_benchmark(kinds: Any) -> None:
    """Add both to argparse's subparsers."""
    usual = PipelineSettings()
    pipeline = kinds.add_parser("pipeline", help="one upscale stage by stage; against plain passes, patches and F8")
    pipeline.set_defaults(command=run_pipeline)
    pipeline.add_argument("--from", dest="start", type=whole, metavar="PX", help=f"side (default: {usual.start})")
    pipeline.add_argument("--to", type=whole, metavar="PX", help=f"the output's side (default: {usual.to})")
    pipeline.add_argument("--patch", type=whole, metavar="PX", help=f"side to compare with (default: {usual.cut.side})")
    pipeline.add_argument("--overlap", type=whole, metavar="PX", help=f"of the patches (default: {usual.cut.overlap})")
    pipeline.add_argument(
        "--compare", nargs="*", choices=COMPARISONS, help="with these only, or with none (default: all)"
    )
    pipeline.add_argument("--f8", choices=_RANDOM, help="random VAEs of that width; default: full on a GPU")
    by_size = kinds.add_parser("scaling", help="seconds and bytes by the output's side, and their exponents")
    by_size.set_defaults(command=run_scaling)
    by_size.add_argument("--sides", nargs="+", type=whole, metavar="PX", help="default: 512 to 8192; CPU: to 4096")
    for kind in (pipeline, by_size):
        add_models(kind)
        kind.add_argument("--repeats", type=whole, choices=range(1, 100), default=3, metavar="N", help="default: 3")
        kind.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
        kind.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_pipeline(options: argparse.Namespace) -> int:
    """The comparison with F8, which has other models, comes last; the rest is written before."""
    settings, device = _settings(options), parse_device(options.device)
    autoencoder, flux, files = _models(options, device)
    with explain_out_of_memory("benchmarks pipeline"):
        tables, turns = upscale_tables(flux, autoencoder, settings, _strips(options))
        tables["Settings"] = files + tables["Settings"]
        if "f8" in settings.compare:
            write_report(options.output, "pipeline", tables, turns)
            weights = _RANDOM[options.f8 or ("bundled" if options.quick or device.type == "cpu" else "full")]
            more, more_turns = f8_tables(flux, weights, device, autoencoder.dtype, settings)
            tables, turns = tables | more, turns + more_turns
    return _report(options, "pipeline", tables, turns)


def run_scaling(options: argparse.Namespace) -> int:
    """Measure, write and print. Returns the exit status, 0."""
    device = parse_device(options.device)
    usual = CPU_SIDES if device.type == "cpu" else SIDES
    sides = options.sides or (QUICK_SIDES if options.quick else usual)
    autoencoder, flux, files = _models(options, device)
    with explain_out_of_memory("benchmarks scaling"):
        tables, turns = scaling(flux, autoencoder, sides, options.repeats, _strips(options))
    tables["Settings"] = files + tables["Settings"]
    return _report(options, "scaling", tables, turns)


def _settings(options: argparse.Namespace) -> PipelineSettings:
    """Those of --quick, or the usual ones; options given take precedence."""
    usual = QUICK if options.quick else PipelineSettings()
    cut = Cut(_given(options.patch, usual.cut.side), _given(options.overlap, usual.cut.overlap))
    compare = _given(options.compare, usual.compare)
    start, to = _given(options.start, usual.start), _given(options.to, usual.to)
    return replace(usual, start=start, to=to, cut=cut, repeats=options.repeats, compare=tuple(compare))


def _given(value: Any, default: Any) -> Any:
    return default if value is None else value


def _models(options: argparse.Namespace, device: torch.device) -> tuple[AutoEncoder, Flux | None, list[Row]]:
    """The models, and the files they are from as rows of the settings."""
    autoencoder, flux = load_models(options, device, DTYPES[options.dtype] if options.dtype else None)
    files = {"VAE file": options.vae.name, "model file": "none" if flux is None else options.model.name}
    return autoencoder, flux, setting_rows(files)


def _strips(options: argparse.Namespace) -> StripPlan | None:
    return None if options.strips is None else both(options.strips)


def _report(options: argparse.Namespace, name: str, tables: Tables, turns: list[Row]) -> int:
    say(write_report(options.output, name, tables, turns).read_text("utf-8"))
    return 0
