"""Which pictures are meant, and where what is made of them goes: nothing is overwritten that came in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..errors import OptionError, OutputError
from ..files import make_folder
from .io import IMAGE_SUFFIXES, check_output


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


def output_paths(sources: Sequence[Path], output: Path) -> list[tuple[Path, Path]]:
    """Each input with its output: OUT itself for one input, OUT/<name>.png for several or a folder.

    Raises OutputError before anything is computed where OUT cannot be.
    """
    if len(sources) == 1 and not output.is_dir() and output.suffix:
        if not output.parent.is_dir():
            raise OutputError(f"{output.parent}: no such folder; create it first")
        check_output(output)
        return keep_apart([(sources[0], output)])
    if output.is_file() or (output.suffix.lower() in IMAGE_SUFFIXES and not output.is_dir()):
        raise OutputError(f"{output}: is the name of one file, but {len(sources)} pictures need a folder; name one")
    taken: dict[str, Path] = {}
    for source in sources:
        if source.stem in taken:
            raise OutputError(f"{source} and {taken[source.stem]} would both become {source.stem}.png; rename one")
        taken[source.stem] = source
    pairs = keep_apart([(source, output / f"{source.stem}.png") for source in sources])
    make_folder(output)
    check_output(pairs[0][1])
    return pairs


def keep_apart(pairs: list[tuple[Path, Path]]) -> list[tuple[Path, Path]]:
    """The pairs, unless one would overwrite its own input: nobody shall lose a photo."""
    for source, output in pairs:
        if source.resolve() == output.resolve():
            raise OutputError(f"{output}: is the input itself and would be overwritten; choose another name or folder")
    return pairs
