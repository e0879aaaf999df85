"""A frozen linear layer's weight in one byte a number: what a LoRA is trained on where memory is short.

torchao (PyTorch's own library; extra: train) chooses the scales and rounds. The product is ours: its weight-only
layers keep the widened weight for the backward pass, and take 6 to 10 bytes a number to widen it (counted on 0.18);
here a weight is widened by a plain cast, to what is computed in, once for each product, and the row's scale is
applied to the result.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, autocast, nn
from torch.nn import functional as F

from ...errors import OptionError

#: How a frozen base is held: as it was read, or one byte a number.
Base = Literal["plain", "fp8", "int8"]

DTYPES: dict[Base, torch.dtype] = {"fp8": torch.float8_e4m3fn, "int8": torch.int8}

#: How the names of a transformer's blocks begin. What is not in them (0.6 % of FLUX.1-dev's numbers) stays as it is.
BLOCKS = ("double_blocks.", "single_blocks.")


class _Product(torch.autograd.Function):
    """x W^T times the rows' scales, plus the bias. For the backward pass only the layer's own tensors are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
        ctx.weight, ctx.scale = weight, scale
        with autocast(x.device.type, enabled=False):
            product = F.linear(x, weight.to(x.dtype)).mul_(scale)
        return product if bias is None else product.add_(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        grad = grads[0]
        return (grad * ctx.scale).to(grad.dtype) @ ctx.weight.to(grad.dtype), None, None, None


class FrozenLinear(nn.Linear):
    """A linear layer that is never trained: ``weight`` (out, in) in fp8 or int8 times ``scale`` (out,) float32.

    Takes and returns what ``nn.Linear`` does, under autocast too; gradients reach its input alone.
    """

    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias is not None, device="meta")
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.register_buffer("scale", scale)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # pyright: ignore

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else input.dtype
        result: Any = _Product.apply(input.to(dtype), self.weight, self.scale, self.bias)
        return result


Freeze = Callable[[nn.Linear, Base], FrozenLinear]


def freeze_blocks(model: nn.Module, base: Base, freeze: Freeze | None = None) -> int:
    """Replace the blocks' linear layers by frozen ones, one layer after the other. Returns how many there were.

    model: a transformer whose blocks are named as BFL's, before ``lora.attach``. base: how the weights are held;
    "plain" changes nothing. freeze: what makes a frozen layer, in place of ``quantized``. Raises OptionError without
    torchao.
    """
    freeze, count = freeze or quantized, 0
    for name, module in list(model.named_modules()):
        if base != "plain" and isinstance(module, nn.Linear) and name.startswith(BLOCKS):
            parent, _, last = name.rpartition(".")
            setattr(model.get_submodule(parent), last, freeze(module, base))
            count += 1
    return count


def quantized(linear: nn.Linear, base: Base) -> FrozenLinear:
    """The layer with its weight rounded by torchao, symmetric, a scale for each row. Raises OptionError without it."""
    try:
        from torchao import quantization  # pyright: ignore

        config: Any = {"fp8": quantization.Float8WeightOnlyConfig, "int8": quantization.Int8WeightOnlyConfig}[base]()
    except (ImportError, AttributeError) as error:
        raise _without_torchao(base) from error
    holder = nn.Sequential(type(linear)(linear.in_features, linear.out_features, bias=False, device="meta"))
    holder[0].weight = nn.Parameter(linear.weight.detach(), requires_grad=False)
    quantization.quantize_(holder, config)
    made: Any = holder[0].weight
    if not hasattr(made, "qdata"):
        raise _without_torchao(base)
    return FrozenLinear(made.qdata, made.scale.flatten().float(), linear.bias)


def _without_torchao(base: Base) -> OptionError:
    return OptionError(f'train.base: "{base}" needs torchao 0.18 or later: pip install -U torchao')


def shapes_of(linear: nn.Linear, base: Base) -> FrozenLinear:
    """The same layer's shapes and dtypes with no value in it, for counting: torchao is not needed."""
    device = linear.weight.device
    weight = torch.empty(linear.weight.shape, dtype=DTYPES[base], device=device)
    return FrozenLinear(weight, torch.empty(linear.out_features, device=device), linear.bias)
