"""A pack for a test server: a node that hands on any value to any input, and one that takes any output."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import torch


class AnyType(str):
    """A type that the host takes for every other."""

    def __ne__(self, other: object) -> bool:
        return False


def _circular() -> list[Any]:
    circle: list[Any] = []
    circle.append(circle)
    return circle


def _image(value: float = 0.5, *shape: int) -> torch.Tensor:
    return torch.full(shape or (1, 12, 16, 3), value)


def _conditioning(tokens: int = 2, width: int = 64, value: float = 0.1, **extra: Any) -> list[Any]:
    return [[torch.full((1, tokens, width), value), extra]]


#: Name -> what makes the value. tests/campaigns/test_odd_prompts.py says which input must refuse which.
VALUES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "true": lambda: True,
    "minus_one": lambda: -1,
    "zero": lambda: 0,
    "two_to_31": lambda: 2**31,
    "two_to_63": lambda: 2**63,
    "minus_two_to_63": lambda: -(2**63),
    "ten_to_400": lambda: 10**400,
    "1e308": lambda: 1e308,
    "nan": lambda: math.nan,
    "inf": lambda: math.inf,
    "minus_inf": lambda: -math.inf,
    "half": lambda: 0.5,
    "complex": lambda: 1j,
    "decimal_nan": lambda: Decimal("NaN"),
    "fraction": lambda: Fraction(1, 3),
    "numpy_nan": lambda: np.float32("nan"),
    "numpy_int": lambda: np.int64(64),
    "numpy_array": lambda: np.zeros((2, 2)),
    "empty_text": lambda: "",
    "text": lambda: "sepia",
    "number_as_text": lambda: "64",
    "surrogate": lambda: "a\ud800b",
    "escape": lambda: "\x1b[2J\x1b]0;owned\x07\n\r\u202eb",
    "nul": lambda: "a\0b",
    "long_text": lambda: "x" * 2_000_000,
    "climbing": lambda: "../../../../etc/passwd",
    "climbing_surrogate": lambda: "../\ud800",
    "bytes": lambda: b"\xff\x00bytes",
    "empty_dict": lambda: {},
    "dict": lambda: {"a": {"b": [1]}},
    "list_of_none": lambda: [None],
    "list_of_text": lambda: ["a", "b"],
    "deep_list": lambda: [[[[[[]]]]]],
    "circular": _circular,
    "object": object,
    "class": lambda: dict,
    "function": lambda: len,
    "tensor_scalar": lambda: torch.tensor(0.5),
    "tensor_1d": lambda: torch.zeros(3),
    "image": _image,
    "image_half": lambda: _image().half(),
    "image_double": lambda: _image().double(),
    "image_float8": lambda: _image().to(torch.float8_e4m3fn),
    "image_rgba_nan": lambda: _image(0.5, 1, 12, 16, 4).index_fill(3, torch.tensor([3]), math.nan),
    "image_transposed": lambda: _image(0.5, 1, 3, 16, 12).transpose(1, 3),
    "image_grey": lambda: _image(0.5, 1, 12, 16, 1),
    "image_rgba": lambda: _image(0.5, 1, 12, 16, 4),
    "image_of_one_pixel": lambda: _image(0.5, 1, 1, 1, 3),
    "image_2_channels": lambda: _image(0.5, 1, 12, 16, 2),
    "image_5_channels": lambda: _image(0.5, 1, 12, 16, 5),
    "image_3d": lambda: _image(0.5, 12, 16, 3),
    "image_5d": lambda: _image(0.5, 1, 1, 12, 16, 3),
    "image_no_batch": lambda: _image(0.5, 0, 12, 16, 3),
    "image_no_height": lambda: _image(0.5, 1, 0, 16, 3),
    "image_bytes": lambda: _image().mul(255).byte(),
    "image_complex": lambda: _image().to(torch.complex64),
    "image_bool": lambda: _image() > 0.4,
    "image_nan": lambda: _image().index_fill(1, torch.tensor([3]), math.nan),
    "image_inf": lambda: _image().index_fill(1, torch.tensor([3]), math.inf),
    "image_below_zero": lambda: _image(-1.0),
    "image_255": lambda: _image(255.0),
    "image_meta": lambda: _image().to("meta"),
    "image_sparse": lambda: _image().to_sparse(),
    "mask": lambda: _image(0.5, 1, 12, 16),
    "mask_2d": lambda: _image(0.5, 12, 16),
    "mask_4d": lambda: _image(0.5, 1, 1, 12, 16),
    "mask_last_channel": lambda: _image(0.5, 1, 12, 16, 1),
    "mask_nan": lambda: _image(math.nan, 1, 12, 16),
    "mask_inf": lambda: _image(math.inf, 1, 12, 16),
    "mask_empty": lambda: _image(0.5, 0, 12, 16),
    "mask_int": lambda: _image(0.5, 1, 12, 16).mul(255).int(),
    "latent_empty_dict": lambda: {},
    "latent_none": lambda: {"samples": None},
    "latent_text": lambda: {"samples": "a"},
    "latent": lambda: {"samples": _image(0.1, 1, 16, 2, 2)},
    "latent_nan": lambda: {"samples": _image(math.nan, 1, 16, 2, 2)},
    "latent_4_channels": lambda: {"samples": _image(0.1, 1, 4, 2, 2)},
    "latent_3d": lambda: {"samples": _image(0.1, 16, 2, 2)},
    "latent_5d": lambda: {"samples": _image(0.1, 1, 16, 1, 2, 2)},
    "latent_no_height": lambda: {"samples": _image(0.1, 1, 16, 0, 2)},
    "latent_int": lambda: {"samples": torch.ones(1, 16, 2, 2, dtype=torch.int32)},
    "conditioning_nan": lambda: _conditioning(value=math.nan),
    "conditioning_no_tokens": lambda: _conditioning(0),
    "conditioning_wide": lambda: _conditioning(2, 4096),
    "conditioning_2d": lambda: [[torch.zeros(2, 64), {}]],
    "conditioning_none": lambda: [[None, {}]],
    "conditioning_no_extra": lambda: [[torch.zeros(1, 2, 64)]],
    "conditioning_extra_none": lambda: [[torch.zeros(1, 2, 64), None]],
    "conditioning_pooled_text": lambda: _conditioning(pooled_output="a"),
    "conditioning_pooled_nan": lambda: _conditioning(pooled_output=torch.full((1, 32), math.nan)),
    "conditioning_guidance_text": lambda: _conditioning(guidance="a"),
    "conditioning_guidance_nan": lambda: _conditioning(guidance=math.nan),
}


class OddValue:
    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "make"
    CATEGORY = "test"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"name": ("STRING", {"default": "none"})}}

    def make(self, name: str) -> tuple[Any]:
        return (VALUES[name](),)


class OddSink:
    """Shows what came: a tensor's shape, hash and whether it is finite, another value's class."""

    RETURN_TYPES = ()
    FUNCTION = "take"
    CATEGORY = "test"
    OUTPUT_NODE = True

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:  # noqa: N802
        return {"required": {"value": (AnyType("*"),)}}

    def take(self, value: Any) -> dict[str, Any]:
        return {"ui": {"came": [_described(value)]}, "result": ()}


def _described(value: Any) -> dict[str, Any]:
    if isinstance(value, dict) and isinstance(value.get("samples"), torch.Tensor):
        return {"kind": "latent", "shape": list(value["samples"].shape)}
    if isinstance(value, torch.Tensor):
        bits = hashlib.sha256(value.contiguous().cpu().numpy().tobytes()).hexdigest()
        finite = bool(value.isfinite().all())
        return {"kind": "tensor", "shape": list(value.shape), "finite": finite, "sha256": bits}
    if isinstance(value, str | int | float):
        return {"kind": type(value).__name__, "value": value}
    return {"kind": type(value).__name__}


NODE_CLASS_MAPPINGS = {"OddValue": OddValue, "OddSink": OddSink}
