"""Every input of a node against the node's own schema: ComfyUI checks typed values alone, no value of a link."""

from __future__ import annotations

import inspect
import sys
import traceback
from collections.abc import Callable, Sequence
from functools import wraps
from numbers import Integral, Real
from typing import Any

import comfy.model_patcher
import torch
from comfy_api.latest import io
from torch import Tensor

from ...op4ksr_core.errors import Op4ksrError, OptionError
from ...op4ksr_core.one_step import check_image
from ...op4ksr_core.plain_text import plain_message
from .stages import image_to_core
from .values import FLOATS, check_finite, is_float_tensor, is_plain_tensor, refusal
from .widgets import check_choice


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """A node's ``execute`` (below ``@classmethod``), called only with what its schema allows.

    Numbers come as int or float, and an optional input that is given None is left out. Raises OptionError or
    ImageError, which name the input, what was expected, what came and the remedy. What ``execute`` raises passes as it
    is, if the host's log can write it.
    """
    signature = inspect.signature(execute)

    @wraps(execute)
    def run(*args: Any, **kwargs: Any) -> io.NodeOutput:
        cls, *rest = args
        given = signature.bind(cls, *rest, **kwargs).arguments
        for declared in cls.define_schema().inputs:
            if declared.id not in given:
                continue
            if given[declared.id] is None and declared.optional:
                del given[declared.id]
            else:
                given[declared.id] = _checked_value(cls, declared, given[declared.id])
        try:
            return execute(**given)
        except Exception as error:
            if _can_be_written(error):
                raise
            raise _plain_error(error) from None

    return run


def _can_be_written(error: Exception) -> bool:
    """Whether the error, with all that led to it, can be written to the host's log.

    One that cannot ends the host's worker while it writes it, and with it every prompt to come: one with half a
    surrogate pair, or with letters that a console of another code page lacks.
    """
    text = "".join(traceback.format_exception(error))
    try:
        text.encode(getattr(sys.stderr, "encoding", None) or "utf-8")
    except UnicodeError:
        return False
    return True


def _plain_error(error: Exception) -> Op4ksrError:
    text = plain_message(error).encode("ascii", "backslashreplace").decode("ascii")
    return Op4ksrError(text if isinstance(error, Op4ksrError) else f"{type(error).__name__}: {text}")


def shown_name(declared: io.Input) -> str:
    """The input's name as the node shows it."""
    return declared.display_name or declared.id


def _checked_value(cls: type[io.ComfyNode], declared: Any, value: Any) -> Any:
    name = shown_name(declared)
    if value is None:
        raise OptionError(
            f"{name}: is nothing; what is connected gives none (a switch, or a checkpoint without it), so "
            "choose one in a loader or connect another node"
        )
    if isinstance(declared, io.Combo.Input):
        return _choice(cls, declared, name, value)
    if isinstance(declared, io.Int.Input):
        return _number(declared, name, value, "a whole number", int)
    if isinstance(declared, io.Float.Input):
        return _number(declared, name, value, "a number", float)
    return _CHECKS[declared.get_io_type()](name, value)


def _number(declared: Any, name: str, value: Any, kind: str, number: Callable[[Any], Any]) -> Any:
    """The value as int or float. NaN is in no range, and a fraction is no whole number."""
    low, high = declared.min, declared.max
    fits = isinstance(value, Real) and not isinstance(value, bool) and bool(low <= value <= high)
    if not fits or (number is int and not isinstance(value, Integral) and value != int(value)):
        raise refusal(name, f"{kind} from {low} to {high}", value)
    return number(value)


def _choice(cls: type[io.ComfyNode], declared: Any, name: str, value: Any) -> str:
    """One of the dropdown's options. Names of files are looked up by the node itself, in better words."""
    text = _text(name, value)
    if declared.id not in inspect.signature(cls.validate_inputs).parameters:
        check_choice(name, text, declared.options)
    return text


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise refusal(name, "a text", value)
    return value


