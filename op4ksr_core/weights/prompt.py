"""A prompt embedding as a file of its own, so that its text encoders are needed once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from .header import PROMPT_KEYS, check_dtypes, read_header, read_tensors
from .shards import some_names

#: Under which a file may name them: ours, diffusers' arguments, and their usual short names.
PROMPT_NAMES = (("op4ksr.txt", "prompt_embeds", "txt"), ("op4ksr.vec", "pooled_prompt_embeds", "vec"))

#: Axes of the embedding and of the pooled one, without a batch.
PROMPT_DIMS = (2, 1)

#: Tokens that a prompt may have. Our choice: eight times T5's 512 for Flux; what has more is a table of all words.
TOKENS_LIMIT = 4096


@dataclass(frozen=True)
class PromptEmbedding:
    """{op4ksr.txt: (T, context), op4ksr.vec: (pooled,)} as they were read, and the files that they are from."""

    files: tuple[Path, ...]
    tensors: dict[str, Tensor]

    @property
    def path(self) -> Path:
        """To be named in errors."""
        return self.files[0]


def read_prompt(path: Path) -> dict[str, Tensor]:
    """{op4ksr.txt: (T, context), op4ksr.vec: (pooled,)} of a safetensors file, by any of their usual names.

    In the file's dtype; a batch axis of 1 is taken off. Raises UnsupportedCheckpointError: no such tensor, several
    prompts, dtypes of no embedding, NaN or infinite numbers.
    """
    header = read_header(path)
    tensors: dict[str, Tensor] = {}
    for ours, names, dims in zip(PROMPT_KEYS, PROMPT_NAMES, PROMPT_DIMS, strict=True):
        name = prompt_name(path, header.shapes, names)
        check_dtypes(header, [name])
        tensors[ours] = one_prompt(path, name, read_tensors(header, {name})[name], dims)
    return tensors


def opened(prompt: PromptEmbedding | Path | None) -> PromptEmbedding | None:
    """The same, a safetensors file read by ``read_prompt``."""
    return PromptEmbedding((prompt,), read_prompt(prompt)) if isinstance(prompt, Path) else prompt


def prompt_name(path: Path, present: Mapping[str, object], names: tuple[str, ...]) -> str:
    """The first of the names that is there. Raises UnsupportedCheckpointError where none is."""
    for name in names:
        if name in present:
            return name
    raise UnsupportedCheckpointError(
        path,
        f"expected a prompt embedding ({' or '.join(names)}), got {some_names(sorted(present)) or 'nothing'}; choose "
        "a file that Save Prompt Embedding wrote",
    )


def one_prompt(path: Path, name: str, tensor: Tensor, dims: int) -> Tensor:
    """The tensor without its batch axis, contiguous. dims: axes that it then has; name: '' where it has none.

    Raises UnsupportedCheckpointError for other axes, more tokens than any prompt has, and numbers that are not finite.
    """
    what = f"{name}: " if name else ""
    tensor = tensor[0] if tensor.ndim == dims + 1 and len(tensor) == 1 else tensor
    if tensor.ndim == 2 and len(tensor) > TOKENS_LIMIT:
        raise UnsupportedCheckpointError(
            path,
            f"{what}has {len(tensor):,} rows, more than a prompt has tokens: it is a text encoder's table of words; "
            "save a prompt's embedding with ComfyUI's CLIP Text Encode and Save Prompt Embedding",
        )
    if tensor.ndim != dims or tensor.numel() == 0:
        raise UnsupportedCheckpointError(
            path,
            f"{what}expected {dims} {'axes' if dims > 1 else 'axis'}, got the shape {tuple(tensor.shape)}; save one "
            "prompt's embedding",
        )
    if not torch.isfinite(tensor.float()).all():
        raise UnsupportedCheckpointError(
            path, f"{name or 'its tensor'} holds NaN or infinite numbers; save the embedding again"
        )
    return tensor.contiguous()
