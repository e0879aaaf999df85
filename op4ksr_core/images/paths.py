"""Which pictures are meant, and where what is made of them goes: nothing is overwritten that came in."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from ..errors import OptionError, OutputError
from ..files import claimed, link_target, make_folder, regular_file, remove_stale, same_file
from ..plain_text import plain, plain_logger
from .formats import IMAGE_SUFFIXES
from .io import check_output

log = plain_logger(__name__)

Pair = tuple[Path, Path]

#: Text of the PNG files whose names we choose, so that a later run may replace them.
MADE_HERE = {"Software": "OP4KSR"}

#: Bytes of a PNG in which our text is, which is written before the pixels.
_START = 1024

#: Names of files left out of a folder that are told.
_NAMED = 5


def gather(inputs: Sequence[Path]) -> list[Path]:
    """The pictures meant: files as they are, folders by what is in them, in order.

    Of a folder's files those whose endings we read; what else is in it is named once in the log, save hidden files
    (as ``._photo.jpg``, which is no photo, and what is not finished). Raises OptionError: a folder that cannot be
    listed, or without pictures.
    """
    found: list[Path] = []
    for path in inputs:
        found += _inside(path) if os.path.isdir(path) else [path]
    return found


def _inside(folder: Path) -> list[Path]:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise OptionError(f"{folder}: the folder cannot be read ({error.strerror}); check its rights") from error
    pictures, others = [], []
    for name in names:
        path = folder / name
        if path.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(path):
            pictures.append(path)
        else:
            others.append(plain(name, 60) + ("/" if os.path.isdir(path) else ""))
    if not pictures:
        raise OptionError(f"{folder}: no pictures in this folder (looked for {', '.join(IMAGE_SUFFIXES)})")
    if others:
        more = f" and {len(others) - _NAMED:,} more" if len(others) > _NAMED else ""
        log.warning("%s: not taken for pictures: %s%s", folder, ", ".join(others[:_NAMED]), more)
    return pictures


def output_paths(sources: Sequence[Path], output: Path, also_read: Sequence[Path] = ()) -> list[Pair]:
    """Each input with its output: OUT itself for one input, OUT/<name>.png for several or a folder.

    also_read: further pictures that the run reads, such as references.

    Raises OutputError before anything is computed where OUT cannot be, where two outputs would be one file (names that
    differ only in case are one on some disks, and are refused on all: our choice), or where one would overwrite an
    input.
    """
    if is_named(sources, output):
        if not os.path.isdir(output.parent):
            raise OutputError(f"{output.parent}: no such folder; create it first")
        check_output(output)
        return keep_apart([(sources[0], output)], also_read)
    if os.path.isfile(output) or (output.suffix.lower() in IMAGE_SUFFIXES and not os.path.isdir(output)):
        raise OutputError(f"{output}: is the name of one file, but {len(sources)} pictures need a folder; name one")
    pairs = keep_apart([(source, output / f"{source.stem}.png") for source in sources], also_read)
    make_folder(output)
    check_output(output / "a.png")
    return pairs


def is_named(sources: Sequence[Path], output: Path) -> bool:
    """Whether OUT is one file, named by the user, and no folder in which we choose the names."""
    return len(sources) == 1 and not os.path.isdir(output) and bool(output.suffix)


class Places:
    """The outputs of a run: each is written by this run alone, and over nothing that it should not replace.

    A file that the user named is replaced, as with any command. Under a name that we choose, a file is replaced only if
    ``MADE_HERE`` is in it and it was there when the run began, unless ``overwrite`` says that anything may be.
    """

    def __init__(self, pairs: Sequence[Pair], named: bool, overwrite: bool = False) -> None:
        self.named, self.overwrite = named, overwrite
        self.texts = {} if named else MADE_HERE
        self._before = {output: _identity(output) for _, output in pairs}
        if not named:
            for folder in {output.parent for _, output in pairs}:
                remove_stale(folder)

    @contextmanager
    def reserved(self, output: Path) -> Generator[None]:
        """Inside, the place is ours. Raises OutputError where it cannot be."""
        check_output(output)
        if self.named:
            yield
            return
        with ExitStack() as held:
            try:
                ours = held.enter_context(claimed(output))
            except OSError as error:
                raise OutputError(f"{output}: cannot be written ({error.strerror}); choose another folder") from error
            if not ours:
                raise OutputError(f"{output}: another run is making it; name another folder, or wait for that run")
            self._check(output)
            yield

    def _check(self, output: Path) -> None:
        now = _identity(output)
        if now is None:
            return
        if os.path.isdir(output):
            raise OutputError(f"{output}: cannot be written (is a folder); choose another folder")
        if now != self._before[output]:
            raise OutputError(f"{output}: another run has written it meanwhile; it is left as it is")
        if not (self.overwrite or _made_here(output)):
            raise OutputError(
                f"{output}: is there already, and not from here; --overwrite replaces it, or choose another folder"
            )


def _identity(path: Path) -> tuple[int, int, int] | None:
    """What changes when a file is written again; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _made_here(path: Path) -> bool:
    """Whether a PNG says so."""
    if regular_file(path) is not None:
        return False
    try:
        with path.open("rb") as file:
            start = file.read(_START)
    except OSError:
        return False
    texts = (b"tEXt" + f"{key}\0{value}".encode("latin-1") for key, value in MADE_HERE.items())
    return start.startswith(b"\x89PNG") and all(text in start for text in texts)


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
