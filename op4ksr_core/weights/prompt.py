"""A prompt embedding as a file of its own, so that its text encoders are needed once."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from ..errors import UnsupportedCheckpointError
from .header import PROMPT_KEYS, check_dtypes, check_finite, read_header, read_tensors
from .shards import some_names

#: Under which a file may name them: ours, diffusers' arguments, and their usual short names.
_NAMES = (("op4ksr.txt", "prompt_embeds", "txt"), ("op4ksr.vec", "pooled_prompt_embeds", "vec"))


def read_prompt(path: Path) -> dict[str, Tensor]:
    """{op4ksr.txt: (T, context), op4ksr.vec: (pooled,)} of a safetensors file, by any of their usual names.

    In the file's dtype; a batch axis of 1 is taken off. Raises UnsupportedCheckpointError: no such tensor, several
    prompts, dtypes of no embedding, NaN or infinite numbers.
    """
    header = read_header(path)
    tensors: dict[str, Tensor] = {}
    for ours, names, dims in zip(PROMPT_KEYS, _NAMES, (2, 1), strict=True):
        name = next((name for name in names if name in header.shapes), None)
        if name is None:
            raise UnsupportedCheckpointError(
                path,
                f"expected a prompt embedding ({' or '.join(names)}), got {some_names(sorted(header.shapes))}; choose "
                "a file that Save Prompt Embedding wrote",
            )
        check_dtypes(header, [name])
        tensor = read_tensors(header, {name})[name]
        tensor = tensor[0] if tensor.ndim == dims + 1 and len(tensor) == 1 else tensor
        if tensor.ndim != dims or tensor.numel() == 0:
            raise UnsupportedCheckpointError(
                path, f"{name}: expected {dims} axes, got the shape {tuple(tensor.shape)}; save one prompt's embedding"
            )
        check_finite(header, name, tensor)
        tensors[ours] = tensor.contiguous()
    return tensors
