"""LoRA files for Flux, in every layout that is in use: what they change, and the constants they carry.

``merged_weight`` is the one place that adds strength * scale * product to a weight. Names: ``lora_names``; kinds and
their products: ``lora_parts``; alpha / rank, and which of a file's statements of it counts: ``lora_scale``.

Layouts: kohya (``lora_unet_double_blocks_0_img_attn_qkv.lora_up``), PEFT over diffusers' names
(``transformer.transformer_blocks.0.attn.to_q.lora_A``) or over BFL's (``double_blocks.0...lora_A``), XLabs
(``double_blocks.0.processor.qkv_lora1.up``), LyCORIS, OneTrainer, each with or without its usual prefix.
``canonical_name`` makes of each the one that the host's loader maps. Tensors of text encoders are left out.
A one-step LoRA carries, like a checkpoint, ``op4ksr.*`` metadata and its prompt embedding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OptionError, UnsupportedCheckpointError
from ..models.flux import OneStepSettings
from ..plain_text import plain, plain_logger
from .constants import constants, with_prompt
from .header import ENCODER_PREFIX, PROMPT_ALONE, PROMPT_KEYS, Header, check_dtypes, read_header, without_encoder
from .layouts import Piece, Shape, export_flux
from .lora_names import COMPUTED, canonical_name
from .lora_parts import LoraContents, LoraModule, lora_contents
from .shards import some_names

log = plain_logger(__name__)


@dataclass(frozen=True)
class LoraDescription:
    """What a LoRA file is, before a tensor of it is read. theta is None where the file names none."""

    header: Header
    settings: OneStepSettings
    theta: tuple[float, float] | None
    why: dict[str, str]


@dataclass(frozen=True)
class Addition:
    """scale * product of one module, which a LoRA adds to the rows of ``piece`` of one of our tensors."""

    piece: Piece
    module: LoraModule
    scale: float

    def product(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
        """(rows, columns) float32, scaled, in our order of rows. tensors: ``LoraContents.read``'s."""
        product = self.scale * self.module.product(tensors[self.module.base].__getitem__)
        return torch.cat(product.chunk(2)[::-1]) if self.piece.how == "swap_halves" else product


@dataclass(frozen=True)
class LoraMerge:
    """One LoRA, ready to be added to a transformer: what it adds to which tensor, its tensors, its strength."""

    path: Path
    parts: dict[str, list[Addition]]
    tensors: dict[str, dict[str, Tensor]]
    strength: float


def read_merge(header: Header, shapes: Mapping[str, Shape], strength: float = 1.0) -> LoraMerge:
    """Read a LoRA file to be merged into a transformer with tensors of these ``shapes`` (our names).

    What changes text encoders is left out and told in the log. Raises UnsupportedCheckpointError as ``additions`` and
    ``lora_contents`` do, and for NaN or infinite numbers.
    """
    contents = lora_contents(header)
    parts = additions(contents, shapes)
    if line := contents.left_out_line():
        log.warning("%s: %s", header.path.name, line)
    log.info("%s: alpha / rank (%s)", header.path.name, contents.source)
    return LoraMerge(header.path, parts, contents.read(), strength)


def merged_weight(name: str, weight: Tensor, merges: Sequence[LoraMerge], dtype: torch.dtype | None = None) -> Tensor:
    """The weight of that name (ours) plus strength * scale * product of each LoRA, in ``dtype``, or its own.

    Summed in float32 and rounded once. The weight itself, not a copy, where no LoRA changes it and its dtype stays.
    Raises UnsupportedCheckpointError where the sum holds NaN, or more than the dtype can.
    """
    involved = [merge for merge in merges if name in merge.parts and merge.strength]
    if not involved:
        return weight.to(dtype or weight.dtype)
    total = weight.float().clone()
    for merge in involved:
        for part in merge.parts[name]:
            total[part.piece.start : part.piece.stop] += merge.strength * part.product(merge.tensors).to(total.device)
    return rounded_sum(involved[-1].path, name, weight, total, dtype or weight.dtype)


def check_strength(strength: float) -> float:
    """The strength itself; OptionError unless it is a number."""
    if not math.isfinite(strength):
        raise OptionError(f"strength: expected a number, got {plain(strength)}; 1 is the usual one")
    return strength


def rounded_sum(path: Path, name: str, weight: Tensor, total: Tensor, dtype: torch.dtype) -> Tensor:
    """A weight and what the LoRA at ``path`` adds to it, float32, in ``dtype``.

    Raises UnsupportedCheckpointError where that holds NaN or infinite numbers.
    """
    merged = total.to(dtype)
    if not torch.isfinite(merged.float()).all():
        held = str(dtype).removeprefix("torch.")
        fault = f"makes {name} larger than {held} can hold" if torch.isfinite(weight.float()).all() else ""
        raise UnsupportedCheckpointError(
            path,
            f"merging {fault or f'adds to {name}, which holds NaN or infinite numbers already'}; merge it at a smaller "
            "strength, or into another file",
        )
    return merged


