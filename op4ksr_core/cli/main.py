"""``python -m op4ksr_core``: upscale pictures, inspect weights files. The only place that prints."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from .. import __version__
from ..bundled import SAMPLE_PHOTO
from ..errors import Op4ksrError
from ..files import make_folder
from ..images.color import COLOR_FIXES
from ..images.io import Picture, check_bits, from_pil, holds_alpha, levels, load_image, save_image
from ..images.paths import gather, output_paths
from ..machine import dtype_name, explain_out_of_memory, peak_memory
from ..models.flux import Flux
from ..one_step import OneStepOptions, upscale, upscale_alpha
from ..vae.autoencoder import AutoEncoder
from ..weights.inspect import inspect_file
from . import periodicity as cli_periodicity
from .convert import add_convert
from .demo import before_after
from .options import add_models, add_size, load_models, parse_device, target_of
from .plan import Planner, add_plan
from .rope import add_rope
from .train import add_train

log = logging.getLogger(__name__)


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
        print("cancelled; nothing was written for what was at hand", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options; each sets ``command``, a function of the parsed options -> exit status."""
    parser = argparse.ArgumentParser(prog="op4ksr_core", description="One-step, patch-free 4K super resolution.")
    parser.add_argument("--version", action="version", version=__version__)
    parser.add_argument("--verbose", action="store_true", help="tell every default that is taken")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_upscale(commands.add_parser("upscale", help="enlarge pictures"))
    add_plan(commands.add_parser("plan", help="what a run will need, before anything is computed"))
    _add_inspect(commands.add_parser("inspect", help="what is this weights file, and will it work"))
    add_convert(commands.add_parser("convert", help="another layout, a LoRA merged in, metadata, prompt embedding"))
    add_rope(commands.add_parser("rope", help="turns of each pair of channels on a grid, before and after RFR"))
    cli_periodicity.add_commands(commands)
    add_train(commands.add_parser("train", help="train an autoencoder, a one-step model or a LoRA (extra: train)"))
    _add_demo(commands.add_parser("demo", help="upscale the bundled photo to 4096 px and show what changed"))
    return parser


def _add_upscale(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_upscale)
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="picture, or folder of pictures")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="file; folder for several")
    add_size(parser)
    add_models(parser)
    parser.add_argument(
        "--color", choices=COLOR_FIXES, default="wavelet", help="colour fix (default: wavelet; lab: in CIELAB)"
    )
    parser.add_argument(
        "--fidelity", type=float, default=1.0, help="0 to 1 (default): equality to the input when shrunk"
    )
    parser.add_argument(
        "--compression",
        type=int,
        choices=range(10),
        metavar="0-9",
        help="of PNG, as zlib counts (default: run lengths alone; photos as small as with 6, far faster)",
    )
    parser.add_argument("--bits", type=int, choices=(8, 16), default=8, help="per colour; 16 for PNG only (default: 8)")
    parser.add_argument("--anyway", action="store_true", help="compute even where the plan says it will not fit")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def _add_inspect(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_inspect)
    parser.add_argument("file", type=Path, metavar="FILE", help="safetensors file, shard index, or model folder")
    parser.add_argument("--probe", type=Path, metavar="PHOTO", help="round-trip a photo at every stride and shift")
    parser.add_argument("--json", action="store_true")


def _add_demo(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_demo)
    parser.add_argument("-o", "--output", type=Path, default=Path("demo_output"), metavar="FOLDER")


# --- upscale ----------------------------------------------------------------------------------


def run_upscale(options: argparse.Namespace) -> int:
    """Upscale every picture, told as it is done. Returns 0, or 1 if one of several failed."""
    pairs = output_paths(gather(options.input), options.output)
    for _, output in pairs:
        check_bits(output, options.bits)
    settings = OneStepOptions(
        target=target_of(options), color=options.color, fidelity=options.fidelity, vae_only=options.vae_only
    )
    planner = Planner(options)
    if not options.anyway:
        planner.check_weights()
    device = parse_device(options.device)
    with explain_out_of_memory("loading the models"):
        autoencoder, flux = load_models(options, device, planner.machine.dtype)
    reports: list[dict[str, Any]] = []
    failures = 0

    def conclude(source: Path, job: Future[dict[str, Any]]) -> None:
        nonlocal failures
        try:
            reports.append(job.result())
        except Op4ksrError as error:  # one bad picture does not cost the others
            if len(pairs) == 1:
                raise
            failures += 1
            reports.append({"input": str(source), "error": str(error)})
            print(f"error: {error}", file=sys.stderr)

    with ThreadPoolExecutor(1) as writer:
        waiting: list[tuple[Path, Future[dict[str, Any]]]] = []
        ahead = _pictures_ahead(device)
        try:
            for source, output in pairs:
                work = partial(_upscale_file, source, output, flux, autoencoder, settings, options, planner)
                waiting.append((source, _begin(work, writer if ahead else None)))
                while len(waiting) > ahead:
                    conclude(*waiting.pop(0))
        finally:  # what was computed is written, and told, whatever became of the next
            for source, job in waiting:
                conclude(source, job)
    if options.json:
        print(json.dumps({"pictures": reports, **_models_report(options, autoencoder, flux)}, indent=2))
    return 1 if failures else 0


def _pictures_ahead(device: torch.device) -> int:
    """How many computed pictures may wait to be written: on the CPU writing beside computing gains nothing."""
    return 0 if device.type == "cpu" else 1


