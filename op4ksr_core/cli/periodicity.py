"""The commands ``periodicity`` (periodicity/meter.py) and ``suppress`` (periodicity/suppress.py)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from ..errors import Op4ksrError, OptionError
from ..images.io import Picture, check_output, from_pil, load_image, save_image
from ..images.metrics import luma
from ..images.paths import gather, output_paths
from ..machine import explain_out_of_memory
from ..periodicity.meter import measure_periodicity
from ..periodicity.report import PeriodicityReport, in_words
from ..periodicity.report_picture import draw_report
from ..periodicity.suppress import for_8_bit, is_8_bit, suppress_with_report
from ..periodicity.thresholds import ALARM_RATE

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
        "--alarm", type=float, default=ALARM_RATE, metavar="RATE", help="false-alarm rate of an alarm (default: 0.01)"
    )
    parser.add_argument("--token", type=float, metavar="PX", help="px per token, to give the period in tokens too")
    parser = commands.add_parser("suppress", help="take a periodic artifact out of a picture")
    parser.set_defaults(command=run_suppress)
    parser.add_argument("input", nargs="+", type=Path, metavar="IN", help="picture, or folder of pictures")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT", help="file; folder for several")
    parser.add_argument("--reference", type=Path, metavar="LR", help="what it was made from; folder for several")
    parser.add_argument("--strength", type=float, default=1.0, metavar="S", help="0 to 1 (default)")
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


# --- periodicity ------------------------------------------------------------------------------


def run_periodicity(options: argparse.Namespace) -> int:
    """Print one report, or a table, worst first. 0: no alarm, 3: alarm, 1: a picture could not be read."""
    sources = gather(options.input)
    drawings = _drawings(sources, options)
    reports: list[tuple[Path, PeriodicityReport]] = []
    failed = 0
    for source in sources:
        try:
            reports.append((source, _measure_file(source, drawings.get(source), options)))
        except Op4ksrError as error:  # one bad picture does not cost the others
            if len(sources) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    reports.sort(key=lambda pair: -pair[1].score)
    if options.json:
        pictures = [{"input": str(source), **report.as_dict()} for source, report in reports]
        print(json.dumps({"pictures": pictures}, indent=2))
    elif len(sources) == 1:
        print(f"{sources[0]}: {reports[0][1].verdict}")
    else:
        _print_table(reports)
    if failed:
        return 1
    return ALARMED if any(report.alarm for _, report in reports) else 0


def _measure_file(source: Path, drawing: Path | None, options: argparse.Namespace) -> PeriodicityReport:
    image = load_image(source).image
    reference = _reference_of(source, options.reference)
    with explain_out_of_memory(str(source)):
        report = measure_periodicity(image, reference, alarm_rate=options.alarm, token=options.token)
        if drawing is not None:
            save_image(drawing, from_pil(draw_report(image, report, reference)))
    return report


def _reference_of(source: Path, reference: Path | None) -> torch.Tensor | None:
    """The picture named, or of a folder the one with the source's name, whatever its ending."""
    if reference is None:
        return None
    if reference.is_dir():
        named = [path for path in gather([reference]) if path.stem == source.stem]
        if not named:
            raise OptionError(f"{reference}: holds no picture named {source.stem}, the reference of {source}")
        reference = named[0]
    return load_image(reference).image


def _references(reference: Path | None) -> list[Path]:
    """All pictures that may be read as references."""
    return [] if reference is None else gather([reference])


def _drawings(sources: list[Path], options: argparse.Namespace) -> dict[Path, Path]:
    """Where each picture's report goes; raises OutputError before anything is computed where it cannot."""
    if options.report is None:
        return {}
    return dict(output_paths(sources, options.report, _references(options.reference)))


def _print_table(reports: list[tuple[Path, PeriodicityReport]]) -> None:
    width = max((len(str(source)) for source, _ in reports), default=7)
    print(f"{'picture':{width}}  {'score':>7}  {'false alarms':>12}  kind    period")
    for source, report in reports:
        period = in_words(report.period, report.tokens) if any(report.period) else "-"
        mark = "!" if report.alarm else " "
        print(
            f"{source!s:{width}} {mark}{report.score:7.2f}  {report.false_alarm_rate:12.1e}  {report.kind:6}  {period}"
        )


# --- suppress ---------------------------------------------------------------------------------


def run_suppress(options: argparse.Namespace) -> int:
    """Write each picture, cleaned where a mesh was found and as it was elsewhere; 0, or 1 if one failed."""
    pairs = output_paths(gather(options.input), options.output, _references(options.reference))
    done: list[dict[str, Any]] = []
    failed = 0
    for source, output in pairs:
        try:
            done.append(_suppress_file(source, output, options))
        except Op4ksrError as error:
            if len(pairs) == 1:
                raise
            failed += 1
            print(f"error: {error}", file=sys.stderr)
    if options.json:
        print(json.dumps({"pictures": done}, indent=2))
    return 1 if failed else 0


def _suppress_file(source: Path, output: Path, options: argparse.Namespace) -> dict[str, Any]:
    check_output(output)
    picture = load_image(source)
    with explain_out_of_memory(str(source)):
        result = suppress_with_report(picture.image, _reference_of(source, options.reference), options.strength)
    cleaned = Picture(for_8_bit(result.image, picture.image), picture.alpha)
    save_image(output, cleaned, _bits(picture) if output.suffix.lower() == ".png" else 8)
    if not options.json:
        print(f"{output}: {result.note}")
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