def _switch(name: str, value: Any) -> bool:
    if not isinstance(value, Integral) or value not in (0, 1):
        raise refusal(name, "true or false", value)
    return bool(value)


def _model(name: str, value: Any) -> Any:
    parts = ("diffusion_model", "model_config")  # which the patcher of a text encoder or VAE has not
    if not isinstance(value, comfy.model_patcher.ModelPatcher) or not all(hasattr(value.model, part) for part in parts):
        raise refusal(name, "a MODEL", value)
    return value


def _vae(name: str, value: Any) -> Any:
    """Anything that does a VAE's work: other packs have classes of their own."""
    if not all(callable(getattr(value, part, None)) for part in ("encode", "decode", "throw_exception_if_invalid")):
        raise refusal(name, "a VAE", value)
    return value


def _upscale_model(name: str, value: Any) -> Any:
    """Anything that does what the host's own upscaling node asks of one: other packs have classes of their own."""
    scale = getattr(value, "scale", None)
    if not callable(value) or not callable(getattr(value, "to", None)) or not isinstance(scale, Real):
        raise refusal(name, "an UPSCALE_MODEL (Load Upscale Model)", value)
    if getattr(value, "purpose", None) == "Inpainting":
        raise OptionError(f"{name}: is an inpainting model, which needs a mask; choose one that enlarges")
    return value


def _image(name: str, value: Any) -> Tensor:
    if not is_plain_tensor(value):
        raise refusal(name, "an IMAGE", value)
    if value.is_floating_point() and value.dtype not in FLOATS:
        raise refusal(name, "an IMAGE of float32", value)
    check_image(image_to_core(value, name), name)
    if value.shape[-1] == 4:
        check_finite(f"{name}, transparency", value[..., 3])
    return value


def _mask(name: str, value: Any) -> Tensor:
    """(h, w), (B, h, w) or (B, 1, h, w), as the host's own nodes take them. -> (B, h, w)"""
    shape = tuple(value.shape) if is_plain_tensor(value) else ()
    if len(shape) not in (2, 3, 4) or len(shape) == 4 and shape[1] != 1:
        raise refusal(name, "a MASK (batch, height, width)", value)
    if not (value.is_floating_point() or value.dtype == torch.bool):
        raise refusal(name, "a MASK of floats from 0 to 1", value)
    if not value.numel():
        raise OptionError(f"{name}: is empty, {shape}; check what is connected there")
    check_finite(name, value)
    return value.reshape(-1, *shape[-2:]).float()


def _conditioning(name: str, value: Any) -> list[Any]:
    """Entries of a tensor (1, tokens, channels) and a dict, which may have pooled_output and guidance."""
    if not isinstance(value, list):
        raise refusal(name, "a CONDITIONING", value)
    if not value:
        raise OptionError(f"{name}: is empty; connect a prompt's, or leave it open")
    for entry in value:
        if not isinstance(entry, Sequence) or len(entry) < 2 or not isinstance(entry[1], dict):
            raise refusal(name, "a CONDITIONING of tensors with their settings", entry)
        pooled, guidance = entry[1].get("pooled_output"), entry[1].get("guidance")
        _embedding(name, entry[0], 3)
        if pooled is not None:
            _embedding(f"{name}, pooled_output", pooled, 2)
        if guidance is not None and not (isinstance(guidance, Real) and abs(guidance) < float("inf")):
            raise refusal(f"{name}, guidance", "a number", guidance)
    return value


def _embedding(name: str, value: Any, dimensions: int) -> None:
    if not is_float_tensor(value) or value.ndim != dimensions:
        raise refusal(name, f"a tensor of {dimensions} dimensions, not empty", value)
    check_finite(name, value)


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "STRING": _text,
    "BOOLEAN": _switch,
    "MODEL": _model,
    "VAE": _vae,
    "UPSCALE_MODEL": _upscale_model,
    "IMAGE": _image,
    "MASK": _mask,
    "CONDITIONING": _conditioning,
}
