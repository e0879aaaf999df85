"""The commands ``periodicity`` (periodicity/meter.py) and ``suppress`` (periodicity/suppress.py)."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import OptionError
from ..images.formats import check_writable_size
from ..images.io import Picture, from_pil, holds_alpha, load_image, load_pixels, save_image
from ..images.metrics import luma
from ..images.paths import Places, gather, is_named, output_paths
from ..images.read import open_picture
from ..machine import explain_out_of_memory
from ..periodicity.meter import measure_periodicity
from ..periodicity.report import PeriodicityReport, in_words
from ..periodicity.report_picture import draw_report
from ..periodicity.suppress import for_8_bit, is_8_bit, suppress_with_report
from ..periodicity.thresholds import ALARM_RATE
from ..plain_text import plain
from .console import say, say_json, tell_no_transparency
from .failures import Failures
from .options import number
from .upscale import add_overwrite

#: Exit status where at least one picture is above the alarm level.
ALARMED = 3


def add_commands(commands: Any) -> None:
    """Add both subcommands to argparse's subparsers."""
    parser = commands.add_parser("periodicity", help="is there a periodic grid in these pictures")
    parser.set_defaults(command=run_periodicity)
    parser.add_argument("input", nargs="+", type=Path, metavar="IMG", help="picture, or folder of pictures")
    parser.add_argument("--reference", type=Path, metavar="LR", help="what it was made from; folder for several")
    parser.add_argument("--json", action="store_true", help="print the reports as JSON")
    parser.add_argument("--report", type=Path, metavar="OUT.png", help="draw the report; folder for several")
    parser.add_argument(
        "--alarm", type=number, default=ALARM_RATE, metavar="RATE", help="false-alarm rate of an alarm (default: 0.01)"
    )
    parser.add_argument("--token", type=number, metavar="PX", help="px per token, to give the period in tokens too")
    add_overwrite(parser)
    parser = commands.add_parser("suppress", help="take a periodic artifact out of a picture")
    parser.set_defaults(command=run_suppress)
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="picture, or folder of pictures")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="file; folder for several")
    parser.add_argument("--reference", type=Path, metavar="LR", help="what it was made from; folder for several")
    parser.add_argument("--strength", type=number, default=1.0, metavar="S", help="0 to 1 (default)")
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


# --- periodicity ------------------------------------------------------------------------------


def run_periodicity(options: argparse.Namespace) -> int:
    """Print one report, or a table, worst first. 0: no alarm, 3: alarm, 1: a picture could not be read."""
    sources = gather(options.input)
    drawings = _Drawings(sources, options)
    reports: list[tuple[Path, PeriodicityReport]] = []
    failures = Failures(len(sources))
    for source in sources:
        with failures.costing_no_other(source):
            reports.append((source, _measure_file(source, drawings, options)))
    reports.sort(key=lambda pair: -pair[1].score)
    if options.json:
        say_json({"pictures": [{"input": str(source), **report.as_dict()} for source, report in reports]})
    elif len(sources) == 1:
        say(f"{plain(sources[0])}: {reports[0][1].verdict}")
    else:
        _print_table(reports)
    return failures.close() or (ALARMED if any(report.alarm for _, report in reports) else 0)


class _Drawings:
    """Where each picture's report goes; raises OutputError before anything is computed where it cannot."""

    def __init__(self, sources: list[Path], options: argparse.Namespace) -> None:
        self.outputs: dict[Path, Path] = {}
        if options.report is not None:
            named = is_named(sources, options.report)
            pairs = output_paths(sources, options.report, _references(options.reference))
            self.outputs, self.places = dict(pairs), Places(pairs, named, options.overwrite)

    def write(self, source: Path, draw: Callable[[], Picture]) -> None:
        """Draw and write the report, if it is wanted."""
        if (output := self.outputs.get(source)) is not None:
            with self.places.reserved(output):
                save_image(output, draw(), texts=self.places.texts)


def _measure_file(source: Path, drawings: _Drawings, options: argparse.Namespace) -> PeriodicityReport:
    with explain_out_of_memory(str(source)):
        image = load_image(source).image
        reference = _reference_of(source, options.reference)
        report = measure_periodicity(image, reference, alarm_rate=options.alarm, token=options.token)
        drawings.write(source, lambda: from_pil(draw_report(image, report, reference)))
    return report


def _reference_of(source: Path, reference: Path | None) -> torch.Tensor | None:
    """The picture named, or of a folder the one with the source's name, whatever its ending."""
    if reference is None:
        return None
    if os.path.isdir(reference):
        named = [path for path in gather([reference]) if path.stem == source.stem]
        if not named:
            raise OptionError(f"{reference}: holds no picture named {plain(source.stem)}, the reference of {source}")
        reference = named[0]
    return load_image(reference).image


def _references(reference: Path | None) -> list[Path]:
    """All pictures that may be read as references."""
    return [] if reference is None else gather([reference])


def _print_table(reports: list[tuple[Path, PeriodicityReport]]) -> None:
    width = max((len(plain(source)) for source, _ in reports), default=7)
    say(f"{'picture':{width}}  {'score':>7}  {'false alarms':>12}  kind    period")
    for source, report in reports:
        period = in_words(report.period, report.tokens) if any(report.period) else "-"
        mark = "!" if report.alarm else " "
        chance = f"{report.false_alarm_rate:12.1e}"
        say(f"{plain(source):{width}} {mark}{report.score:7.2f}  {chance}  {report.kind:6}  {period}")


# --- suppress ---------------------------------------------------------------------------------


def run_suppress(options: argparse.Namespace) -> int:
    """Write each picture, cleaned where a mesh was found and as it was elsewhere; 0, or 1 if one failed."""
    sources = gather(options.input)
    named = is_named(sources, options.output)
    pairs = output_paths(sources, options.output, _references(options.reference))
    places, failures = Places(pairs, named, options.overwrite), Failures(len(pairs))
    done: list[dict[str, Any]] = []
    for source, output in pairs:
        report: dict[str, Any] = {}
        with failures.costing_no_other(source):
            with places.reserved(output), explain_out_of_memory(str(source)):
                report = _suppress_file(source, output, options, places.texts)
            done.append(report)
        if report and not options.json:
            say(f"{plain(output)}: {report['note']}")
    if options.json:
        say_json({"pictures": done})
    return failures.close()


def _suppress_file(source: Path, output: Path, options: argparse.Namespace, texts: dict[str, str]) -> dict[str, Any]:
    file = open_picture(source)
    check_writable_size(output, *file.size)
    picture = load_pixels(file)
    result = suppress_with_report(picture.image, _reference_of(source, options.reference), options.strength)
    cleaned = Picture(for_8_bit(result.image, picture.image), picture.alpha)
    save_image(output, cleaned, _bits(picture) if output.suffix.lower() == ".png" else 8, texts=texts)
    if picture.alpha is not None and not holds_alpha(output):
        tell_no_transparency(output)
    changed = float(luma(result.image - picture.image).square().mean().sqrt()) * 255
    return {
        "input": str(source),
        "output": str(output),
        "acted": result.acted,
        "note": result.note,
        "grey_levels": round(changed, 3),
        "score": round(result.report.score, 3),
    }


def _bits(picture: Picture) -> int:
    """16 where any colour or transparency holds more than 8 bits, else 8."""
    planes = [picture.image] if picture.alpha is None else [picture.image, picture.alpha]
    return 8 if all(is_8_bit(plane) for plane in planes) else 16
