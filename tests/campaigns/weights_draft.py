"""A safetensors file as its parts, written by hand, so that each part can be wrong; and read without the library."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

#: Dtypes that the independent reader knows.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64,
          "I32": torch.int32, "I64": torch.int64, "BOOL": torch.bool, "U8": torch.uint8, "C64": torch.complex64,
          "F8_E4M3": torch.float8_e4m3fn}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass
class Draft:
    """Entries, metadata, and what is done to the bytes last. scale: what a merge must multiply the product with."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any] = field(default_factory=dict[str, Any])
    dtypes: dict[str, str] = field(default_factory=dict[str, str])
    shapes: dict[str, list[int]] = field(default_factory=dict[str, list[int]])
    offsets: dict[str, list[Any]] = field(default_factory=dict[str, list[Any]])
    header: Callable[[bytes], bytes] = lambda text: text
    bytes: Callable[[bytes], bytes] = lambda content: content
    #: Files beside it, or in its place; called with the folder and the file's path.
    place: Callable[[Path], Any] | None = None
    scale: float = 1.0

    def write(self, path: Path) -> None:
        entries: dict[str, Any] = {"__metadata__": self.metadata} if self.metadata else {}
        data = b""
        for name, tensor in self.tensors.items():
            content = tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b""
            entries[name] = {
                "dtype": self.dtypes.get(name, NAMES[tensor.dtype]),
                "shape": self.shapes.get(name, list(tensor.shape)),
                "data_offsets": self.offsets.get(name, [len(data), len(data) + len(content)]),
            }
            data += content
        text = self.header(json.dumps(entries).encode())
        path.write_bytes(self.bytes(struct.pack("<Q", len(text)) + text + data))
        if self.place is not None:
            self.place(path)


def raw_tensors(path: Path) -> dict[str, Tensor]:
    """What the file holds, by its own header and nothing else. Raises whatever is wrong with it."""
    content = path.read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + length])
    found: dict[str, Tensor] = {}
    for name, entry in entries.items():
        if name != "__metadata__":
            start, stop = (8 + length + at for at in entry["data_offsets"])
            tensor = torch.frombuffer(bytearray(content[start:stop]) or bytearray(1), dtype=torch.uint8)
            found[name] = tensor[: stop - start].clone().view(DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return found
