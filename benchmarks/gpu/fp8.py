"""Products of 8-bit floats by ``torch._scaled_mm``: what the transformer gains from them is a question for a GPU.

Training's frozen layer holds the weight, a scale for each row; here the input is rounded too, a scale for each of its
rows, so that the product itself is one of 8-bit floats (Hopper, Ada; on a CPU it is right, not fast). Attention, the
layers outside the blocks and the VAE stay as they are. Our choice.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from op4ksr_core.models.flux import Flux
from op4ksr_core.training.tasks.frozen import Base, FrozenLinear, freeze_blocks

FP8 = torch.float8_e4m3fn
LARGEST = torch.finfo(FP8).max

#: Fewer rows than this (the modulation's one) are cast up: such products wait for memory, not for arithmetic.
FEWEST_ROWS = 16


class ScaledLinear(FrozenLinear):
    """x (..., in) -> (..., out) in x's dtype; in and out multiples of 16, as ``_scaled_mm`` wants them."""

    @classmethod
    def of(cls, linear: nn.Linear, base: Base = "fp8") -> ScaledLinear:
        """The layer with its weight rounded."""
        weight, scale = by_rows(linear.weight.detach())
        return cls(weight, scale[:, 0], linear.bias)

    def forward(self, input: Tensor) -> Tensor:
        rows = input.flatten(0, -2)
        if len(rows) < FEWEST_ROWS:
            return super().forward(input)
        rounded, scale = by_rows(rows)
        product = scaled_mm(rounded, self.weight.t(), scale, self.scale[None], input.dtype)
        product = product if self.bias is None else product.add_(self.bias)
        return product.unflatten(0, input.shape[:-1])


def by_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """matrix (M, K) -> the same over its scale, in fp8, and the scale (M, 1) float32; a row's largest becomes fp8's.

    The scale is a number of the matrix's own dtype, as it divides there: else all came back up to 0.3 % too large or
    too small in bfloat16.
    """
    largest = torch.linalg.vector_norm(matrix, math.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scale = (largest / LARGEST).clamp(min=torch.finfo(matrix.dtype).tiny).to(matrix.dtype)
    return (matrix / scale).clamp_(-LARGEST, LARGEST).to(FP8), scale.float()


def scaled_mm(a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, dtype: torch.dtype) -> Tensor:
    """a (M, K) times b (K, N), column-major, both fp8; scales (M, 1) and (1, N) float32 -> (M, N) in ``dtype``."""
    product: Any = torch._scaled_mm  # pyright: ignore
    return product(a, b, scale_a=scale_a, scale_b=scale_b, out_dtype=dtype, use_fast_accum=True)


def store_in_fp8(flux: Flux) -> None:
    """Make the blocks' linear layers fp8 ones, in place, one after the other."""
    freeze_blocks(flux, "fp8", ScaledLinear.of)


def has_scaled_mm(device: torch.device) -> bool:
    """Whether the device multiplies 8-bit floats with scales by row; tried with a small product."""
    try:
        a, ones = torch.ones(32, 32, device=device).to(FP8), torch.ones(32, 1, device=device)
        return bool((scaled_mm(a, a.t(), ones, ones.t(), torch.bfloat16) == 32).all())
    except (RuntimeError, AttributeError, TypeError, ValueError):
        return False
