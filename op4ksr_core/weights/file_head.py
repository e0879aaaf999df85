"""The start of a weights file, looked at byte by byte before any library opens it: what the file is, and whether its
header can be believed.

Format: https://github.com/huggingface/safetensors: 8 bytes of length, that much JSON, the tensors' bytes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import UnsupportedCheckpointError
from ..files import regular_file
from ..plain_text import plain
from .json_text import parse_json

#: Bytes of JSON that are read. As huggingface_hub, which reads headers of files it does not trust.
HEADER_LIMIT = 25_000_000

_WEB_PAGE = (b"<!doctype", b"<html", b"<?xml", b"<head", b"<!--")


def check_head(file: Path) -> None:
    """Raise UnsupportedCheckpointError unless this is an ordinary file that begins as a safetensors file does.

    Its length covers its tensors exactly; no name stands twice or holds anything but visible ASCII; metadata is text.
    """
    if (fault := regular_file(file)) is not None:
        raise _refuse(file, fault)
    try:
        size = file.stat().st_size
        with file.open("rb") as opened:
            start = opened.read(512)
            _check_format(file, start)
            length = int.from_bytes(start[:8], "little")
            _check_length(file, length, size)
            opened.seek(8)
            text = opened.read(length)
    except OSError as error:
        raise UnsupportedCheckpointError(file, f"cannot be opened ({error.strerror}); check its permissions") from error
    _check_entries(file, _entries(file, text), size - 8 - length)


def _refuse(file: Path, fault: str) -> UnsupportedCheckpointError:
    if fault == "not there":
        return UnsupportedCheckpointError(file, "no such file; check the name and the folder")
    if fault.startswith("not readable"):
        return UnsupportedCheckpointError(file, f"is {fault}; check its name and its permissions")
    return UnsupportedCheckpointError(file, f"is {fault}, and no weights file; choose a .safetensors file")


def _check_format(file: Path, start: bytes) -> None:
    """Refuse what is no safetensors file, and say what it is."""
    if start[:4] == b"GGUF":
        raise UnsupportedCheckpointError(
            file, "is GGUF: in ComfyUI load it with ComfyUI-GGUF's loader, then use Apply RFR and One-Step Upscale"
        )
    if start[8:9] == b"{":  # before the pickles: the header's length, in front, may look like the start of one
        return
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise UnsupportedCheckpointError(
            file, "is a PyTorch pickle, which may run code when opened; convert it to safetensors first"
        )
    if not start:
        raise UnsupportedCheckpointError(file, "is empty; fetch it again")
    _refuse_text(file, start.lstrip(b"\xef\xbb\xbf \t\r\n").lower())
    raise UnsupportedCheckpointError(file, "is no safetensors file, whatever its name; fetch it again, or take another")


def _refuse_text(file: Path, start: bytes) -> None:
    """What a download leaves under a model's name when something went wrong."""
    if start.startswith(b"version https://git-lfs"):
        raise UnsupportedCheckpointError(
            file, "is a Git LFS pointer, a few lines that stand for the file; fetch the file itself with 'git lfs pull'"
        )
    if start.startswith(_WEB_PAGE):
        raise UnsupportedCheckpointError(
            file, "is a web page that was saved under this name (perhaps the site asked for a login); fetch it again"
        )
    if start[:1] in (b"{", b"["):
        raise UnsupportedCheckpointError(file, "is JSON text, and no weights; fetch the file itself again")


def _check_length(file: Path, length: int, size: int) -> None:
    if length > size - 8:
        raise UnsupportedCheckpointError(
            file, f"is cut short: its header takes {length:,} bytes, but the whole file has {size:,}; fetch it again"
        )
    if length > HEADER_LIMIT:
        raise UnsupportedCheckpointError(
            file, f"has a header of {length:,} bytes, more than any model's; it is damaged: fetch it again"
        )


def _entries(file: Path, text: bytes) -> dict[str, Any]:
    try:
        return parse_json(text)  # an object: it begins with a brace
    except json.JSONDecodeError as error:
        reason = f"not JSON: {error.msg} at character {error.pos}"
    except UnicodeDecodeError as error:
        reason = f"not UTF-8 at byte {error.start}"
    except ValueError as error:
        reason = plain(error)
    raise UnsupportedCheckpointError(
        file, f"cannot be read as safetensors (header: {reason}); it is damaged: fetch it again"
    )


def _check_entries(file: Path, entries: dict[str, Any], room: int) -> None:
    metadata: Any = entries.pop("__metadata__", {})
    if not isinstance(metadata, dict):
        raise _damaged(file, "its metadata is no list of names and texts")
    for key, value in metadata.items():  # pyright: ignore[reportUnknownVariableType]
        if not isinstance(value, str):
            raise _damaged(file, f"its metadata {plain(key)} is no text")
    end = 0
    for name, entry in entries.items():
        if not name.isascii() or not name.isprintable() or not name:
            raise _damaged(file, f"the name of a tensor is none that a trainer writes: '{plain(name)}'")
        offsets = entry.get("data_offsets") if isinstance(entry, dict) else None  # pyright: ignore
        if not isinstance(offsets, list) or not all(isinstance(at, int) for at in offsets):  # pyright: ignore
            raise _damaged(file, f"{name}: expected dtype, shape and data_offsets")
        end = max(end, *offsets) if offsets else end
    if end > room:
        raise UnsupportedCheckpointError(
            file, f"is cut short: its tensors take {plain(end)} bytes, but {room:,} are there; fetch it again"
        )


def _damaged(file: Path, what: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(file, f"cannot be read as safetensors ({what}); it is damaged: fetch it again")
