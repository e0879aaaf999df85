"""Which pictures are meant, and where what is made of them goes: nothing is overwritten that came in."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path

from ..errors import OptionError, OutputError
from ..files import link_target, make_folder, same_file
from .io import IMAGE_SUFFIXES, check_output

Pair = tuple[Path, Path]


def gather(inputs: Sequence[Path]) -> list[Path]:
    """The pictures meant: files as they are, folders by what is in them, in order."""
    found: list[Path] = []
    for path in inputs:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            if not inside:
                raise OptionError(f"{path}: no pictures in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
            found += inside
        else:
            found.append(path)
    return found


def output_paths(sources: Sequence[Path], output: Path, also_read: Sequence[Path] = ()) -> list[Pair]:
    """Each input with its output: OUT itself for one input, OUT/<name>.png for several or a folder.

    also_read: further pictures that the run reads, such as references.

    Raises OutputError before anything is computed where OUT cannot be, where two outputs would be one file (names that
    differ only in case are one on some disks, and are refused on all: our choice), or where one would overwrite an
    input.
    """
    if len(sources) == 1 and not output.is_dir() and output.suffix:
        if not output.parent.is_dir():
            raise OutputError(f"{output.parent}: no such folder; create it first")
        check_output(output)
        return keep_apart([(sources[0], output)], also_read)
    if output.is_file() or (output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()):
        raise OutputError(f"{output}: is the name of one file, but {len(sources)} pictures need a folder; name one")
    pairs = keep_apart([(source, output / f"{source.stem}.png") for source in sources], also_read)
    make_folder(output)
    check_output(pairs[0][1])
    return pairs


def keep_apart(pairs: list[Pair], also_read: Sequence[Path] = ()) -> list[Pair]:
    """The pairs, unless two outputs are one file, or an output is an input: no photo is lost.

    also_read: further pictures that the run reads, such as references. Raises OutputError.
    """
    taken: dict[str, Path] = {}
    for source, output in pairs:
        name = unicodedata.normalize("NFC", str(link_target(output)).casefold())  # some disks ignore case and spelling
        if name in taken:
            raise OutputError(f"{source} and {taken[name]} would both become {output.name}; rename one")
        taken[name] = source
    read = {link_target(path): path for path in (*also_read, *(source for source, _ in pairs))}
    for source, output in pairs:
        if same_file(source, output):
            raise OutputError(f"{output}: is the input itself and would be overwritten; choose another name or folder")
        other = read.get(link_target(output)) or next((path for path in also_read if same_file(path, output)), None)
        if other is not None:
            raise OutputError(f"{output}: is the input {other} and would be overwritten; choose another name or folder")
    return pairs
