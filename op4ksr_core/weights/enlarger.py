"""The enlarger's weights file: safetensors whose shapes tell the geometry, written and read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..base import Base, Bicubic, Choice, Learned
from ..bundled import BUNDLED_ENLARGER
from ..errors import UnsupportedCheckpointError
from ..machine import default_dtype
from ..models.enlarger import IN_CHANNELS, Enlarger, EnlargerParams
from ..models.flux import Output
from .checkpoint import check_tensors, read_state, save_tensors
from .description import check_filled
from .header import Header, check_dtypes, check_finite, read_header
from .layouts import Shape

KIND = "enlarger"

#: Tensors in one block.
BLOCK_TENSORS = 4

#: A number in a tensor's name, in its usual spelling and not too long to be read.
_NUMBER = r"(0|[1-9][0-9]{0,8})"


def describe_enlarger(source: Header | str | Path) -> tuple[Header, EnlargerParams]:
    """Header and geometry of an enlarger's file, from its tensors' shapes alone.

    Raises UnsupportedCheckpointError: no such file, not safetensors, not an enlarger of ours, damaged names or shapes,
    dtypes of no weights.
    """
    header = source if isinstance(source, Header) else read_header(source)
    shapes = {name: header.shape(name) for name in header.names}
    entry = shapes.get("conv_in.weight", ())
    blocks = _numbers(shapes, rf"body\.{_NUMBER}\.conv1\.weight")
    factors = _numbers(shapes, rf"heads\.{_NUMBER}\.weight")
    if len(entry) != 4 or entry[0] < 1 or entry[1] != IN_CHANNELS or not blocks or not factors or factors[0] < 2:
        stated = header.metadata.get("op4ksr.kind", header.kind)
        if stated == KIND:
            raise UnsupportedCheckpointError(
                header.path, "an enlarger without its input layer, blocks or heads; it is damaged: fetch it again"
            )
        raise UnsupportedCheckpointError(
            header.path,
            f'expected an enlarger (metadata op4ksr.kind "{KIND}"), got "{stated}"; choose an enlarger\'s file',
        )
    check_dtypes(header, header.shapes)
    header.layout()  # refuses gaps in the blocks' numbers
    width = entry[0]
    check_filled(header, len(blocks) * BLOCK_TENSORS, 9 * width * max(width, IN_CHANNELS, 3 * factors[-1] ** 2))
    return header, EnlargerParams(width=width, blocks=len(blocks), factors=tuple(factors))


def _numbers(shapes: dict[str, Shape], pattern: str) -> list[int]:
    """The numbers in those tensor names that match, ascending. A name with another spelling of a number fits nothing
    later, and is refused by name."""
    found = (re.fullmatch(pattern, name) for name in shapes)
    return sorted(int(match[1]) for match in found if match)


def load_enlarger(
    path: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = nn,
) -> Enlarger:
    """Read an enlarger. dtype: default ``machine.default_dtype``.

    Raises UnsupportedCheckpointError: no such file, not safetensors, not an enlarger, wrong tensors or dtypes,
    numbers that are not finite.
    """
    header, params = describe_enlarger(path)
    model = Enlarger(params, operations=operations, device="meta")
    check_tensors(model, header, header.layout())
    dtype = dtype or default_dtype(torch.device(device))
    state = read_state(header)
    for name, tensor in state.items():
        check_finite(header, name, tensor)
    state = {name: tensor.to(device=device, dtype=dtype) for name, tensor in state.items()}
    model.load_state_dict(state, strict=True, assign=True)
    return model.eval().requires_grad_(False)


def save_enlarger(path: str | Path, model: Enlarger, *, dtype: torch.dtype | None = None, training: str = "") -> None:
    """Write weights and metadata; whole or not at all. Raises OutputError."""
    factors = ",".join(map(str, model.params.factors))
    metadata = {"op4ksr.kind": KIND, "op4ksr.factors": factors, "op4ksr.training": training}
    save_tensors(path, model.state_dict(), metadata, dtype)


def choose_base(choice: Choice, output: Output, device: torch.device | str = "cpu") -> Base:
    """What enlarges by its name, for a model whose output is that. The enlarger runs in float32, as its detail is fine.

    Raises UnsupportedCheckpointError where the bundled file is damaged.
    """
    if choice == "bicubic" or (choice == "auto" and output == "picture"):
        return Bicubic()
    return Learned(load_enlarger(BUNDLED_ENLARGER, device=device, dtype=torch.float32), "bundled")
