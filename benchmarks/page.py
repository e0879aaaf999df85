"""One page from many reports: ``docs/benchmarks.md`` is made by this and never typed.

``slim`` makes of a report the copy that the page is made of and that is kept: no rows per photo, paths in its
command cut to their last names. The figures are the report's own, with all their digits.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from op4ksr_core.errors import OptionError

from .tables import Row, paragraphs, without_places, write_text

#: What stands before the reports.
HEAD = """# Benchmarks

Every table below is a command's own. The page is made from the reports in `docs/reports` by

`python -m benchmarks page docs/reports -o docs/benchmarks.md`

and a test makes it again and compares: nothing here is typed. Paths in the commands are cut to their last names.
A report holds all digits; the page shows four. Notes were given by whoever kept the report. What the figures
mean for the choices made stands on pages of their own, which each kind links."""

#: Kind of report -> title, and what it shows and how to read it. The page has this order; other kinds come last.
KINDS: dict[str, tuple[str, str]] = {
    "quality": (
        "Quality",
        "How near the enlarged photo comes to the sharp one, by method; real weights, those bundled unless the command "
        "names others. psnr in dB, ssim and haarpsi: more is better, 1 is equal; gmsd, lpips, dists and niqe: less is "
        "better; musiq: more is better, to 100. periodicity is the meter's score (2 is what 1 clean picture in 100 "
        'reaches), alarms the share of outputs on which it alarms. "clean": the photo shrunk bicubically, 8 bit; '
        '"degraded": the seeded second-order degradation. "VAE only" leaves the transformer out. What full has '
        'above "base alone" is what the one step adds. [What it means](benchmark_quality.md).',
    ),
    "repair": (
        "Damaged photos",
        "Photos shrunk and made worse, by how much is repaired and how exactly the input is kept: fidelity is that of "
        "the back-projection itself, followed says where it is the one that the repair leads to. [What it "
        "means](benchmark_quality.md).",
    ),
    "peers": (
        "Beside public upscalers",
        "The same photos and scores, of networks that packages bring and of files of anybody's; none of them is part "
        "of this project. [What it means](benchmark_quality.md).",
    ),
    "compare": (
        "Parts and widths",
        "Rows of models and options on the same photos. [How they are listed](benchmark_quality.md).",
    ),
    "smooth": (
        "Smooth pictures",
        "mesh of P: what repeats every P px in the error beyond chance, RMS in grey levels before rounding to 8 bits, "
        "of the worst of six procedural pictures. [What it means](benchmark_quality.md).",
    ),
    "memory": (
        "The VAE in strips: exactness and memory",
        "Whether strips give the plain pass's result, and what they need. Full-width and small weights are random "
        "here, seeded, scaled so that outputs lie in [-1, 1]: they show exactness and memory, never quality; "
        '"sample" and "run" use the bundled weights. exactness: max is the largest difference from the plain pass of '
        "the same dtype, rms the distance from the plain float32 pass, rms of plain the plain pass's own. sample: the "
        "bundled photo, in grey levels of 255. peaks: live tensors above the input, counted at every allocation (on "
        '"meta" without computing); at most is the limit that was set beforehand. run: peak of a whole process. '
        "[What it means](benchmark_memory.md).",
    ),
    "whole": (
        "Whole runs beside other weights",
        "Seconds and peak memory of the bundled photo enlarged, each way in a process of its own; over: over the first "
        "row's. [What it means](benchmark_quality.md).",
    ),
    "sky": (
        "The transformer in pieces: a smooth sky",
        "A procedural sky x4 in one pass and in pieces, real weights, those bundled unless the command names others; "
        "what the meter says of it in 8 bits, with the small picture as reference, and how far the pieces are from the "
        "whole, in grey levels of 255, before rounding. seam: the largest step between means of 32 px cells on either "
        "side of a line at which two windows weigh alike. [What it means](pieces.md).",
    ),
    "speed": (
        "The VAE in strips: speed",
        "Seconds of each way over those of the plain pass, in turn in one run; medians, and the slowest. Random "
        "weights, seeded: they show speed, never quality. [What it means](benchmark_memory.md).",
    ),
    "pipeline": (
        "One upscale, stage by stage",
        "Seconds and peaks by stage, against plain passes, overlapping patches, an F8 VAE, and the device's own "
        "measured matrix products. The settings say which weights are random: they show time and memory, never "
        "quality.",
    ),
    "scaling": (
        "How seconds and bytes grow",
        "Whole runs at several sides, and the exponents of the pixel count fitted to them, beside those of the closed "
        "forms fitted in the same way. [What it means](benchmark_scaling.md).",
    ),
    "periodicity_detection": (
        "The periodicity meter: detection",
        "Artifacts injected into held-out photos at a strength in grey levels (RMS of 255). alarms: share of pictures "
        "with the built-in alarm, from and to its 95 % interval over photos; at 0 grey levels they are false alarms. "
        "[Targets, and what it means](benchmark_periodicity.md).",
    ),
    "periodicity_suppression": (
        "The periodicity meter: suppression",
        "What taking the artifact out gains, in dB of PSNR to the clean picture; worst: the worst picture. "
        "[What it means](benchmark_periodicity.md).",
    ),
    "periodicity_loss": (
        "The periodicity meter: L_AP",
        "The loss by the artifact's strength, and how far descending it alone takes an artifact away. "
        "[What it means](benchmark_periodicity.md).",
    ),
    "periodicity_cost": (
        "The periodicity meter: cost",
        "Of one picture: CPU time and peak of a process. [What it means](benchmark_periodicity.md).",
    ),
    "ablation": (
        "The ablation: RFR and L_AP",
        "Small models trained with neither, each and both, on a CPU. mesh: what repeats every token in the error, "
        "RMS in grey levels of 255; periodicity: the meter's score, +- its deviation over the seeds; l_ap: the share "
        "of the error that repeats. They show nothing about the paper's scale. [What it means](ablation.md).",
    ),
    "gpu": (
        "On a GPU",
        "One run of `benchmarks/gpu/run.sh`: a row for each step, and their tables. Weights are random where "
        "a table says so: they show time and memory, never quality. [How to read it](full_size.md).",
    ),
    "train": (
        "One training step",
        "Seconds, work and peak beside the plan's count; random weights with a named geometry. "
        "[What it means](training.md).",
    ),
}


def slim(report: Row, only: Sequence[str] = (), note: str = "") -> Row:
    """The copy to keep: without details, its command's paths cut; ``only`` these tables, the others named as left out.

    note: what the report does not know of itself, as that the code has changed since. Raises OptionError for a
    table that the report does not have.
    """
    tables = report["tables"]
    if unknown := [title for title in only if title not in tables]:
        raise OptionError(f"--only {unknown[0]}: the report has no such table; it has {', '.join(tables)}")
    kept = {title: rows for title, rows in tables.items() if not only or title in only}
    copy = {key: value for key, value in report.items() if key != "details"}
    copy |= {"command": without_places(shlex.split(report["command"])), "tables": kept}
    left_out = [title for title in tables if title not in kept]
    return copy | ({"left_out": left_out} if left_out else {}) | ({"note": note} if note else {})


def page(reports: Sequence[Row]) -> str:
    """The whole page, kinds in the order of ``KINDS``, the reports of one kind in the order given."""
    order = [*KINDS, *sorted({report["kind"] for report in reports} - KINDS.keys())]
    parts = [HEAD]
    for kind in order:
        own = [report for report in reports if report["kind"] == kind]
        title, about = KINDS.get(kind, (kind.replace("_", " ").capitalize(), ""))
        parts += [f"## {title}", about] if own else []
        for report in own:
            parts += paragraphs(report, "###")
            parts += [f"Left out of this report: {', '.join(report['left_out'])}."] if report.get("left_out") else []
            parts += [f"Note: {report['note']}"] if report.get("note") else []
    return "\n\n".join(part for part in parts if part) + "\n"


def gather_reports(inputs: Sequence[Path]) -> list[Path]:
    """Files as they are, folders by the .json in them, by name. Raises OptionError for a folder without one."""
    found: list[Path] = []
    for path in inputs:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise OptionError(f"{path}: no reports (.json) in this folder; name another")
        found += inside
    return found


def read_report(path: Path) -> Row:
    """What ``write_report`` or ``write_slim`` wrote; of those without a kind it is the file's name.

    Raises OptionError where it is anything else.
    """
    try:
        report = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror}); check the name") from error
    except ValueError as error:
        raise OptionError(f"{path}: is no report ({error}); make it again with its command") from error
    if reason := _fault(report):
        raise OptionError(f"{path}: is no report ({reason}); name what a benchmark wrote as .json")
    return {"kind": path.stem} | report


def _fault(report: Any) -> str:
    """Why something is no report; empty where it is one."""
    if not isinstance(report, dict):
        return "it is no object"
    for key, kind in (("command", str), ("machine", dict), ("tables", dict)):
        if not isinstance(report.get(key), kind):
            return f"{key} is missing"
    for key, kind in (("kind", str), ("note", str), ("left_out", list)):
        if not isinstance(report.get(key, kind()), kind):
            return f"{key} is something else than what is written there"
    try:
        shlex.split(report["command"])
    except ValueError as error:
        return f"its command cannot be split into words: {error}"
    for title, rows in report["tables"].items():
        if not isinstance(rows, list) or not rows or any(not isinstance(row, dict) for row in rows):
            return f"table {title} has no rows"
        if any(row.keys() != rows[0].keys() for row in rows):
            return f"rows of table {title} have different columns"
    return ""


def write_slim(path: Path, report: Row) -> None:
    """Write a report's copy. Raises OutputError."""
    write_text(path, json.dumps(report, indent=1) + "\n")
