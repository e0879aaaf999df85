"""Tensor names on disk <-> the models' own (BFL) names, as data: what each tensor is made from.

Reading: a layout ``{our name: Recipe}`` is computed from names alone, so that shapes can be checked before
any tensor is read. Writing: an export ``{diffusers' name: Piece}`` says which rows of which of our tensors a
tensor of diffusers' is; LoRA files change the same pieces. Either direction only moves numbers, exactly.
Sources: diffusers' conversion of FLUX.1 and of LDM autoencoders.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Shape = tuple[int, ...]
How = Literal["copy", "concatenate", "swap_halves", "as_conv"]

#: Wrappers that trainers and mergers put around the whole model.
PREFIXES = ("model.diffusion_model.", "first_stage_model.", "diffusion_model.", "transformer.", "vae.")


@dataclass(frozen=True)
class Recipe:
    """One tensor of ours: the tensors on disk it is made from, and how."""

    sources: tuple[str, ...]
    how: How = "copy"

    def shape(self, of: Callable[[str], Shape]) -> Shape:
        """The shape of our tensor; of: the shape of one on disk, by its name."""
        first = of(self.sources[0])
        if self.how == "concatenate":
            return (sum(of(name)[0] for name in self.sources), *first[1:])
        return (*first, 1, 1) if self.how == "as_conv" and len(first) == 2 else first

    def make(self, read: Callable[[str], Tensor]) -> Tensor:
        """Our tensor; read: one on disk, by its name."""
        if self.how == "concatenate":
            parts = [read(name) for name in self.sources]
            mixed = len({part.dtype for part in parts}) > 1  # torch promotes no fp8
            return torch.cat([part.float() for part in parts] if mixed else parts)
        tensor = read(self.sources[0])
        if self.how == "swap_halves":  # diffusers: (scale, shift); BFL: (shift, scale)
            return torch.cat(tensor.chunk(2)[::-1])
        return tensor[:, :, None, None] if self.how == "as_conv" and tensor.ndim == 2 else tensor


Layout = dict[str, Recipe]


def common_prefix(names: Iterable[str]) -> str:
    """The wrapper that every name carries, or nothing."""
    names = list(names)
    for prefix in PREFIXES:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""


def is_diffusers(names: Iterable[str]) -> bool:
    """Whether a file's tensors have diffusers' names."""
    starts = ("encoder.down_blocks.", "transformer_blocks.", "single_transformer_blocks.")
    return any(name.startswith(starts) for name in names)


def bfl_layout(names: Iterable[str]) -> Layout:
    """BFL / LDM names; newer hosts save the QK norms' scale as ``weight``."""
    return {re.sub(r"(query_norm|key_norm)\.weight$", r"\1.scale", name): Recipe((name,)) for name in names}


_MID = {
    "mid_block.resnets.0.": "mid.block_1.",
    "mid_block.resnets.1.": "mid.block_2.",
    "mid_block.attentions.0.group_norm.": "mid.attn_1.norm.",
    "mid_block.attentions.0.to_q.": "mid.attn_1.q.",
    "mid_block.attentions.0.to_k.": "mid.attn_1.k.",
    "mid_block.attentions.0.to_v.": "mid.attn_1.v.",
    "mid_block.attentions.0.to_out.0.": "mid.attn_1.proj_out.",
    "conv_norm_out.": "norm_out.",
}


