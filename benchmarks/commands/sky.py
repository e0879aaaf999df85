"""``sky``: the transformer in pieces on a smooth sky, as tables and a picture."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from op4ksr_core.cli.console import say
from op4ksr_core.cli.options import DTYPES, add_models, load_models, parse_device, parse_pieces, whole_from
from op4ksr_core.errors import OptionError
from op4ksr_core.machine import explain_out_of_memory
from op4ksr_core.pieces import Pieces

from ..sky import draw, enlarged_skies
from ..tables import FACTOR, Row, setting_rows, write_report


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    parser = kinds.add_parser("sky", help="the transformer in pieces on a smooth sky: seams, the meter, a picture")
    parser.set_defaults(command=run_sky)
    add_models(parser)
    parser.add_argument("--to", type=whole_from(256, 16384), default=2048, metavar="PX", help="default: 2048")
    parser.add_argument(
        "--pieces", type=parse_pieces, default=Pieces(), metavar="PX[:OVERLAP]", help="default: 1024:512"
    )
    parser.add_argument("-o", "--output", type=Path, default=Path("benchmark_output"), metavar="FOLDER")


def run_sky(options: argparse.Namespace) -> int:
    """Write sky.json, sky.md and sky.jpg (of the model's own output). Returns the exit status, 0."""
    autoencoder, flux = load_models(options, parse_device(options.device), DTYPES.get(options.dtype))
    if flux is None:
        raise OptionError("benchmarks sky: pieces are the transformer's; leave out --vae-only")
    rows: list[Row] = []
    with explain_out_of_memory("benchmarks sky"):
        for finish, finished in (("the model's own", False), ("as upscale comes", True)):
            skies = enlarged_skies(flux, autoencoder, options.to // FACTOR, options.pieces, finished)
            rows += skies.rows(finish)
            if not finished:
                draw(skies, options.output / "sky.jpg", _title(options))
    settings = {
        "VAE file": options.vae.name,
        "model file": options.model.name,
        "px": f"{options.to // FACTOR} -> {options.to}",
    }
    settings |= {"pieces": f"{options.pieces.size_px}:{options.pieces.overlap_px}"}
    tables = {"Settings": setting_rows(settings), "A smooth sky, whole and in pieces": rows}
    say(write_report(options.output, "sky", tables).read_text("utf-8"))
    return 0


def _title(options: argparse.Namespace) -> str:
    pieces: Pieces = options.pieces
    return (
        f"A smooth sky at {options.to} px in one pass, and in pieces of {pieces.size_px} px that share "
        f"{pieces.overlap_px} px; the model's own output"
    )
