"""``plan``: what a run will need, from the files' headers and the picture's size, before anything is computed."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

import torch

from ..errors import OptionError, OutOfMemoryError
from ..images.read import open_picture
from ..images.resize import picture_bytes
from ..machine import default_dtype, dtype_name, free_memory
from ..models.flux import Flux, FluxParams, OneStepSettings
from ..one_step import OneStepOptions, check_pair
from ..plain_text import plain
from ..planning.geometries import LONGEST_PROMPT
from ..planning.make import Models, make_plan
from ..planning.plan import GIGABYTE, Machine, Plan, Weights
from ..vae.autoencoder import AutoEncoder
from ..vae.estimate import both
from ..vae.layers import AutoEncoderParams
from ..weights.description import Description
from ..weights.header import PROMPT_KEYS
from .console import say, say_json
from .enlargers import add_base, load_base, settings_of
from .options import (
    DTYPES,
    add_models,
    add_size,
    add_transformer,
    describe_models,
    load_models,
    number,
    parse_device,
    target_of,
)


def add_plan(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_plan)
    parser.add_argument("input", metavar="IN", help="picture, or its size: 1024x768")
    add_size(parser)
    add_models(parser)
    add_transformer(parser)
    add_base(parser)
    parser.add_argument("--free", type=_gigabytes, metavar="GB", help="plan for this much free memory")
    parser.add_argument("--json", action="store_true")


def run_plan(options: argparse.Namespace) -> int:
    """Print the plan; 1 if the run will not fit."""
    planner = Planner(options)
    if options.free is not None:
        planner.machine = replace(planner.machine, free=int(options.free * GIGABYTE))
    plan = planner.plan(_size_of(options.input))
    if options.json:
        say_json(plan.report())
    else:
        say(plan.text())
    return 1 if plan.fits is False else 0


def _gigabytes(text: str) -> float:
    value = number(text)
    if not 0 < value <= 1e9:
        raise argparse.ArgumentTypeError(f"expected gigabytes above 0, at most 1e9; got {plain(text)}")
    return value


def _size_of(text: str) -> tuple[int, int]:
    """1024x768, or a picture file's size -> (height, width)."""
    if match := re.fullmatch(r"(\d+)[xX](\d+)", text, re.ASCII):
        width, height = (int(part) if len(part) < 10 else 0 for part in match.groups())
        if not (width and height):
            raise OptionError(f"{plain(text)}: expected a size above 0, of at most 9 digits a side, as 1024x768")
        return height, width
    return open_picture(Path(text)).size


def _text_tokens(described: Description) -> int:
    """Of the prompt embedding that the model's file, or the LoRA's, carries."""
    if described.lora is None:
        return described.header.shapes.get(PROMPT_KEYS[0], (1,))[0]
    return described.lora.transformer.shapes.get(PROMPT_KEYS[0], (LONGEST_PROMPT,))[0]


class Planner:
    """Plans for any picture with the models and the machine that the options name, from the files' headers.

    Raises OptionError and UnsupportedCheckpointError.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.device = options, parse_device(options.device)
        self.dtype = DTYPES[options.dtype] if options.dtype else None
        self.target = target_of(options)
        OneStepOptions(self.target, detail=options.detail, repair=options.repair)  # refused before a file is read
        cpu_free = None if self.device.type == "cpu" else free_memory(torch.device("cpu"))
        dtype = self.dtype or default_dtype(self.device, wide_range=True)
        self.machine = Machine(str(self.device), dtype, free_memory(self.device), cpu_free=cpu_free)
        self.described = describe_models(options)
        settings = settings_of(options, self.described.flux)
        self.repair = settings.repair if options.repair is None else options.repair
        self.base = load_base(options.enlarger, settings.output, self.device)
        self.models = self._models()

    def load(self) -> tuple[AutoEncoder, Flux | None]:
        """The models themselves, on the device. Raises UnsupportedCheckpointError."""
        return load_models(self.options, self.device, self.dtype, self.described)

    def plan(self, size: tuple[int, int]) -> Plan:
        """The plan for a picture of ``size`` (height, width). Raises OptionError beyond the target's ceiling.

        What the input takes is no longer free; where that is less than a hundredth it is not counted (our choice).
        """
        machine, own = self.machine, picture_bytes(*size)
        if machine.free is not None and own > machine.free // 100:
            machine = replace(machine, free=max(0, machine.free - own))
        return make_plan(size, self.target, self.models, machine)

    def check_weights(self) -> None:
        """Raise OutOfMemoryError, before they are read, where the weights alone do not fit."""
        need, free = sum(w.size for w in self.models.weights), self.machine.free
        if free is None or need <= free:
            return
        ways = ["use --dtype bfloat16"] if self.machine.dtype == torch.float32 else []
        ways += [] if self.machine.device == "cpu" else ["use --device cpu"]
        ways.append("use the nodes in ComfyUI, which moves weights in and out")
        raise OutOfMemoryError(
            f"the models' weights alone need {need / GIGABYTE:.2f} GB, but there are {free / GIGABYTE:.2f} GB on "
            f"{self.machine.device}; {' or '.join(ways)}"
        )

    def _models(self) -> Models:
        """What runs, as plans need it."""
        found, flux = self.described.autoencoder.params, None
        assert isinstance(found, AutoEncoderParams)
        weights = [self._weights(self.options.vae, AutoEncoder(found, device="meta"), self.machine.dtype)]
        text_tokens, train_tokens, dtype, output = 1, None, None, OneStepSettings().output
        if (described := self.described.flux) is not None:
            flux = described.params
            assert isinstance(flux, FluxParams) and described.settings is not None
            check_pair(flux, found)
            text_tokens = _text_tokens(described)
            train_tokens, output = described.settings.train_tokens, described.settings.output
            dtype = self.dtype or default_dtype(self.device)
            weights.append(self._weights(self.options.model, Flux(flux, device="meta"), dtype))
        if self.base.weights:
            weights.append(Weights(plain(self.base.name), self.base.weights, str(self.machine.device), torch.float32))
        return Models(
            found,
            flux=flux,
            text_tokens=text_tokens,
            transformer_dtype=dtype,
            weights=tuple(weights),
            train_tokens=train_tokens,
            pieces=self.options.pieces,
            positions=self.options.rfr or "checkpoint",
            strips=None if self.options.strips is None else both(self.options.strips),
            base=self.base,
            repair=self.repair,
            output=output,
            detail=self.options.detail,
        )

    def _weights(self, path: Path, model: torch.nn.Module, dtype: torch.dtype) -> Weights:
        count = sum(parameter.numel() for parameter in model.parameters())
        return Weights(plain(path.name), count * dtype.itemsize, f"{self.machine.device}, {dtype_name(dtype)}", dtype)
