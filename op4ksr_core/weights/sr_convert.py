"""One shareable file made of a one-step LoRA as others publish it: both halves, the constants, the prompt embedding.

Numbers are only moved. The transformer's tensors get the names that diffusers and ComfyUI know, the encoder's
``ENCODER_PREFIX``; a strength that a config beside the file states becomes an ``.alpha`` tensor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from .constants import constants, constants_metadata
from .convert import check_key, check_output, dtype_name, set_error
from .header import ENCODER_PREFIX, OUR_FORMAT, PROMPT_KEYS, Header, check_finite, read_tensors
from .lora_names import canonical_name
from .lora_parts import LoraContents, lora_contents
from .prompt import PromptEmbedding, opened
from .sr_lora import SrLora, describe_sr_lora, warn_of_prompt_length
from .streamed import Entry, write_safetensors
from .vae_lora import encoder_contents

#: Whose the weights are, and on what terms, for whoever gets the file without the folder. The base model's licence
#: binds what is made from it.
_ORIGINS = {
    "OMGSR": "OMGSR-F (github.com/wuer5/OMGSR, which states no licence), for FLUX.1-dev (non-commercial licence)",
    "FluxSR": "FluxSR (a copy of it whose publisher is not verified), for FLUX.1-dev (non-commercial licence)",
}


def convert_sr_lora(
    source: str | Path,
    output: str | Path,
    metadata: Mapping[str, str] | None = None,
    prompt: PromptEmbedding | Path | None = None,
) -> dict[str, Any]:
    """Write ``output`` (one file, whole or not at all) and return what is in it, JSON-ready.

    source: a folder, or a file in it, as ``describe_sr_lora`` takes it. metadata: constants in place of its own.
    prompt: an embedding in place of its own, or a safetensors file of one. Raises UnsupportedCheckpointError,
    OptionError, OutputError.
    """
    found, prompt = describe_sr_lora(source), opened(prompt)
    halves = [lora_contents(found.transformer), *([encoder_contents(found.encoder)] if found.encoder else [])]
    files = [file for half in halves for file in half.header.files]
    check_output(Path(output), [*files, *(prompt.files if prompt else ())])
    stated = _metadata(found, metadata or {})
    entries: dict[str, Entry] = {}
    for half, rename in zip(halves, (canonical_name, _encoder_name), strict=False):
        entries |= _entries(half, rename)
    tensors = prompt.tensors if prompt else read_tensors(found.transformer, set(PROMPT_KEYS))
    if prompt:
        warn_of_prompt_length(found, len(tensors[PROMPT_KEYS[0]]))
    entries |= {name: Entry(dtype_name(t), tuple(t.shape), lambda t=t: t) for name, t in tensors.items()}
    write_safetensors(output, entries, stated)
    unreasoned = {"op4ksr.origin", *(metadata or {})}  # its reason is itself; what was asked for
    return {
        "output": str(output),
        "kind": "lora",
        "origin": found.origin,
        "tensors": len(entries),
        "bytes": sum(entry.bytes for entry in entries.values()),
        "metadata": {key: value for key, value in stated.items() if key != "format"},
        "why": {fact: reason for fact, reason in found.why.items() if f"op4ksr.{fact}" not in unreasoned},
        "changes_vae_encoder": found.encoder is not None,
        "prompt_embedding": bool(tensors),
    }


def _metadata(found: SrLora, changed: Mapping[str, str]) -> dict[str, str]:
    """The constants, where they are from, and what is asked for in their place; checked as a loader would check it."""
    for key in changed:
        check_key("lora", key)
    own = {key: value for key, value in found.transformer.metadata.items() if key.startswith("op4ksr.")}
    metadata = {**OUR_FORMAT, **own, "op4ksr.kind": "lora", **constants_metadata(found.settings, found.theta)}
    if found.origin in _ORIGINS:
        assumed = [f"{fact}: {why}" for fact, why in found.why.items() if why.startswith(("assumed", "our choice"))]
        metadata["op4ksr.origin"] = "; ".join([_ORIGINS[found.origin], *assumed])
    metadata |= {"op4ksr.encode": found.settings.encode, **changed}
    try:
        constants(replace(found.transformer, metadata=metadata))
    except UnsupportedCheckpointError as error:
        raise set_error(error) from error
    return metadata


def _encoder_name(name: str) -> str:
    return ENCODER_PREFIX + canonical_name(name).removeprefix(ENCODER_PREFIX)


def _entries(contents: LoraContents, rename: Callable[[str], str]) -> dict[str, Entry]:
    """One half's tensors under their new names, and an alpha for each module whose scale only a config states."""
    header = contents.header
    entries: dict[str, Entry] = {}
    for name in header.shapes:
        if name not in PROMPT_KEYS:
            entries[rename(name)] = Entry(header.dtypes[name], header.shapes[name], partial(_read, header, name))
    for base, module in contents.modules.items():
        if "alpha" in module.names or module.rank is None or contents.scales[base] == 1:
            continue
        alpha = torch.tensor(contents.scales[base] * module.rank, dtype=torch.float64)
        entries[rename(f"{base}.alpha")] = Entry("F64", (), lambda alpha=alpha: alpha)
    return entries


def _read(header: Header, name: str) -> Tensor:
    tensor = read_tensors(header, {name})[name]
    check_finite(header, name, tensor)
    return tensor
