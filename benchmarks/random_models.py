"""Models of a named geometry with random weights, made on the device itself: for time and memory, never for quality.

A weight depends on the seed, its name, and the kind of device (their generators differ), not on its neighbours,
so that a model is filled one tensor at a time, and two of one geometry are equal.
"""

from __future__ import annotations

import math
import zlib
from typing import TypeVar

import torch
from torch import Tensor, nn

from op4ksr_core.models.flux import Flux, OneStepSettings
from op4ksr_core.planning.geometries import Geometry
from op4ksr_core.vae.autoencoder import AutoEncoder

Model = TypeVar("Model", Flux, AutoEncoder)


SEED = 0


def random_weight(name: str, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """float32 on the generator's device: matrices and kernels keep the size of what runs through them.

    Norms' factors lie around 1, biases around 0; no value is special.
    """
    generator.manual_seed(SEED + zlib.crc32(name.encode()))
    values = torch.empty(shape, device=generator.device).normal_(generator=generator)
    if len(shape) > 1:
        return values.div_(math.sqrt(math.prod(shape[1:])))
    return values.mul_(0.01) if name.endswith("bias") else values.mul_(0.1).add_(1)


def random_prompt(geometry: Geometry, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A prompt embedding (T, context) and a pooled one, float32, of a text encoder's magnitude."""
    txt = random_weight("op4ksr.txt", (geometry.text_tokens, geometry.flux.context_in_dim), generator)
    return txt, random_weight("op4ksr.vec", (1, geometry.flux.vec_in_dim), generator)[0]


def random_flux(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> Flux:
    """The geometry's transformer on the device in ``dtype``."""
    generator = torch.Generator(device)
    txt, vec = random_prompt(geometry, generator)
    return _filled(Flux(geometry.flux, OneStepSettings(txt=txt, vec=vec), device="meta", dtype=dtype), generator)


def random_autoencoder_on(geometry: Geometry, device: torch.device, dtype: torch.dtype) -> AutoEncoder:
    """The geometry's autoencoder on the device."""
    return _filled(AutoEncoder(geometry.autoencoder, device="meta", dtype=dtype), torch.Generator(device))


def _filled(model: Model, generator: torch.Generator) -> Model:
    """A model of the meta device, on the generator's, tensor by tensor."""
    model.to_empty(device=generator.device).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        parameter.data.copy_(random_weight(name, tuple(parameter.shape), generator))
    return model


def weights_bytes(*models: nn.Module) -> int:
    """Of all parameters."""
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())