def diffusers_autoencoder_layout(names: Iterable[str]) -> Layout:
    """diffusers' names of an autoencoder. It counts the decoder's levels from the latent, we from the image."""
    names = list(names)
    levels = 1 + max((int(m[1]) for n in names if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", n))), default=0)
    layout: Layout = {}
    for name in names:
        new = name.replace("conv_shortcut", "nin_shortcut")
        for theirs, ours in _MID.items():
            new = new.replace(theirs, ours)
        new = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", new)
        new = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", new)
        if match := re.match(r"decoder\.up_blocks\.(\d+)\.(.*)", new):
            rest = match[2].replace("resnets.", "block.").replace("upsamplers.0.", "upsample.")
            new = f"decoder.up.{levels - 1 - int(match[1])}.{rest}"
        in_attention = ".mid.attn_1." in new and new.endswith("weight") and ".norm." not in new
        layout[new] = Recipe((name,), "as_conv" if in_attention else "copy")
    return layout


_FLUX_TOP = {
    "x_embedder": "img_in",
    "context_embedder": "txt_in",
    "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
    "time_text_embed.timestep_embedder.linear_2": "time_in.out_layer",
    "time_text_embed.guidance_embedder.linear_1": "guidance_in.in_layer",
    "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
    "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
    "time_text_embed.text_embedder.linear_2": "vector_in.out_layer",
    "norm_out.linear": "final_layer.adaLN_modulation.1",
    "proj_out": "final_layer.linear",
}

_FLUX_DOUBLE: dict[str, str | tuple[str, ...]] = {
    "img_mod.lin": "norm1.linear",
    "txt_mod.lin": "norm1_context.linear",
    "img_attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "txt_attn.qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "img_attn.proj": "attn.to_out.0",
    "txt_attn.proj": "attn.to_add_out",
    "img_mlp.0": "ff.net.0.proj",
    "img_mlp.2": "ff.net.2",
    "txt_mlp.0": "ff_context.net.0.proj",
    "txt_mlp.2": "ff_context.net.2",
    "img_attn.norm.query_norm": "attn.norm_q",
    "img_attn.norm.key_norm": "attn.norm_k",
    "txt_attn.norm.query_norm": "attn.norm_added_q",
    "txt_attn.norm.key_norm": "attn.norm_added_k",
}

_FLUX_SINGLE: dict[str, str | tuple[str, ...]] = {
    "modulation.lin": "norm.linear",
    "linear1": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "linear2": "proj_out",
    "norm.query_norm": "attn.norm_q",
    "norm.key_norm": "attn.norm_k",
}


def _flux_block(ours: str, theirs: str, table: dict[str, str | tuple[str, ...]], present: set[str]) -> Layout:
    layout: Layout = {}
    for new, old in table.items():
        parts = old if isinstance(old, tuple) else (old,)
        for suffix in ("weight", "bias"):
            sources = tuple(f"{theirs}.{part}.{suffix}" for part in parts)
            if all(source in present for source in sources):
                target = "scale" if new.endswith(("query_norm", "key_norm")) else suffix
                layout[f"{ours}.{new}.{target}"] = Recipe(sources, "concatenate" if len(parts) > 1 else "copy")
    return layout


def diffusers_flux_layout(names: Iterable[str]) -> Layout:
    """diffusers' names of a Flux transformer. It splits what we hold fused: q, k and v, and a single block's MLP."""
    present = set(names)
    layout: Layout = {}
    for theirs, ours in _FLUX_TOP.items():
        for suffix in ("weight", "bias"):
            if (source := f"{theirs}.{suffix}") in present:
                layout[f"{ours}.{suffix}"] = Recipe((source,), "swap_halves" if theirs == "norm_out.linear" else "copy")
    for i in sorted({int(m[1]) for n in present if (m := re.match(r"transformer_blocks\.(\d+)\.", n))}):
        layout |= _flux_block(f"double_blocks.{i}", f"transformer_blocks.{i}", _FLUX_DOUBLE, present)
    for i in sorted({int(m[1]) for n in present if (m := re.match(r"single_transformer_blocks\.(\d+)\.", n))}):
        layout |= _flux_block(f"single_blocks.{i}", f"single_transformer_blocks.{i}", _FLUX_SINGLE, present)
    used = {source for recipe in layout.values() for source in recipe.sources}
    return layout | {name: Recipe((name,)) for name in present - used}  # left for the checks to refuse by name


def diffusers_modules(module: str) -> tuple[str, ...]:
    """One of a Flux transformer's modules (our name, without .weight) -> diffusers' modules it is made of, in order.

    Empty for a module that diffusers does not have.
    """
    for theirs, ours in _FLUX_TOP.items():
        if ours == module:
            return (theirs,)
    if (match := re.match(r"(double|single)_blocks\.(\d+)\.(.*)", module)) is None:
        return ()
    double = match[1] == "double"
    parts = (_FLUX_DOUBLE if double else _FLUX_SINGLE).get(match[3], ())
    prefix = f"{'' if double else 'single_'}transformer_blocks.{match[2]}."
    return tuple(prefix + part for part in ((parts,) if isinstance(parts, str) else parts))


def diffusers_autoencoder_name(name: str, levels: int) -> str:
    """A tensor of the autoencoder (our name) -> diffusers' name; ``levels``: how many widths it has."""
    new = name.replace("nin_shortcut", "conv_shortcut")
    for theirs, ours in _MID.items():
        new = new.replace(f".{ours}", f".{theirs}")
    new = re.sub(r"\.down\.(\d+)\.block\.(\d+)", r".down_blocks.\1.resnets.\2", new)
    new = re.sub(r"\.down\.(\d+)\.downsample", r".down_blocks.\1.downsamplers.0", new)
    if match := re.match(r"decoder\.up\.(\d+)\.(.*)", new):
        rest = match[2].replace("block.", "resnets.").replace("upsample.", "upsamplers.0.")
        new = f"decoder.up_blocks.{levels - 1 - int(match[1])}.{rest}"
    return new


# --- writing diffusers' names ------------------------------------------------------------------


@dataclass(frozen=True)
class Piece:
    """Rows [start, stop) of one of our tensors, and how they are written down by diffusers."""

    source: str
    start: int
    stop: int
    how: Literal["copy", "swap_halves", "as_linear"] = "copy"

    def shape(self, ours: Shape) -> Shape:
        """The shape of diffusers' tensor, of that of ours."""
        return (self.stop - self.start, *(ours[1:2] if self.how == "as_linear" else ours[1:]))

    def make(self, ours: Tensor) -> Tensor:
        """diffusers' tensor, of ours."""
        rows = ours[self.start : self.stop]
        if self.how == "swap_halves":  # BFL: (shift, scale); diffusers: (scale, shift)
            return torch.cat(rows.chunk(2)[::-1])
        return rows.flatten(1) if self.how == "as_linear" else rows


Export = dict[str, Piece]


def export_flux(shapes: Mapping[str, Shape]) -> Export:
    """{diffusers' name: Piece} of a transformer's tensors; a name that diffusers lacks is left out."""
    export: Export = {}
    for name, shape in shapes.items():
        module, _, kind = name.rpartition(".")
        suffix = "weight" if kind == "scale" else kind
        parts = diffusers_modules(module)
        how = "swap_halves" if module.startswith("final_layer.adaLN") else "copy"
        for part, (start, stop) in zip(parts, rows_of_parts(shape, len(parts), _width(shapes)), strict=True):
            export[f"{part}.{suffix}"] = Piece(name, start, stop, how)
    return export


def _width(shapes: Mapping[str, Shape]) -> int:
    """The transformer's hidden size."""
    return shapes["img_in.weight"][0]


def rows_of_parts(shape: Shape, parts: int, width: int) -> list[tuple[int, int]]:
    """[start, stop) of each part: q, k and v are ``width`` rows each, a single block's MLP is the rest."""
    if parts < 2:
        return [(0, shape[0])] * parts
    starts = [i * width for i in range(parts)]
    return list(zip(starts, [*starts[1:], shape[0]], strict=True))


def export_autoencoder(shapes: Mapping[str, Shape]) -> Export:
    """{diffusers' name: Piece} of an autoencoder's tensors."""
    levels = 1 + max((int(name.split(".")[2]) for name in shapes if name.startswith("decoder.up.")), default=0)
    export: Export = {}
    for name, shape in shapes.items():
        in_attention = ".mid.attn_1." in name and name.endswith("weight") and len(shape) == 4
        how = "as_linear" if in_attention else "copy"
        export[diffusers_autoencoder_name(name, levels)] = Piece(name, 0, shape[0], how)
    return export
