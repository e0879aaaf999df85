"""Strips for the host's VAEs: the plain pass's picture in bounded memory, and never tiles in its stead."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import comfy.model_management
import comfy.ops
import comfy.sd
import comfy.utils
import torch
from comfy.ldm.models.autoencoder import DiagonalGaussianRegularizer
from comfy_api.latest import io
from torch import Tensor

from ...op4ksr_core.errors import OptionError, OutOfMemoryError
from ...op4ksr_core.images.resize import picture_bytes
from ...op4ksr_core.machine import is_out_of_memory
from ...op4ksr_core.vae.bounded import BoundedAutoEncoder, check_size
from ...op4ksr_core.vae.estimate import MARGIN, Stage, StripPlan, both, choose_strips, peak_bytes
from ...op4ksr_core.vae.layers import AutoEncoderParams
from ...op4ksr_core.vae.posterior import posterior_sample
from ...op4ksr_core.vae.strips import MemoryMode, OnStrip, StripSettings
from .schema import advanced
from .values import check_latent, check_pixels
from .widgets import chosen

#: Share of the device's memory that strips are chosen for at most. Our choice.
SHARE = 0.8

_MEMORY: dict[str, MemoryMode | None] = {"auto": None, "fast": "fast", "lean": "lean", "tiny": "tiny"}

#: Where strips are reported; None: to a progress bar of their own.
_listener: ContextVar[OnStrip | None] = ContextVar("op4ksr_listener", default=None)
#: The strips of the run that is under way: what its plan says, what the manager makes room for, and what is run.
_strips: ContextVar[StripPlan] = ContextVar("op4ksr_strips", default={})  # noqa: B039 (a Mapping: nobody writes)
#: What is being encoded or decoded whole, in words; None: nothing, and tiles are the user's choice.
_whole: ContextVar[str | None] = ContextVar("op4ksr_whole", default=None)
#: The seed of the posterior's sample that is encoded; None: its mean.
_seed: ContextVar[int | None] = ContextVar("op4ksr_seed", default=None)
#: Where an encoder in strips computes.
_target: ContextVar[torch.device] = ContextVar("op4ksr_target")


@contextmanager
def running(strips: StripPlan, on_strip: OnStrip, seed: int | None = None) -> Generator[None, None, None]:
    """Inside, VAEs run in these strips, and report to ``on_strip`` instead of a bar of their own.

    seed: they encode a sample of the posterior, if ``can_sample``; None: its mean, as ComfyUI always does.
    """
    with _set(_strips, strips), _set(_listener, on_strip), _set(_seed, seed):
        yield


@contextmanager
def _set(variable: ContextVar[Any], value: Any) -> Generator[None, None, None]:
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


def on_strip() -> OnStrip:
    """What a run calls before each strip: the user's cancel, then the progress."""
    tell = _listener.get()
    bar: list[Any] = []

    def call(done: int, total: int) -> None:
        comfy.model_management.throw_exception_if_processing_interrupted()
        if tell is not None:
            tell(done, total)
            return
        if not bar:
            bar.append(comfy.utils.ProgressBar(total))
        bar[0].update_absolute(done + 1, total)

    return call


def is_oom(error: BaseException) -> bool:
    host = getattr(comfy.model_management, "is_oom", None)  # asked first: it also clears what CUDA left behind
    return (host is not None and host(error)) or is_out_of_memory(error)


def check_vae(vae: Any) -> None:
    """Raise OptionError for a VAE that the host's loader made of a file without one; else the host's own error."""
    if getattr(vae, "first_stage_model", vae) is None:
        raise OptionError("VAE: the file it comes from has none that ComfyUI knows; choose another file in Load VAE")
    vae.throw_exception_if_invalid()


def usable_memory(vae: Any, held: int = 0) -> int:
    """``usable_on`` the VAE's device. held: bytes that are taken already, but counted again with what lies beside the
    strips."""
    return usable_on(vae.device, int(vae.patcher.model_size()), held)


