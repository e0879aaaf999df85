"""``repair``, ``peers`` and ``compare``: photos by methods, beside those of ``quality``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.cli.options import parse_device
from op4ksr_core.errors import OptionError

from .. import variants
from ..damages import DAMAGES
from ..methods import BASE, PLAIN, Method
from ..peers import PEERS, file_method, peer_method
from ..variant_rows import parse_row, read_rows
from .photo_run import SECONDS, add_run, add_variant, photos_of, run_photos, variant_of

#: What is run beside everything.
_ALWAYS = (PLAIN["bicubic"], PLAIN[BASE])


def add_benchmark(kinds: Any) -> None:
    """Add the three to argparse's subparsers."""
    repair = kinds.add_parser("repair", help="damaged photos, by how much is repaired and how exactly the input kept")
    repair.set_defaults(command=run_repair)
    add_run(repair, [name for name in DAMAGES if name != "clean"])
    add_variant(repair)
    repair.add_argument(
        "--old", type=Path, metavar="FOLDER", help=f'other bundled weights, as the rows "{variants.OLD}"'
    )
    peers = kinds.add_parser("peers", help="public upscalers that packages bring, through ncnn; and any file of one")
    peers.set_defaults(command=run_peers)
    add_run(peers, ["clean"])
    quick = [name for name, peer in PEERS.items() if not peer.slow]
    peers.add_argument("--only", nargs="+", choices=tuple(PEERS), default=quick, help=f"default: {', '.join(quick)}")
    peers.add_argument(
        "--file",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="an enlarger's, or an upscale model's (needs spandrel)",
    )
    compare = kinds.add_parser("compare", help="rows of models and options, as a TOML file lists them")
    compare.set_defaults(command=run_compare)
    add_run(compare, ["clean"])
    add = compare.add_argument
    add("--rows", type=Path, metavar="FILE.toml", help="a [[row]] table for each, with the keys that --row takes")
    keys = "vae, model, enlarger, detail, repair, fidelity, vae_only"
    add("--row", nargs="+", action="append", default=[], metavar="WORD", help=f"NAME KEY=VALUE ...; keys: {keys}")


def run_repair(options: argparse.Namespace) -> int:
    """Measure, write and print. Returns the exit status: 1 where a photo failed.

    There are no seconds: the methods share what one of them computes.
    """
    new = variant_of(options, parse_device("cpu"))
    old = (
        [] if options.old is None else [v.method() for v in variants.usual(new, options.old) if v.name == variants.OLD]
    )
    methods = [_named(method) for method in (*_ALWAYS, *old)] + variants.repairing(new)
    return run_photos(options, "repair", "x4", methods, photos_of(options.photos, options.limit), without=SECONDS)


def _named(method: Method) -> Method:
    """With the columns that the rows of ``repairing`` have."""
    columns = {"repair": "", "fidelity": "", "followed": ""}
    return Method(method.name, method.key, method.enlarge, columns)


def run_peers(options: argparse.Namespace) -> int:
    """Measure, write and print. Returns the exit status: 1 where a photo failed."""
    methods = [*_ALWAYS, *map(peer_method, options.only), *map(file_method, options.file)]
    return run_photos(options, "peers", "x4", methods, photos_of(options.photos, options.limit))


def run_compare(options: argparse.Namespace) -> int:
    """Measure, write and print. Returns the exit status: 1 where a photo failed."""
    rows = [*(read_rows(options.rows) if options.rows else []), *map(parse_row, options.row)]
    if not rows:
        raise OptionError("benchmarks compare: no rows; name a file with --rows, or one with --row")
    methods = [*_ALWAYS, *(variant.method() for variant in rows)]
    return run_photos(options, "compare", "x4", methods, photos_of(options.photos, options.limit))
