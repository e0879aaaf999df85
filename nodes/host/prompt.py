"""Prompt embeddings: out of a CONDITIONING, and out of a file into one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.plain_text import plain, plain_logger
from ...op4ksr_core.weights.header import PROMPT_KEYS

log = plain_logger(__name__)

#: What of a CONDITIONING's settings is known here; another, such as an area, is no part of a prompt embedding.
_KNOWN = {"pooled_output", "guidance"}


def prompt_of(conditioning: list[Any]) -> tuple[Tensor, Tensor | None, float | None]:
    """txt (T, context) and pooled (vec,), float32, of the one prompt of a CONDITIONING, and its guidance if it has one.

    Its other settings (an area, a mask, a time range, hooks) are left out, and named in the log. Raises OptionError for
    several prompts, of which a model takes one.
    """
    counts = [len(conditioning), *(len(entry[0]) for entry in conditioning)]
    if max(counts) > 1:
        raise OptionError(
            f"conditioning: holds {max(counts)} prompts, and a prompt embedding is one; connect that of a single CLIP "
            "Text Encode"
        )
    txt, extra, *_ = conditioning[0]
    if left := sorted(str(name) for name, value in extra.items() if name not in _KNOWN and value is not None):
        names = ", ".join(map(plain, left))
        log.warning("conditioning: its %s is left out; a prompt embedding is its tokens alone", names)
    pooled: Tensor | None = extra.get("pooled_output")
    if pooled is not None and len(pooled) > 1:
        raise OptionError(
            f"conditioning: its pooled_output holds {len(pooled)} prompts; connect a single CLIP Text Encode's"
        )
    return txt[0].float().cpu(), None if pooled is None else pooled[0].float().cpu(), extra.get("guidance")


def conditioning_of(tensors: Mapping[str, Tensor], guidance: float | None) -> list[Any]:
    """``weights.prompt.read_prompt``'s tensors -> CONDITIONING, float32, with the guidance if one is given."""
    txt, vec = (tensors[key].float()[None] for key in PROMPT_KEYS)
    return [[txt, {"pooled_output": vec, **({} if guidance is None else {"guidance": guidance})}]]
