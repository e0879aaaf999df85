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

#: What to do about a file that a template of ours asks for: by "kind/name", without the last words of the sentence.
SOURCES = {
    "diffusion_models/UltraFlux-v1/diffusion_pytorch_model-00001-of-00003.safetensors": "fetch all files of the folder "
    "transformer of huggingface.co/Owen777/UltraFlux-v1 into models/diffusion_models/UltraFlux-v1",
    "vae/UltraFlux-v1/diffusion_pytorch_model.safetensors": "fetch both files of the folder vae of "
    "huggingface.co/Owen777/UltraFlux-v1 into models/vae/UltraFlux-v1",
    "diffusion_models/flux1-dev.safetensors": "fetch it (24 GB) from huggingface.co/Comfy-Org/flux1-dev into "
    "models/diffusion_models",
    "vae/ae.safetensors": "fetch it from the folder split_files/vae of "
    "huggingface.co/Comfy-Org/Lumina_Image_2.0_Repackaged into models/vae",
    "loras/omgsr-f-1024-adapter/flux_adapter/adapter_model.safetensors": "fetch the OMGSR-F-1024 folder by the link in "
    "the README of github.com/wuer5/OMGSR into models/loras, as omgsr-f-1024-adapter",
    "loras/fluxsr.safetensors": "fetch the files of huggingface.co/mon3tr/FluxSR-private into a folder, make one of "
    "them (in this pack's folder: python -m op4ksr_core convert --sr-lora FOLDER -o fluxsr.safetensors), put it into "
    "models/loras",
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
    if path is None and (source := SOURCES.get(f"{kind}/{name}".replace("\\", "/"))):
        raise OptionError(
            f"{plain(name)}: is not in ComfyUI's models/{kind} folder; {source} and press R, or choose another"
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
