"""What enlarges a picture before the one step, under the host's memory manager: an UPSCALE_MODEL, or our network."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary

import comfy.model_management
import comfy.model_patcher
import torch
from torch import Tensor, nn

from ...op4ksr_core.base import Base, Bicubic, Footprint, Foreign, Learned, footprint
from ...op4ksr_core.bundled import BUNDLED_ENLARGER
from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.models.flux import OnProgress
from ...op4ksr_core.plain_text import plain, plain_logger
from ...op4ksr_core.weights.enlarger import load_enlarger
from .exact_vae import is_oom, usable_on
from .model import settings_of
from .values import FLOATS, SHOWN, told

log = plain_logger(__name__)

#: More bytes than any device has: the host's own number for all that can be moved out.
_EVERYTHING = 1e30


def base_of(enlarger: str, upscale_model: Any | None, model: Any) -> Base:
    """The node's two inputs -> what enlarges for a MODEL. A connected upscale model wins.

    Raises OptionError for one that cannot enlarge, UnsupportedCheckpointError for a damaged bundled file.
    """
    if upscale_model is not None:
        return HostUpscaler(upscale_model)
    if enlarger == "bicubic" or (enlarger == "auto" and settings_of(model).output == "picture"):
        return Bicubic()
    return bundled_enlarger()


class HostEnlarger(Learned):
    """The bundled enlarger in float32, on the host's device while it runs."""

    def __init__(self, patcher: Any) -> None:
        super().__init__(patcher.model.enlarger, BUNDLED_ENLARGER.stem)
        self.patcher = patcher

    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        """As ``Base.enlarge``; where the device is full, once more with all models out of it, this one too."""
        management, device = comfy.model_management, self.patcher.load_device
        need = self.peak_bytes((low.shape[-2], low.shape[-1]), (height, width), repair)
        management.load_models_gpu([self.patcher], memory_required=need)
        try:
            return super().enlarge(low, height, width, repair, tell)
        except RuntimeError as error:  # PyTorch's out of memory is one
            if device.type == "cpu" or not is_oom(error):
                raise
        log.info("%s: %s is out of memory; it runs on %s", self.name, device, self.patcher.offload_device)
        management.free_memory(_EVERYTHING, device)
        management.soft_empty_cache()
        return super().enlarge(low, height, width, repair, tell)


class _Held(nn.Module):
    """Around the enlarger, as the host's patcher sets attributes of the model that it is given."""

    device: Any = None

    def __init__(self, enlarger: nn.Module) -> None:
        super().__init__()
        self.enlarger = enlarger


@cache
def bundled_enlarger() -> HostEnlarger:
    """Read when it is first asked for, and then kept. Raises UnsupportedCheckpointError for a damaged file."""
    management = comfy.model_management
    model = _Held(load_enlarger(BUNDLED_ENLARGER, dtype=torch.float32))
    device, offload = management.get_torch_device(), management.unet_offload_device()
    return HostEnlarger(comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload))


class HostUpscaler(Foreign):
    """The host's UPSCALE_MODEL, on the device that the host's own node would run it on, and off it afterwards."""

    def __init__(self, upscale_model: Any) -> None:
        device, weights = device_of(upscale_model), _weights_of(upscale_model)
        super().__init__(
            _function(upscale_model),
            _factor(upscale_model),
            name_of(upscale_model),
            channels=getattr(upscale_model, "input_channels", 3),
            weights=weights,
            free=lambda: usable_on(device, weights),
            is_oom=is_oom,
            release=comfy.model_management.soft_empty_cache,
        )
        self.upscale_model = upscale_model
        self.footprint = footprint_of(upscale_model, self.function, self.channels)

    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        with on_device(self.upscale_model, self.peak_bytes((low.shape[-2], low.shape[-1]), (height, width))):
            return super().enlarge(low, height, width, repair, tell)


def name_of(upscale_model: Any) -> str:
    """An upscale model in a few words: the host does not tell its file."""
    architecture = getattr(getattr(upscale_model, "architecture", None), "name", type(upscale_model).__name__)
    return f"upscale_model ({plain(architecture, SHOWN)} x{plain(upscale_model.scale, SHOWN)})"


def _factor(upscale_model: Any) -> int:
    scale = upscale_model.scale
    if scale // 1 != scale:  # NaN and infinity, too
        raise OptionError(f"{name_of(upscale_model)}: expected a whole factor, got {plain(scale)}; choose another")
    return int(scale)


def _function(upscale_model: Any) -> Callable[[Tensor], Tensor]:
    """The model on its own device and in its own dtype, float32 as a rule. Raises OptionError for no picture."""

    def run(picture: Tensor) -> Tensor:
        dtype = next((weight.dtype for weight in _parameters(upscale_model) if weight.dtype in FLOATS), torch.float32)
        result = upscale_model(picture.to(device_of(upscale_model), dtype))
        if not isinstance(result, Tensor):
            raise OptionError(f"{name_of(upscale_model)}: expected a picture, got {told(result)}; choose another")
        return result

    return run


def _parameters(upscale_model: Any) -> Iterable[Tensor]:
    model = getattr(upscale_model, "model", None)
    return model.parameters() if isinstance(model, nn.Module) else ()


def _weights_of(upscale_model: Any) -> int:
    return sum(weight.nbytes for weight in _parameters(upscale_model))


def device_of(upscale_model: Any) -> torch.device:
    """Where an upscale model runs: where its patcher says, on hosts that give it one."""
    patcher = getattr(upscale_model, "patcher", None)
    return comfy.model_management.get_torch_device() if patcher is None else patcher.load_device


#: By upscale model, as long as it is there: what was counted of it.
_counted: WeakKeyDictionary[Any, Footprint] = WeakKeyDictionary()


def footprint_of(upscale_model: Any, function: Callable[[Tensor], Tensor], channels: int) -> Footprint | None:
    """What the model needs per px, counted once on a small square; None where it fails on that."""
    if (known := _counted.get(upscale_model)) is not None:
        return known
    try:
        with on_device(upscale_model, 0):
            found = footprint(function, channels)
    except Exception as error:  # whatever the networks of others raise; the run itself will tell
        if isinstance(error, comfy.model_management.InterruptProcessingException):
            raise
        log.info("%s: its memory is not known beforehand (%s)", name_of(upscale_model), plain(error, SHOWN))
        return None
    _counted[upscale_model] = found
    return found


@contextmanager
def on_device(upscale_model: Any, nbytes: int) -> Generator[None, None, None]:
    """Inside, the model is on its device, which has ``nbytes`` to spare if the host can make room for them.

    As the host's own node does it: newer ones have its memory manager load it, and evict it later; before, it is moved
    by hand, and back.
    """
    management, patcher = comfy.model_management, getattr(upscale_model, "patcher", None)
    if patcher is not None:
        management.load_models_gpu([patcher], memory_required=nbytes, force_full_load=True)
        yield
        return
    device = device_of(upscale_model)
    management.free_memory(_weights_of(upscale_model) + nbytes, device)
    try:
        upscale_model.to(device)
        yield
    finally:
        upscale_model.to("cpu")
