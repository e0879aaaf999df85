"""LoRA on a Flux transformer: attach, train, save in PEFT's layout, merge.

Files carry diffusers' names (``transformer.transformer_blocks.0.attn.to_q.lora_A.weight``), which the
host's own LoRA loader and diffusers map onto their models. A fused projection of ours (qkv) becomes
three pairs there that share A, its scale is folded into B, and so no ``alpha`` is needed.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import save_tensors, transformer_metadata
from .errors import OptionError, UnsupportedCheckpointError
from .flux import Flux
from .header import PROMPT_KEYS, read_header, read_tensors
from .layouts import diffusers_parts

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

    def product(self) -> Tensor:
        """What is added to the base's weight, (out, in) float32."""
        return self.scale * self.up.float() @ self.down.float()


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
        raise OptionError(f"model.lora_targets: no layer of the blocks is named {' or '.join(targets)}")
    return found


def state_dict(adapters: dict[str, LoraLinear]) -> dict[str, Tensor]:
    """PEFT's names -> float32 tensors on the CPU, the scale folded into B."""
    found: dict[str, Tensor] = {}
    for name, adapter in adapters.items():
        down, up = adapter.down, adapter.scale * adapter.up
        parts = diffusers_parts(name)
        for part, rows in zip(parts, split_rows(adapter.base, len(parts)), strict=True):
            found[f"{PREFIX}{part}.lora_A.weight"] = down.detach().float().cpu().clone()
            found[f"{PREFIX}{part}.lora_B.weight"] = up[rows].detach().float().cpu().clone()
    return found


def split_rows(linear: nn.Linear, parts: int) -> list[slice]:
    """Rows of a fused projection that belong to each of its parts: q, k, v of the width, then the rest."""
    if parts == 1:
        return [slice(0, linear.out_features)]
    hidden = linear.in_features
    ends = [hidden, 2 * hidden, 3 * hidden, linear.out_features][: parts - 1] + [linear.out_features]
    return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True)]


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
    prompt = {k: t for k, t in zip(PROMPT_KEYS, (model.settings.txt, model.settings.vec), strict=True) if t is not None}
    save_tensors(path, {**state_dict(adapters), **prompt}, metadata, dtype)


def merge(model: Flux, path: str | Path, strength: float = 1.0) -> int:
    """Add a LoRA file (PEFT's layout, with ``alpha`` where given) to the weights; how many layers changed.

    Raises UnsupportedCheckpointError: no LoRA, or one for another model.
    """
    header = read_header(path)
    tensors = {name: t for name, t in read_tensors(header).items() if name not in PROMPT_KEYS}
    pairs = _pairs(tensors)
    changed = 0
    with torch.no_grad():
        for name, module in model.named_modules():
            if not isinstance(module, nn.Linear) or not re.match(r"(double|single)_blocks\.", name):
                continue
            parts = diffusers_parts(name)
            for part, rows in zip(parts, split_rows(module, len(parts)), strict=True):
                if (pair := pairs.pop(part, None)) is None:
                    continue
                added = pair[0] @ pair[1]
                target = module.weight[rows]
                if added.shape != target.shape:
                    raise UnsupportedCheckpointError(
                        path, f"{part} is {tuple(added.shape)}, the model's {tuple(target.shape)}: for another model"
                    )
                target += (strength * added).to(target)
                changed += 1
    if pairs or not changed:
        left = ", ".join(sorted(pairs)[:3]) or "no lora_A and lora_B"
        raise UnsupportedCheckpointError(path, f"is no LoRA for this model ({left}); take the one made for it")
    return changed


def _pairs(tensors: dict[str, Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Module (diffusers' name) -> (B, scaled; A), float32."""
    pairs: dict[str, tuple[Tensor, Tensor]] = {}
    for name, down in tensors.items():
        if not name.endswith(".lora_A.weight"):
            continue
        module = name.removesuffix(".lora_A.weight")
        up = tensors[f"{module}.lora_B.weight"].float()
        if (alpha := tensors.get(f"{module}.alpha")) is not None:
            up = up * (float(alpha) / len(down))
        pairs[module.removeprefix(PREFIX)] = (up, down.float())
    return pairs
