"""``upscale``: enlarge pictures."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ..images.color import COLOR_FIXES
from ..images.formats import check_writable_size
from ..images.io import Picture, check_bits, holds_alpha, levels, load_pixels, save_image
from ..images.paths import Places, gather, is_named, output_paths
from ..images.read import open_picture
from ..machine import dtype_name, explain_out_of_memory, peak_memory
from ..models.flux import OneStepSettings, sigma_at
from ..one_step import OneStepOptions, upscale, upscale_alpha
from ..plain_text import plain, plain_logger
from ..vae.estimate import StripPlan
from ..version import __version__
from .console import say, say_json, tell_no_transparency
from .enlargers import add_base
from .failures import Failures
from .options import add_models, add_size, add_transformer, number, rfr_of, target_of, whole
from .plan import Planner

log = plain_logger(__name__)

Report = dict[str, Any]


def add_upscale(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_upscale)
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="picture, or folder of pictures")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="file; folder for several")
    add_size(parser)
    add_models(parser)
    add_transformer(parser)
    add_base(parser)
    parser.add_argument(
        "--color", choices=COLOR_FIXES, default="wavelet", help="colour fix (default: wavelet; lab: in CIELAB)"
    )
    parser.add_argument(
        "--fidelity", type=number, default=1.0, help="0 to 1 (default): equality to the input when shrunk"
    )
    parser.add_argument(
        "--compression",
        type=whole,
        choices=range(10),
        metavar="0-9",
        help="of PNG, as zlib counts (default: run lengths alone; photos as small as with 6, far faster)",
    )
    parser.add_argument(
        "--bits", type=whole, choices=(8, 16), default=8, help="per colour; 16 for PNG only (default: 8)"
    )
    parser.add_argument(
        "--seed", type=whole, default=0, help="of the sample that a model trained on one is given (default: 0)"
    )
    parser.add_argument("--anyway", action="store_true", help="compute even where the plan says it will not fit")
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def add_overwrite(parser: argparse.ArgumentParser) -> None:
    """The option of all commands that fill a folder with pictures."""
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="in a folder, replace any file; default: those alone that an earlier run made",
    )


def run_upscale(options: argparse.Namespace) -> int:
    """Upscale every picture and report each as it is done. Returns 0, or 1 if one of several failed."""
    sources = gather(options.input)
    named = is_named(sources, options.output)
    pairs = output_paths(sources, options.output)
    for _, output in pairs:
        check_bits(output, options.bits)
    run = _Run(options, Places(pairs, named, options.overwrite))
    done = _Outcome(len(pairs), options.json)
    ahead = _pictures_ahead(run.device)
    with ThreadPoolExecutor(1) as writer:
        waiting: list[tuple[Path, Future[Report]]] = []
        try:
            for source, output in pairs:
                waiting.append((source, _begin(partial(run.compute, source, output), writer if ahead else None)))
                while len(waiting) > ahead:
                    done.add(*waiting.pop(0))
        finally:  # what was computed is written, and reported, whatever became of the next
            for source, job in waiting:
                done.add(source, job)
    if options.json:
        say_json({"pictures": done.reports, **_models_report(run)})
    return done.failures.close()


class _Outcome:
    """What became of each picture. An error of the only one is raised; one of several costs no other."""

    def __init__(self, total: int, quiet: bool) -> None:
        self.failures, self.quiet = Failures(total), quiet
        self.reports: list[Report] = []

    def add(self, source: Path, job: Future[Report]) -> None:
        """Wait for a picture's report, and tell it."""
        error = job.exception()
        if isinstance(error, Exception):
            self.reports.append({"input": str(source), "error": self.failures.add(source, error)})
            return
        report = job.result()
        self.reports.append(report)
        if not self.quiet:
            peak, size = report["peak_memory_bytes"], "x".join(map(str, report["output_size"]))
            say(
                f"{plain(report['output'])}: {size} px in {report['seconds']:.1f} s"
                + (f", peak memory {peak / 1e9:.2f} GB" if peak else "")
            )


def _pictures_ahead(device: torch.device) -> int:
    """How many computed pictures may wait to be written: on the CPU, writing in parallel gains nothing."""
    return 0 if device.type == "cpu" else 1


def _begin(compute: Callable[[], Callable[[], Report]], writer: ThreadPoolExecutor | None) -> Future[Report]:
    """Compute now; write in the writer's thread, or now as well. Errors are the job's.

    Without the frames they came through, which hold the picture's tensors: the next one is computed while they wait.
    """
    job: Future[Report] = Future()
    try:
        write = compute()
        if writer is not None:
            return writer.submit(write)
        job.set_result(write())
    except Exception as error:
        error.__traceback__ = error.__context__ = error.__cause__ = None
        job.set_exception(error)
    return job


