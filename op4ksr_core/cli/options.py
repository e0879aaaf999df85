"""Options that several commands share, and the models and plans they stand for."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from ..errors import OptionError, UnsupportedCheckpointError
from ..images.resize import DEFAULT_CEILING_MEGAPIXELS, Target
from ..machine import default_device
from ..models.flux import Flux, FluxParams, OneStepSettings
from ..models.rope import FLUX_TRAIN_TOKENS, GRID_POLICIES, Policy, Rfr
from ..pieces import Pieces
from ..plain_text import plain, plain_logger
from ..vae.autoencoder import AutoEncoder, AutoEncoderParams
from ..vae.strips import MEMORY_MODES, StripSettings
from ..weights.checkpoint import load_autoencoder, load_flux
from ..weights.description import Description, describe_autoencoder, describe_flux
from ..weights.probe import doubt
from ..weights.sr_lora import SrLora, check_has_prompt, describe_sr_lora, is_for_ratio, is_theirs

log = plain_logger(__name__)

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"[-+]?\d{1,18}", re.ASCII)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_size(parser: argparse.ArgumentParser) -> None:
    """The options that ``target_of`` reads."""
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--scale", type=number, help="factor (default: 4)")
    size.add_argument("--long-edge", type=whole, metavar="PX")
    size.add_argument("--short-edge", type=whole, metavar="PX")
    size.add_argument("--megapixels", type=number, metavar="MP", help="1 MP = 1024 x 1024 px")
    parser.add_argument(
        "--max-megapixels", type=number_or_inf, default=DEFAULT_CEILING_MEGAPIXELS, metavar="MP", help="the ceiling"
    )


def add_models(parser: argparse.ArgumentParser) -> None:
    """The options that ``load_models``, ``parse_device`` and the planner read."""
    parser.add_argument("--vae", type=Path, default=BUNDLED_AUTOENCODER, help="default: the bundled one")
    parser.add_argument("--model", type=Path, default=BUNDLED_FLUX, help="default: the bundled one")
    parser.add_argument(
        "--stride", type=whole, choices=(1, 2), help="of the VAE: 1 = 8x, 2 = 16x; default: as its file says"
    )
    parser.add_argument("--shift", type=whole, choices=(0, 1), help="of the VAE; default: as its file says")
    parser.add_argument("--theta", help="RoPE base, one number or ROWS,COLUMNS; default: the model's own")
    parser.add_argument("--sigma", type=number, help="default: the model's own")
    parser.add_argument(
        "--lora",
        action="append",
        metavar="FILE_OR_FOLDER[:STRENGTH]",
        help="a one-step LoRA, of the model and perhaps the VAE's encoder (strength 1); its theta, sigma and prompt "
        "come along",
    )
    parser.add_argument(
        "--vae-only", action="store_true", help="skip the transformer: the enlarged picture through the VAE and back"
    )
    parser.add_argument("--device", help="cpu, cuda, mps (default: the best there is)")
    parser.add_argument(
        "--dtype",
        choices=DTYPES,
        help="default: float32 on the CPU, bfloat16 on GPUs that have it (else float16, and float32 for the VAE)",
    )
    parser.add_argument(
        "--strips",
        type=parse_strips,
        metavar="MODE[:ROWS]",
        help=f"how the VAE runs: {', '.join(MEMORY_MODES)}, the same picture to rounding; default: by the free memory",
    )


def add_transformer(parser: argparse.ArgumentParser) -> None:
    """How the transformer runs over a picture: ``pieces``, and ``rfr`` for ``rfr_of``."""
    parser.add_argument(
        "--pieces",
        type=parse_pieces,
        metavar="PX[:OVERLAP]",
        help="run the transformer over overlapping windows of so many px of the output, blended, as 1024 or 1024:512 "
        "(default: the whole picture at once; overlap: half of a window)",
    )
    parser.add_argument(
        "--rfr",
        choices=GRID_POLICIES,
        help="RFR: positions beyond the side that the model was trained at (default: the model's own)",
    )


def parse_pieces(text: str) -> Pieces:
    """``1024``, or with an overlap ``1024:512`` -> Pieces, for argparse."""
    side, colon, overlap = text.partition(":")
    try:
        size = whole(side)
        return Pieces(size, whole(overlap) if colon else size // 2)
    except argparse.ArgumentTypeError:
        problem = f"expected px as 1024, or with an overlap as 1024:512; got {plain(text)}"
    except OptionError as error:
        problem = str(error)
    raise argparse.ArgumentTypeError(problem)


def rfr_of(policy: Policy, settings: OneStepSettings, sigma: float) -> Rfr:
    """The policy for a model of these settings at a sigma: with its trained tokens (Flux's where it names none)."""
    return Rfr(policy, train_tokens=settings.train_tokens or FLUX_TRAIN_TOKENS, sigma=sigma)


def number(text: str) -> float:
    """A number in ASCII digits, at most 1e12 either way, for argparse."""
    value = float(text) if _NUMBER.fullmatch(text) else math.nan
    if not abs(value) <= 1e12:
        raise argparse.ArgumentTypeError(f"expected a number, like 2 or 0.5, of at most 1e12; got {plain(text)}")
    return value


def number_or_inf(text: str) -> float:
    """``number``, or ``inf``: no limit."""
    return math.inf if text == "inf" else number(text)


def whole(text: str) -> int:
    """A whole number of at most 18 ASCII digits, so that all that counts can hold it, for argparse."""
    if not _WHOLE.fullmatch(text):
        raise argparse.ArgumentTypeError(f"expected a whole number of at most 18 digits; got {plain(text)}")
    return int(text)


def whole_from(lowest: int, largest: int) -> Callable[[str], int]:
    """``whole`` from ``lowest`` to ``largest``, for argparse; its own ``choices`` would list every number."""

    def parse(text: str) -> int:
        if not lowest <= (value := whole(text)) <= largest:
            raise argparse.ArgumentTypeError(f"expected {lowest} to {largest}; got {value}")
        return value

    return parse


def parse_strips(text: str) -> StripSettings:
    """``tiny``, or with rows ``fast:32`` -> StripSettings, for argparse."""
    mode, _, rows = text.partition(":")
    try:
        return StripSettings(whole(rows or str(StripSettings.rows)), mode)  # pyright: ignore[reportArgumentType]
    except (ValueError, argparse.ArgumentTypeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected {', '.join(MEMORY_MODES)}, with :ROWS or without; got {plain(text)}"
        ) from error


def parse_lora(text: str, option: str) -> tuple[Path, float]:
    """``FILE`` or ``FILE:STRENGTH`` (a strength is what reads as a number). OptionError for one that is none."""
    file, colon, strength = text.rpartition(":")
    if not (colon and file and re.fullmatch(r"[-+0-9.eE]*[0-9][-+0-9.eE]*|[-+]?(inf|nan)", strength)):
        return Path(text), 1.0
    try:
        return Path(file), number(strength)
    except argparse.ArgumentTypeError as error:
        raise OptionError(f"{option} {plain(text)}: {error}") from error


def target_of(options: argparse.Namespace) -> Target:
    """The size that is asked for; x4 without any. Raises OptionError."""
    given = (options.scale, options.long_edge, options.short_edge, options.megapixels)
    scale = 4.0 if all(value is None for value in given) else options.scale
    return Target(scale, options.long_edge, options.short_edge, options.megapixels, options.max_megapixels)


def parse_device(name: str | None) -> torch.device:
    """The device of that name, tried out; None: the best there is. Raises OptionError where it cannot be had."""
    try:
        device = default_device() if name is None else torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].split(". ")[0][:200]
        raise OptionError(f"--device {plain(name)}: not available here ({reason}); try --device cpu") from error
    return device


