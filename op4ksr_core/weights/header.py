"""What a weights file says about itself, read without its tensors."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from .layouts import (
    Layout,
    Shape,
    bfl_layout,
    common_prefix,
    diffusers_autoencoder_layout,
    diffusers_flux_layout,
    is_diffusers,
)

Kind = Literal["vae", "transformer", "lora", "unknown"]
LayoutName = Literal["bfl", "diffusers"]

#: Metadata that every file of ours has: the version of our keys, and what safetensors' readers for PyTorch look for.
OUR_FORMAT = {"op4ksr.format": "1", "format": "pt"}

#: Tensors of ours that travel with a transformer or LoRA but are no weights of it.
PROMPT_KEYS = ("op4ksr.txt", "op4ksr.vec")


@dataclass(frozen=True)
class Header:
    """Names, shapes, dtypes and metadata of a safetensors file (or of all shards of one model).

    path: what was asked for; files: what is read for it; where: the file that holds each tensor. Names are as on disk;
    prefix: what they all begin with (a wrapper's name), or nothing.
    """

    path: Path
    files: tuple[Path, ...]
    shapes: dict[str, Shape]
    dtypes: dict[str, str]
    metadata: dict[str, str]
    where: dict[str, Path]
    prefix: str

    @property
    def names(self) -> set[str]:
        """Tensor names without the common prefix and without our prompt tensors."""
        names = (name for name in self.shapes if name not in PROMPT_KEYS)
        return {name.removeprefix(self.prefix) for name in names}

    @property
    def layout_name(self) -> LayoutName:
        """Whose names the tensors have."""
        return "diffusers" if is_diffusers(self.names) else "bfl"

    @property
    def kind(self) -> Kind:
        """What the names say it is; our own metadata is only a label and is not believed over them."""
        names = self.names
        if any(".lora_" in name or "lora_A" in name or "lora_down" in name for name in names):
            return "lora"
        if {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= names:
            return "vae"
        if {"img_in.weight", "double_blocks.0.img_attn.qkv.weight"} <= names:
            return "transformer"
        if {"x_embedder.weight", "context_embedder.weight", "transformer_blocks.0.attn.add_q_proj.weight"} <= names:
            return "transformer"
        return "unknown"

    @property
    def dtype(self) -> str:
        """The dtype of most tensors, as safetensors spells it (F32, BF16, F16, F8_E4M3 ...)."""
        values = list(self.dtypes.values())
        return max(set(values), key=values.count)

    def layout(self) -> Layout:
        """Our tensor names -> how to make each from the file's."""
        if self.layout_name == "bfl":
            return bfl_layout(self.names)
        return (diffusers_autoencoder_layout if self.kind == "vae" else diffusers_flux_layout)(self.names)

    def shape(self, name: str) -> Shape:
        """Of a tensor, by its name without the prefix."""
        return self.shapes[self.prefix + name]

    def config(self) -> dict[str, object] | None:
        """The diffusers ``config.json`` beside the file, if there is one for this kind of model."""
        path = self.files[0].parent / "config.json"
        try:
            found = json.loads(path.read_text("utf-8"))
        except (OSError, ValueError):
            return None
        wanted = {"vae": "Autoencoder", "transformer": "Flux"}.get(self.kind)
        named = isinstance(found, dict) and str(found.get("_class_name", ""))  # pyright: ignore
        return found if named and wanted and wanted in named else None


def read_header(path: str | Path) -> Header:
    """Header of a safetensors file, of a shard index, or of a folder that holds one model.

    Raises UnsupportedCheckpointError: missing, not safetensors (and what it is), truncated, empty.
    """
    path = Path(path)
    files = _files_of(path)
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    where: dict[str, Path] = {}
    for file in files:
        _refuse_other_formats(file)
        try:
            with safe_open(file, framework="pt") as opened:
                metadata |= opened.metadata() or {}
                for name in opened.keys():  # noqa: SIM118 - safe_open is no dict
                    view = opened.get_slice(name)
                    shapes[name], dtypes[name] = tuple(view.get_shape()), view.get_dtype()
                    where[name] = file
        except (SafetensorError, OSError) as error:
            raise UnsupportedCheckpointError(
                file, f"cannot be read as safetensors ({error}); it is damaged or cut short: fetch it again"
            ) from error
    if not shapes:
        raise UnsupportedCheckpointError(path, "holds no tensors; fetch it again")
    prefix = common_prefix(name for name in shapes if name not in PROMPT_KEYS)
    return Header(path, tuple(files), shapes, dtypes, metadata, where, prefix)


def read_tensors(header: Header, names: set[str] | None = None) -> dict[str, Tensor]:
    """The file's tensors (all, or those named in full), on the CPU, in the file's dtypes."""
    tensors: dict[str, Tensor] = {}
    for file in header.files:
        with safe_open(file, framework="pt") as opened:
            for name, home in header.where.items():
                if home == file and (names is None or name in names):
                    tensors[name] = opened.get_tensor(name)
    return tensors


def _files_of(path: Path) -> list[Path]:
    if path.is_dir():
        indexes = sorted(path.glob("*.safetensors.index.json"))
        singles = sorted(path.glob("*.safetensors"))
        if len(indexes) == 1:
            return _files_of(indexes[0])
        if len(singles) == 1:
            return singles
        raise UnsupportedCheckpointError(
            path, f"expected one safetensors file or one shard index in this folder, got {len(singles)} files; name one"
        )
    if not path.exists():
        raise UnsupportedCheckpointError(path, "no such file; check the name and the folder")
    if path.name.endswith(".index.json"):
        return _shards(path)
    for index in sorted(path.parent.glob("*.safetensors.index.json")):
        try:
            belongs = path in _listed(index)
        except UnsupportedCheckpointError:  # another model's broken index, in a folder of many models
            continue
        if belongs:  # any one shard stands for its model
            return _shards(index)
    return [path]


def _listed(index: Path) -> list[Path]:
    """The files a shard index names, whether they are there or not."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
        return sorted({index.parent / name for name in weight_map.values()})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UnsupportedCheckpointError(index, f"is no shard index ({error}); fetch it again") from error


def _shards(index: Path) -> list[Path]:
    shards = _listed(index)
    missing = [shard.name for shard in shards if not shard.exists()]
    if missing:
        raise UnsupportedCheckpointError(index, f"its shards {', '.join(missing)} are not here; fetch them too")
    return shards


def _refuse_other_formats(file: Path) -> None:
    try:
        with file.open("rb") as opened:
            start = opened.read(16)
    except OSError as error:
        raise UnsupportedCheckpointError(file, f"cannot be opened ({error.strerror}); check its permissions") from error
    if start[:4] == b"GGUF":
        raise UnsupportedCheckpointError(
            file, "is GGUF: in ComfyUI load it with ComfyUI-GGUF's loader, then use Apply RFR and One-Step Upscale"
        )
    if start[8:9] == b"{":  # before the pickles: the header's length, in front, may look like the start of one
        return
    if start[:2] == b"PK" or start[:1] == b"\x80":
        raise UnsupportedCheckpointError(
            file, "is a PyTorch pickle, which may run code when opened; convert it to safetensors first"
        )
    if not start:
        raise UnsupportedCheckpointError(file, "is empty; fetch it again")
    raise UnsupportedCheckpointError(file, "is no safetensors file, whatever its name; fetch it again, or take another")
