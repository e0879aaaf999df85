"""What enlarges a picture before the one step, as the command line names it: by a word, or a file of ours or of others.

Files of others are read by spandrel (PyPI, an extra), which knows what upscale model a file's tensors make.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..base import CHOICES, Base, Foreign, Learned, footprint
from ..errors import OptionError, UnsupportedCheckpointError
from ..machine import free_memory
from ..models.flux import OneStepSettings, Output
from ..plain_text import plain, plain_logger
from ..weights.description import Description, describe_flux
from ..weights.enlarger import choose_base, load_enlarger
from ..weights.header import read_header, read_tensors
from .options import number
from .pickles import MODEL_SIZE_LIMIT, MODEL_TOO_LARGE, SUFFIXES, read_pickled_model

log = plain_logger(__name__)


def add_base(parser: argparse.ArgumentParser) -> None:
    """The options of what enlarges, and of how much is then added to it."""
    parser.add_argument(
        "--enlarger",
        default="auto",
        metavar="|".join((*CHOICES, "FILE")),
        help="before the one step: the bundled enlarger, bicubic, or an upscale model (.safetensors, .pth; needs "
        "spandrel); auto (default): the bundled one for models that add detail, else bicubic",
    )
    parser.add_argument(
        "--detail",
        type=number,
        default=1.0,
        help="0 to 2: how much of the model's detail is added; 0: the enlarged picture alone; default: 1",
    )
    parser.add_argument(
        "--repair", type=number, help="0 to 1: how much damage (noise, JPEG) to undo; default: the model's own"
    )


def settings_of(options: argparse.Namespace, found: Description | None) -> OneStepSettings:
    """How the model wants to be run, by its description; with --vae-only, which describes none, by its file."""
    if found is None:
        try:
            found = describe_flux(options.model)
        except UnsupportedCheckpointError as error:  # it is not needed, and need not be there
            log.warning("%s (--vae-only goes on as for a model that says nothing of itself)", error)
    return OneStepSettings() if found is None or found.settings is None else found.settings


def load_base(name: str, output: Output, device: torch.device) -> Base:
    """What ``--enlarger`` names, for a model whose output is that. Raises OptionError, UnsupportedCheckpointError."""
    for choice in CHOICES:
        if name == choice:
            return choose_base(choice, output, device)
    path = Path(name)
    if path.suffix.lower() in SUFFIXES:
        return _foreign(path, read_pickled_model(path), device)
    if path.suffix.lower() != ".safetensors":
        endings = ", ".join((".safetensors", *SUFFIXES))
        raise OptionError(
            f"--enlarger {plain(name)}: expected {', '.join(CHOICES)} or a file that ends in one of {endings}; name one"
        )
    header = read_header(path)
    if header.kind == "enlarger":
        return Learned(load_enlarger(path, device=device, dtype=torch.float32), path.name)
    if header.kind != "unknown":
        raise UnsupportedCheckpointError(
            path,
            f"expected an enlarger or an upscale model, got a {header.kind}; name it with --vae, --model or --lora",
        )
    size = sum(file.stat().st_size for file in header.files)
    if size > MODEL_SIZE_LIMIT:
        raise UnsupportedCheckpointError(path, f"has {size:,} bytes, {MODEL_TOO_LARGE}")
    return _foreign(path, read_tensors(header), device)


def _foreign(path: Path, state: dict[str, Any], device: torch.device) -> Foreign:
    """An upscale model of others, by spandrel. Raises OptionError without it."""
    try:
        import spandrel  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError, AttributeError) as error:  # the latter: a torchvision of another PyTorch
        raise OptionError(
            f"--enlarger {plain(path)}: needs spandrel, which cannot be imported ({plain(error)}); install it with "
            "'pip install op4ksr[spandrel]', or use --enlarger bundled"
        ) from error
    try:
        state = spandrel.canonicalize_state_dict(state)
        model: Any = spandrel.ModelLoader(device).load_from_state_dict(state)
    except Exception as error:  # whatever its many parsers make of what is in the file
        raise UnsupportedCheckpointError(
            path,
            "expected an upscale model that spandrel knows, and it takes it for none"
            f"{_told(error)}; choose another, or a newer spandrel",
        ) from error
    for name, tensor in state.items():  # which it would take for floats
        if name.endswith("weight") and isinstance(tensor, Tensor) and not tensor.is_floating_point():
            raise UnsupportedCheckpointError(
                path, f"{plain(name)}: expected floating-point weights, got {plain(tensor.dtype)}; choose another"
            )
    if not isinstance(model, spandrel.ImageModelDescriptor) or model.input_channels != model.output_channels:
        raise UnsupportedCheckpointError(
            path,
            f"expected a model that makes a picture of a picture, got {plain(model.architecture.name)} of "
            f"{model.input_channels} channels to {model.output_channels}; choose another",
        )
    model.eval().model.requires_grad_(False)
    network, channels = partial(_run, model), int(model.input_channels)
    weights = sum(parameter.nbytes for parameter in model.model.parameters())
    foreign = partial(Foreign, network, int(model.scale), path.name, channels=channels, weights=weights)
    foreign()  # refuses what cannot run, before it is run
    try:
        needs = footprint(network, channels)
    except Exception as error:  # of a network that is not ours
        raise UnsupportedCheckpointError(
            path, f"is taken for {plain(model.architecture.name)}, which fails to run{_told(error)}; choose another"
        ) from error
    return foreign(footprint=needs, free=partial(free_memory, device))


def _run(model: Any, picture: Tensor) -> Tensor:
    return model(picture.to(model.device, model.dtype))


def _told(error: Exception) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines()]
    words = " ".join(lines[: 2 if lines and lines[0].endswith(":") else 1])
    return f" ({plain(words[:200])})" if words else ""
