"""A LoRA file merged into a model in memory, for tests: the weights that the trained adapters stand for."""

from __future__ import annotations

from pathlib import Path

import torch

from op4ksr_core import Flux
from op4ksr_core.weights.lora import describe_lora, merged_weight, read_merge


def merge(model: Flux, path: Path, strength: float = 1.0) -> int:
    """Add the file to the model's weights. Returns how many pairs of factors it holds."""
    weights = dict(model.named_parameters())
    lora = read_merge(describe_lora(path).header, {n: tuple(w.shape) for n, w in weights.items()}, strength)
    with torch.no_grad():
        for name in lora.parts:
            weights[name].copy_(merged_weight(name, weights[name], [lora]))
    return sum(map(len, lora.parts.values()))
