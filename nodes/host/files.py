"""Which weights a dropdown offers: the bundled ones, then those in the user's folders."""

from __future__ import annotations

from pathlib import Path

import folder_paths

from ...op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.plain_text import plain
from .values import told

BUNDLED: dict[str, dict[str, Path]] = {
    "loras": {},
    "embeddings": {},
    "vae": {f"bundled: {BUNDLED_AUTOENCODER.name}": BUNDLED_AUTOENCODER},
    "diffusion_models": {f"bundled: {BUNDLED_FLUX.name}": BUNDLED_FLUX},
}

#: Where the files come from that our templates ask for.
SOURCES = {
    "UltraFlux-v1/diffusion_pytorch_model-00001-of-00003.safetensors": "all files of the folder transformer of "
    "huggingface.co/Owen777/UltraFlux-v1",
    "UltraFlux-v1/diffusion_pytorch_model.safetensors": "both files of the folder vae of "
    "huggingface.co/Owen777/UltraFlux-v1",
}


def file_options(kind: str) -> list[str]:
    """Names for a dropdown: the bundled file first, then ComfyUI's models/<kind>."""
    return [*BUNDLED[kind], *folder_paths.get_filename_list(kind)]


def file_path(kind: str, name: str) -> Path:
    """The file behind a dropdown's name. Raises OptionError if it is gone, or no name at all."""
    if not isinstance(name, str):  # a prompt may hold anything
        raise OptionError(f"expected the name of a file in models/{kind}, got {told(name)}; choose one")
    if name in BUNDLED[kind]:
        return BUNDLED[kind][name]
    path = folder_paths.get_full_path(kind, name)
    if path is None and (source := SOURCES.get(name.replace("\\", "/"))):
        raise OptionError(
            f"{plain(name)}: is not in ComfyUI's models/{kind} folder; fetch {source} into "
            f"models/{kind}/{Path(name).parent.name} and press R, or choose another"
        )
    if path is None:
        raise OptionError(f"{plain(name)}: is not in ComfyUI's models/{kind} folder (any more); choose another")
    return Path(path)


def check_file(kind: str, name: str | None) -> bool | str:
    """True, or the sentence that says what to do: for a node's ``validate_inputs``, before anything runs.

    It takes the place of the host's own check, which only says that the value is not in the list.
    None: another node will give the name, and ``file_path`` checks it then.
    """
    if name is None:
        return True
    try:
        file_path(kind, name)
    except OptionError as error:
        return str(error)
    return True
