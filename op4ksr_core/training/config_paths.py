"""Which texts of a recipe may name files and folders: those on this machine."""

from __future__ import annotations

import re

#: http:, pipe:, s3: and the like. One letter before the colon is a drive's.
SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")

#: The longest path, and the longest name in one, bytes: what Linux takes.
_LONGEST, _LONGEST_NAME = 4096, 255


def fault_of_path(text: str) -> str | None:
    """None for a text that may be a path on this machine (or is empty), else what is wrong with it.

    Refused: addresses and pipes (``http:``, ``pipe:``, ``::``), other machines' folders (two backslashes or slashes at
    the beginning, which Windows asks the network for; our choice), and what no disk can hold.
    """
    if SCHEME.match(text) or "::" in text:
        return "an address or a program"
    if text.startswith(("\\\\", "//", "\\/", "/\\")):
        return "another machine's folder (give it a drive's letter, or mount it)"
    if "\0" in text:
        return "which holds a NUL"
    data = text.encode("utf-8", "surrogatepass")
    if len(data) > _LONGEST or any(len(name) > _LONGEST_NAME for name in data.split(b"/")):
        return "which is too long for a path"
    return None
