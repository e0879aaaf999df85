"""JSON out of files and headers that no one has checked: every way to be wrong is a ValueError that says which."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from ..files import regular_file
from ..plain_text import plain

#: Bytes of a JSON file that are read (a config, a shard index). Our choice: an index of 100,000 tensors takes 10 MB.
FILE_LIMIT = 25_000_000


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text in UTF-8, in which no name stands twice in one object. Raises ValueError."""
    try:
        return json.loads(text, object_pairs_hook=_object)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def read_json(path: Path) -> Any:
    """The value in a JSON file. FileNotFoundError where there is none, OSError or ValueError for everything else."""
    fault = regular_file(path)
    if fault == "not there":
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))
    if fault is not None:
        raise ValueError(f"it is {fault}")
    if (size := path.stat().st_size) > FILE_LIMIT:
        raise ValueError(f"it has {size:,} bytes, more than any such file")
    return parse_json(path.read_bytes())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise ValueError(f"holds {plain(twice)} twice")
    return found
