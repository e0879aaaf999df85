"""``tiles``: photos cut into squares to train on."""

from __future__ import annotations

import argparse
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import OptionError, OutputError
from ..files import link_target, make_folder, same_file
from ..images.formats import IMAGE_SUFFIXES
from ..images.io import Picture, check_output, from_array, load_image, save_image
from ..images.paths import Places, gather, keep_apart
from ..machine import explain_out_of_memory
from ..plain_text import plain
from ..training.data import leaves
from ..training.data.shards import Pixels
from ..training.data.sources import pictures_in
from ..training.data.tiles import Squares, TileSettings, label, leaf_name, leaf_numbers, squares_of
from ..version import __version__
from .console import say, say_json, tell
from .failures import Failures
from .options import number, whole
from .upscale import add_overwrite

Report = dict[str, Any]


def add_tiles(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_tiles)
    parser.add_argument("input", nargs="*", type=Path, metavar="PHOTO", help="photo, or folder of photos")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="FOLDER", help="of the squares, PNG")
    parser.add_argument(
        "--side", type=whole, default=TileSettings.side, metavar="PX", help="of a square (default: 512)"
    )
    parser.add_argument(
        "--shrink",
        nargs="+",
        type=number,
        default=list(TileSettings.shrink),
        metavar="FACTOR",
        help="shrink each photo by each of these, and cut it (default: 2 4 6; 1: as it is)",
    )
    parser.add_argument(
        "--least",
        type=number,
        default=TileSettings.least,
        metavar="LEVELS",
        help="leave out squares whose mean gradient is below so many grey levels (default: 3; 0: keep all)",
    )
    parser.add_argument(
        "--procedural", type=whole, default=0, metavar="N", help="so many procedural pictures beside them (default: 0)"
    )
    parser.add_argument("--seed", type=whole, default=0, help="of the first procedural picture (default: 0)")
    add_overwrite(parser)
    parser.add_argument("--json", action="store_true", help="print what was done as JSON")


def run_tiles(options: argparse.Namespace) -> int:
    """Cut every photo, then make the procedural pictures. Returns 0, or 1 if one of several pictures failed."""
    settings = TileSettings(options.side, tuple(options.shrink), options.least)
    numbers, photos = leaf_numbers(options.procedural, options.seed), gather(options.input)
    if not (photos or numbers):
        raise OptionError("tiles: expected photos, or --procedural with a number of pictures; got neither")
    cutter = _Cutter(photos, options.output, settings, options.overwrite)
    failures, reports = Failures(len(photos) + len(numbers)), list[Report]()
    for photo in photos:
        with failures.costing_no_other(photo):
            reports.append(cutter.cut(photo))
            if not options.json:
                say(_in_words(reports[-1]))
    made = cutter.make_leaves(numbers, failures)
    others = len(set(pictures_in(options.output)) - cutter.written)
    if others:
        tell(
            f"{options.output}: holds {others:,} pictures that this run did not make, which a training on the folder "
            "would see too; delete them, or choose another folder"
        )
    if options.json:
        say_json({"photos": reports, "procedural": made, "others": others, **_settings_report(options)})
    else:
        say(f"{plain(options.output)}: {len(cutter.written):,} pictures of this run, {made:,} of them procedural")
    return failures.close()


class _Cutter:
    """Writes a run's pictures into its folder. Raises OutputError where there can be none, or it holds the photos."""

    def __init__(self, photos: Sequence[Path], folder: Path, settings: TileSettings, overwrite: bool) -> None:
        self.folder, self.settings, self.overwrite = folder, settings, overwrite
        self.read = {link_target(photo): photo for photo in photos}
        self.written: set[Path] = set()
        if not os.path.isdir(folder) and (os.path.lexists(folder) or folder.suffix.lower() in IMAGE_SUFFIXES):
            raise OutputError(f"{folder}: is the name of a file, but squares need a folder; name one")
        keep_apart([(photo, folder / photo.stem) for photo in photos])
        for photo in photos:
            if same_file(photo.parent, folder):
                raise OutputError(
                    f"{folder}: holds the photo {plain(photo.name)}, and squares would be taken for photos the next "
                    "time; choose another folder"
                )
        make_folder(folder)
        check_output(folder / "a.png")

    def cut(self, photo: Path) -> Report:
        """Write a photo's squares, all of them or, where one cannot have its place, none; returns its report."""
        with explain_out_of_memory(str(photo)):
            picture = load_image(photo)
            size, found = picture.size, squares_of(picture, self.settings)
            del picture
            squares = {self.folder / square.name(photo.stem): square.pixels for square in found.kept}
            places = self._places(squares)
            for output in squares:
                with places.reserved(output):
                    pass
            for output, pixels in squares.items():
                self._write(places, output, pixels)
        return {
            "input": str(photo),
            "size": list(size[::-1]),
            "squares": found.by_factor(self.settings),
            "left_out": _left_out(found),
            "files": [output.name for output in squares],
        }

    def make_leaves(self, numbers: range, failures: Failures) -> int:
        """Make the procedural pictures with these seeds; returns how many could be written."""
        outputs = {self.folder / leaf_name(seed): seed for seed in numbers}
        places, before = self._places(outputs), len(self.written)
        for output, seed in outputs.items():
            with failures.costing_no_other(output):
                self._write(places, output, leaves.picture(seed, self.settings.side, self.settings.side))
        return len(self.written) - before

    def _places(self, outputs: Collection[Path]) -> Places:
        """Raises OutputError where a link leads to a photo."""
        for output in outputs:
            if (photo := self.read.get(link_target(output))) is not None:
                raise OutputError(f"{output}: is the input {photo} and would be overwritten; choose another folder")
        return Places([(output, output) for output in outputs], named=False, overwrite=self.overwrite)

    def _write(self, places: Places, output: Path, pixels: Pixels) -> None:
        with places.reserved(output):
            save_image(output, Picture(from_array(pixels)), texts=places.texts)
        self.written.add(output)


def _left_out(found: Squares) -> Report:
    return {
        "flat": found.flat,
        "transparent": found.transparent,
        "too_small": [label(factor) for factor in found.too_small],
    }


def _in_words(report: Report) -> str:
    counts, left = report["squares"], report["left_out"]
    kept = ", ".join(f"{count} at 1/{factor}" for factor, count in counts.items() if factor not in left["too_small"])
    out = [f"{left[kind]} {kind}" for kind in ("flat", "transparent") if left[kind]]
    out += [f"too small for 1/{factor}" for factor in left["too_small"]]
    text = f"{plain(report['input'])}: {sum(counts.values())} squares"
    return text + (f" ({kept})" if kept else "") + (f"; left out: {', '.join(out)}" if out else "")


def _settings_report(options: argparse.Namespace) -> Report:
    return {
        "output": str(options.output),
        "side": options.side,
        "shrink": options.shrink,
        "least": options.least,
        "seed": options.seed,
        "version": __version__,
    }
