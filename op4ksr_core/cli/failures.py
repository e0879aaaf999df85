"""Several pictures in one run: a bad one costs no other, and the last line says how many failed."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Op4ksrError
from .console import in_one_line, tell


class Failures:
    """Of ``total`` pictures those that failed. An error of the only one is raised instead."""

    def __init__(self, total: int) -> None:
        self.total, self.count = total, 0

    def add(self, source: Path, error: Exception) -> str:
        """Tell the sentence of what escaped while a picture was made, and give it. Raises it, if it is the only one."""
        sentence = in_one_line(error, source)
        if self.total == 1:
            raise error if isinstance(error, Op4ksrError) else Op4ksrError(sentence)
        self.count += 1
        tell(f"error: {sentence}")
        return sentence

    @contextmanager
    def costing_no_other(self, source: Path) -> Generator[None]:
        """Inside, one picture is made: whatever escapes is its line, as ``add`` has it."""
        try:
            yield
        except Exception as error:
            self.add(source, error)

    def close(self) -> int:
        """Tell how many failed, if any did. Returns the exit status: 0, or 1."""
        if self.count:
            tell(f"{self.count} of {self.total} pictures failed")
        return 1 if self.count else 0
