"""What a weights file says about itself, read without its tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from ..plain_text import plain
from .blocks import numbering_fault
from .file_head import check_head
from .layouts import (
    Layout,
    Shape,
    bfl_layout,
    common_prefix,
    diffusers_autoencoder_layout,
    diffusers_flux_layout,
    is_diffusers,
)
from .lora_names import is_lora_name
from .shards import files_of, some_names

Kind = Literal["vae", "transformer", "lora", "enlarger", "unknown"]
LayoutName = Literal["bfl", "diffusers"]

#: Metadata that every file of ours has: the version of our keys, and what safetensors' readers for PyTorch look for.
OUR_FORMAT = {"op4ksr.format": "1", "format": "pt"}

#: Tensors of ours that travel with a transformer or LoRA but are no weights of it.
PROMPT_KEYS = ("op4ksr.txt", "op4ksr.vec")

#: What a file of these alone is, and what it is for, in words.
PROMPT_ALONE = "a prompt embedding alone; put it into a LoRA or model with 'convert --prompt-embedding'"

#: What the names of a VAE encoder's changes begin with in a file of ours that holds a transformer's beside them; then
#: come diffusers' names, relative to the encoder. No loader of others takes them for anything.
ENCODER_PREFIX = "op4ksr.vae_encoder."

#: Dtypes of weights, as safetensors spells them; and of numbers that are no weights.
FLOATS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")
INTEGERS = ("I64", "I32", "I16", "I8", "U8")

#: Dtypes in which ComfyUI's quantized files hold packed weights, block scales and notes.
PACKED = ("U8", "I8", "F8_E8M0", "F4", "F6_E2M3", "F6_E3M2")


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
    def is_prompt(self) -> bool:
        """Whether it holds a prompt embedding of ours and nothing else."""
        return not self.names and any(key in self.shapes for key in PROMPT_KEYS)

    @property
    def layout_name(self) -> LayoutName:
        """Whose names the tensors have."""
        return "diffusers" if is_diffusers(self.names) else "bfl"

    @property
    def kind(self) -> Kind:
        """What the names say it is; our own metadata is only a label and is not believed over them."""
        names = self.names
        if any(map(is_lora_name, names)):
            return "lora"
        if {"encoder.conv_in.weight", "decoder.conv_out.weight"} <= names:
            return "vae"
        if {"img_in.weight", "double_blocks.0.img_attn.qkv.weight"} <= names:
            return "transformer"
        if {"x_embedder.weight", "context_embedder.weight", "transformer_blocks.0.attn.add_q_proj.weight"} <= names:
            return "transformer"
        if {"conv_in.weight", "body.0.conv1.weight", "body.0.conv2.weight"} <= names:
            return "enlarger"
        return "enlarger" if self.metadata.get("op4ksr.kind") == "enlarger" else "unknown"  # and then a damaged one

    @property
    def dtype(self) -> str:
        """The dtype of most tensors, as safetensors spells it (F32, BF16, F16, F8_E4M3 ...)."""
        values = list(self.dtypes.values())
        return max(set(values), key=values.count)

    def layout(self) -> Layout:
        """Our tensor names -> how to make each from the file's.

        Raises UnsupportedCheckpointError where blocks are not numbered from 0 without gaps, or two names mean one
        tensor.
        """
        names = self.names
        if fault := numbering_fault(names):
            raise UnsupportedCheckpointError(
                self.path, f"expected blocks numbered from 0 without gaps: {fault}; it is damaged: fetch it again"
            )
        if self.layout_name == "bfl":
            layout = bfl_layout(names)
        else:
            layout = (diffusers_autoencoder_layout if self.kind == "vae" else diffusers_flux_layout)(names)
        used = {source for recipe in layout.values() for source in recipe.sources}
        if twice := sorted(names - used):
            raise UnsupportedCheckpointError(
                self.path, f"holds tensors under two names at once ({some_names(twice)}); fetch it again"
            )
        for recipe in layout.values():
            self._check_parts(recipe.sources)
        return layout

    def _check_parts(self, names: tuple[str, ...]) -> None:
        """Refuse parts of one tensor of ours that cannot be put together."""
        first, *others = (self.shape(name) for name in names)
        for name, shape in zip(names[1:], others, strict=True):
            if not first or not shape or first[1:] != shape[1:]:
                raise UnsupportedCheckpointError(
                    self.path, f"{names[0]} {first} and {name} {shape} do not fit together; fetch it again"
                )

    def part(self, keep: Callable[[str], bool], prefix: str = "") -> Header:
        """The same file with those tensors alone whose names (as on disk) ``keep`` wants; prefix: what they share."""
        kept = [name for name in self.shapes if keep(name)]
        shapes, dtypes = {n: self.shapes[n] for n in kept}, {n: self.dtypes[n] for n in kept}
        prefix = prefix or common_prefix(name for name in kept if name not in PROMPT_KEYS)
        return replace(self, shapes=shapes, dtypes=dtypes, where={n: self.where[n] for n in kept}, prefix=prefix)

    def shape(self, name: str) -> Shape:
        """Of a tensor, by its name without the prefix."""
        return self.shapes[self.prefix + name]

    def dtype_of(self, name: str) -> str:
        """Of a tensor, by its name without the prefix, as safetensors spells it."""
        return self.dtypes[self.prefix + name]


def read_header(path: str | Path) -> Header:
    """Header of a safetensors file, of a shard index, or of a folder that holds one model.

    Raises UnsupportedCheckpointError: missing, not safetensors (and what it is), truncated, empty.
    """
    path = Path(path)
    files = files_of(path)
    shapes: dict[str, Shape] = {}
    dtypes: dict[str, str] = {}
    metadata: dict[str, str] = {}
    where: dict[str, Path] = {}
    for file in files:
        check_head(file)
        try:
            with safe_open(file, framework="pt") as opened:
                metadata |= opened.metadata() or {}
                for name in opened.keys():  # noqa: SIM118 - safe_open is no dict
                    if name in where:
                        raise UnsupportedCheckpointError(
                            file, f"holds {name}, which {where[name].name} holds too; fetch the model's shards again"
                        )
                    view = opened.get_slice(name)
                    shapes[name], dtypes[name] = tuple(view.get_shape()), view.get_dtype()
                    where[name] = file
        except (SafetensorError, OSError) as error:
            raise UnsupportedCheckpointError(
                file, f"cannot be read as safetensors ({plain(error)}); it is damaged: fetch it again"
            ) from error
    if not shapes:
        raise UnsupportedCheckpointError(path, "holds no tensors; fetch it again")
    prefix = common_prefix(name for name in shapes if name not in PROMPT_KEYS)
    return Header(path, tuple(files), shapes, dtypes, metadata, where, prefix)


def without_encoder(header: Header) -> Header:
    """A LoRA's file without what it changes of a VAE's encoder."""
    return header.part(lambda name: not name.startswith(ENCODER_PREFIX))


def encoder_part(header: Header) -> Header | None:
    """What a LoRA's file changes of a VAE's encoder; None for nothing."""
    part = header.part(lambda name: name.startswith(ENCODER_PREFIX), ENCODER_PREFIX)
    return part if part.shapes else None


def check_dtypes(
    header: Header,
    names: Iterable[str],
    others: Iterable[str] = (),
    other_dtypes: tuple[str, ...] = (*FLOATS, *INTEGERS),
) -> None:
    """Raise UnsupportedCheckpointError unless the tensors of these names (as on disk) hold floating-point numbers.

    others: tensors that may have ``other_dtypes``, which by default are integers as well (a LoRA's alpha).
    """
    allowed = [(names, FLOATS), (others, other_dtypes)]
    for name, dtypes in ((name, dtypes) for group, dtypes in allowed for name in group):
        if (got := header.dtypes[name]) not in dtypes:
            raise UnsupportedCheckpointError(
                header.path,
                f"{some_names([name])}: expected one of the dtypes {', '.join(dtypes)}, got {got}; take another file",
            )


def check_finite(header: Header, name: str, tensor: Tensor) -> None:
    """Raise UnsupportedCheckpointError where the tensor holds NaN or infinite numbers."""
    if tensor.is_floating_point() and not torch.isfinite(tensor.float()).all():
        raise UnsupportedCheckpointError(
            header.path, f"{plain(name)} holds NaN or infinite numbers; its training went wrong: take another file"
        )


def read_tensors(header: Header, names: set[str] | None = None) -> dict[str, Tensor]:
    """The file's tensors (all, or those named in full), on the CPU, in the file's dtypes."""
    tensors: dict[str, Tensor] = {}
    for file in header.files:
        with safe_open(file, framework="pt") as opened:
            for name, home in header.where.items():
                if home == file and (names is None or name in names):
                    tensors[name] = opened.get_tensor(name)
    return tensors
