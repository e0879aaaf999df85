"""``crops``: photos by several methods side by side."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from op4ksr_core.cli.console import say, tell
from op4ksr_core.cli.failures import Failures
from op4ksr_core.cli.options import parse_device, whole_from
from op4ksr_core.errors import OptionError
from op4ksr_core.plain_text import plain

from .. import crops
from ..damages import DAMAGES
from ..methods import PLAIN, Method
from ..peers import PEERS, peer_method
from ..variants import OLD, Variant, old_files
from .photo_run import add_variant, photos_of, variant_of

#: The public upscaler that is shown, where it is installed.
_PEER = next(iter(PEERS))

#: The name of the models that are shown, beside ``OLD``.
_NEW = "v2"


def add_benchmark(kinds: Any) -> None:
    """Add it to argparse's subparsers."""
    parser = kinds.add_parser("crops", help="the same piece by every method, at 100 and 300 %%, as pictures")
    parser.set_defaults(command=run_crops)
    add = parser.add_argument
    add("photos", nargs="+", type=Path, metavar="PHOTOS", help="pictures, or folders of them")
    add_variant(parser)
    add("--old", type=Path, metavar="FOLDER", help=f'other bundled weights, as "{OLD}"')
    add("--base", action="store_true", help="the base alone as well")
    add("--count", type=whole_from(1, 1000), default=10, metavar="N", help="of the photos, evenly (default: 10)")
    add("--degradation", choices=tuple(DAMAGES), default="clean")
    add(
        "--place",
        choices=crops.PLACES,
        default="hard",
        help="where bicubic errs most, or the model gains or loses most",
    )
    add("--png", action="store_true", help="PNG instead of JPEG")
    add("--threads", type=whole_from(1, 256), default=1, metavar="N", help="of the networks (default: 1)")
    add("--out", required=True, type=Path, metavar="FOLDER")


def run_crops(options: argparse.Namespace) -> int:
    """Write the pictures and name each. Returns the exit status: 1 where a photo failed."""
    torch.set_num_threads(options.threads)
    methods = _methods(options)
    paths = crops.chosen(photos_of(options.photos, None), options.count)
    failures = Failures(len(paths))
    ending = ".png" if options.png else ".jpg"
    for path in paths:
        with failures.costing_no_other(path):
            written = crops.write_crops([path], methods, options.out, options.place, options.degradation, ending)
            say(f"{plain(written[0])}")
    return failures.close()


def _methods(options: argparse.Namespace) -> list[Method]:
    new = replace(variant_of(options, parse_device("cpu")), name=_NEW)
    methods = [PLAIN["bicubic"]]
    if options.old is not None:
        methods.append(Variant(OLD, *old_files(options.old)).method())
    try:
        methods.append(peer_method(_PEER))
    except OptionError as error:
        tell(f"left out: {error}")
    if options.base:
        methods.append(replace(new, name="base alone", detail=0.0).method())
    return [*methods, new.method()]
