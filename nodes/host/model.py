"""Flux as a native MODEL: through the host's loader where it can, with our settings attached."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.model_detection
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models
import torch
from torch import Tensor

from ...op4ksr_core.errors import OptionError, UnsupportedCheckpointError
from ...op4ksr_core.machine import is_out_of_memory
from ...op4ksr_core.models.flux import Flux, FluxParams, OneStepSettings
from ...op4ksr_core.models.rope import FLUX_THETA, RescaledEmbedND
from ...op4ksr_core.plain_text import plain, plain_logger
from ...op4ksr_core.weights.checkpoint import check_tensors, read_state
from ...op4ksr_core.weights.description import Description, describe_flux, settings_with_prompt
from .positions import own_theta_is
from .widgets import chosen

log = plain_logger(__name__)

#: Under which the one-step settings travel with a MODEL, through every clone.
ATTACHMENT = "op4ksr"
#: Under which a MODEL names the file that changes a VAE's encoder, too.
ENCODER_ATTACHMENT = "op4ksr_encoder"


def load_model(path: Path, weight_dtype: str) -> Any:
    """A native MODEL with the file's theta and one-step settings. Raises UnsupportedCheckpointError."""
    found = describe_flux(path)
    assert isinstance(found.params, FluxParams)
    check_tensors(Flux(found.params, device="meta"), found.header, found.header.layout(), found.quantized)
    patcher = _flux_patcher(path, weight_dtype)
    patcher.cached_patcher_init = (_flux_patcher, (path, weight_dtype))
    patcher.set_attachments(ATTACHMENT, settings_with_prompt(found))
    for line in found.facts():
        log.info("%s: %s", path.name, line)
    return patcher


_WEIGHT_DTYPES: dict[str, dict[str, Any]] = {
    "default": {},
    "fp8_e4m3fn": {"dtype": torch.float8_e4m3fn},
    "fp8_e4m3fn_fast": {"dtype": torch.float8_e4m3fn, "fp8_optimizations": True},
    "fp8_e5m2": {"dtype": torch.float8_e5m2},
}
WEIGHT_DTYPES = list(_WEIGHT_DTYPES)


def _flux_patcher(path: Path, weight_dtype: str, disable_dynamic: bool = False) -> Any:
    """The MODEL with the file's own theta; also how the host makes it once more."""
    found = describe_flux(path)
    assert isinstance(found.params, FluxParams)
    patcher = _host_flux(path, found, weight_dtype, disable_dynamic)
    if found.params.theta != (FLUX_THETA, FLUX_THETA):
        own_theta_is(patcher, RescaledEmbedND(found.params.axes_dim, found.params.theta))
    return patcher


def _host_flux(path: Path, found: Description, weight_dtype: str, disable_dynamic: bool) -> Any:
    """Load through the host's loader; hosts that take every Flux for 12 B get the file's own geometry."""
    assert isinstance(found.params, FluxParams)
    options = dict(chosen("weight_dtype", weight_dtype, _WEIGHT_DTYPES))
    extra = {"disable_dynamic": True} if disable_dynamic else {}
    if found.quantized:
        return _host_quantized(path, options, extra)
    state = read_state(found.header)
    if _host_detects(state, found.params):
        return comfy.sd.load_diffusion_model_state_dict(state, model_options=options, **extra)
    return _build_flux(state, found.params, options)


def _host_quantized(path: Path, options: dict[str, Any], extra: dict[str, Any]) -> Any:
    """A file with scales, which are the host's own business. UnsupportedCheckpointError where it cannot load it."""
    try:
        patcher = comfy.sd.load_diffusion_model(str(path), model_options=options, **extra)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:  # what its parsers raise
        if is_out_of_memory(error):
            raise
        raise UnsupportedCheckpointError(
            path, f"is quantized in a way that ComfyUI cannot load ({plain(error)}); take the bf16 file"
        ) from error
    if patcher is None:
        raise UnsupportedCheckpointError(path, "is quantized in a way that ComfyUI does not know; take the bf16 file")
    return patcher


