"""Our autoencoder as a native VAE: the host's layers, memory manager, tiling and reload path."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from torch import Tensor

from ...op4ksr_core.errors import UnsupportedCheckpointError
from ...op4ksr_core.plain_text import plain_logger
from ...op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams
from ...op4ksr_core.weights.checkpoint import (
    Description,
    check_tensors,
    describe_autoencoder,
    load_autoencoder,
    read_state,
)
from ...op4ksr_core.weights.probe import doubt
from .exact_vae import ExactVAE, strips_of

log = plain_logger(__name__)


class HostAutoEncoder(AutoEncoder):
    """Our autoencoder as the host's engine: pixels in [-1, 1], its layers. ``ExactVAE`` runs it in strips."""

    device: Any = None  # the host's patcher keeps its own note here

    def __init__(self, params: AutoEncoderParams) -> None:
        super().__init__(params, operations=comfy.ops.disable_weight_init)
        self.regularization = DiagonalGaussianRegularizer()

    def encode(self, image: Tensor) -> Tensor:  # pyright: ignore
        return self.regularization(self.encoder(image))[0]

    def decode(self, latent: Tensor, **options: Any) -> Tensor:  # pyright: ignore
        return self.decoder(latent, **options)


def load_vae(path: Path, stride: int | None, shift: int | None, memory: str = "auto") -> Any:
    """A native VAE at the file's compression, in strips. Raises UnsupportedCheckpointError, also for an 8x VAE."""
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
    return ExactVAE.of(_build_vae(found, path, stride, shift), strips_of(memory))


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
    for line in found.facts():
        log.info("%s: %s", path.name, line)
    return vae
