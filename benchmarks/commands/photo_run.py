"""What the benchmarks of photos by methods have in common: their options, and the run itself."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from op4ksr_core.cli.console import say, tell
from op4ksr_core.cli.options import number, whole_from
from op4ksr_core.errors import OptionError
from op4ksr_core.images.metrics import load_piq
from op4ksr_core.images.paths import gather

from ..damages import DAMAGES
from ..measure import Cache, Photos, measure
from ..methods import Method
from ..more_scores import more_scores
from ..picture_sets import is_set, open_set
from ..quality import FACTOR
from ..summary import tables_of
from ..tables import Row, setting_rows, write_report
from ..variants import Variant

OUTPUT = Path("benchmark_output")

SECONDS = "core_s_per_mp"

#: What the columns of every table of photos stand for.
_COLUMNS = {
    "lr_psnr": "dB between the output, shrunk, and what it was made from",
    "alarms": "share of outputs on which the meter alarms, with that as reference",
    "tile, tile_16, tile_32": "RMS of the mean tile of output - photo, of the factor's, 16 and 32 px, grey levels",
    SECONDS: "seconds of the process per 1e6 px of output",
    "... gain": "over bicubic's",
    "... better": "share of photos on which it is better than bicubic + back-projection in that score",
}


def add_run(parser: argparse.ArgumentParser, damages: Sequence[str]) -> None:
    """Photos and how they are run. damages: those that are taken unless others are named."""
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTOS", help="pictures, or folders of them")
    add("--degradation", nargs="+", choices=tuple(DAMAGES), default=tuple(damages), help=f"({' '.join(damages)})")
    add_output(parser)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where it is written, what is kept, how many photos, how many threads."""
    add = parser.add_argument
    add("--limit", type=whole_from(1, 10**6), metavar="N", help="the first N pictures of each set or folder only")
    add("--threads", type=whole_from(1, 256), default=1, metavar="N", help="of the networks (default: 1)")
    add("--scores", type=Path, metavar="FOLDER", help="where scores are kept between runs (default: in -o)")
    add("-o", "--output", type=Path, default=OUTPUT, metavar="FOLDER")


def add_variant(parser: argparse.ArgumentParser, parts: bool = True) -> None:
    """The models that are measured. parts: with the options of how much of them."""
    add = parser.add_argument
    add("--vae", type=Path, default=BUNDLED_AUTOENCODER)
    add("--model", type=Path, default=BUNDLED_FLUX)
    add("--enlarger", default="auto", metavar="WHICH", help="auto, bicubic, bundled, or a file, as upscale takes it")
    if parts:
        add("--detail", type=number, default=1.0, help="of the full model (default: 1)")
        add("--repair", type=number, help="default: what the model's file recommends")


def variant_of(options: argparse.Namespace, device: torch.device) -> Variant:
    """The variant that the options name. Raises OptionError."""
    return Variant(
        "full", options.vae, options.model, options.enlarger, options.detail, options.repair, device=str(device)
    )


def photos_of(paths: Sequence[Path], limit: int | None) -> list[Path]:
    """The pictures of files, folders and sets without LR, ``limit`` of each folder at most."""
    found: list[Path] = []
    for path in paths:
        found += open_set(path).highs[:limit] if is_set(path) else gather([path])[:limit]
    if len(set(found)) < len(found):
        raise OptionError("photos: one is named twice; name each once")
    return found


def run_photos(
    options: argparse.Namespace, kind: str, title: str, methods: Sequence[Method], paths: list[Path], without: str = ""
) -> int:
    """Measure, write and print the report of that kind, without that column. Returns the exit status: 1 where a photo
    failed."""
    tables, rows, status = photo_tables(options, title, methods, paths, without)
    say(write_report(options.output, kind, tables, rows).read_text("utf-8"))
    return status


def photo_tables(
    options: argparse.Namespace, title: str, methods: Sequence[Method], paths: list[Path], without: str = ""
) -> tuple[dict[str, list[Row]], list[Row], int]:
    """The tables, the rows per photo, and the exit status. Raises OptionError where piq is missing.

    without: a column that is left out.
    """
    load_piq()
    torch.set_num_threads(options.threads)
    more, missing = more_scores()
    cache = Cache(options.scores or options.output / "scores")
    rows, status = measure(Photos(paths, options.degradation, FACTOR), methods, cache, more, tell)
    if not rows:
        raise OptionError("photos: none of them could be measured; the lines above say why")
    rows = [{name: value for name, value in row.items() if name != without} for row in rows]
    settings = {name: what for name, what in _COLUMNS.items() if name != without}
    settings |= {f"{name} left out": reason for name, reason in missing.items()}
    settings |= {"threads": str(options.threads)}
    return tables_of(rows, title) | {"Settings": setting_rows(settings)}, rows, status
