"""What another node gave, in words, and whether a tensor is one that can be computed with."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.images.metrics import is_finite
from ...op4ksr_core.plain_text import plain

#: Characters that are shown of a value that was refused.
SHOWN = 80

#: Those of pictures, masks, latents and embeddings.
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def told(value: object) -> str:
    """A value that is none of what was expected, in a few words."""
    if isinstance(value, Tensor):
        return f"a tensor {plain(tuple(value.shape), SHOWN)} of {plain(value.dtype)}"
    if isinstance(value, str):
        return f"the text '{plain(value, SHOWN)}'"
    if isinstance(value, bool | int | float):
        return plain(value, SHOWN)
    return "nothing" if value is None else f"a value of class {plain(type(value).__name__, SHOWN)}"


def refusal(name: str, expected: str, value: object) -> OptionError:
    """The error for an input that holds something else than what was expected."""
    return OptionError(f"{name}: expected {expected}, got {told(value)}; check what is connected there")


def is_plain_tensor(value: Any) -> bool:
    """Whether its numbers can be read: PyTorch has tensors without any, and some that hold but a few."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta and not value.is_quantized


def is_float_tensor(value: Any) -> bool:
    """Whether it is plain, of numbers to compute with, and not empty."""
    return is_plain_tensor(value) and value.dtype in FLOATS and value.numel() > 0


def check_finite(name: str, value: Tensor) -> None:
    """Raise OptionError for NaN and infinity, which would become a black picture."""
    if not is_finite(value):
        raise OptionError(f"{name}: holds NaN or infinite values; check the model or node that made it")


def check_latent(latent: Any, channels: int, dimensions: tuple[int, ...] = (4,)) -> None:
    """Raise OptionError unless (B, channels, ..., h, w), of so many dimensions, floating point and finite."""
    if not is_float_tensor(latent) or latent.ndim not in dimensions or latent.shape[1] != channels:
        raise refusal("LATENT", f"(batch, {channels}, height, width)", latent)
    check_finite("LATENT", latent)


def check_pixels(pixels: Any) -> None:
    """Raise OptionError unless an IMAGE (B, H, W, 3 or 4), floating point and finite."""
    if not is_float_tensor(pixels) or pixels.ndim != 4 or pixels.shape[-1] not in (3, 4):
        raise refusal("IMAGE", "(batch, height, width, 3) or 4 channels", pixels)
    check_finite("IMAGE", pixels)
