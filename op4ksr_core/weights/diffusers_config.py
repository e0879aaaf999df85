"""The ``config.json`` that diffusers writes beside a VAE, taken only where it can be that very file's.

A folder such as ComfyUI's models/vae holds many files and perhaps one config, of any of them or of none. Our
choice: it counts where the file has diffusers' own name or is the folder's only model, and where the sizes it
states are those of the file's tensors.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..plain_text import plain
from .header import Header
from .json_text import read_json

#: How diffusers begins the name of every weights file it saves; then comes an ending, a variant or a shard's number.
_NAME = "diffusion_pytorch_model"
_OWN_NAME = re.compile(rf"{_NAME}(\.|-\d)")
_MODEL_SUFFIXES = {".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin", ".gguf"}


@dataclass(frozen=True)
class DiffusersConfig:
    """The config of a file. values: empty where there is none; ignored: why the one that lies there does not count."""

    values: Mapping[str, Any] = field(default_factory=dict[str, Any])
    ignored: str = ""

    @property
    def note(self) -> str:
        """To be added to the reason of a default: nothing where no config lies beside the file."""
        return f"; config.json beside the file is ignored: {self.ignored}" if self.ignored else ""


def autoencoder_config(header: Header, sizes: Mapping[str, Any]) -> DiffusersConfig:
    """The config beside a VAE's file. sizes: what the tensors' shapes say, by diffusers' keys; each must be stated."""
    path = header.files[0].parent / "config.json"
    try:
        values: Any = read_json(path)
    except FileNotFoundError:
        return DiffusersConfig()
    except (OSError, ValueError):
        return DiffusersConfig(ignored="it cannot be read as JSON")
    name: Any = values.get("_class_name") if isinstance(values, dict) else None  # pyright: ignore
    if not isinstance(name, str) or "Autoencoder" not in name:
        return DiffusersConfig(ignored="it is not an autoencoder's")
    if not _may_own_a_config(header.files):
        return DiffusersConfig(
            ignored=f"other models lie in this folder, and the file is not named {_NAME} as diffusers names its own"
        )
    found: dict[str, Any] = values
    for key, size in sizes.items():
        if found.get(key) != size:
            stated = shown(found[key]) if key in found else "nothing"
            return DiffusersConfig(ignored=f"it states {stated} for {key}, the file's tensors say {size}")
    return DiffusersConfig(found)


def shown(value: Any) -> str:
    """A value of the config for a message; a list in lists is named, as it may be as deep as JSON can be read."""
    parts: list[Any] = value if isinstance(value, list) else [value]
    return type(value).__name__ if any(isinstance(part, (list, dict)) for part in parts) else plain(value, 60)


def _may_own_a_config(files: tuple[Path, ...]) -> bool:
    """Whether the files have diffusers' name, or are the only models in their folder."""
    if all(_OWN_NAME.match(file.name) for file in files):
        return True
    try:
        names = (file for file in files[0].parent.iterdir() if not file.name.startswith("."))
        beside = {file.name for file in names if file.suffix.lower() in _MODEL_SUFFIXES}
    except OSError:  # a folder that may be entered, not listed
        return False
    return beside <= {file.name for file in files}
