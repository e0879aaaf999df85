"""Folders in which PEFT's ``save_pretrained`` left an adapter each: the transformer's and the encoder's."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import UnsupportedCheckpointError
from ..plain_text import plain
from .lora_scale import PEFT_CONFIG, PEFT_FILE

#: As OMGSR-F names its adapters, which PEFT makes the names of the folders.
TRANSFORMER_FOLDER, ENCODER_FOLDER = "flux_adapter", "vae_encoder_adapter"
_HALVES = (TRANSFORMER_FOLDER, ENCODER_FOLDER)

#: What older versions of PEFT save.
_PICKLE = "adapter_model.bin"

#: Of its sister for Stable Diffusion 2.1.
_OTHERS = ("unet_lora_adapter", "vae_encoder_lora_adapter")


def find_adapters(path: Path) -> tuple[Path, Path] | None:
    """The files of the transformer's and the encoder's adapter, of a folder or of any file in it; None for others.

    path: the folder that holds both, one that holds that folder alone, one of the two, or a file in one of the two.
    Raises UnsupportedCheckpointError where one of the two is missing, not as PEFT writes it, or there are several.
    """
    home = _home(path)
    if home is None:
        return None
    return _adapter(home, TRANSFORMER_FOLDER), _adapter(home, ENCODER_FOLDER)


def _home(path: Path) -> Path | None:
    is_folder = path.is_dir()
    folder = Path(os.path.abspath(path if is_folder else path.parent))
    if folder.name in _HALVES and (is_folder or path.name == PEFT_FILE or path.suffix != ".safetensors"):
        return folder.parent
    if not is_folder:
        return None
    if _holds_half(folder):
        return folder
    try:
        inner = sorted(child for child in folder.iterdir() if child.is_dir() and _holds_half(child))
    except OSError as error:
        raise UnsupportedCheckpointError(
            path, f"is a folder that cannot be listed ({error.strerror}); check its permissions"
        ) from error
    if len(inner) > 1:
        names = ", ".join(plain(child.name, 60) for child in inner[:4])
        raise UnsupportedCheckpointError(path, f"holds {len(inner)} folders of an OMGSR-F LoRA ({names}); name one")
    if not inner and any((folder / name).is_dir() for name in _OTHERS):
        raise UnsupportedCheckpointError(
            path, "is OMGSR-S, a LoRA for Stable Diffusion 2.1, and no Flux model's; choose OMGSR-F's folder"
        )
    return inner[0] if inner else None


def _holds_half(folder: Path) -> bool:
    return any((folder / name).is_dir() for name in _HALVES)


def _adapter(home: Path, name: str) -> Path:
    """The tensors of one of the two. Its config must lie beside them: without it their strength is unknown."""
    folder = home / name
    if not folder.is_dir():
        raise UnsupportedCheckpointError(
            home,
            f"holds half of an OMGSR-F LoRA: the folder {name} is missing; fetch it too ({' and '.join(_HALVES)} lie "
            "side by side)",
        )
    if not (file := folder / PEFT_FILE).exists():
        if (folder / _PICKLE).exists():
            raise UnsupportedCheckpointError(
                folder / _PICKLE,
                f"is a PyTorch pickle, which may run code when opened; convert it to safetensors ({PEFT_FILE}) first",
            )
        raise UnsupportedCheckpointError(
            folder, f"expected {PEFT_FILE} in this folder, and it is missing; fetch it too"
        )
    if not (folder / PEFT_CONFIG).exists():
        raise UnsupportedCheckpointError(
            folder, f"expected {PEFT_CONFIG} beside {PEFT_FILE}, which states the LoRA's alpha; fetch it too"
        )
    return file
