"""Attention diversification (FluxSR, arXiv 2502.01993, equations 22 and 23): image tokens that do not all say the same.

FluxSR sees repeating patterns where the tokens of an attention's output are alike, and adds to its loss how alike they
are: f the output of an attention's last projection, the mean over the layers of the mean over the tokens n of
cos(f_n, mean of f). Layers here (our choice): the double blocks' ``img_attn.proj``, image tokens alone. The single
blocks have no such projection: their ``linear2`` sums attention and MLP, of text and image.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, autocast, nn

from ...errors import OptionError
from ...models.flux import Flux
from ...models.flux_layers import DoubleStreamBlock

#: Norms below it count as it, so that a token of zeros is at right angles to the mean.
SMALLEST = 1e-6


def likeness(features: Tensor) -> Tensor:
    """Mean over (B, N, D), N tokens, of the cosine of each to their mean: in [-1, 1], a scalar, float32 or float64."""
    with autocast(features.device.type, enabled=False):
        features = features if features.dtype == torch.float64 else features.float()
        mean = features.mean(dim=1)
        products = torch.einsum("b n d, b d -> b n", features, mean)
        lengths = torch.linalg.vector_norm(features, dim=-1).clamp(min=SMALLEST)
        length = torch.linalg.vector_norm(mean, dim=-1, keepdim=True).clamp(min=SMALLEST)
        return (products / (lengths * length)).mean()


class AttentionLikeness:
    """Listens to a transformer's double blocks; their linear layers may be plain, frozen, or have adapters.

    Each layer's ``likeness`` is computed within its block, so that where blocks are checkpointed it is computed again
    in the backward pass, in place of being kept with all its tokens. Without gradients nothing is computed.
    """

    def __init__(self, flux: Flux) -> None:
        self._found: list[Tensor] | None = None
        for block in flux.double_blocks:
            assert isinstance(block, DoubleStreamBlock)
            block.img_attn.proj.register_forward_hook(self._listen)

    def _listen(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if not torch.is_grad_enabled():
            return
        found = likeness(output)
        if self._found is not None:  # not while a block is computed again
            self._found.append(found)

    @contextmanager
    def collected(self) -> Generator[list[Tensor], None, None]:
        """The list that gets the likeness of each layer of what is computed inside, first layer first."""
        self._found = []
        try:
            yield self._found
        finally:
            self._found = None


def check_reached(flux: Flux) -> None:
    """Raise OptionError where no trained weight has a say in what ``AttentionLikeness`` hears."""
    trained = [name for name, parameter in flux.named_parameters() if parameter.requires_grad]
    if not any(not name.startswith(("single_blocks.", "final_layer.")) for name in trained):
        raise OptionError(
            "loss.diversity: looks at the double blocks, and model.lora_targets name none of their layers; add one, "
            "as qkv or proj, or set it to 0"
        )
