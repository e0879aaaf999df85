"""CRC-32 of tensors, kept in their file's metadata: a disk that lost a part of a file gives zeros in its place."""

from __future__ import annotations

import json
import zlib
from typing import Any

import torch
from torch import Tensor

#: The metadata's key.
CHECKSUMS = "op4ksr.crc32"


def checksums(tensors: dict[str, Tensor]) -> str:
    """Of each tensor by name, as JSON."""
    return json.dumps({name: _checksum(tensor) for name, tensor in tensors.items()})


def damaged(tensors: dict[str, Tensor], metadata: dict[str, str]) -> str | None:
    """The name of a tensor whose bytes are others than those saved, or None; also for a file without checksums.

    Raises ValueError and RecursionError for metadata that is damaged itself.
    """
    known: Any = json.loads(metadata.get(CHECKSUMS, "{}"))
    if not isinstance(known, dict):
        raise ValueError("its checksums are damaged")
    return next((name for name, t in tensors.items() if name in known and known[name] != _checksum(t)), None)


def _checksum(tensor: Tensor) -> int:
    data: Any = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return zlib.crc32(data)
