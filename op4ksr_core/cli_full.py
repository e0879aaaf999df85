"""``benchmark full``, ``host``, ``facts`` and ``write-weights``: the 12 B geometry, in the core and in ComfyUI."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from . import benchmark
from .benchmark_full import FullSettings, full, setup_of, work_of
from .cli_options import parse_device, parse_strips
from .full_report import DTYPES, Case, Findings, check_same, read_findings, tables_of
from .full_size import GEOMETRIES
from .kernels import KERNELS

#: Sides, and the matrices' for the ceiling, with --quick.
QUICK_SIDES, QUICK_CEILING = (64, 128), (128,)

_COMPILE = {"no": (False,), "yes": (True,), "both": (False, True)}


def add_benchmark(kinds: Any) -> None:
    """Add them to argparse's subparsers."""
    _add_full(kinds)


def _add_full(kinds: Any) -> None:
    usual = FullSettings()
    parser = kinds.add_parser("full", help="random weights of 12 B through the core: seconds, memory, share of ceiling")
    parser.set_defaults(command=run_full)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="flux", help="default: flux (12 B); small for a CPU")
    parser.add_argument("--sides", nargs="+", type=int, metavar="PX", help="of the output; default: 2048 4096 8192")
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(usual.dtypes), help="default: all three")
    parser.add_argument("--compile", choices=_COMPILE, default="both", help="torch.compile of the blocks")
    parser.add_argument("--backend", default=usual.backend, help=f"torch.compile's (default: {usual.backend})")
    parser.add_argument("--attention", choices=KERNELS, default="auto", help="the kernel to prefer")
    parser.add_argument("--strips", type=parse_strips, metavar="THRIFT[:ROWS]", help="default: by the free memory")
    parser.add_argument("--repeats", type=int, choices=range(1, 100), default=usual.repeats, metavar="N")
    parser.add_argument("--minutes", type=float, help="begin no case that is expected to end later")
    parser.add_argument("--again", action="store_true", help="measure all anew; without it what is there is kept")
    parser.add_argument("--device")
    parser.add_argument("--quick", action="store_true", help="the small geometry at tiny sizes, to see that it runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_full(options: argparse.Namespace) -> int:
    """The report is written after each case; called again, it goes on."""
    device, settings = parse_device(options.device), _settings(options)
    setup = setup_of(settings, device)
    found = None if options.again else read_findings(options.output / "full.json")
    if found is None:
        found = Findings(setup)
    check_same(found, setup)
    paper, whole = work_of(GEOMETRIES["flux"]), settings.geometry == "flux"

    def write(left: dict[Case, str]) -> None:
        benchmark.write_report(options.output, "full", tables_of(found, left, paper, whole), found.details())

    full(settings, device, found, write)
    print((options.output / "full.md").read_text("utf-8"))
    return 0


def _settings(options: argparse.Namespace) -> FullSettings:
    usual = FullSettings()
    return FullSettings(
        geometry="small" if options.quick else options.geometry,
        sides=tuple(options.sides or (QUICK_SIDES if options.quick else usual.sides)),
        dtypes=tuple(options.dtypes),
        compiled=_COMPILE[options.compile],
        repeats=options.repeats,
        strips=options.strips,
        attention=options.attention,
        backend=options.backend,
        ceiling=QUICK_CEILING if options.quick else None,
        minutes=options.minutes,
    )
