"""What can be wrong with what a user gave us. Every message names it and the remedy."""

from __future__ import annotations

from pathlib import Path


class Op4ksrError(Exception):
    """Base of all errors that are the input's fault; its text is one sentence fit for a user."""


class UnsupportedCheckpointError(Op4ksrError):
    """A weights file that cannot be used: ``path``, and why, with the remedy."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = Path(path)
        self.reason = reason


class ImageError(Op4ksrError):
    """A picture (or a picture file) that cannot be used."""


class OptionError(Op4ksrError):
    """An option whose value cannot be used."""


class OutputError(Op4ksrError):
    """A place that cannot be written to."""


class OutOfMemoryError(Op4ksrError):
    """Memory ran out and every leaner way was tried. Not torch's: nobody shall retry it with tiles."""
