"""The constants of the one step that a transformer's or a LoRA's file carries: theta, sigma, guidance, prompt.

Each is what the caller asks for, else what the file's metadata states, else a named default; ``why`` says which.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..errors import OptionError, UnsupportedCheckpointError
from ..models.flux import DEFAULT_GUIDANCE, DEFAULT_SIGMA, OneStepSettings, check_sigma
from ..models.rope import FLUX_THETA, parse_theta
from ..plain_text import plain
from .header import PROMPT_KEYS, Header, check_finite, read_tensors

#: Why a fact is as it is, where the caller said so.
REQUESTED = "as requested"


def constants(header: Header) -> tuple[tuple[float, float], OneStepSettings, dict[str, str]]:
    """theta, sigma and the other constants that a transformer or LoRA file names (or our defaults), and why."""
    why: dict[str, str] = {}
    return theta_of(header, None, why), settings_of(header, None, why), why


def constants_metadata(settings: OneStepSettings, theta: tuple[float, float] | None) -> dict[str, str]:
    """The reverse of ``constants``: what a file must state so that they are read again. theta: None for none."""
    metadata = {"op4ksr.sigma": repr(settings.sigma), "op4ksr.guidance": repr(settings.guidance)}
    if theta is not None:
        rows, columns = theta
        metadata["op4ksr.rope_theta"] = f"{rows!r}" if rows == columns else f"{rows!r},{columns!r}"
    if settings.encode != "mean":
        metadata["op4ksr.encode"] = settings.encode
    if settings.output != "picture":
        metadata["op4ksr.output"] = settings.output
    if settings.repair:
        metadata["op4ksr.repair"] = repr(settings.repair)
    if settings.sigma_repair is not None:
        metadata["op4ksr.sigma_repair"] = repr(settings.sigma_repair)
    if settings.train_tokens is not None:
        metadata["op4ksr.train_tokens"] = str(settings.train_tokens)
    return metadata


def with_prompt(header: Header, settings: OneStepSettings) -> OneStepSettings:
    """The settings with the prompt embedding that the file carries, float32; None where it carries none.

    Raises UnsupportedCheckpointError where it holds NaN or infinite numbers.
    """
    tensors = read_tensors(header, set(PROMPT_KEYS))
    for name, tensor in tensors.items():
        check_finite(header, name, tensor)
    txt, vec = (tensors.get(key) for key in PROMPT_KEYS)
    return replace(settings, txt=None if txt is None else txt.float(), vec=None if vec is None else vec.float())


def check_prompt(header: Header, context_in_dim: int, vec_in_dim: int) -> None:
    """Refuse a prompt embedding that is not (T, context_in_dim), or a pooled one not (vec_in_dim,)."""
    txt, vec = (header.shapes.get(key) for key in PROMPT_KEYS)
    if txt is not None and (len(txt) != 2 or txt[0] < 1 or txt[1] != context_in_dim):
        expected, got = f"op4ksr.txt of (T, {context_in_dim})", txt
    elif vec is not None and vec != (vec_in_dim,):
        expected, got = f"op4ksr.vec of ({vec_in_dim},)", vec
    else:
        return
    raise UnsupportedCheckpointError(
        header.path, f"carries another model's prompt embedding: expected {expected}, got {got}; fetch it again"
    )


def theta_of(
    header: Header, requested: float | str | tuple[float, float] | None, why: dict[str, str]
) -> tuple[float, float]:
    """theta for rows and columns: as requested, else the metadata's, else Flux's; the reason goes into ``why``.

    Raises OptionError for a bad request, UnsupportedCheckpointError for bad metadata.
    """
    if requested is not None:
        why["theta"] = REQUESTED
        return parse_theta(requested)
    if (stated := header.metadata.get("op4ksr.rope_theta")) is not None:
        why["theta"] = "the file's metadata"
        try:
            return parse_theta(stated)
        except OptionError as error:
            raise UnsupportedCheckpointError(
                header.path, f"its metadata op4ksr.rope_theta is wrong: {error}; pass a theta, or fetch it again"
            ) from error
    why["theta"] = "default: Flux's, as the file names none"
    return FLUX_THETA, FLUX_THETA


def settings_of(header: Header, sigma: float | None, why: dict[str, str]) -> OneStepSettings:
    """sigma (as requested, else the metadata's, else ours) and the other constants; the reasons go into ``why``.

    Raises OptionError for a bad request, UnsupportedCheckpointError for bad metadata.
    """
    value = DEFAULT_SIGMA
    if sigma is not None:
        why["sigma"] = REQUESTED
        value = check_sigma(sigma)
    elif (stated := header.metadata.get("op4ksr.sigma")) is not None:
        why["sigma"] = "the file's metadata"
        value: float = number(header, "op4ksr.sigma", stated, float)
    else:
        why["sigma"] = "default, as the file names none"
    guidance, tokens = header.metadata.get("op4ksr.guidance"), header.metadata.get("op4ksr.train_tokens")
    why["guidance"] = "the file's metadata" if guidance is not None else "default: FLUX.1-dev's, as the file names none"
    encode: Any = header.metadata.get("op4ksr.encode")
    why["encode"] = (
        "the file's metadata" if encode is not None else "default: the posterior's mean, as the file names none"
    )
    output: Any = header.metadata.get("op4ksr.output")
    why["output"] = "the file's metadata" if output is not None else "default: a whole picture, as the file names none"
    repair, most = header.metadata.get("op4ksr.repair"), header.metadata.get("op4ksr.sigma_repair")
    if sigma is not None:  # at any repair
        most = None
    why |= {fact: "the file's metadata" for fact, text in (("repair", repair), ("sigma_repair", most)) if text}
    try:
        return OneStepSettings(
            sigma=value,
            guidance=DEFAULT_GUIDANCE if guidance is None else number(header, "op4ksr.guidance", guidance, float),
            train_tokens=None if tokens is None else number(header, "op4ksr.train_tokens", tokens, int),
            encode="mean" if encode is None else encode,
            output="picture" if output is None else output,
            repair=0.0 if repair is None else number(header, "op4ksr.repair", repair, float),
            sigma_repair=None if most is None else number(header, "op4ksr.sigma_repair", most, float),
        )
    except OptionError as error:
        raise UnsupportedCheckpointError(header.path, f"its metadata is wrong: {error}; fetch it again") from error


def number(header: Header, key: str, text: str, kind: type[Any]) -> Any:
    """``kind`` (int or float) of a text that the metadata or the config states. UnsupportedCheckpointError if none."""
    try:
        return kind(text.encode("ascii"))  # no digits of other scripts
    except (ValueError, OverflowError) as error:
        raise UnsupportedCheckpointError(
            header.path, f"its metadata is wrong: {key} is no number: '{plain(text)}'; correct it, or fetch it again"
        ) from error
