"""Files that are written whole or not at all: whoever reads sees the old one or the new one, never a part."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from .errors import OutputError


@contextmanager
def written_whole(path: Path, suffix: str = ".part") -> Generator[Path, None, None]:
    """Gives a temporary file in the same folder, which becomes ``path`` when the block ends without an error.

    After an error it is deleted, and what was at ``path`` is untouched. Raises OSError where the folder cannot be
    written to; the caller says it in a sentence. suffix: of the temporary file, for writers that go by it.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, suffix=suffix)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        temporary.chmod(0o644)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text; whole or not at all. Raises OutputError."""
    try:
        with written_whole(path) as temporary:
            temporary.write_text(text, "utf-8")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def make_folder(path: Path) -> None:
    """Create the folder if there is none. Raises OutputError."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{path}: cannot be created ({error.strerror}); choose another folder") from error
