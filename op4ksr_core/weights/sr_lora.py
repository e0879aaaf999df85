"""One-step LoRAs as they are found on disk: ours in one file, and the folders that others publish.

A one-step LoRA changes a Flux transformer and may change the VAE's encoder; its constants (sigma, guidance, how to
encode) are in no public file, but in the code that belongs to it:

- OMGSR-F (https://github.com/wuer5/OMGSR): ``flux_adapter/`` and ``vae_encoder_adapter/``, each as PEFT saves an
  adapter. Its inference code has the constants: step 244 of 999 of FLUX.1-dev's schedule at 1024 px, guidance 1, a
  sample of the posterior.
- FluxSR (https://github.com/JianzeLi-114/FluxSR): ``pytorch_lora_weights.safetensors``, and ``training_config.json``
  with its T_L; the rest is our choice.
- Ours: one safetensors with ``op4ksr.*`` metadata and the prompt embedding; the encoder's tensors, if there are any,
  begin with ``ENCODER_PREFIX``.

Folders are recognised by what lies in them, and any file in one stands for it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ..errors import UnsupportedCheckpointError
from ..models.flux import OneStepSettings
from ..models.flux_schedule import mu_of_tokens, sigma_of_time
from ..plain_text import plain_logger
from .constants import with_prompt
from .fluxsr import FLUXSR_CONFIG, FLUXSR_FILE, fluxsr_header, fluxsr_settings
from .header import PROMPT_KEYS, Header, check_dtypes, encoder_part, read_header, without_encoder
from .lora import describe_lora
from .lora_parts import lora_contents, target_of
from .peft_folders import ADAPTERS, find_adapters
from .vae_lora import encoder_contents

log = plain_logger(__name__)

Origin = Literal["OMGSR", "FluxSR", "OP4KSR"]

#: OMGSR-F's step, the number of steps that it is one of, and the tokens per side of its training.
_OMGSR_STEP, _OMGSR_STEPS, _OMGSR_TOKENS = 244, 999, 64

#: As their code computes it: 0.50515 of FLUX.1-dev's schedule for a picture of 1024 px.
OMGSR_SIGMA = sigma_of_time(_OMGSR_STEP / _OMGSR_STEPS, mu_of_tokens(_OMGSR_TOKENS**2))

#: Tokens of OMGSR-F's prompt: diffusers pads T5's to 512, where ComfyUI pads to 256 unless it is told otherwise.
_OMGSR_PROMPT_TOKENS = 512


#: Image px per latent px of the VAE that the published LoRAs are trained with: Flux's own.
_PUBLISHED_RATIO = 8

#: How ``op4ksr.origin`` begins in a file of ours that is made of one of them.
_PUBLISHED = ("OMGSR-F (", "FluxSR (")


@dataclass(frozen=True)
class SrLora:
    """A one-step LoRA, before its tensors are read.

    path: what was asked for; transformer, encoder: views of the file or files, the encoder's None where it is
    unchanged; settings: without the prompt embedding; theta: None where none is named; why: fact -> where it is from.
    """

    path: Path
    origin: Origin
    transformer: Header
    encoder: Header | None
    settings: OneStepSettings
    theta: tuple[float, float] | None
    why: dict[str, str]
    has_prompt: bool


def is_published(path: Path) -> bool:
    """Whether this is OMGSR's or FluxSR's folder, or a file in one. UnsupportedCheckpointError for half of OMGSR's."""
    if find_adapters(path) is not None:
        return True
    header = fluxsr_header(path)
    return header is not None and not _is_ours(header) and os.path.lexists(header.files[0].parent / FLUXSR_CONFIG)


def describe_sr_lora(source: Header | str | Path) -> SrLora:
    """What lies there: a file of ours (or its header), OMGSR's or FluxSR's folder, or any file in one of those.

    Raises UnsupportedCheckpointError: no such LoRA, half of one, a config that is missing or wrong, metadata that is.
    """
    if isinstance(source, Header):
        return _ours(source.path, source)
    path = Path(source)
    if (adapters := find_adapters(path)) is not None:
        return _omgsr(path, *adapters)
    header = fluxsr_header(path)
    if header is not None and not _is_ours(header):
        return _fluxsr(path, header)
    return _ours(path, header or _read(path))


def _read(path: Path) -> Header:
    try:
        return read_header(path)
    except UnsupportedCheckpointError as error:
        if error.path != path or not os.path.isdir(path):
            raise
        raise UnsupportedCheckpointError(
            path,
            f"is no folder of a one-step LoRA: expected {' and '.join(ADAPTERS)} (OMGSR-F) or {FLUXSR_FILE} "
            "(FluxSR) in it; name the folder that holds them, or a file",
        ) from error


def sr_lora_settings(found: SrLora) -> OneStepSettings:
    """The constants with the prompt embedding, float32; txt and vec None where it carries none.

    Raises UnsupportedCheckpointError where it holds NaN or infinite numbers.
    """
    settings = with_prompt(found.transformer, found.settings)
    if settings.txt is not None:
        warn_of_prompt_length(found, len(settings.txt))
    return settings


