"""One weights file made from others: another layout, a LoRA merged in, metadata and prompt embedding added.

Numbers are only moved, never rounded, except where a LoRA is merged (float32 inside, then the file's dtype).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import OptionError, OutputError, UnsupportedCheckpointError
from ..files import same_file
from ..models.flux import Flux, FluxParams
from ..plain_text import plain
from ..vae.autoencoder import AutoEncoder, AutoEncoderParams
from .checkpoint import check_tensors
from .constants import check_prompt
from .description import Description, describe_autoencoder, describe_flux
from .header import PROMPT_KEYS, Header, LayoutName, read_header, read_tensors, without_encoder
from .layouts import Piece, Recipe, export_autoencoder, export_flux
from .lora import describe_lora, merged_weight, read_merge
from .lora_scale import scale_metadata
from .prompt import PromptEmbedding, opened
from .sr_lora import is_published
from .streamed import DTYPES, Entry, write_safetensors

#: What may be set, by what the file is. ``op4ksr.kind`` and ``op4ksr.format`` are written by themselves.
_CONSTANTS = (
    "op4ksr.rope_theta",
    "op4ksr.sigma",
    "op4ksr.guidance",
    "op4ksr.encode",
    "op4ksr.output",
    "op4ksr.repair",
    "op4ksr.sigma_repair",
    "op4ksr.train_tokens",
    "op4ksr.training",
    "op4ksr.origin",
)
SETTABLE: dict[str, tuple[str, ...]] = {
    "vae": ("op4ksr.vae_stride", "op4ksr.vae_shift", "op4ksr.norm_groups", "op4ksr.training"),
    "transformer": _CONSTANTS,
    "lora": _CONSTANTS,
}


@dataclass(frozen=True)
class Conversion:
    """What to do. layout: None keeps the file's names. loras: (file, strength). prompt: a file of one, or one."""

    layout: LayoutName | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    prompt: PromptEmbedding | Path | None = None


def convert(source: str | Path, output: str | Path, conversion: Conversion) -> dict[str, Any]:
    """Write ``output`` (one file, whole or not at all) and return what is in it, JSON-ready.

    source: a VAE, a transformer (shards too) or a LoRA. A merged one-step LoRA brings its constants and
    prompt embedding along. Raises UnsupportedCheckpointError, OptionError, OutputError (also where the
    output is one of the inputs).
    """
    _refuse_published(source, [file for file, _ in conversion.loras])
    header = read_header(source)
    if odd := [strength for _, strength in conversion.loras if not math.isfinite(strength)]:
        raise OptionError(f"--merge-lora: expected a strength that is a number, got {odd[0]}; 1 is the usual one")
    described = _describe(header)
    given = opened(conversion.prompt)
    check_output(
        Path(output), [*header.files, *(file for file, _ in conversion.loras), *(given.files if given else ())]
    )
    loras = [(describe_lora(file).header, strength) for file, strength in conversion.loras]
    metadata = _metadata(header, described, [lora for lora, _ in loras], conversion)
    entries = _weights(header, conversion.layout, loras)
    prompt = _prompt(header, [lora for lora, _ in loras], given, described)
    entries |= {name: Entry(dtype_name(t), tuple(t.shape), lambda t=t: t) for name, t in prompt.items()}
    write_safetensors(output, entries, metadata)
    return {
        "output": str(output),
        "kind": header.kind,
        "layout": conversion.layout or without_encoder(header).layout_name,
        "tensors": len(entries),
        "bytes": sum(entry.bytes for entry in entries.values()),
        "metadata": {key: value for key, value in metadata.items() if key != "format"},
        "prompt_embedding": bool(prompt),
        "merged": [str(file) for file, _ in conversion.loras],
        "unknown": list(described.assumed) if described and "op4ksr.vae_stride" not in metadata else [],
    }


def _refuse_published(source: str | Path, loras: list[Path]) -> None:
    """Neither a copy of a published folder's tensors nor a merge of them would keep sigma, prompt and encoder."""
    folders = [Path(source)] if Path(source).is_dir() else []
    for path in (*folders, *loras):
        if is_published(path):
            raise UnsupportedCheckpointError(
                path,
                "is a one-step LoRA as it is published, whose sigma and prompt are in no tensor; make one file of it "
                "with 'convert --sr-lora FOLDER -o FILE.safetensors' first, and use that",
            )


def _describe(header: Header) -> Description | None:
    """The file's geometry, its tensors checked; None for a LoRA. Raises UnsupportedCheckpointError."""
    if header.kind == "lora":
        return None
    found = describe_autoencoder(header) if header.kind == "vae" else describe_flux(header)
    if found.quantized:
        raise UnsupportedCheckpointError(
            header.path, "is quantized with scales, which belong to their tensors; convert the bf16 file instead"
        )
    params = found.params
    model = Flux(params, device="meta") if isinstance(params, FluxParams) else AutoEncoder(params, device="meta")
    check_tensors(model, header, header.layout())
    return found


def check_output(output: Path, inputs: Iterable[Path]) -> None:
    """Raise OutputError unless ``output`` can be a new file, and is none of those that are read."""
    if any(same_file(output, file) for file in inputs):
        raise OutputError(f"{output}: is one of the inputs and would be overwritten; choose another name")
    if output.suffix != ".safetensors":
        raise OutputError(f"{output}: expected a name that ends in .safetensors, got {output.suffix!r}")
    if not output.parent.is_dir():
        raise OutputError(f"{output.parent}: no such folder; create it first")


# --- metadata and prompt ----------------------------------------------------------------------