def describe_lora(source: Header | str | Path) -> LoraDescription:
    """Constants of a LoRA file, and the part of it that changes a transformer.

    What changes a VAE's encoder is left out and told in the log: ``sr_lora`` takes both. Raises
    UnsupportedCheckpointError: no LoRA, wrong metadata, or dtypes of no weights.
    """
    header = source if isinstance(source, Header) else read_header(source)
    if encoders := sum(name.startswith(ENCODER_PREFIX) for name in header.shapes):
        text = "%s: %d tensors change the VAE's encoder and are left out here; --lora and Load SR LoRA apply them"
        log.warning(text, header.path.name, encoders)
        header = without_encoder(header)
    if header.is_prompt:
        raise UnsupportedCheckpointError(header.path, f"expected a LoRA, got {PROMPT_ALONE}")
    if header.kind != "lora":
        what = {"vae": "a VAE", "transformer": "a whole Flux transformer: load it as the model"}.get(
            header.kind, f"something else ({some_names(sorted(header.names))})"
        )
        raise UnsupportedCheckpointError(
            header.path, f"holds no LoRA (no lora_A/lora_B or lora_down/lora_up tensors), it is {what}; choose a LoRA"
        )
    whole = {name for name in header.shapes if name.endswith((".alpha", ".reshape_weight"))}
    check_dtypes(header, header.shapes.keys() - whole, whole)  # trainers write alpha as an integer too
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


def host_tensors(contents: LoraContents) -> dict[str, Tensor]:
    """The file's changes under their canonical names, in the file's dtypes, for the host's loader.

    What the metadata states of the scale is written as the alpha that the host divides by the rank.
    """
    tensors: dict[str, Tensor] = {}
    for base, parts in contents.read().items():
        module = contents.modules[base]
        tensors |= {canonical_name(module.names[part]): tensor for part, tensor in parts.items()}
        if "alpha" not in parts and module.rank is not None and (scale := contents.scales[base]) != 1:
            tensors[f"{base}.alpha"] = torch.tensor(scale * module.rank, dtype=torch.float64)
    return tensors


def additions(contents: LoraContents, shapes: Mapping[str, Shape]) -> dict[str, list[Addition]]:
    """{our tensor: what the file adds to it} for a transformer with these tensors.

    Raises UnsupportedCheckpointError where any tensor finds no place, another's, or another shape, and for kinds that
    are not merged here.
    """
    header, places = contents.header, _places(shapes)
    left = [name for base, module in contents.modules.items() if base not in places for name in module.names.values()]
    if left := sorted([*left, *contents.unknown]):
        total = len(header.shapes.keys() - set(PROMPT_KEYS))
        raise UnsupportedCheckpointError(
            header.path,
            f"{len(left)} of its {total} tensors fit nothing in this transformer ({some_names(left)}); it is "
            "for another model, or of a kind that is not known here: merge it in ComfyUI and save the model there",
        )
    check_places(contents, places)
    found: dict[str, list[Addition]] = {}
    for base, module in contents.modules.items():
        if not module.computed:
            load = "load it in ComfyUI with Load LoRA and save the model there"
            remedy = load if module.in_host else "ComfyUI does not apply it either, so choose another LoRA"
            raise UnsupportedCheckpointError(
                header.path,
                f"is {module.kind} ({plain(base)}), which is not merged here (only {', '.join(COMPUTED)} are); "
                + remedy,
            )
        check_module_shape(header, module, (places[base].stop - places[base].start, shapes[places[base].source][1]))
        scale = contents.scales.get(base, 1.0)
        found.setdefault(places[base].source, []).append(Addition(places[base], module, scale))
    return found


def check_places(contents: LoraContents, places: Mapping[str, object]) -> None:
    """Raise UnsupportedCheckpointError where two modules change one place, of which the host would apply one.

    places: canonical name of a module -> what it changes, in any terms; modules without one are passed over.
    """
    seen: dict[object, str] = {}
    for base in contents.modules:
        if base in places and (other := seen.setdefault(places[base], base)) != base:
            raise UnsupportedCheckpointError(
                contents.header.path,
                f"changes one module under two names ({some_names([other, base])}); take the file as its trainer "
                "wrote it",
            )


def check_module_shape(header: Header, module: LoraModule, expected: Shape) -> None:
    """Raise UnsupportedCheckpointError where the module's change is not (rows, columns) of the weight it is for."""
    if (got := module.shape) is not None and got != expected:
        raise UnsupportedCheckpointError(
            header.path,
            f"is for a model of another size: {plain(module.base)} changes {got}, here it is {expected}; take its own",
        )


def _places(shapes: Mapping[str, Shape]) -> dict[str, Piece]:
    """{canonical name of a LoRA'd module: the rows it changes}."""
    matrices = {name: shape for name, shape in shapes.items() if name.endswith(".weight") and len(shape) == 2}
    places: dict[str, Piece] = {}
    for name, shape in matrices.items():
        module, piece = name.removesuffix(".weight"), Piece(name, 0, shape[0])
        places[f"diffusion_model.{module}"] = places[f"lora_unet_{module.replace('.', '_')}"] = piece
        if module.endswith(".linear1"):  # XLabs: its q, k and v, as the host calls them
            places[f"diffusion_model.{module}_qkv"] = Piece(name, 0, min(shape[0], 3 * shape[1]))
    for theirs, piece in export_flux(matrices).items():
        module = theirs.removesuffix(".weight")
        places[f"transformer.{module}"] = places[f"lora_transformer_{module.replace('.', '_')}"] = piece
    return places
