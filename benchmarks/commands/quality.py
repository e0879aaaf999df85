"""``quality`` and ``make-set``: the enlarged picture beside the sharp one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from op4ksr_core.cli.console import say, tell
from op4ksr_core.cli.options import parse_device, whole
from op4ksr_core.errors import OptionError
from op4ksr_core.images.paths import gather
from op4ksr_core.machine import explain_out_of_memory

from .. import quality, quality_sets
from ..methods import Method
from ..peers import PEERS, peer_method
from ..perceptual import load_perceptual
from ..picture_sets import PictureSet, SetRecipe, is_set, make_set, open_set
from ..tables import Row, means, setting_rows, write_report
from ..variants import OLD, loaded
from .photo_run import add_run, add_variant, photo_tables, photos_of, variant_of

#: What is done to photos unless other damages are named, and what a set can be made with.
_USUAL = ("clean", "degraded")


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
    make.add_argument("--degradation", choices=_USUAL, default="degraded", help="clean: only shrunk")


def _add_quality(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=run_quality)
    add_run(parser, _USUAL)
    add_variant(parser)
    add = parser.add_argument
    add("--old", type=Path, metavar="FOLDER", help=f'other bundled weights, as the rows "{OLD}"')
    add(
        "--peers", action="store_true", help="of photos: also the public upscalers of the benchmark peers but slow ones"
    )
    add("--device")
    add("--factor", type=whole, choices=range(1, 17), default=4, metavar="X", help="of LR pictures without HR (4)")
    add("--methods", nargs="+", choices=quality.CHOICES, help="default: all of photos, four of sets with LR")
    add(
        "--largest",
        type=whole,
        default=quality_sets.SetChoices.largest,
        metavar="PX",
        help="side when enlarged; of larger ones the middle (4096)",
    )


def run_quality(options: argparse.Namespace) -> int:
    """Every picture of the sets is read; then the photos are measured, then the sets, each of which is written."""
    sets = [open_set(path) for path in options.photos if is_set(path)]
    paired = [s.first(options.limit) for s in sets if s.lows]
    photos = photos_of([path for path in options.photos if not _is_paired(path)], options.limit)
    choices = quality_sets.SetChoices(options.factor, options.largest)
    for pictures in paired:
        quality_sets.check_set(pictures, choices)
    device = parse_device(options.device)
    methods = quality.methods_of(variant_of(options, device), options.old)
    if OLD in (options.methods or ()) and options.old is None:
        raise OptionError(f"--methods {OLD}: needs --old FOLDER; name the folder of the other weights")
    tables: dict[str, list[Row]] = {}
    details: list[Row] = []
    status = 0
    if photos:
        chosen = [methods[name] for name in options.methods or methods]
        chosen += [peer_method(name) for name, peer in PEERS.items() if options.peers and not peer.slow]
        tables, details, status = photo_tables(options, f"x{quality.FACTOR}", chosen, photos)
        autoencoder, _, base = loaded(options.vae, options.model, options.enlarger, str(device))
        alone = quality.reconstruction(photos, autoencoder, base)
        tables, details = tables | {"The autoencoder there and back": means(alone, "picture")}, details + alone
    if paired:
        own = [methods[name] for name in options.methods or _usual_of_sets(options.old)]
        tables, details = _set_tables(paired, own, choices, options, device, (tables, details))
    say(write_report(options.output, "quality", tables, details).read_text("utf-8"))
    return status


def _is_paired(path: Path) -> bool:
    return is_set(path) and bool(open_set(path).lows)


def _usual_of_sets(old: Path | None) -> tuple[str, ...]:
    return quality_sets.USUAL if old is None else (*quality_sets.USUAL, OLD)


def _set_tables(
    sets: list[PictureSet],
    methods: list[Method],
    choices: quality_sets.SetChoices,
    options: argparse.Namespace,
    device: torch.device,
    so_far: tuple[dict[str, list[Row]], list[Row]],
) -> tuple[dict[str, list[Row]], list[Row]]:
    """``so_far`` and the sets' tables; written after every set, for pictures of 4096 px take a CPU minutes."""
    tables, details = so_far
    perceptual = load_perceptual(device if device.type == "cuda" else None)
    files = {"VAE file": options.vae.name, "model file": options.model.name}
    autoencoder = loaded(options.vae, options.model, options.enlarger, str(device))[0]
    settings = files | quality_sets.settings(sets, autoencoder, perceptual, choices)
    rows: list[Row] = []
    for pictures in sets:
        with explain_out_of_memory("benchmarks quality"):
            rows += quality_sets.set_quality(pictures, methods, perceptual, choices, device, tell)
        tables = tables | {"Settings of the sets": setting_rows(settings), "By set": quality_sets.by_set(rows)}
        write_report(options.output, "quality", tables, details + rows)
    return tables, details + rows


def run_make_set(options: argparse.Namespace) -> int:
    """Write the set, naming each picture on stderr. Returns the exit status, 0."""
    recipe = SetRecipe(options.side, options.factor, options.seed, options.degradation == "clean")
    make_set(gather(options.photos), options.output, recipe, tell)
    return 0
