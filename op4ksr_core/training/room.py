"""Room on a disk, asked for before something large is made."""

from __future__ import annotations

import shutil
from pathlib import Path

from ..errors import OutputError


def check_room(path: Path, size: int, keys: str) -> None:
    """Raise OutputError where the disk of ``path``, whose folder is there, has no room for so many bytes.

    keys: what is to be lowered.
    """
    free = shutil.disk_usage(path.parent).free
    if size > free:
        raise OutputError(
            f"{path}: needs {size / 1e9:,.1f} GB, and the disk has {free / 1e9:,.1f} GB left; lower {keys}, or name "
            "another folder as data.cache"
        )
