"""Folders in which PEFT's ``save_pretrained`` left an adapter each: the transformer's and the encoder's."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ..errors import UnsupportedCheckpointError
from ..plain_text import plain
from .header import read_header
from .lora_names import canonical_name
from .lora_scale import PEFT_CONFIG, PEFT_FILE

#: As OMGSR-F names its adapters, which PEFT makes the names of the folders.
TRANSFORMER_FOLDER, ENCODER_FOLDER = "flux_adapter", "vae_encoder_adapter"
ADAPTERS = (TRANSFORMER_FOLDER, ENCODER_FOLDER)

#: What older versions of PEFT save.
_PICKLE = "adapter_model.bin"

#: How the modules of a VAE's encoder begin for diffusers; a UNet has more beside them.
_ENCODER = re.compile(r"(conv_in|conv_out|down_blocks\.\d+\.(resnets|downsamplers)|mid_block)\.")

#: Of its sister for Stable Diffusion 2.1.
_OTHERS = ("unet_lora_adapter", "vae_encoder_lora_adapter")


def find_adapters(path: Path) -> tuple[Path, Path] | None:
    """The files of the transformer's and the encoder's adapter, of a folder or of any file in it; None for others.

    path: the folder that holds both, one that holds that folder alone, one of the two, or a file in one of the two.
    Folders of other names count by what their tensors are called. Raises UnsupportedCheckpointError where one of the
    two is missing, not as PEFT writes it, or there are several.
    """
    found = _find(path)
    if found is None:
        return None
    home, halves = found
    return _adapter(home, halves, TRANSFORMER_FOLDER), _adapter(home, halves, ENCODER_FOLDER)


#: The published name of a half -> its folder.
Halves = dict[str, Path]


def _find(path: Path) -> tuple[Path, Halves] | None:
    """The folder that holds the two, and those of them that are there."""
    is_folder = os.path.isdir(path)
    folder = Path(os.path.abspath(path if is_folder else path.parent))
    if is_folder or path.name in (PEFT_FILE, PEFT_CONFIG) or path.suffix != ".safetensors":
        halves = _halves(folder.parent)
        if folder in halves.values():
            return folder.parent, halves
    if not is_folder:
        return None
    if halves := _halves(folder):
        return folder, halves
    inner = [(child, halves) for child in _folders(folder) if (halves := _halves(child))]
    if len(inner) > 1:
        names = ", ".join(plain(child.name, 60) for child, _ in inner[:4])
        raise UnsupportedCheckpointError(path, f"holds {len(inner)} folders of an OMGSR-F LoRA ({names}); name one")
    if not inner and any(os.path.isdir(folder / name) for name in _OTHERS):
        raise UnsupportedCheckpointError(
            path, "is OMGSR-S, a LoRA for Stable Diffusion 2.1, and no Flux model's; choose OMGSR-F's folder"
        )
    return inner[0] if inner else None


def _halves(home: Path) -> Halves:
    """Those in the folder: by their published names, or else the one pair of adapters of which one is an encoder's."""
    if named := {name: home / name for name in ADAPTERS if os.path.isdir(home / name)}:
        return named
    adapters = [child for child in _folders(home) if os.path.isfile(child / PEFT_FILE)]
    if len(adapters) != 2 or any(child.name in _OTHERS for child in adapters):
        return {}
    encoders = [child for child in adapters if _is_encoders(child / PEFT_FILE)]
    if len(encoders) != 1:
        return {}
    (other,) = set(adapters) - set(encoders)
    return {TRANSFORMER_FOLDER: other, ENCODER_FOLDER: encoders[0]}


def _is_encoders(file: Path) -> bool:
    try:
        names = {canonical_name(name) for name in read_header(file).shapes}
    except UnsupportedCheckpointError:  # whatever it is, it is not known by its tensors
        return False
    return all(_ENCODER.match(name) for name in names)


def _folders(folder: Path) -> list[Path]:
    """The folders in it, without hidden ones; none where it cannot be listed."""
    try:
        with os.scandir(folder) as entries:
            return sorted(Path(e.path) for e in entries if not e.name.startswith(".") and os.path.isdir(e.path))
    except OSError:
        return []


def _adapter(home: Path, halves: Halves, name: str) -> Path:
    """The tensors of one of the two. Its config must lie beside them: without it their strength is unknown."""
    if (folder := halves.get(name)) is None:
        raise UnsupportedCheckpointError(
            home,
            f"holds half of an OMGSR-F LoRA: the folder {name} is missing; fetch it too ({' and '.join(ADAPTERS)} lie "
            "side by side)",
        )
    file = folder / PEFT_FILE
    if not os.path.lexists(file):
        if os.path.lexists(folder / _PICKLE):
            raise UnsupportedCheckpointError(
                folder / _PICKLE,
                f"is a PyTorch pickle, which may run code when opened; convert it to safetensors ({PEFT_FILE}) first",
            )
        raise UnsupportedCheckpointError(
            folder, f"expected {PEFT_FILE} in this folder, and it is missing; fetch it too"
        )
    if not os.path.lexists(folder / PEFT_CONFIG):
        raise UnsupportedCheckpointError(
            folder, f"expected {PEFT_CONFIG} beside {PEFT_FILE}, which states the LoRA's alpha; fetch it too"
        )
    return file