def _metadata(header: Header, found: Description | None, loras: list[Header], conversion: Conversion) -> dict[str, str]:
    """The file's own, then the LoRAs', then what the conversion sets; checked as a loader would check it."""
    metadata = {key: value for key, value in header.metadata.items() if key != "format"}
    if header.kind == "lora":
        metadata |= scale_metadata(header)
    if found and isinstance(found.params, AutoEncoderParams) and "stride" not in found.assumed:
        values = {"vae_stride": found.params.stride, "vae_shift": found.params.shift}
        values["norm_groups"] = found.params.norm_groups
        metadata |= {f"op4ksr.{key}": str(value) for key, value in values.items()}  # config.json stays behind
    for lora in loras:
        metadata |= {k: v for k, v in lora.metadata.items() if k in _CONSTANTS}
    for key, value in conversion.metadata.items():
        check_key(header.kind, key)
        metadata[key] = value
    if any(key.startswith("op4ksr.") for key in metadata):
        metadata |= {"op4ksr.format": "1", "op4ksr.kind": header.kind}
    try:
        changed = replace(header, metadata=metadata)
        if header.kind == "lora":
            describe_lora(without_encoder(changed))
        else:
            _describe(changed)
    except UnsupportedCheckpointError as error:
        if conversion.metadata:
            raise set_error(error) from error
        raise
    return {"format": "pt", **metadata}


def set_error(error: UnsupportedCheckpointError) -> OptionError:
    """A fault of metadata that were asked for: not the file is at fault, but what was typed."""
    return OptionError(
        f"--set: {re.sub('(correct it, or )?(fetch it again|take another)$', 'correct it', error.reason)}"
    )


def check_key(kind: str, key: str) -> None:
    """Raise OptionError unless files of that kind carry metadata of this name."""
    known = SETTABLE[kind]
    if key not in known:
        names = ", ".join(known)
        raise OptionError(f"--set {plain(key)}: is nothing that a {kind} file carries; known are {names}")


def _prompt(
    header: Header, loras: list[Header], given: PromptEmbedding | None, found: Description | None
) -> dict[str, Tensor]:
    """{op4ksr.txt, op4ksr.vec}: the requested ones, else the last merged LoRA's, else the file's own."""
    tensors: dict[str, Tensor] = {}
    for home in (header, *loras):
        tensors |= read_tensors(home, set(PROMPT_KEYS))
    if given is not None:
        if header.kind == "vae":
            raise OptionError("--prompt-embedding: a VAE carries none; give it to the transformer or the LoRA")
        tensors |= given.tensors
    if found is not None and isinstance(found.params, FluxParams):
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        path = (given or (loras[-1] if loras else header)).path
        check_prompt(replace(header, path=path, shapes=shapes), found.params.context_in_dim, found.params.vec_in_dim)
    return tensors


# --- weights ----------------------------------------------------------------------------------


def _weights(header: Header, layout: LayoutName | None, loras: list[tuple[Header, float]]) -> dict[str, Entry]:
    if header.kind == "lora":
        if loras:
            raise OptionError("--merge-lora: the file itself is a LoRA; name a transformer to merge into")
        if layout is not None:
            raise OptionError("--layout: a LoRA's names are left as they are; leave --layout away")
        return _as_they_are(header)
    layout = layout or header.layout_name
    if layout == header.layout_name and not loras:
        return _as_they_are(header)
    return _rewritten(header, layout, loras)


def _as_they_are(header: Header) -> dict[str, Entry]:
    names = [name for name in header.shapes if name not in PROMPT_KEYS]
    return {n: Entry(header.dtypes[n], header.shapes[n], lambda n=n: read_tensors(header, {n})[n]) for n in names}


def _rewritten(header: Header, layout: LayoutName, loras: list[tuple[Header, float]]) -> dict[str, Entry]:
    recipes = header.layout()
    shapes = {name: recipe.shape(header.shape) for name, recipe in recipes.items()}
    if loras and header.kind == "vae":
        raise OptionError("--merge-lora: is for transformers, and this is a VAE")
    merges = [read_merge(lora, shapes, strength) for lora, strength in loras]

    @lru_cache(maxsize=1)  # the parts of a fused projection come one after the other
    def ours(name: str) -> Tensor:
        return merged_weight(name, _read(header, recipes[name]), merges)

    if layout == "bfl":
        export = {name: Piece(name, 0, shape[0]) for name, shape in shapes.items()}
    else:
        export = (export_autoencoder if header.kind == "vae" else export_flux)(shapes)
    entries: dict[str, Entry] = {}
    for name, piece in export.items():
        dtype = _dtype_of(header, recipes[piece.source])
        if any(piece.source in merge.parts for merge in merges) and dtype.startswith("F8"):
            raise UnsupportedCheckpointError(header.path, "is fp8, too coarse to merge into; merge into the bf16 file")
        entries[name] = Entry(dtype, piece.shape(shapes[piece.source]), lambda p=piece: p.make(ours(p.source)))
    return entries


def _read(header: Header, recipe: Recipe) -> Tensor:
    names = {header.prefix + name for name in recipe.sources}
    tensors = {name.removeprefix(header.prefix): tensor for name, tensor in read_tensors(header, names).items()}
    return recipe.make(tensors.__getitem__)


def _dtype_of(header: Header, recipe: Recipe) -> str:
    found = {header.dtypes[header.prefix + name] for name in recipe.sources}
    if len(found) > 1:
        raise UnsupportedCheckpointError(
            header.path,
            f"{', '.join(recipe.sources)} have different dtypes ({', '.join(sorted(found))}); cast it first",
        )
    return found.pop()


def dtype_name(tensor: Tensor) -> str:
    """As safetensors spells it."""
    return next(name for name, dtype in DTYPES.items() if dtype == tensor.dtype)
