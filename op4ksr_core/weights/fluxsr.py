"""FluxSR's folder: a LoRA in diffusers' names, and what its ``training_config.json`` says of the one step.

Nobody here has seen such a config; its keys are read in any spelling, at any depth. T_L must be there: FluxSR's paper
(equation of its flow trajectory distillation) calls so the time at which the small picture lies on the flow, our sigma.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import OptionError, UnsupportedCheckpointError
from ..models.flux import TOKENS_LIMIT, OneStepSettings
from ..models.latent import PATCH
from ..plain_text import plain
from .header import Header, read_header
from .json_text import read_json
from .lora_scale import stated_scale

FLUXSR_FILE, FLUXSR_CONFIG = "pytorch_lora_weights.safetensors", "training_config.json"

#: Image px per token of Flux's own VAE.
_TOKEN = 8 * PATCH

#: Keys of the config, in small letters and digits alone.
_SIGMA = ("tl", "truncationlevel")
_GUIDANCE = ("guidancescale", "guidance")
_RESOLUTION = ("resolution", "trainresolution", "imagesize")
_ALPHA, _RANK = ("loraalpha",), ("lorarank", "rank")


def fluxsr_header(path: Path) -> Header | None:
    """The LoRA of the folder that this is, or that this file is in; None where it cannot be FluxSR's."""
    home = path if os.path.isdir(path) else path.parent
    file = home / FLUXSR_FILE
    if not os.path.isfile(file) or (path not in (home, file) and path.suffix == ".safetensors"):
        return None
    return read_header(file)


def fluxsr_settings(header: Header) -> tuple[Header, OneStepSettings, dict[str, str]]:
    """The header with what the config says of alpha; the constants; where each is from.

    Raises UnsupportedCheckpointError where there is no config, or none that states a T_L that can be used.
    """
    config = header.files[0].parent / FLUXSR_CONFIG
    values = _read(config, header.path)
    sigma, key = _number(config, values, _SIGMA)
    if sigma is None:
        raise UnsupportedCheckpointError(
            config,
            "states no T_L, the sigma of the one step (looked for T_L, t_l, TL, tl and truncation_level, at any "
            "depth); without it the LoRA cannot be used: take the file that belongs to it",
        )
    guidance, guidance_key = _number(config, values, _GUIDANCE)
    tokens = _tokens(values)
    why = {
        "sigma": f"{key} of {FLUXSR_CONFIG}",
        "guidance": f"{guidance_key} of {FLUXSR_CONFIG}" if guidance_key else "our choice: the config names none",
        "encode": "assumed: nothing says how FluxSR encodes",
        **({"train_tokens": f"the resolution in {FLUXSR_CONFIG}"} if tokens else {}),
    }
    try:
        settings = OneStepSettings(sigma, 1.0 if guidance is None else guidance, train_tokens=tokens)
    except OptionError as error:
        raise UnsupportedCheckpointError(
            config, f"is wrong: {error}; take the file that belongs to the LoRA"
        ) from error
    return _with_alpha(header, config, values), settings, why


def _tokens(values: dict[str, Any]) -> int | None:
    """Tokens per side of the resolution that the config names; None where it names none that can be used."""
    stated = {_as_number(value) for key, value in _entries(values) if _plain_key(key) in _RESOLUTION}
    resolution = stated.pop() if len(stated) == 1 else None
    if resolution is None or not _TOKEN <= resolution <= _TOKEN * TOKENS_LIMIT:
        return None
    return int(resolution) // _TOKEN


def _with_alpha(header: Header, config: Path, values: dict[str, Any]) -> Header:
    """The config's alpha counts where the file itself states none, and trainers write none into it."""
    alpha, _ = _number(config, values, _ALPHA)
    rank, _ = _number(config, values, _RANK)
    if alpha is None or stated_scale(header) is not None:
        return header
    stated = {"lora_alpha": repr(alpha), **({"r": repr(rank)} if rank else {})}
    return replace(header, metadata={**header.metadata, **stated})


def _read(config: Path, lora: Path) -> dict[str, Any]:
    try:
        values: Any = read_json(config)
    except FileNotFoundError as error:
        raise UnsupportedCheckpointError(
            lora,
            f"states no sigma, and {FLUXSR_CONFIG}, whose T_L it is, does not lie beside it; fetch it into the same "
            "folder",
        ) from error
    except OSError as error:
        raise UnsupportedCheckpointError(
            config, f"cannot be opened ({error.strerror}); check its permissions"
        ) from error
    except ValueError as error:
        raise UnsupportedCheckpointError(config, f"cannot be read as JSON ({plain(error)}); fetch it again") from error
    if not isinstance(values, dict):
        raise UnsupportedCheckpointError(config, "is no JSON object, so it states no T_L; fetch it again")
    return values


def _number(config: Path, values: dict[str, Any], names: tuple[str, ...]) -> tuple[float | None, str]:
    """The number that stands under one of the names, and its key; None and '' where none does, or null."""
    found = {key: value for key, value in _entries(values) if _plain_key(key) in names and value is not None}
    if not found:
        return None, ""
    numbers = {key: _as_number(value) for key, value in found.items()}
    key, number = next(iter(numbers.items()))
    if number is None or any(other != number for other in numbers.values()):
        shown = ", ".join(f"{plain(key, 60)} {plain(value, 60)}" for key, value in list(found.items())[:3])
        raise UnsupportedCheckpointError(
            config, f"expected one number, got {shown}; take the file that belongs to the LoRA"
        )
    return number, plain(key, 60)


def _entries(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All keys and values, those of objects and lists inside too."""
    waiting: list[Any] = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            inside: dict[str, Any] = value
            yield from inside.items()
            waiting += inside.values()
        elif isinstance(value, list):
            waiting += value


def _plain_key(key: str) -> str:
    return re.sub(r"[^a-z0-9]", "", key.lower())


def _as_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) else None
