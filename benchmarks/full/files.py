"""``benchmark write-weights``: files of full size with random weights, for a real ComfyUI; tensor by tensor."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from op4ksr_core.errors import OutputError
from op4ksr_core.models.flux import Flux
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.weights.checkpoint import autoencoder_metadata, transformer_metadata
from op4ksr_core.weights.header import OUR_FORMAT, PROMPT_KEYS
from op4ksr_core.weights.streamed import DTYPES, Entry, write_safetensors

from ..random_models import Geometry, random_prompt, random_weight

log = logging.getLogger(__name__)

#: How a transformer file holds its matrices; all else, and the VAE, is in bf16.
FileDtype = Literal["bf16", "fp8"]
FILE_DTYPES: tuple[FileDtype, ...] = get_args(FileDtype)

#: In the files' metadata, so that nobody takes them for a model.
TRAINING = "none: random weights, for measuring time and memory"

#: Left free on the disk.
RESERVE = 10**9


def write_random(
    folder: Path, name: str, geometry: Geometry, dtypes: tuple[FileDtype, ...], device: torch.device
) -> list[Path]:
    """``op4ksr_random_<name>_f16_vae.safetensors`` and, for each dtype, ``..._<name>_<dtype>.safetensors``.

    Values are made on the device, one tensor at a time (the largest of 12 B is 0.4 GB in float32).
    Raises OutputError: no room on the disk (before anything is written), or no place to write to.
    """
    vae, flux = AutoEncoder(geometry.autoencoder, device="meta"), Flux(geometry.flux, device="meta")
    generator = torch.Generator(device)
    files = {
        f"op4ksr_random_{name}_f16_vae.safetensors": (
            _entries(vae, "bf16", generator),
            autoencoder_metadata(vae, TRAINING),
        )
    }
    for dtype in dtypes:
        content = _entries(flux, dtype, generator) | _prompt_entries(geometry, generator)
        files[f"op4ksr_random_{name}_{dtype}.safetensors"] = content, transformer_metadata(flux, TRAINING)
    _make_room(folder, sum(entry.bytes for entries, _ in files.values() for entry in entries.values()))
    for file, (entries, metadata) in files.items():
        log.info("%s: %.2f GB", folder / file, sum(entry.bytes for entry in entries.values()) / 1e9)
        write_safetensors(folder / file, entries, {**OUR_FORMAT, **metadata})
    return [folder / file for file in files]


def _make_room(folder: Path, size: int) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
    if size + RESERVE > free:
        raise OutputError(
            f"{folder}: the files need {size / 1e9:.1f} GB, and {RESERVE / 1e9:.0f} GB shall stay free, but there are "
            f"{free / 1e9:.1f} GB; name a folder on another disk, or fewer --dtypes"
        )


def _entries(model: nn.Module, dtype: FileDtype, generator: torch.Generator) -> dict[str, Entry]:
    """The model's tensors under their BFL names: matrices in the dtype, vectors in bf16."""
    stored: Mapping[FileDtype, str] = {"bf16": "BF16", "fp8": "F8_E4M3"}
    entries: dict[str, Entry] = {}
    for name, tensor in model.state_dict().items():
        shape, kind = tuple(tensor.shape), stored[dtype] if tensor.ndim > 1 else "BF16"
        entries[name] = Entry(kind, shape, partial(_make, name, shape, generator, DTYPES[kind]))
    return entries


def _make(name: str, shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    return random_weight(name, shape, generator).to(dtype).cpu()


def _prompt_entries(geometry: Geometry, generator: torch.Generator) -> dict[str, Entry]:
    txt, vec = (tensor.bfloat16().cpu() for tensor in random_prompt(geometry, generator))
    made = zip(PROMPT_KEYS, (txt, vec), strict=True)
    return {key: Entry("BF16", tuple(tensor.shape), partial(_same, tensor)) for key, tensor in made}


def _same(tensor: Tensor) -> Tensor:
    return tensor