def usable_on(device: torch.device, weights: int, held: int = 0) -> int:
    """Bytes of a device that strips are chosen for, at most ``SHARE`` of all that it has.

    On a GPU: what is free or can be moved out by the manager, less ``weights`` bytes that are to be moved in. On the
    CPU, from which nothing is moved out: what is free.
    """
    management = comfy.model_management
    free = int(management.get_free_memory(device)) + held
    if device.type != "cpu":
        models = (model for model in management.loaded_models() if model is not None)
        free += sum(int(model.loaded_size()) for model in models if model.load_device == device)
        free -= weights
    return min(free, int(management.get_total_memory(device) * SHARE))


def read_weights(module: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """``vae.strip_maps.ReadWeights`` of one of the host's layers.

    Where memory is short the host leaves a patched weight (a LoRA's) as it was, and adds the patch whenever it casts
    the weight for a call; under dynamic VRAM it always does.
    """
    if not any(getattr(module, f"{part}{way}", None) for part in ("weight", "bias") for way in _WHEN_CAST):
        return module.weight, module.bias
    place: dict[str, Any] = {"dtype": like.dtype, "device": like.device, "bias_dtype": like.dtype}
    release = getattr(comfy.ops, "uncast_bias_weight", None)
    if release is None:  # ComfyUI 0.3
        return comfy.ops.cast_bias_weight(module, **place)
    weight, bias, stream = comfy.ops.cast_bias_weight(module, **place, offloadable=True)
    copies = weight.clone(), bias.clone()
    release(module, weight, bias, stream)
    return copies


#: Of a layer of the host's: what is added to a weight as it is cast.
_WHEN_CAST = ("_function", "_lowvram_function")

#: How the host's memory and weights enter the core's strips.
HOST_WAYS: dict[str, Callable[..., Any]] = {
    "read_weights": read_weights,
    "free_memory": lambda device: int(comfy.model_management.get_free_memory(device)),
    "release_memory": lambda: comfy.model_management.soft_empty_cache(),
    "is_oom": is_oom,
}


def strips_of(memory: str) -> StripPlan:
    """The node's dropdown -> settings for both stages; nothing for auto."""
    mode = chosen("memory", memory, _MEMORY)
    return {} if mode is None else both(StripSettings(mode=mode))


def memory_widget() -> Any:
    return advanced(
        io.Combo.Input(
            "memory",
            optional=True,  # prompts saved before it existed still run
            options=list(_MEMORY),
            default="auto",
            tooltip="auto: the fastest mode that fits the free memory. fast, lean, tiny: less memory, more time. "
            "The picture is the same.",
        )
    )


@cache
def with_ways_of(first: type[comfy.sd.VAE], given: type[Any]) -> type[Any]:
    """The class of a VAE that has the ways of ``first`` and then those of the class that it was given with."""
    if issubclass(given, first):
        return given
    return first if given is comfy.sd.VAE else type(first.__name__, (first, given), {})


class WholeVAE(comfy.sd.VAE):
    """The host's VAE, less its silent fall to approximate tiles; tiles that are asked for still work."""

    def encode(self, pixel_samples: Tensor) -> Tensor:
        """As the host's, which crops to whole latent pixels first: nothing may be left, but in words of the picture."""
        check_size(pixel_samples.shape[-3], pixel_samples.shape[-2], self.spacial_compression_encode())
        with _set(_whole, f"VAE encode of {pixel_samples.shape[2]}x{pixel_samples.shape[1]} px"):
            return super().encode(pixel_samples)

    def decode(self, samples_in: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        ratio = self.spacial_compression_decode()
        with _set(_whole, f"VAE decode of {samples_in.shape[-1] * ratio}x{samples_in.shape[-2] * ratio} px"):
            return super().decode(samples_in, *args, **kwargs)

    def encode_tiled(self, pixel_samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_pixels(pixel_samples)
        return super().encode_tiled(pixel_samples, *args, **kwargs)

    def decode_tiled(self, samples: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_latent(samples, self.latent_channels)
        return super().decode_tiled(samples, *args, **kwargs)

    def encode_tiled_(self, *args: Any, **kwargs: Any) -> Tensor:
        self._refuse_as_fallback()
        return super().encode_tiled_(*args, **kwargs)

    def decode_tiled_(self, *args: Any, **kwargs: Any) -> Tensor:
        self._refuse_as_fallback()
        return super().decode_tiled_(*args, **kwargs)

    def _refuse_as_fallback(self) -> None:
        """Tiles inside encode() or decode() are the host's answer to out of memory, not the user's choice."""
        if (what := _whole.get()) is not None:
            raise OutOfMemoryError(
                f"{what}: out of memory while the weights were loaded or room was made for the result; ask for "
                "a smaller target or batch, close what else uses the memory, or use the VAE's tiled nodes"
            )


_OWN = {"given", "ratio", "strips", "bounded", "engine"}


class StripEngine:
    """The host's autoencoder over the same weights, with its encoder and decoder run in strips.

    Everything else (quantisation, what follows the encoder, the weights' names) is the engine's own. strips: of a
    stage that the run under way names none for; without any, by the free memory.
    """

    comfy_has_chunked_io = True

    def __init__(self, given: Any, ratio: int, strips: StripPlan) -> None:
        self.given, self.ratio, self.strips = given, ratio, strips
        parts = (getattr(given, name, None) for name in ("encoder", "decoder"))
        self.bounded = BoundedAutoEncoder(*parts, **HOST_WAYS)
        self.engine = _twin(given)
        self.engine.encoder = _twin(given.encoder, _strip_encoder(self.bounded, strips))
        self.engine.decoder = _twin(given.decoder, _strip_decoder(self.bounded, strips))
        if self.samples:
            self.engine.regularization = _twin(given.regularization, _sampled(given.regularization))

    @property
    def samples(self) -> bool:
        """Whether what follows the encoder takes the mean of a normal distribution, of which a sample may be drawn."""
        return isinstance(getattr(self.given, "regularization", None), DiagonalGaussianRegularizer)

    def encode(self, pixels: Tensor, device: torch.device | None = None) -> Tensor:
        """Pixels (B, 3, H, W) in [-1, 1], on any device -> latent on ``device`` (default: the pixels')."""
        with _set(_target, device or pixels.device):
            return self.engine.encode(pixels)

    def decode(self, latent: Tensor, output_buffer: Tensor | None = None, **options: Any) -> Tensor:
        """Latent -> pixels, about [-1, 1]; each strip goes straight into ``output_buffer`` if there is one."""
        out = self.engine.decode(latent, output_buffer=output_buffer, **options)
        if output_buffer is not None and out is not output_buffer:
            output_buffer.copy_(out)
        return out

    def decode_output_shape(self, shape: tuple[int, ...]) -> tuple[int, int, int, int]:
        """Where the host prepares the result: of a latent's shape."""
        return shape[0], 3, shape[2] * self.ratio, shape[3] * self.ratio

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not there yet: a copy being made
            raise AttributeError(name)
        return getattr(self.engine, name)

    def __setattr__(self, name: str, value: Any) -> None:
        """What others set is the engine's: a part replaced there is the part that runs, or is refused."""
        if name in _OWN:
            self.__dict__[name] = value
            return
        setattr(self.given, name, value)
        self.__init__(self.given, self.ratio, self.strips)

    def __deepcopy__(self, memo: dict[int, Any]) -> StripEngine:
        return StripEngine(copy.deepcopy(self.given, memo), self.ratio, self.strips)


def _twin(module: Any, forward: Callable[..., Tensor] | None = None) -> Any:
    """A shallow copy: the same submodules and weights, attributes (and ``forward``) of its own."""
    twin = copy.copy(module)
    twin.__dict__["_modules"] = dict(module._modules)
    if forward is not None:
        twin.forward = forward
    return twin


# Functions, not methods: a model in a circle of references would outlive its last use.


def _strip_encoder(bounded: BoundedAutoEncoder, strips: StripPlan) -> Callable[[Tensor], Tensor]:
    def forward(pixels: Tensor) -> Tensor:
        device, settings = _target.get(), {**strips, **_strips.get()}.get("encode")
        return bounded.encode(pixels, lambda strip: strip.to(device), device, pixels.dtype, on_strip(), settings)

    return forward


def _sampled(given: Callable[[Tensor], Any]) -> Callable[[Tensor], Any]:
    def forward(moments: Tensor) -> Any:
        seed = _seed.get()
        return given(moments) if seed is None else (posterior_sample(moments, seed), None)

    return forward


def _strip_decoder(bounded: BoundedAutoEncoder, strips: StripPlan) -> Callable[..., Tensor]:
    def forward(latent: Tensor, output_buffer: Tensor | None = None) -> Tensor:
        settings = {**strips, **_strips.get()}.get("decode")
        return bounded.decode(latent, output_buffer, on_strip(), settings)

    return forward


class ExactVAE(WholeVAE):
    """A VAE in strips. The host may replace its model (Select VAE Device): the new one runs in strips too."""

    #: What was asked for; a stage that is not named is decided by the memory when it runs.
    strips: StripPlan = {}

    @classmethod
    def of(cls, vae: Any, strips: StripPlan) -> ExactVAE:
        """The same VAE, sharing weights and patcher, in strips. Raises OptionError if it cannot."""
        check_vae(vae)
        exact = cls.__new__(with_ways_of(cls, type(vae)))
        replaced = ("first_stage_model", "memory_used_encode", "memory_used_decode")
        exact.__dict__.update({name: value for name, value in vae.__dict__.items() if name not in replaced})
        exact.strips = strips
        model = vae.first_stage_model
        exact.first_stage_model = model.given if isinstance(model, StripEngine) else model
        return exact

    @property
    def first_stage_model(self) -> Any:
        return self.__dict__["strip_engine"]

    @first_stage_model.setter
    def first_stage_model(self, model: Any) -> None:
        self.__dict__["strip_engine"] = StripEngine(model, self.spacial_compression_decode(), self.strips)

    def params_of(self, stage: Stage) -> AutoEncoderParams:
        return self.first_stage_model.bounded.params_of(stage)

    def encode(self, pixel_samples: Tensor) -> Tensor:
        check_pixels(pixel_samples)
        count, height, width = pixel_samples.shape[0], *pixel_samples.shape[-3:-1]
        with _set(_strips, self._chosen("encode", height, width, count)):
            return super().encode(pixel_samples)

    def decode(self, samples_in: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        check_latent(samples_in, self.latent_channels, (4, 5))  # of five dimensions the host takes the first picture
        ratio = self.spacial_compression_decode()
        count, height, width = samples_in.shape[0], *(length * ratio for length in samples_in.shape[-2:])
        with _set(_strips, self._chosen("decode", height, width, count)):
            return super().decode(samples_in, *args, **kwargs)

    def _chosen(self, stage: Stage, height: int, width: int, count: int) -> StripPlan:
        """The strips of a pass: the run's, else those asked for, else the fastest that fit. Chosen once, here."""
        asked: dict[Stage, StripSettings] = {**self.strips, **_strips.get()}
        if stage not in asked:
            asked[stage] = self._fitting(stage, height, width, self.vae_dtype, count)
        return asked

    def _fitting(self, stage: Stage, height: int, width: int, dtype: torch.dtype, count: int) -> StripSettings:
        """The fastest settings that fit; on the CPU beside ``count`` pictures."""
        beside = picture_bytes(height, width, count) if self.device.type == "cpu" else 0
        free = usable_memory(self)
        return choose_strips(self.params_of(stage), stage, height, width, dtype, free, beside)

    def _room(self, stage: Stage, height: int, width: int, dtype: torch.dtype) -> float:
        """Bytes to ask for, with the margin that the choice of strips leaves: the host's manager makes that much room.

        Outside of a pass, for which the strips are chosen: for those that it would have.
        """
        settings = {**self.strips, **_strips.get()}.get(stage) or self._fitting(stage, height, width, dtype, 1)
        return peak_bytes(self.params_of(stage), stage, height, width, dtype, settings) / (1 - MARGIN)

    def memory_used_encode(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        """Bytes, for pixels (B, C, H, W)."""
        return self._room("encode", shape[2], shape[3], dtype)

    def memory_used_decode(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        """Bytes, for a latent (B, C, h, w)."""
        ratio = self.spacial_compression_decode()
        return self._room("decode", shape[2] * ratio, shape[3] * ratio, dtype)


def can_sample(vae: Any) -> bool:
    """Whether ``running`` with a seed reaches this VAE."""
    return isinstance(vae, ExactVAE) and vae.first_stage_model.samples