def is_for_ratio(found: SrLora, ratio: int) -> bool:
    """Whether it may be for a VAE of ``ratio`` px per latent px; False for a published one at another than 8."""
    return not is_theirs(found) or ratio == _PUBLISHED_RATIO


def is_theirs(found: SrLora) -> bool:
    """Whether it is a published one, for FLUX.1-dev and its VAE; a file of ours that is made of one too."""
    return found.origin != "OP4KSR" or found.why.get("origin", "").startswith(_PUBLISHED)


def check_has_prompt(found: SrLora) -> None:
    """Raise UnsupportedCheckpointError, with what to do, where no prompt embedding travels with it."""
    if found.has_prompt:
        return
    if found.origin == "FluxSR":
        reason = "its .pth files are read once, by 'convert --sr-lora FOLDER -o FILE.safetensors'; name that file then"
    else:
        reason = (
            "save one in ComfyUI (CLIP Text Encode with an empty text, then Save Prompt Embedding), add it with "
            "'convert --sr-lora FOLDER --prompt-embedding FILE -o ONE.safetensors', and name that file"
        )
    if found.origin == "OP4KSR":
        reason = reason.replace("--sr-lora FOLDER", "THIS")
    raise UnsupportedCheckpointError(found.path, f"carries no prompt embedding: {reason}")


def warn_of_prompt_length(found: SrLora, tokens: int) -> None:
    """Log a prompt embedding of ``tokens`` tokens that is not as long as the one that the LoRA was trained with.

    Flux looks at padding as at any other token: a shorter prompt gives another picture, and nothing shows it.
    """
    omgsr = found.origin == "OMGSR" or found.why.get("origin", "").startswith("OMGSR-F")  # in one file
    if omgsr and tokens != _OMGSR_PROMPT_TOKENS:
        log.warning(
            "%s: was trained with a prompt of %d tokens, and this embedding has %d; in ComfyUI put T5 Tokenizer "
            "Options with min_length %d before CLIP Text Encode", found.path.name, _OMGSR_PROMPT_TOKENS, tokens,
            _OMGSR_PROMPT_TOKENS,
        )  # fmt: skip


def _is_ours(header: Header) -> bool:
    return "op4ksr.sigma" in header.metadata or all(key in header.shapes for key in PROMPT_KEYS)


def _ours(path: Path, header: Header) -> SrLora:
    encoder, transformer = encoder_part(header), without_encoder(header)
    if encoder is not None and not transformer.names:
        raise UnsupportedCheckpointError(
            path, "changes a VAE's encoder alone, and the transformer's half is missing; convert the whole folder again"
        )
    found = describe_lora(transformer)
    if not _is_ours(header):
        raise UnsupportedCheckpointError(
            path,
            "is a LoRA that names neither its sigma (op4ksr.sigma) nor a prompt embedding, so it is no one-step LoRA "
            "as we know them; use a LoRA loader, or write them with 'convert --set' and 'convert --prompt-embedding'",
        )
    missing = [key for key in PROMPT_KEYS if key not in header.shapes]
    if len(missing) == 1:
        raise UnsupportedCheckpointError(
            path, f"carries half a prompt embedding ({missing[0]} is missing); make it again"
        )
    if encoder is not None:
        _check_encoder(encoder)
    if origin := header.metadata.get("op4ksr.origin"):
        found.why["origin"] = origin
    return SrLora(path, "OP4KSR", transformer, encoder, found.settings, found.theta, found.why, not missing)


def _omgsr(path: Path, transformer: Path, encoder: Path) -> SrLora:
    why = {
        "sigma": f"OMGSR-F's code: step {_OMGSR_STEP} of {_OMGSR_STEPS} of FLUX.1-dev's schedule at 1024 px",
        "guidance": "OMGSR-F's code",
        "encode": "OMGSR-F's code",
        "train_tokens": "OMGSR-F's name: 1024 px",
    }
    settings = OneStepSettings(OMGSR_SIGMA, 1.0, train_tokens=_OMGSR_TOKENS, encode="sample")
    halves = _checked_transformer(read_header(transformer)), read_header(encoder)
    _check_encoder(halves[1])
    return SrLora(path, "OMGSR", *halves, settings, None, why, False)


def _fluxsr(path: Path, header: Header) -> SrLora:
    header, settings, why = fluxsr_settings(header)
    return SrLora(path, "FluxSR", _checked_transformer(header), None, settings, None, why, False)


def _checked_transformer(header: Header) -> Header:
    describe_lora(header)
    if target_of(lora_contents(header)) != "a Flux transformer":
        raise UnsupportedCheckpointError(
            header.path, "expected a LoRA of a Flux transformer, got one of another model; choose another folder"
        )
    return header


def _check_encoder(header: Header) -> None:
    whole = {name for name in header.shapes if name.endswith(".alpha")}
    check_dtypes(header, header.shapes.keys() - whole, whole)
    encoder_contents(header)
