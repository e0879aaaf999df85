"""Our autoencoder as a native VAE: the host's layers, memory manager, tiling and reload path."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ..op4ksr_core.autoencoder import AutoEncoder, AutoEncoderParams
from ..op4ksr_core.checkpoint import (
    Description,
    check_tensors,
    describe_autoencoder,
    load_autoencoder,
    read_state,
)
from ..op4ksr_core.errors import UnsupportedCheckpointError
from ..op4ksr_core.memory import Stage, choose_strips, peak_bytes
from ..op4ksr_core.probe import doubt

log = logging.getLogger(__name__)


class HostAutoEncoder(AutoEncoder):
    """Our autoencoder as the host's VAE class calls it: pixels in [-1, 1], its layers, its cancel."""

    device: Any = None  # the host's patcher keeps its own note here

    def __init__(self, params: AutoEncoderParams) -> None:
        super().__init__(params, operations=comfy.ops.disable_weight_init)

    def encode(self, image: Tensor) -> Tensor:  # pyright: ignore
        return self.encode_strips(image, comfy.model_management.throw_exception_if_processing_interrupted)

    def decode(self, latent: Tensor) -> Tensor:  # pyright: ignore
        return self.decode_strips(latent, comfy.model_management.throw_exception_if_processing_interrupted)

    def free_memory(self, device: torch.device) -> int | None:
        return int(comfy.model_management.get_free_memory(device))

    def release_memory(self) -> None:
        comfy.model_management.soft_empty_cache()


def load_vae(path: Path, stride: int | None, shift: int | None) -> Any:
    """A native VAE at the file's compression. Raises UnsupportedCheckpointError, also for an 8x VAE."""
    found = describe_autoencoder(path, stride=stride, shift=shift)
    assert isinstance(found.params, AutoEncoderParams)
    if found.params.stride == 1 and stride is None:
        raise UnsupportedCheckpointError(
            path, f"is an 8x (F8) VAE ({found.why['stride']}); load it with ComfyUI's own Load VAE instead"
        )
    if "stride" in found.assumed and (
        warning := doubt(found, load_autoencoder(path, stride=2, shift=found.params.shift))
    ):
        raise UnsupportedCheckpointError(
            path, f"{warning}; load it with ComfyUI's own Load VAE, or set compression to 16x to insist"
        )
    return _build_vae(found, path, stride, shift)


def _vae_patcher(path: Path, stride: int | None, shift: int | None, disable_dynamic: bool = False) -> Any:
    """What the host calls to load the same VAE once more, for another device."""
    return _build_vae(
        describe_autoencoder(path, stride=stride, shift=shift), path, stride, shift, disable_dynamic
    ).patcher


def _build_vae(
    found: Description, path: Path, stride: int | None, shift: int | None, disable_dynamic: bool = False
) -> Any:
    params = found.params
    assert isinstance(params, AutoEncoderParams)
    model = HostAutoEncoder(params).eval()
    check_tensors(model, found.header, found.header.layout())
    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})  # the host's smallest, to be refilled
    vae.first_stage_model = model.to(vae.vae_dtype)
    archive = getattr(comfy.model_management, "archive_model_dtypes", None)
    if archive is not None:
        archive(model)
    patcher_class = comfy.model_patcher.ModelPatcher
    if not disable_dynamic:
        patcher_class = getattr(comfy.model_patcher, "CoreModelPatcher", patcher_class)
    vae.patcher = patcher_class(
        model, load_device=vae.device, offload_device=comfy.model_management.vae_offload_device()
    )
    dynamic = getattr(vae.patcher, "is_dynamic", lambda: False)()
    model.load_state_dict(read_state(found.header), strict=True, assign=dynamic)
    vae.patcher.cached_patcher_init = (_vae_patcher, (path, stride, shift))
    vae.latent_channels, vae.output_channels, vae.latent_dim = params.latent_channels, 3, 2
    vae.downscale_ratio = vae.upscale_ratio = params.ratio
    vae.disable_offload, vae.size = False, None
    vae.memory_used_encode, vae.memory_used_decode = memory_estimates(params)
    for fact, reason in found.why.items():
        log.info("%s: %s %s (%s)", path.name, fact, getattr(params, fact), reason)
    return vae


#: Share of the device's memory that the manager is asked for at most, before a thriftier way is planned.
_SHARE = 0.8


def memory_estimates(params: AutoEncoderParams) -> tuple[Callable[..., float], Callable[..., float]]:
    """The host's two lambdas, (shape, dtype) -> bytes: (B, C, H, W) px for encode, latent for decode.

    What the fastest way needs that this device can hold at all, so that no more is evicted than that.
    """

    def estimate(stage: Stage, height: int, width: int, dtype: torch.dtype) -> float:
        total = comfy.model_management.get_total_memory(comfy.model_management.vae_device())
        settings = choose_strips(params, stage, height, width, dtype, int(total * _SHARE))
        return peak_bytes(params, stage, height, width, dtype, settings)

    def encode(shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return estimate("encode", shape[2], shape[3], dtype)

    def decode(shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return estimate("decode", shape[2] * params.ratio, shape[3] * params.ratio, dtype)

    return encode, decode
