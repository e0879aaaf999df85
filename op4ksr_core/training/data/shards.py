"""Tar shards in WebDataset's layout: files of one name but for the ending are one sample. Local files only."""

from __future__ import annotations

import os
import re
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import ImageError, OptionError
from ...images.formats import IMAGE_SUFFIXES
from ...images.io import Picture, picture_of_bytes, to_pil
from ...plain_text import plain, plain_logger
from ..config_paths import SCHEME

log = plain_logger(__name__)

Pixels = NDArray[np.uint8]

#: A range of numbers or a choice, in braces that hold no others.
_BRACES = re.compile(r"\{(?:([0-9]{1,9})\.\.([0-9]{1,9})|([^{}]*,[^{}]*))\}")

#: Shards that one path may name, pairs of braces in it, and the largest picture file in a shard, bytes. Our choice.
MOST_SHARDS, MOST_BRACES, LARGEST = 1_000_000, 16, 2**28

#: What a tar header may hold in addition to a file: names and a few facts, bytes.
_LARGEST_NOTE = 2**20


def shard_files(path: str) -> list[Path]:
    """The files that a path with braces names: ``a/{000..009}.tar``, ``{a,b}.tar``. None of them is opened.

    Raises OptionError for anything but a local path, and for a file that is not there.
    """
    found: list[Path] = []
    if path.count("{") > MOST_BRACES:
        raise OptionError(f"data.path: expected at most {MOST_BRACES} pairs of braces in {plain(path)!r}; name fewer")
    for name in _expanded(path):
        if len(found) == MOST_SHARDS:
            raise OptionError(f"data.path: {plain(path)!r} names more than {MOST_SHARDS:,} shards; name fewer")
        if SCHEME.match(name) or "::" in name:
            raise OptionError(
                f"data.path: expected local files, such as shards/{{000..009}}.tar, got {name!r}; "
                "copy the shards to this machine and name them there"
            )
        if not os.path.isfile(name):  # False, too, for a name that no disk takes
            raise OptionError(f"data.path: {name}: no such shard; check the path and the numbers in braces")
        found.append(Path(name))
    return found


def _expanded(path: str) -> Iterator[str]:
    found = _BRACES.search(path)
    if found is None:
        yield path
        return
    first, last, choice = found.groups()
    numbers = range(int(first), int(last) + 1) if choice is None else ()
    for part in choice.split(",") if choice is not None else (str(i).zfill(len(first)) for i in numbers):
        yield from _expanded(path[: found.start()] + part + path[found.end() :])


def shard_pictures(files: Sequence[Path]) -> Iterator[Pixels]:
    """The first picture (H, W, 3) of each sample, in the files' order; broken ones are left out with a warning.

    Raises OptionError for a file that is no tar file, or is cut short.
    """
    for file in files:
        try:
            with tarfile.open(file, "r|*", tarinfo=_Member) as tar:
                for _, members in groupby((m for m in tar if m.isfile()), key=_sample):
                    if (picture := _first_picture(tar, members, file)) is not None:
                        yield picture
        except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error) as error:
            raise OptionError(
                f"data.path: {file}: cannot be read as a tar file ({error}); replace it, or leave it out"
            ) from error


class _Member(tarfile.TarInfo):
    """A header that is read strictly: ``tarfile`` takes a damaged one behind the first for the archive's end."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Any:
        empty = len(buf) == 0 or buf.count(tarfile.NUL) == len(buf) == tarfile.BLOCKSIZE
        try:
            found = super().frombuf(buf, encoding, errors)
        except tarfile.TarError as error:
            if empty:  # its end
                raise
            raise tarfile.ReadError(f"a damaged header: {error}") from error
        if found.size < 0 or (found.type in _NOTES and found.size > _LARGEST_NOTE):
            raise tarfile.ReadError(f"a header that says {found.size:,} bytes")
        return found


#: Headers whose content belongs to the file after them, and is read at once.
_NOTES = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


def _sample(member: tarfile.TarInfo) -> str:
    """The sample's name: the path up to the first dot of its last part."""
    name = PurePosixPath(member.name)
    return str(name.with_name(name.name.partition(".")[0] or name.name))


def _first_picture(tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], file: Path) -> Pixels | None:
    """None for a sample without a picture, or with a broken one. Takes all members: the file is read as a stream."""
    found: Pixels | None = None
    seen = False
    for member in members:
        if seen or not member.name.lower().endswith(IMAGE_SUFFIXES):
            continue
        seen = True
        if member.size > LARGEST or member.issparse():
            log.warning("left out: %s in %s (%s bytes, or with holes)", member.name, file, f"{member.size:,}")
            continue
        opened = tar.extractfile(member)
        assert opened is not None  # it is a file
        content = opened.read()
        try:
            found = pixels_of(picture_of_bytes(content, f"{member.name} in {file}", PurePosixPath(member.name).suffix))
        except ImageError as error:
            log.warning("left out: %s", error)
    return found


def pixels_of(picture: Picture) -> Pixels:
    """(H, W, 3) uint8: the colours alone."""
    pixels: Any = np.asarray(to_pil(Picture(picture.image)))
    return pixels
