"""``quality`` and ``make-set``: the enlarged picture beside the sharp one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from op4ksr_core.cli.console import say, tell
from op4ksr_core.cli.options import load_models, parse_device, whole, whole_from
from op4ksr_core.images.paths import gather
from op4ksr_core.machine import explain_out_of_memory
from op4ksr_core.models.flux import Flux
from op4ksr_core.vae.autoencoder import AutoEncoder

from .. import quality, quality_sets
from ..perceptual import load_perceptual
from ..picture_sets import PictureSet, SetRecipe, is_set, make_set, open_set
from ..tables import Row, means, setting_rows, write_report

_BOTH = "both"


def add_benchmark(kinds: Any) -> None:
    """Add both to argparse's subparsers."""
    _add_quality(kinds.add_parser("quality", help="photos and sets of LR and HR, by method (extra: bench)"))
    make = kinds.add_parser("make-set", help="a set of HR pictures and their seeded degradation, for quality")
    make.set_defaults(command=run_make_set)
    usual = SetRecipe()
    make.add_argument("photos", nargs="+", type=Path, metavar="HR", help="pictures, or folders of them")
    make.add_argument("-o", "--output", required=True, type=Path, metavar="SET", help="a folder that holds no set yet")
    make.add_argument("--side", type=whole, default=usual.side, metavar="PX", help=f"of HR at most ({usual.side})")
    make.add_argument("--factor", type=whole, default=usual.factor, metavar="X", help=f"HR over LR ({usual.factor})")
    make.add_argument("--seed", type=whole, default=usual.seed, help=f"default: {usual.seed}")
    make.add_argument("--degradation", choices=quality.DAMAGES, default="degraded", help="clean: only shrunk")


def _add_quality(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_quality, stride=None, shift=None, theta=None, sigma=None, lora=None, vae_only=False)
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="SET", help="folders with LR, HR or both in them; or HR pictures")
    add("--vae", type=Path, default=BUNDLED_AUTOENCODER)
    add("--model", type=Path, default=BUNDLED_FLUX)
    add("--device")
    add("--degradation", choices=(*quality.DAMAGES, _BOTH), default=_BOTH, help="of HR pictures without LR")
    add("--factor", type=whole, choices=range(1, 17), default=4, metavar="X", help="of LR pictures without HR (4)")
    add("--methods", nargs="+", choices=quality_sets.CHOICES, default=quality_sets.USUAL, help="on sets with LR")
    add(
        "--largest",
        type=whole,
        default=quality_sets.SetChoices.largest,
        metavar="PX",
        help="side when enlarged; of larger ones the middle (4096)",
    )
    add("--limit", type=whole_from(1, 10**6), metavar="N", help="the first N pictures of each set only")
    add("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_quality(options: argparse.Namespace) -> int:
    """Every picture of the sets is read; then the photos are measured, then the sets, each of which is written."""
    sets = [open_set(path) for path in options.photos if is_set(path)]
    loose = [path for path in options.photos if not is_set(path)]
    photos = [path for s in sets if not s.lows for path in s.first(options.limit).highs]
    photos += gather(loose)[: options.limit] if loose else []
    paired = [s.first(options.limit) for s in sets if s.lows]
    choices = quality_sets.SetChoices(tuple(options.methods), options.factor, options.largest)
    for pictures in paired:
        quality_sets.check_set(pictures, choices)
    autoencoder, flux = load_models(options, parse_device(options.device), None)
    assert flux is not None
    tables: dict[str, list[Row]] = {}
    details: list[Row] = []
    if photos:
        damages = quality.DAMAGES if options.degradation == _BOTH else (options.degradation,)
        tables, details = _photo_tables(photos, flux, autoencoder, damages)
    if paired:
        tables, details = _set_tables(paired, (flux, autoencoder), choices, options, (tables, details))
    say(write_report(options.output, "quality", tables, details).read_text("utf-8"))
    return 0


def _photo_tables(
    photos: list[Path], flux: Flux, autoencoder: AutoEncoder, damages: tuple[str, ...]
) -> tuple[dict[str, list[Row]], list[Row]]:
    rows = quality.quality(photos, flux, autoencoder, damages=damages)
    tables: dict[str, list[Row]] = {}
    for damage in damages:
        own = [row for row in rows if row["degradation"] == damage]
        title = f"x{quality.FACTOR}, {damage}"
        tables[title] = means(own)
        tables[f"{title}: share of photos better than {quality.BASE}"] = quality.shares(own)
    alone = quality.reconstruction(photos, autoencoder)
    tables["The autoencoder there and back"] = means(alone, "picture")
    return tables, rows + alone


def _set_tables(
    sets: list[PictureSet],
    models: tuple[Flux, AutoEncoder],
    choices: quality_sets.SetChoices,
    options: argparse.Namespace,
    so_far: tuple[dict[str, list[Row]], list[Row]],
) -> tuple[dict[str, list[Row]], list[Row]]:
    """``so_far`` and the sets' tables; written after every set, for pictures of 4096 px take a CPU minutes."""
    device, (tables, details) = models[1].device, so_far
    perceptual = load_perceptual(device if device.type == "cuda" else None)
    files = {"VAE file": options.vae.name, "model file": options.model.name}
    settings = files | quality_sets.settings(sets, models[1], perceptual, choices)
    rows: list[Row] = []
    for pictures in sets:
        with explain_out_of_memory("benchmarks quality"):
            rows += quality_sets.set_quality(pictures, models, perceptual, choices, _show)
        tables = tables | {"Settings of the sets": setting_rows(settings), "By set": quality_sets.by_set(rows)}
        write_report(options.output, "quality", tables, details + rows)
    return tables, details + rows


def run_make_set(options: argparse.Namespace) -> int:
    """Write the set, naming each picture on stderr. Returns the exit status, 0."""
    recipe = SetRecipe(options.side, options.factor, options.seed, options.degradation == "clean")
    make_set(gather(options.photos), options.output, recipe, _show)
    return 0


def _show(picture: str) -> None:
    tell(picture)