@dataclass(frozen=True)
class Described:
    """The models that the options name, by their files' headers; no transformer with --vae-only."""

    autoencoder: Description
    flux: Description | None


def describe_models(options: argparse.Namespace) -> Described:
    """Read the headers of the files that the options name. Raises UnsupportedCheckpointError, OptionError."""
    lora, strength = _lora_of(options)
    shape = {"stride": options.stride, "shift": options.shift}
    autoencoder = describe_autoencoder(options.vae, **shape, lora=lora, strength=strength)
    constants = {"theta": options.theta, "sigma": options.sigma}
    flux = None if options.vae_only else describe_flux(options.model, **constants, lora=lora, strength=strength)
    if lora is not None:
        _warn_of_others(lora, autoencoder, flux)
    return Described(autoencoder, flux)


def _warn_of_others(lora: SrLora, autoencoder: Description, flux: Description | None) -> None:
    """Say in the log where a published LoRA meets other models than its own, whose tensors have the same shapes."""
    assert isinstance(autoencoder.params, AutoEncoderParams)
    if not is_for_ratio(lora, ratio := autoencoder.params.ratio):
        text = "%s: was trained with Flux's own 8x VAE, and %s is taken for %dx; name Flux's, with --stride 1"
        log.warning(text, lora.path.name, autoencoder.header.path.name, ratio)
    if flux is None:
        return
    assert isinstance(flux.params, FluxParams)
    if is_theirs(lora) and not flux.params.guidance_embed:
        text = "%s: was trained on FLUX.1-dev, and %s has no guidance (FLUX.1-schnell has none); name FLUX.1-dev"
        log.warning(text, lora.path.name, flux.header.path.name)


def _lora_of(options: argparse.Namespace) -> tuple[SrLora | None, float]:
    """The one-step LoRA that the options name, and its strength. OptionError for more than one."""
    if not options.lora:
        return None, 1.0
    if len(options.lora) > 1:
        raise OptionError(
            f"--lora: expected one one-step LoRA, got {len(options.lora)}; merge others with 'convert --merge-lora'"
        )
    file, strength = parse_lora(options.lora[0], "--lora")
    return describe_sr_lora(file), strength


def load_models(
    options: argparse.Namespace, device: torch.device, dtype: torch.dtype | None, described: Described | None = None
) -> tuple[AutoEncoder, Flux | None]:
    """The models that the options name; no transformer with --vae-only.

    dtype None: each model's default on the device. described: what ``describe_models`` found, so that headers are not
    read again. Raises UnsupportedCheckpointError, also where nothing states the VAE's stride and a test picture speaks
    against 16x.
    """
    found = described or describe_models(options)
    if found.flux is not None and found.flux.lora is not None:
        check_has_prompt(found.flux.lora)
    autoencoder = load_autoencoder(found.autoencoder, device=device, dtype=dtype)
    probed = autoencoder
    if found.autoencoder.lora is not None and found.autoencoder.assumed:  # a test picture tells of the VAE alone
        probed = load_autoencoder(replace(found.autoencoder, lora=None), device=device, dtype=dtype)
    if warning := doubt(found.autoencoder, probed):
        raise UnsupportedCheckpointError(options.vae, f"{warning}; say which with --stride 1 or --stride 2")
    if found.flux is None:
        return autoencoder, None
    return autoencoder, load_flux(found.flux, device=device, dtype=dtype)
