"""Linear layers whose weights are 8-bit floats (e4m3): half of bfloat16's bytes, for the transformer's blocks.

One scale per matrix, so that its largest weight is e4m3's largest number; plain fp8 files hold weights without
one. Two ways to multiply: cast up at the call (any device; saves memory alone), or as 8-bit floats by
``torch._scaled_mm`` (Hopper and Ada; on a CPU it is right, not fast), the input scaled by its own largest value.
The layers that are few and small (before and after the blocks) stay as they are. All of this is our choice.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from op4ksr_core.models.flux import Flux

#: How a product with 8-bit weights is made.
Product = Literal["cast", "scaled"]
PRODUCTS: tuple[Product, ...] = get_args(Product)

FP8 = torch.float8_e4m3fn
_LARGEST = torch.finfo(FP8).max

#: Fewer rows than this (the modulation's one) are cast up: such products wait for memory, not for arithmetic.
FEWEST_ROWS = 16


class Fp8Linear(nn.Module):
    """x (..., in) -> (..., out) in x's dtype; ``weight`` (out, in) in fp8, to be multiplied by ``scale`` ()."""

    def __init__(self, like: nn.Linear, product: Product) -> None:
        super().__init__()
        place = like.weight.device
        self.product: Product = product
        self.weight = nn.Parameter(torch.empty(like.weight.shape, dtype=FP8, device=place), requires_grad=False)
        self.scale = nn.Parameter(torch.ones((), device=place), requires_grad=False)
        self.bias = like.bias

    def take(self, weight: Tensor) -> None:
        """Hold this weight (out, in), any float dtype, as nearly as fp8 can."""
        scaled, scale = scaled_to_fp8(weight)
        self.weight.data.copy_(scaled)
        self.scale.data.copy_(scale)

    def forward(self, x: Tensor) -> Tensor:
        if self.product == "cast" or x.numel() < FEWEST_ROWS * x.shape[-1]:
            return F.linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype), self.bias)
        rows, scale = scaled_to_fp8(x.flatten(0, -2))
        return scaled_mm(rows, self.weight.t(), scale, self.scale, x.dtype, self.bias).unflatten(0, x.shape[:-1])


def scaled_to_fp8(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """The tensor over a scale () float32, in fp8; and the scale, which makes the largest value e4m3's largest.

    The scale is one of the tensor's own numbers, as it divides them: else all came back up to 0.3 % too large or
    too small in bfloat16; and 0 is none of them.
    """
    largest = torch.linalg.vector_norm(tensor, math.inf, dtype=torch.float32)  # without a copy of its magnitudes
    scale = (largest / _LARGEST).clamp(min=torch.finfo(tensor.dtype).tiny).to(tensor.dtype)
    return (tensor / scale).clamp_(-_LARGEST, _LARGEST).to(FP8), scale.float()


def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype, bias: Any = None) -> Tensor:
    """a (M, K) times b (K, N), column-major, both fp8, K and N multiples of 16; scales () float32 -> (M, N)."""
    product: Any = torch._scaled_mm  # pyright: ignore
    fused = bias if dtype != torch.float32 else None  # CUDA adds none to a float32 product (read)
    result = product(a, b, scale_a=scale_a, scale_b=scale_b, bias=fused, out_dtype=dtype, use_fast_accum=True)
    return result if fused is bias else result.add_(bias)


def has_scaled_mm(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floats; tried with a small product."""
    try:
        a, one = torch.ones(32, 32, device=device).to(FP8), torch.ones((), device=device)
        return bool((scaled_mm(a, a.t(), one, one, torch.bfloat16) == 32).all())
    except (RuntimeError, AttributeError, TypeError):
        return False


def store_in_fp8(flux: Flux, product: Product) -> None:
    """Make the blocks' linear layers fp8 ones, in place; on the meta device their weights are yet to come."""
    for blocks in (flux.double_blocks, flux.single_blocks):
        for parent in list(blocks.modules()):
            for name, layer in list(parent.named_children()):
                if isinstance(layer, nn.Linear):
                    small = Fp8Linear(layer, product)
                    if layer.weight.device.type != "meta":
                        small.take(layer.weight)
                    setattr(parent, name, small)
