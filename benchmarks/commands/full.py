"""``benchmark full``, ``host``, ``facts`` and ``write-weights``: the 12 B geometry, in the core and in ComfyUI."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import Any

from op4ksr_core.cli.options import parse_device, parse_strips
from op4ksr_core.planning.geometries import GEOMETRIES

from .. import tables as benchmark
from ..full.cases import FullSettings, full, setup_of, work_of
from ..full.facts import attention_rows, facts
from ..full.files import FILE_DTYPES, write_random
from ..full.host import HostRuns, HostSettings, host_tables, measure_host
from ..full.host_client import HostClient
from ..full.kernels import KERNELS
from ..full.tables import DTYPES, Case, Findings, check_same, read_findings, tables_of
from ..tables import Row

#: Sides, and the matrices' for the ceiling, with --quick.
QUICK_SIDES, QUICK_CEILING = (64, 128), (128,)

_COMPILE = {"no": (False,), "yes": (True,), "both": (False, True)}


def add_benchmark(kinds: Any) -> None:
    """Add them to argparse's subparsers."""
    _add_full(kinds)
    _add_write(kinds)
    _add_host(kinds)
    _add_facts(kinds)


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
    parser.add_argument("--strips", type=parse_strips, metavar="MODE[:ROWS]", help="default: by the free memory")
    parser.add_argument("--repeats", type=int, choices=range(1, 100), default=usual.repeats, metavar="N")
    parser.add_argument("--minutes", type=float, help="begin no case that is expected to end later")
    parser.add_argument("--limit", type=float, metavar="GB", help="of a CUDA device, as if it had no more")
    parser.add_argument(
        "--again", nargs="?", choices=("all", "failed"), const="all", help="measure all, or what failed, anew"
    )
    parser.add_argument("--device")
    parser.add_argument("--quick", action="store_true", help="the small geometry at tiny sizes, to see that it runs")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_full(options: argparse.Namespace) -> int:
    """The report is written after each case; called again, it goes on."""
    device, settings = parse_device(options.device), _settings(options)
    setup = setup_of(settings, device)
    found = None if options.again == "all" else read_findings(options.output / "full.json")
    if found is None:
        found = Findings(setup)
    if options.again == "failed":
        found.forget_failed()
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
        limit=options.limit,
    )


def _add_write(kinds: Any) -> None:
    parser = kinds.add_parser("write-weights", help="random weights of full size as files, for ComfyUI: 24 and 12 GB")
    parser.set_defaults(command=run_write)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="flux", help="default: flux (12 B)")
    parser.add_argument("--dtypes", nargs="+", choices=FILE_DTYPES, default=list(FILE_DTYPES), help="default: both")
    parser.add_argument("--device", help="where the values are made; the default is the fastest")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FOLDER")


def run_write(options: argparse.Namespace) -> int:
    """Write the files and print their names. Returns the exit status, 0."""
    shape, device = GEOMETRIES[options.geometry], parse_device(options.device)
    for path in write_random(options.output, options.geometry, shape, tuple(options.dtypes), device):
        print(path)
    return 0


def _add_host(kinds: Any) -> None:
    parser = kinds.add_parser("host", help="one upscale in a running ComfyUI: seconds by node, memory, its own flags")
    parser.set_defaults(command=run_host)
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="default: http://127.0.0.1:8188")
    parser.add_argument("--model", required=True, help="as Load Flux SR Model's dropdown names it")
    parser.add_argument("--vae", required=True, help="as Load F16 VAE's dropdown names it")
    parser.add_argument("--weight-dtype", default="default", help="as Load Flux SR Model names it: fp8_e4m3fn ...")
    parser.add_argument("--sides", nargs="+", type=int, metavar="PX", help="of the output; default: 2048 4096 8192")
    parser.add_argument("--repeats", type=int, choices=range(1, 100), default=HostSettings.repeats, metavar="N")
    parser.add_argument("--compile", action="store_true", help="with ComfyUI's TorchCompileModel")
    parser.add_argument("--memory", default=HostSettings.memory, help="as Load F16 VAE names it; default: auto")
    parser.add_argument("--timeout", type=float, default=600.0, metavar="S", help="for one run; default: 600")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_host(options: argparse.Namespace) -> int:
    """The report is written after each side."""
    sides = tuple(options.sides or HostSettings.sides)
    settings = HostSettings(
        options.model, options.vae, options.weight_dtype, sides, options.repeats, options.compile, options.memory
    )
    client = HostClient(options.server, options.timeout)
    stats = client.stats()

    def write(runs: list[HostRuns]) -> None:
        details = [asdict(own) for own in runs]
        benchmark.write_report(options.output, "host", host_tables(stats, settings, runs), details)

    measure_host(client, settings, write)
    print((options.output / "host.md").read_text("utf-8"))
    return 0


def _add_facts(kinds: Any) -> None:
    parser = kinds.add_parser("facts", help="what the pack relies on, tried on this device: kernels, peaks, parity")
    parser.set_defaults(command=run_facts)
    parser.add_argument("--device")
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_facts(options: argparse.Namespace) -> int:
    """The report is written after each question."""
    device = parse_device(options.device)

    def write(rows: list[Row], kernels: list[Row] | None = None) -> None:
        title = f"Facts on {device}"
        tables = {title: rows, "Attention by kernel, bf16": kernels} if kernels else {title: rows}
        benchmark.write_report(options.output, "facts", tables)

    found, kernels = facts(device, write), list[Row]()
    for row in attention_rows(device):
        kernels.append(row)
        write(found, kernels)
    print((options.output / "facts.md").read_text("utf-8"))
    return 0
