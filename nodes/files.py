"""Which weights a dropdown offers: the bundled ones, then those in the user's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ..op4ksr_core.checkpoint import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from ..op4ksr_core.errors import OptionError

BUNDLED: dict[str, dict[str, Path]] = {
    "loras": {},
    "vae": {f"bundled: {BUNDLED_AUTOENCODER.name}": BUNDLED_AUTOENCODER},
    "diffusion_models": {f"bundled: {BUNDLED_FLUX.name}": BUNDLED_FLUX},
}


def file_options(kind: str) -> list[str]:
    """Names for a dropdown: the bundled file first, then ComfyUI's models/<kind>."""
    return [*BUNDLED[kind], *folder_paths.get_filename_list(kind)]


def file_path(kind: str, name: str) -> Path:
    """The file behind a dropdown's name. Raises OptionError if it is gone."""
    if name in BUNDLED[kind]:
        return BUNDLED[kind][name]
    path = folder_paths.get_full_path(kind, name)
    if path is None:
        raise OptionError(f"{name}: is not in ComfyUI's models/{kind} folder (any more); choose another")
    return Path(path)