def _begin(
    compute: Callable[[], Callable[[], dict[str, Any]]], writer: ThreadPoolExecutor | None
) -> Future[dict[str, Any]]:
    """Compute now; write, and report, in the writer's thread, or now as well. Errors of ours are the job's.

    Without the frames they came through, which hold the picture's tensors: the next one is computed while they wait.
    """
    job: Future[dict[str, Any]] = Future()
    try:
        write = compute()
        if writer is not None:
            return writer.submit(write)
        job.set_result(write())
    except Op4ksrError as error:
        error.__traceback__ = error.__context__ = None
        job.set_exception(error)
    return job


def _upscale_file(
    source: Path,
    output: Path,
    flux: Flux | None,
    autoencoder: AutoEncoder,
    settings: OneStepOptions,
    options: argparse.Namespace,
    planner: Planner,
) -> Callable[[], dict[str, Any]]:
    """Compute one picture; what then writes it and makes its report."""
    began, device = time.perf_counter(), autoencoder.device
    picture = load_image(source)
    plan = planner.plan(picture.size)
    log.info("%s", plan.text())
    for warning in plan.warnings:
        log.warning("%s: %s", source, warning)
    if not options.anyway:
        plan.refuse_if_hopeless()
    show = None if options.json or not sys.stderr.isatty() else _show_progress
    with explain_out_of_memory(str(source)):
        low = picture.image.to(device)
        image = upscale(low, flux, autoencoder, settings, strips=plan.strips(), on_progress=show)
        if device.type != "cpu":
            image = levels(image, options.bits)
        alpha = None if picture.alpha is None else upscale_alpha(picture.alpha, *image.shape[-2:])
    facts = {
        "seconds": round(time.perf_counter() - began, 3),
        "peak_memory_bytes": peak_memory(device),
        "predicted_peak_bytes": plan.peak,
    }
    return partial(_write, source, output, picture.size, Picture(image, alpha), options, facts)


def _write(
    source: Path,
    output: Path,
    size: tuple[int, int],
    result: Picture,
    options: argparse.Namespace,
    facts: dict[str, Any],
) -> dict[str, Any]:
    """Write one computed picture; what is told of it."""
    began, alpha = time.perf_counter(), result.alpha
    save_image(output, result, options.bits, options.compression)
    keeps_alpha = alpha is not None and holds_alpha(output)
    if alpha is not None and not keeps_alpha:
        print(f"{output}: this format holds no transparency; end the name in .png to keep it", file=sys.stderr)
    report: dict[str, Any] = {
        "input": str(source),
        "output": str(output),
        "input_size": list(size[::-1]),
        "output_size": list(result.size[::-1]),
        "alpha": keeps_alpha,
        "save_seconds": round(time.perf_counter() - began, 3),
        **facts,
    }
    if not options.json:
        peak = report["peak_memory_bytes"]
        print(
            f"{output}: {'x'.join(map(str, report['output_size']))} px in {report['seconds']:.1f} s"
            + (f", peak memory {peak / 1e9:.2f} GB" if peak else "")
        )
    return report


def _models_report(options: argparse.Namespace, autoencoder: AutoEncoder, flux: Flux | None) -> dict[str, Any]:
    settings = None if flux is None else replace(flux.settings, txt=None, vec=None)
    return {
        "vae": {"file": str(options.vae), "stride": autoencoder.params.stride, "shift": autoencoder.params.shift},
        "model": None
        if flux is None or settings is None
        else {
            "file": str(options.model),
            "theta": list(flux.params.theta),
            "sigma": settings.sigma,
            "guidance": settings.guidance,
        },
        "color": options.color,
        "fidelity": options.fidelity,
        "vae_only": options.vae_only,
        "device": str(autoencoder.device),
        "dtype": dtype_name(autoencoder.dtype),
        "version": __version__,
    }


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    print(f"\r{100 * done // total:3d} %", end=end, file=sys.stderr, flush=True)


# --- inspect ----------------------------------------------------------------------------------


def run_inspect(options: argparse.Namespace) -> int:
    """Print what a weights file is. Returns the exit status, 0."""
    report = inspect_file(options.file, options.probe)
    if options.json:
        print(json.dumps(report, indent=2))
        return 0
    for key, value in report.items():
        if key == "probe":
            for fit in value:
                geometry = f"stride {fit['stride']} shift {fit['shift']}"
                print(f"probe: {geometry}: {fit['psnr']:.2f} dB, finest detail {fit['detail']:+.2f}")
        elif key == "probe_says" and value is None:
            print("probe_says: cannot tell; too little detail comes back at any geometry")
        elif isinstance(value, dict):
            for name, item in value.items():
                print(f"{key}.{name}: {item}")
        elif value not in (None, []):
            print(f"{key}: {value}")
    return 0


# --- demo -------------------------------------------------------------------------------------


def run_demo(options: argparse.Namespace) -> int:
    """Upscale the bundled photo and write the comparison beside it. Returns 0, or 1 where that failed."""
    output = options.output / "photo_4096.png"
    command = ["upscale", str(SAMPLE_PHOTO), "-o", str(output), "--long-edge", "4096"]
    make_folder(options.output)
    if (code := main(command)) != 0:
        return code
    comparison = options.output / "before_after.png"
    views = before_after(load_image(SAMPLE_PHOTO).image, load_image(output).image)
    save_image(comparison, from_pil(views))
    print(f"{comparison}: the same crop, bicubic and one step")
    return 0
