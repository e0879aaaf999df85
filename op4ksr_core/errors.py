"""Errors that the user's input causes. Every message names the input and the remedy."""

from __future__ import annotations

from pathlib import Path

from .plain_text import plain_message


class Op4ksrError(Exception):
    """Base of all errors that the input causes; the text is one sentence for the user, made plain here."""

    def __init__(self, message: str) -> None:
        super().__init__(plain_message(message))


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
    """A file or folder that cannot be written."""


class OutOfMemoryError(Op4ksrError):
    """Memory ran out even with the settings that need least.

    No subclass of PyTorch's, which ComfyUI answers with approximate tiles.
    """
