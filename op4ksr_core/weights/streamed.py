"""A safetensors file written tensor by tensor, so that a 24 GB model is converted in a few hundred MB.

Format: https://github.com/huggingface/safetensors (8 bytes of length, a JSON header, the bytes). The
library's own writer needs all tensors at once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OutputError
from ..files import written_whole
from .layouts import Shape

#: safetensors' names of what is stored: weights, and integers (a LoRA's alpha).
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
}


@dataclass(frozen=True)
class Entry:
    """One tensor to come: its dtype (a key of ``DTYPES``), its shape, and what makes it when its turn comes."""

    dtype: str
    shape: Shape
    make: Callable[[], Tensor]

    @property
    def bytes(self) -> int:
        """How many the tensor takes in the file."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


def write_safetensors(path: str | Path, entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> None:
    """Write in the entries' order (wide dtypes first, for alignment); whole or not at all. Raises OutputError."""
    path = Path(path)
    order = sorted(entries, key=lambda name: -DTYPES[entries[name].dtype].itemsize)  # stable
    try:
        with written_whole(path) as temporary, temporary.open("wb") as file:
            file.write(_header({name: entries[name] for name in order}, metadata))
            for name in order:
                file.write(_content(name, entries[name]))
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _header(entries: Mapping[str, Entry], metadata: Mapping[str, str]) -> bytes:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    start = 0
    for name, entry in entries.items():
        header[name] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, start := start + entry.bytes],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _content(name: str, entry: Entry) -> memoryview:
    tensor = entry.make()
    assert tensor.dtype == DTYPES[entry.dtype] and tuple(tensor.shape) == entry.shape, name
    return memoryview(tensor.contiguous().flatten().view(torch.uint8).numpy())  # pyright: ignore[reportArgumentType]