class _Run:
    """The models that the options name, loaded, and how a picture is computed with them.

    Raises, before a tensor is read, what ``Planner`` does, and OutOfMemoryError where the weights alone do not fit.
    """

    def __init__(self, options: argparse.Namespace, places: Places) -> None:
        self.options, self.places = options, places
        self.settings = OneStepOptions(
            target=target_of(options),
            color=options.color,
            fidelity=options.fidelity,
            vae_only=options.vae_only,
            seed=options.seed,
            pieces=options.pieces,
            detail=options.detail,
            repair=options.repair,
        )
        self.planner = Planner(options)
        if not options.anyway:
            self.planner.check_weights()
        with explain_out_of_memory("loading the models"):
            self.autoencoder, self.flux = self.planner.load()
        self.device = self.autoencoder.device
        self.repair = self.planner.repair
        self.settings = replace(self.settings, repair=self.repair)
        self.sigma = sigma_at(OneStepSettings() if self.flux is None else self.flux.settings, self.repair)
        self.rfr = rfr_of(options.rfr, self.flux.settings, self.sigma) if options.rfr and self.flux else None

    def compute(self, source: Path, output: Path) -> Callable[[], Report]:
        """Compute one picture; returns what then writes it and makes its report."""
        began, options = time.perf_counter(), self.options
        with ExitStack() as held, explain_out_of_memory(str(source)):
            held.enter_context(self.places.reserved(output))
            file = open_picture(source)
            plan = self.planner.plan(file.size)
            check_writable_size(output, *plan.output, bits=options.bits)
            for line in plan.text().splitlines():
                log.info("%s", line)
            for warning in plan.warnings:
                log.warning("%s: %s", source, warning)
            if not options.anyway:
                plan.refuse_if_hopeless()
            picture = load_pixels(file)
            result = self._enlarged(picture, plan.strips())
            facts = {
                "seconds": round(time.perf_counter() - began, 3),
                "peak_memory_bytes": peak_memory(self.device),
                "predicted_peak_bytes": plan.peak,
            }
            return partial(
                _write, source, output, picture.size, result, options, facts, self.places.texts, held.pop_all()
            )

    def _enlarged(self, picture: Picture, strips: StripPlan) -> Picture:
        options = self.options
        show = None if options.json or not sys.stderr.isatty() else _show_progress
        low, models = picture.image.to(self.device), (self.flux, self.autoencoder)
        given: dict[str, Any] = {"rfr": self.rfr, "strips": strips, "alpha": picture.alpha, "on_progress": show}
        image = upscale(low, *models, self.settings, base=self.planner.base, **given)
        if self.device.type != "cpu":
            image = levels(image, options.bits)
        return Picture(image, None if picture.alpha is None else upscale_alpha(picture.alpha, *image.shape[-2:]))


def _write(
    source: Path,
    output: Path,
    size: tuple[int, int],
    result: Picture,
    options: argparse.Namespace,
    facts: Report,
    texts: dict[str, str],
    held: ExitStack,
) -> Report:
    """Write one computed picture, and give up its place; returns its report."""
    began, alpha = time.perf_counter(), result.alpha
    with held, explain_out_of_memory(str(output)):
        save_image(output, result, options.bits, options.compression, texts)
    keeps_alpha = alpha is not None and holds_alpha(output)
    if alpha is not None and not keeps_alpha:
        tell_no_transparency(output)
    return {
        "input": str(source),
        "output": str(output),
        "input_size": list(size[::-1]),
        "output_size": list(result.size[::-1]),
        "alpha": keeps_alpha,
        "save_seconds": round(time.perf_counter() - began, 3),
        **facts,
    }


def _models_report(run: _Run) -> dict[str, Any]:
    options, autoencoder, flux = run.options, run.autoencoder, run.flux
    settings = None if flux is None else replace(flux.settings, txt=None, vec=None)
    return {
        "vae": {"file": str(options.vae), "stride": autoencoder.params.stride, "shift": autoencoder.params.shift},
        "model": None
        if flux is None or settings is None
        else {
            "file": str(options.model),
            "theta": list(flux.params.theta),
            "sigma": run.sigma,
            "guidance": settings.guidance,
            "encode": settings.encode,
            "output": settings.output,
        },
        "lora": options.lora[0] if options.lora else None,
        "enlarger": run.planner.base.name,
        "detail": options.detail,
        "repair": run.repair,
        "color": options.color,
        "fidelity": options.fidelity,
        "vae_only": options.vae_only,
        "seed": options.seed if settings is not None and settings.encode == "sample" else None,
        "pieces": None if options.pieces is None else [options.pieces.size_px, options.pieces.overlap_px],
        "rfr": options.rfr or "checkpoint",
        "device": str(autoencoder.device),
        "dtype": dtype_name(autoencoder.dtype),
        "version": __version__,
    }


def _show_progress(done: int, total: int) -> None:
    end = "\n" if done == total else ""
    with suppress(OSError):  # a terminal that is gone
        print(f"\r{100 * done // total:3d} %", end=end, file=sys.stderr, flush=True)
