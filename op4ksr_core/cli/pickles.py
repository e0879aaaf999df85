"""Prompt embeddings in PyTorch's .pth files, which are pickles: opened here alone, for ``convert``, and once.

``weights_only=True`` runs nothing that is in them, and takes tensors in lists and dicts alone. Their size is looked at
before, as a few bytes may stand for many.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from ..files import regular_file
from ..plain_text import plain
from ..weights.header import PROMPT_KEYS
from ..weights.prompt import PROMPT_DIMS, PROMPT_NAMES, PromptEmbedding, one_prompt, prompt_name

#: Endings of names that mean a pickle.
SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")

#: Bytes of a file, as it is and unpacked. Our choice: T5's embedding of 512 tokens takes 8 MB in float32.
SIZE_LIMIT = 100_000_000

#: What FluxSR's folder calls the two, and under which names a file of one alone may hold it.
FLUXSR_PROMPT = ("t5_embedding.pth", "clip_embedding.pth")
_ONE_NAMES = (("t5_embedding", "embedding", "embeds"), ("clip_embedding", "pooled_embedding", "embedding", "embeds"))

_REMEDY = (
    "save the embedding with ComfyUI's CLIP Text Encode and Save Prompt Embedding, and name that file "
    "with --prompt-embedding"
)


def read_pickled_prompt(path: Path) -> PromptEmbedding:
    """Both embeddings of a dict, by any of their usual names. Raises UnsupportedCheckpointError."""
    tensors = _load(path)
    if "" in tensors:
        raise UnsupportedCheckpointError(
            path, f"holds one tensor without a name, where an embedding and a pooled one are expected; {_REMEDY}"
        )
    found: dict[str, Tensor] = {}
    for ours, names, dims in zip(PROMPT_KEYS, PROMPT_NAMES, PROMPT_DIMS, strict=True):
        name = prompt_name(path, tensors, names)
        found[ours] = one_prompt(path, name, tensors[name], dims)
    return PromptEmbedding((path,), found)


def fluxsr_prompt(folder: Path) -> PromptEmbedding | None:
    """The two files of FluxSR's folder; None without either. Raises UnsupportedCheckpointError, also without one."""
    files = tuple(folder / name for name in FLUXSR_PROMPT)
    there = [file for file in files if os.path.lexists(file)]
    if not there:
        return None
    if len(there) == 1:
        missing = next(name for name in FLUXSR_PROMPT if name != there[0].name)
        raise UnsupportedCheckpointError(
            folder, f"holds {there[0].name} without {missing}; fetch it too, or name a prompt with --prompt-embedding"
        )
    parts = zip(PROMPT_KEYS, files, PROMPT_NAMES, _ONE_NAMES, PROMPT_DIMS, strict=True)
    return PromptEmbedding(files, {key: _only(file, (*both, *one), dims) for key, file, both, one, dims in parts})


def _only(path: Path, names: tuple[str, ...], dims: int) -> Tensor:
    """The file's only tensor, or of several the one that has one of the names."""
    tensors = _load(path)
    name = next(iter(tensors)) if len(tensors) == 1 else prompt_name(path, tensors, names)
    return one_prompt(path, name, tensors[name], dims)


def _load(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a dict, or {"": tensor}: dense and floating-point, on the CPU."""
    _check_size(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser of pickles makes of what is in it
        raise UnsupportedCheckpointError(
            path, f"cannot be read as tensors alone ({_reason(error)}); {_REMEDY}"
        ) from error
    values: Mapping[Any, Any] = content if isinstance(content, Mapping) else {"": content}
    return {str(name): tensor for name, tensor in values.items() if _is_usable(path, str(name), tensor)}


def _reason(error: Exception) -> str:
    """Why PyTorch did not open it: its first words, as further ones advise to open it unsafely."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return f"it holds {plain(found[1])}, which is code and no tensor"
    if found := re.search(r"WeightsUnpickler error:\s*([^\n]+)", text):
        return f"it is no file of torch.save's, or holds more than tensors: {plain(found[1])}"
    if isinstance(error, (KeyError, EOFError)):  # whose text is a number, or nothing
        return "it is no file of torch.save's, or is cut short"
    return plain(re.split(r"\n|\. (?=[A-Z])", text.strip())[0] or type(error).__name__)


def _is_usable(path: Path, name: str, value: object) -> bool:
    if not isinstance(value, Tensor):
        if name:  # something else beside the embeddings
            return False
        raise UnsupportedCheckpointError(path, f"holds no tensor ({type(value).__name__}); {_REMEDY}")
    if value.is_nested:  # which has no shape
        raise UnsupportedCheckpointError(path, f"holds a nested tensor, which is several of them; {_REMEDY}")
    dense = value.layout == torch.strided and value.device.type == "cpu" and value.is_floating_point()
    if not dense or value.numel() * value.element_size() > SIZE_LIMIT:
        raise UnsupportedCheckpointError(
            path,
            f"{plain(name) + ': ' if name else ''}expected a dense tensor of floats, at most {SIZE_LIMIT:,} bytes, got "
            f"{value.dtype}, {plain(tuple(value.shape))}; {_REMEDY}",
        )
    return True


def _check_size(path: Path) -> None:
    if (fault := regular_file(path)) is not None:
        what = "no such file; check the name and the folder" if fault == "not there" else f"is {fault}; name a file"
        raise UnsupportedCheckpointError(path, what)
    try:
        size = path.stat().st_size
        if size <= SIZE_LIMIT and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UnsupportedCheckpointError(path, f"cannot be opened ({plain(error)}); fetch it again") from error
    if size > SIZE_LIMIT:
        raise UnsupportedCheckpointError(
            path,
            f"has {size:,} bytes, more than a prompt's embedding ({SIZE_LIMIT:,} at most): it may be a text encoder's "
            f"table of words; {_REMEDY}",
        )