def _host_detects(state: dict[str, Tensor], params: FluxParams) -> bool:
    config = comfy.model_detection.detect_unet_config(state, "") or {}
    ours = {
        "hidden_size": params.hidden_size,
        "num_heads": params.num_heads,
        "context_in_dim": params.context_in_dim,
        "vec_in_dim": params.vec_in_dim,
        "depth": params.depth,
        "depth_single_blocks": params.depth_single_blocks,
    }
    return all(config.get(key) == value for key, value in ours.items())


def _build_flux(state: dict[str, Tensor], params: FluxParams, options: dict[str, Any]) -> Any:
    """The host's Flux with our geometry, for hosts (0.3, 0.8) whose detection assumes 12 B."""
    config = comfy.model_detection.detect_unet_config(state, "") or {}
    config |= {
        "image_model": "flux",
        "hidden_size": params.hidden_size,
        "num_heads": params.num_heads,
        "mlp_ratio": params.mlp_ratio,
        "context_in_dim": params.context_in_dim,
        "vec_in_dim": params.vec_in_dim,
        "in_channels": params.in_channels,
        "out_channels": params.in_channels,
        "depth": params.depth,
        "depth_single_blocks": params.depth_single_blocks,
        "axes_dim": list(params.axes_dim),
    }
    management = comfy.model_management
    known = comfy.supported_models
    model_config = (known.Flux if params.guidance_embed else known.FluxSchnell)(config)
    device, offload = management.get_torch_device(), management.unet_offload_device()
    dtype = options.get("dtype") or management.unet_dtype(
        model_params=sum(t.numel() for t in state.values()), supported_dtypes=model_config.supported_inference_dtypes
    )
    cast = management.unet_manual_cast(dtype, device, model_config.supported_inference_dtypes)
    model_config.set_inference_dtype(dtype, cast)
    model = model_config.get_model(state, "").to(offload)
    model.load_model_weights(state, "")
    return comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)


def settings_of(model: Any) -> OneStepSettings:
    """The settings attached by whichever loader brought them; the defaults for any other MODEL."""
    return model.get_attachment(ATTACHMENT) or OneStepSettings()


def check_flow(model: Any) -> None:
    """Raise OptionError for a MODEL that predicts no velocity (Stable Diffusion's kind): its picture would be noise."""
    if not isinstance(model.get_model_object("model_sampling"), comfy.model_sampling.CONST):
        raise OptionError(f"MODEL: is a {type(model.model).__name__}, not of Flux's kind; choose a Flux model")


def check_conditioning(model: Any, conditioning: list[Any]) -> None:
    """Raise OptionError for another model's prompt embedding, before the host's matrices do."""
    config = model.model.model_config.unet_config
    for txt, extra, *_ in conditioning:
        pooled = extra.get("pooled_output")
        found = {"context_in_dim": txt, "vec_in_dim": pooled}
        for key, tensor in found.items():
            expected = config.get(key)
            if tensor is not None and expected and tensor.shape[-1] != expected:
                raise OptionError(
                    f"CONDITIONING: has {tensor.shape[-1]} channels, but the model takes {expected}; connect the one "
                    "of the model's own loader or text encoders, or leave it open"
                )


def prompt_conditioning(model: Any) -> list[Any]:
    """The file's own prompt embedding as CONDITIONING, else zeros of the shape that the model takes."""
    settings = settings_of(model)
    config = model.model.model_config.unet_config
    txt = torch.zeros(1, config.get("context_in_dim", 4096)) if settings.txt is None else settings.txt
    vec = torch.zeros(config.get("vec_in_dim") or 768) if settings.vec is None else settings.vec
    return [[txt[None], {"pooled_output": vec[None], "guidance": settings.guidance}]]
