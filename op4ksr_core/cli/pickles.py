"""PyTorch's .pth files, which are pickles: opened here alone, and once. Prompt embeddings, and upscale models.

``weights_only=True`` runs nothing that is in them, and takes tensors in lists and dicts alone. Their size is looked at
before, as a few bytes may stand for many.
"""

from __future__ import annotations

import os
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
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

#: Bytes of a prompt's file, as it is and unpacked. Our choice: T5's embedding of 512 tokens takes 8 MB in float32.
SIZE_LIMIT = 100_000_000

#: The same of an upscale model's. Our choice: the largest in use take a few hundred MB.
MODEL_SIZE_LIMIT = 2_000_000_000
MODEL_TOO_LARGE = f"more than an upscale model's file ({MODEL_SIZE_LIMIT:,} at most); choose another"

#: What FluxSR's folder calls the two, and under which names a file of one alone may hold it.
FLUXSR_PROMPT = ("t5_embedding.pth", "clip_embedding.pth")
_ONE_NAMES = (("t5_embedding", "embedding", "embeds"), ("clip_embedding", "pooled_embedding", "embedding", "embeds"))

_MODEL_REMEDY = "fetch it again, or take it as a .safetensors file"

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


def read_pickled_model(path: Path) -> dict[str, Any]:
    """What an upscale model's file holds, whose tensors may be some dicts further in, on the CPU.

    Raises UnsupportedCheckpointError.
    """
    content = _open(path, MODEL_SIZE_LIMIT, MODEL_TOO_LARGE, _MODEL_REMEDY)
    if not isinstance(content, Mapping):
        raise UnsupportedCheckpointError(
            path, f"expected an upscale model's tensors by name, got {plain(type(content).__name__)}; {_MODEL_REMEDY}"
        )
    size = 0
    for name, tensor in _tensors_in(content):
        if tensor.is_nested or tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise UnsupportedCheckpointError(
                path, f"{plain(name)}: expected a dense tensor, got {plain(tensor.layout)}; {_MODEL_REMEDY}"
            )
        size += tensor.numel() * tensor.element_size()
    if size > MODEL_SIZE_LIMIT:  # a few stored bytes may be a tensor of any size
        raise UnsupportedCheckpointError(path, f"its tensors have {size:,} bytes, {MODEL_TOO_LARGE}")
    return {str(name): value for name, value in content.items()}


def _tensors_in(content: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of dicts in dicts, lists among them, with the last name on the way."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, (Mapping, list, tuple)):
        found: Any = content
        items = found.items() if isinstance(content, Mapping) else enumerate(found)
        for key, value in items:
            yield from _tensors_in(value, str(key))


def _load(path: Path) -> dict[str, Tensor]:
    """{name: tensor} of a dict, or {"": tensor}: dense and floating-point, on the CPU."""
    too_large = (
        f"more than a prompt's embedding ({SIZE_LIMIT:,} at most): it may be a text encoder's table of words; {_REMEDY}"
    )
    content = _open(path, SIZE_LIMIT, too_large, _REMEDY)
    values: Mapping[Any, Any] = content if isinstance(content, Mapping) else {"": content}
    return {str(name): tensor for name, tensor in values.items() if _is_usable(path, str(name), tensor)}


def _open(path: Path, limit: int, too_large: str, remedy: str) -> Any:
    """What a file of at most ``limit`` bytes holds, on the CPU; too_large, remedy: for messages."""
    _check_size(path, limit, too_large)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a parser of pickles makes of what is in it
        raise UnsupportedCheckpointError(
            path, f"cannot be read as tensors alone ({_reason(error)}); {remedy}"
        ) from error


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


def _check_size(path: Path, limit: int, too_large: str) -> None:
    if (fault := regular_file(path)) is not None:
        what = "no such file; check the name and the folder" if fault == "not there" else f"is {fault}; name a file"
        raise UnsupportedCheckpointError(path, what)
    try:
        size = path.stat().st_size
        if size <= limit and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                size = max(size, sum(entry.file_size for entry in archive.infolist()))
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UnsupportedCheckpointError(path, f"cannot be opened ({plain(error)}); fetch it again") from error
    if size > limit:
        raise UnsupportedCheckpointError(path, f"has {size:,} bytes, {too_large}")
