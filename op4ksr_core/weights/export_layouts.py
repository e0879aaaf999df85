"""Our (BFL) tensors -> diffusers' ones: ``layouts`` read backwards, exactly (no number is changed).

A piece says which rows of which of our tensors a tensor of diffusers' is. LoRA files speak of the
same pieces, so ``lora_file`` reads them here too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from .layouts import Shape, diffusers_autoencoder_name, diffusers_modules


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one of our tensors, and how they are written down by diffusers."""

    source: str
    start: int
    stop: int
    how: Literal["copy", "swap_halves", "as_linear"] = "copy"

    def shape(self, ours: Shape) -> Shape:
        """The shape of diffusers' tensor, of that of ours."""
        return (self.stop - self.start, *(ours[1:2] if self.how == "as_linear" else ours[1:]))

    def make(self, ours: Tensor) -> Tensor:
        """diffusers' tensor, of ours."""
        rows = ours[self.start : self.stop]
        if self.how == "swap_halves":  # BFL: (shift, scale); diffusers: (scale, shift)
            return torch.cat(rows.chunk(2)[::-1])
        return rows.flatten(1) if self.how == "as_linear" else rows


Export = dict[str, Piece]


def export_flux(shapes: Mapping[str, Shape]) -> Export:
    """{diffusers' name: Piece} of a transformer's tensors; a name that diffusers lacks is left out."""
    export: Export = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        suffix = "weight" if kind == "scale" else kind
        parts = diffusers_modules(module)
        how = "swap_halves" if module.startswith("final_layer.adaLN") else "copy"
        for part, (start, stop) in zip(parts, rows_of_parts(shape, len(parts), _width(shapes)), strict=True):
            export[f"{part}.{suffix}"] = Piece(name, start, stop, how)
    return export


def _width(shapes: Mapping[str, Shape]) -> int:
    """The transformer's hidden size."""
    return shapes["img_in.weight"][0]


def rows_of_parts(shape: Shape, parts: int, width: int) -> list[tuple[int, int]]:
    """[start, stop) of each part: q, k and v are ``width`` rows each, a single block's MLP is the rest."""
    if parts < 2:
        return [(0, shape[0])] * parts
    starts = [i * width for i in range(parts)]
    return list(zip(starts, [*starts[1:], shape[0]], strict=True))


def export_autoencoder(shapes: Mapping[str, Shape]) -> Export:
    """{diffusers' name: Piece} of an autoencoder's tensors."""
    levels = 1 + max((int(name.split(".")[2]) for name in shapes if name.startswith("decoder.up.")), default=0)
    export: Export = {}
    for name, shape in shapes.items():
        in_attention = ".mid.attn_1." in name and name.endswith("weight") and len(shape) == 4
        how = "as_linear" if in_attention else "copy"
        export[diffusers_autoencoder_name(name, levels)] = Piece(name, 0, shape[0], how)
    return export
