"""LoRA files for Flux, in every layout that is in use: what they change, and the constants they carry.

``merged_weight`` is the one place that adds strength * alpha / rank * B A to a weight.

Layouts: kohya (``lora_unet_double_blocks_0_img_attn_qkv.lora_up``), PEFT over diffusers' names
(``transformer.transformer_blocks.0.attn.to_q.lora_A``) or over BFL's (``double_blocks.0...lora_A``), each
with or without its usual prefix. ``canonical_name`` makes of each the one that the host's loader maps.
A one-step LoRA carries, like a checkpoint, ``op4ksr.*`` metadata and its prompt embedding.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import UnsupportedCheckpointError
from ..models.flux import OneStepSettings
from .constants import constants, with_prompt
from .header import PROMPT_KEYS, Header, check_dtypes, read_header, read_tensors
from .layouts import Piece, Shape, export_flux
from .shards import some_names

#: How the two factors are called: W + alpha / rank * up @ down.
_DOWN = (".lora_down.weight", ".lora_A.weight")
_UP = (".lora_up.weight", ".lora_B.weight")

_BFL_TOP = r"(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)\."
_DIFFUSERS_TOP = (
    r"(transformer_blocks|single_transformer_blocks|x_embedder|context_embedder|time_text_embed|norm_out)\."
)


@dataclass(frozen=True)
class LoraDescription:
    """What a LoRA file is, before a tensor of it is read. theta is None where the file names none."""

    header: Header
    settings: OneStepSettings
    theta: tuple[float, float] | None
    why: dict[str, str]


@dataclass(frozen=True)
class Addition:
    """alpha / rank * up @ down, which a LoRA adds to the rows of ``piece`` of one of our tensors.

    up, down, alpha: canonical names of the file's tensors; without an alpha the factor is 1.
    """

    piece: Piece
    up: str
    down: str
    alpha: str | None

    def product(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """(rows, columns) float32, in our order of rows."""
        up, down = (tensors[name].float() for name in (self.up, self.down))
        up, down = up.reshape(len(up), -1), down.reshape(len(down), -1)
        scale = 1.0 if self.alpha is None else tensors[self.alpha].item() / len(down)
        product = scale * (up @ down)
        return torch.cat(product.chunk(2)[::-1]) if self.piece.how == "swap_halves" else product


@dataclass(frozen=True)
class LoraMerge:
    """One LoRA, ready to be added to a transformer: what it adds to which tensor, its tensors, its strength."""

    parts: dict[str, list[Addition]]
    tensors: dict[str, Tensor]
    strength: float


def read_merge(header: Header, shapes: Mapping[str, Shape], strength: float = 1.0) -> LoraMerge:
    """Read a LoRA file to be merged into a transformer with tensors of these ``shapes`` (our names).

    Raises UnsupportedCheckpointError as ``additions`` does.
    """
    return LoraMerge(additions(header, shapes), lora_tensors(header), strength)


def merged_weight(name: str, weight: Tensor, merges: Sequence[LoraMerge]) -> Tensor:
    """The weight of that name (ours) plus strength * alpha / rank * up @ down of each LoRA, in its own dtype.

    Summed in float32 and rounded once. The weight itself, not a copy, where no LoRA changes it.
    """
    if not any(name in merge.parts for merge in merges):
        return weight
    total = weight.float().clone()
    for merge in merges:
        for part in merge.parts.get(name, []):
            total[part.piece.start : part.piece.stop] += merge.strength * part.product(merge.tensors).to(total.device)
    return total.to(weight.dtype)


def describe_lora(source: Header | str | Path) -> LoraDescription:
    """Constants of a LoRA file. UnsupportedCheckpointError: no LoRA, wrong metadata, or dtypes of no weights."""
    header = source if isinstance(source, Header) else read_header(source)
    if header.kind != "lora":
        what = {"vae": "a VAE", "transformer": "a whole Flux transformer: load it as the model"}.get(
            header.kind, f"something else ({some_names(sorted(header.names))})"
        )
        raise UnsupportedCheckpointError(
            header.path, f"holds no LoRA (no lora_A/lora_B or lora_down/lora_up tensors), it is {what}; choose a LoRA"
        )
    alphas = {name for name in header.shapes if name.endswith(".alpha")}
    check_dtypes(header, header.shapes.keys() - alphas, alphas)  # trainers write alpha as an integer too
    theta, settings, why = constants(header)
    return LoraDescription(header, settings, theta if "op4ksr.rope_theta" in header.metadata else None, why)


def lora_settings(found: LoraDescription) -> OneStepSettings:
    """The described constants with the prompt embedding. Raises UnsupportedCheckpointError where it has none."""
    missing = [key for key in PROMPT_KEYS if key not in found.header.shapes]
    if missing:
        raise UnsupportedCheckpointError(
            found.header.path,
            f"carries no prompt embedding ({' and '.join(missing)} missing), so it is no one-step LoRA as we know "
            "them; add it with 'convert --prompt-embedding', or use ComfyUI's own LoRA loader and a prompt of yours",
        )
    return with_prompt(found.header, found.settings)


def canonical_name(name: str) -> str:
    """A LoRA tensor's name -> the spelling that ComfyUI's loader maps for Flux."""
    name = name.removeprefix("base_model.model.").replace("model.diffusion_model.", "diffusion_model.")
    name = re.sub(r"\.(lora_[AB])\.default\.weight$", r".\1.weight", name)
    rest = name.removeprefix("transformer.")
    if re.match(_BFL_TOP, rest):
        return f"diffusion_model.{rest}"
    if re.match(_DIFFUSERS_TOP, rest) or re.match(r"proj_out\.(lora|alpha)", rest):
        return f"transformer.{rest}"
    return name


def lora_tensors(header: Header) -> dict[str, Tensor]:
    """The file's tensors under their canonical names, without the prompt embedding, in the file's dtypes."""
    names = {name for name in header.shapes if name not in PROMPT_KEYS}
    return {canonical_name(name): tensor for name, tensor in read_tensors(header, names).items()}


def additions(header: Header, shapes: Mapping[str, Shape]) -> dict[str, list[Addition]]:
    """{our tensor: what the file adds to it} for a transformer with these tensors.

    Names are canonical. Raises UnsupportedCheckpointError where any tensor finds no place, or another shape.
    """
    names = {canonical_name(name): name for name in header.shapes if name not in PROMPT_KEYS}
    found: dict[str, list[Addition]] = {}
    used: set[str] = set()
    for base, piece in _places(shapes).items():
        down = next((base + end for end in _DOWN if base + end in names), None)
        up = next((base + end for end in _UP if base + end in names), None)
        if down is None or up is None:
            continue
        alpha = f"{base}.alpha" if f"{base}.alpha" in names else None
        used |= {down, up, alpha or up}
        if alpha is not None and math.prod(shape := header.shapes[names[alpha]]) != 1:
            raise UnsupportedCheckpointError(
                header.path, f"{alpha}: expected a single number, got the shape {shape}; it is damaged: fetch it again"
            )
        _check_shape(header, base, piece, header.shapes[names[up]], header.shapes[names[down]], shapes)
        found.setdefault(piece.source, []).append(Addition(piece, up, down, alpha))
    if left := sorted(names.keys() - used):
        raise UnsupportedCheckpointError(
            header.path,
            f"{len(left)} of its {len(names)} tensors fit nothing in this transformer ({some_names(left)}); it is "
            "for another model, or no plain LoRA (LoKr, LoHa, DoRA): merge those in ComfyUI and save the model there",
        )
    return found


def _places(shapes: Mapping[str, Shape]) -> dict[str, Piece]:
    """{canonical name of a LoRA'd module: the rows it changes}."""
    matrices = {name: shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    places: dict[str, Piece] = {}
    for name, shape in matrices.items():
        module, piece = name.removesuffix(".weight"), Piece(name, 0, shape[0])
        places[f"diffusion_model.{module}"] = places[f"lora_unet_{module.replace('.', '_')}"] = piece
    for theirs, piece in export_flux(matrices).items():
        module = theirs.removesuffix(".weight")
        places[f"transformer.{module}"] = places[f"lora_transformer_{module.replace('.', '_')}"] = piece
    return places


def _check_shape(header: Header, base: str, piece: Piece, up: Shape, down: Shape, shapes: Mapping[str, Shape]) -> None:
    expected = (piece.stop - piece.start, shapes[piece.source][1])
    rank, got = math.prod(up[1:]), (*up[:1], math.prod(down[1:]))  # convolutions of 1 x 1 too
    if expected != got or down[:1] != (rank,) or rank == 0:
        raise UnsupportedCheckpointError(
            header.path, f"is for a model of another size: {base} changes {got}, here it is {expected}; take its own"
        )
