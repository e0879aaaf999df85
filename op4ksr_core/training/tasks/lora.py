"""LoRA on a Flux transformer: attach, train, save in PEFT's layout. ``weights.lora`` reads such files and merges them.

Files carry diffusers' names (``transformer.transformer_blocks.0.attn.to_q.lora_A.weight``), which the
host's own LoRA loader and diffusers map onto their models. A fused projection of ours (qkv) becomes
three pairs there that share A, its scale is folded into B, and so no ``alpha`` is needed.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import OptionError
from ...models.flux import Flux
from ...weights.checkpoint import prompt_tensors, save_tensors, transformer_metadata
from ...weights.layouts import diffusers_modules, rows_of_parts

#: What PEFT and diffusers put before a transformer's LoRA.
PREFIX = "transformer."


class LoraLinear(nn.Module):
    """x -> base(x) + (alpha / rank) B A x; the base is frozen, B starts at 0."""

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scale = alpha / rank
        start = torch.randn(rank, base.in_features, generator=generator) / base.in_features**0.5
        self.down = nn.Parameter(start.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    @property
    def weight(self) -> Tensor:
        """The base's, for readers of its dtype and device."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        added = F.linear(F.linear(x, self.down.to(x.dtype)), self.up.to(x.dtype))
        return self.base(x) + self.scale * added


def attach(model: Flux, rank: int, alpha: float, targets: tuple[str, ...], seed: int = 0) -> dict[str, LoraLinear]:
    """Put adapters on the blocks' linear layers whose names end in one of ``targets``; all else is frozen.

    Returns them by our module names. Raises OptionError where no layer is named so.
    """
    model.requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, LoraLinear] = {}
    for name, module in list(model.named_modules()):
        if not isinstance(module, nn.Linear) or not name.startswith(("double_blocks.", "single_blocks.")):
            continue
        if name.rpartition(".")[2] in targets:
            parent, _, last = name.rpartition(".")
            found[name] = LoraLinear(module, rank, alpha, generator)
            setattr(model.get_submodule(parent), last, found[name])
    if not found:
        raise OptionError(
            f"model.lora_targets: no layer of the blocks is named {' or '.join(targets)}; take last words of their "
            "names, as qkv, proj or linear1"
        )
    return found


def state_dict(adapters: dict[str, LoraLinear]) -> dict[str, Tensor]:
    """PEFT's names -> float32 tensors on the CPU, the scale folded into B."""
    found: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        down, up = adapter.down, adapter.scale * adapter.up
        parts = diffusers_modules(name)
        shape = (adapter.base.out_features, adapter.base.in_features)
        for part, (start, stop) in zip(parts, rows_of_parts(shape, len(parts), shape[1]), strict=True):
            found[f"{PREFIX}{part}.lora_A.weight"] = down.detach().float().cpu().clone()
            found[f"{PREFIX}{part}.lora_B.weight"] = up[start:stop].detach().float().cpu().clone()
    return found


def save_lora(
    path: str | Path,
    model: Flux,
    adapters: dict[str, LoraLinear],
    *,
    dtype: torch.dtype | None = None,
    training: str = "",
) -> None:
    """Write the adapters with the constants of the model they were trained on. Raises OutputError."""
    metadata = {**transformer_metadata(model, training), "op4ksr.kind": "lora"}
    save_tensors(path, {**state_dict(adapters), **prompt_tensors(model)}, metadata, dtype)
