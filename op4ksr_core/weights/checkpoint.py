"""Weights files <-> models: load and save. What a file is, and what it does not say, ``description`` decides."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from ..errors import OptionError, OutputError, UnsupportedCheckpointError
from ..files import written_whole
from ..machine import default_dtype
from ..models.flux import Flux, FluxParams
from ..plain_text import plain_logger
from ..vae.autoencoder import AutoEncoder, AutoEncoderParams
from .constants import constants_metadata
from .description import Description, describe_autoencoder, describe_flux, settings_with_prompt
from .header import FLOATS, OUR_FORMAT, PROMPT_KEYS, Header, read_tensors
from .layouts import Layout, Shape
from .lora import merged_weight, read_merge, rounded_sum
from .shards import some_names
from .sr_lora import SrLora, check_has_prompt
from .vae_lora import encoder_changes

log = plain_logger(__name__)


# --- loading ----------------------------------------------------------------------------------


def load_autoencoder(
    path: str | Path | Header | Description,
    *,
    stride: int | None = None,
    shift: int | None = None,
    lora: SrLora | None = None,
    strength: float = 1.0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = nn,
) -> AutoEncoder:
    """Read an F16 (or F8) autoencoder, BFL or diffusers layout.

    path: a file, a folder or a shard index; or its header or description, which are then not read once more.
    stride 2 / 1 and shift 0 / 1 override what the file says (``Description.why`` tells how they are
    decided otherwise). lora: a one-step LoRA (``sr_lora.describe_sr_lora``), whose changes of the encoder are added,
    ``strength`` times, in float32 and rounded once. dtype: default float32 on the CPU, else
    ``machine.default_dtype``. Raises UnsupportedCheckpointError: no such file, not safetensors, not such a model, wrong
    tensors.
    """
    found = describe_autoencoder(path, stride=stride, shift=shift, lora=lora, strength=strength)
    assert isinstance(found.params, AutoEncoderParams)
    model = AutoEncoder(found.params, operations=operations, device="meta")
    if found.lora is None:
        _assign(model, found.header, device, dtype)
    else:
        changes = encoder_changes(found.lora, _shapes(model))
        log.info("%s: changes %d tensors of the VAE's encoder", found.lora.path.name, len(changes))
        _assign(model, found.header, device, dtype, partial(_changed, found.lora, found.strength, changes))
    _log_facts(found)
    return model.eval().requires_grad_(False)


def load_flux(
    path: str | Path | Header | Description,
    *,
    theta: float | str | tuple[float, float] | None = None,
    sigma: float | None = None,
    lora: SrLora | None = None,
    strength: float = 1.0,
    prompt: tuple[Tensor, Tensor] | None = None,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    operations: Any = nn,
) -> Flux:
    """Read a Flux transformer, BFL or diffusers layout, one file or shards (name any, or the index).

    path: the file, or its header or description, which are then not read once more.
    theta (a number, or rows and columns) and sigma override the file's metadata; without either,
    10000 and 0.5. lora: a one-step LoRA (``sr_lora.describe_sr_lora``), which is added ``strength`` times, in float32
    and rounded once, and brings its constants and prompt. prompt: an embedding (T, context_in_dim) and pooled
    (vec_in_dim,), in place of the file's. dtype: default float32 on the CPU, else ``machine.default_dtype``. Raises
    UnsupportedCheckpointError: no such file, not safetensors, not such a model, wrong tensors, a LoRA without a prompt
    embedding where none is given; OptionError for a prompt of other sizes.
    """
    found = describe_flux(path, theta=theta, sigma=sigma, lora=lora, strength=strength)
    assert isinstance(found.params, FluxParams) and found.settings is not None
    if found.quantized:
        raise UnsupportedCheckpointError(
            found.header.path,
            "is quantized with scales, which only ComfyUI's loaders take; take the bf16 or plain fp8 file here",
        )
    if found.lora is not None and prompt is None:
        check_has_prompt(found.lora)
    settings = settings_with_prompt(found)
    if prompt is not None:
        settings = replace(settings, txt=prompt[0].float(), vec=prompt[1].float())
        _check_prompt(found.params, *prompt)
    model = Flux(found.params, settings, operations=operations, device="meta")
    if found.lora is None:
        _assign(model, found.header, device, dtype)
    else:
        merges = [read_merge(found.lora.transformer, _shapes(model), found.strength)]
        _assign(
            model, found.header, device, dtype, lambda name, weight, dtype: merged_weight(name, weight, merges, dtype)
        )
    _log_facts(found)
    return model.eval().requires_grad_(False)


def _check_prompt(params: FluxParams, txt: Tensor, vec: Tensor) -> None:
    expected = f"(T, {params.context_in_dim}) and ({params.vec_in_dim},)"
    if txt.ndim != 2 or not len(txt) or txt.shape[1] != params.context_in_dim or vec.shape != (params.vec_in_dim,):
        raise OptionError(f"prompt: expected tensors {expected}, got {tuple(txt.shape)} and {tuple(vec.shape)}")


def _changed(
    lora: SrLora, strength: float, changes: dict[str, Tensor], name: str, weight: Tensor, dtype: torch.dtype
) -> Tensor:
    """A tensor of an autoencoder with what the LoRA adds to it."""
    if (change := changes.get(name)) is None:
        return weight.to(dtype)
    assert lora.encoder is not None
    return rounded_sum(lora.encoder.path, name, weight, weight.float() + strength * change, dtype)


def _log_facts(found: Description) -> None:
    """Tell, in the log, every fact that was decided, and why."""
    for line in found.facts():
        log.info("%s: %s", found.header.path.name, line)


# --- saving -----------------------------------------------------------------------------------


def save_autoencoder(
    path: str | Path, model: AutoEncoder, *, dtype: torch.dtype | None = None, training: str = ""
) -> None:
    """Write in BFL layout with our metadata; whole or not at all. Raises OutputError."""
    save_tensors(path, model.state_dict(), autoencoder_metadata(model, training), dtype)


def autoencoder_metadata(model: AutoEncoder, training: str) -> dict[str, str]:
    """What no shape tells of an autoencoder, for its file."""
    return {
        "op4ksr.kind": "vae",
        "op4ksr.vae_stride": str(model.params.stride),
        "op4ksr.vae_shift": str(model.params.shift),
        "op4ksr.norm_groups": str(model.params.norm_groups),
        "op4ksr.training": training,
    }


def save_flux(path: str | Path, model: Flux, *, dtype: torch.dtype | None = None, training: str = "") -> None:
    """Write in BFL layout with our metadata and the prompt embedding; whole or not at all. Raises OutputError."""
    tensors = {**model.state_dict(), **prompt_tensors(model)}
    save_tensors(path, tensors, transformer_metadata(model, training), dtype)


def save_prompt(path: str | Path, txt: Tensor, vec: Tensor) -> None:
    """Write an embedding, txt (T, context) and vec (pooled,), for ``prompt.read_prompt``. Raises OutputError."""
    save_tensors(path, dict(zip(PROMPT_KEYS, (txt, vec), strict=True)), {"op4ksr.kind": "prompt"})


def prompt_tensors(model: Flux) -> dict[str, Tensor]:
    """The model's prompt embedding under the names that it has in files; empty where it has none."""
    prompt = zip(PROMPT_KEYS, (model.settings.txt, model.settings.vec), strict=True)
    return {key: tensor for key, tensor in prompt if tensor is not None}


def transformer_metadata(model: Flux, training: str) -> dict[str, str]:
    """The constants of the one step, for a transformer's file or (with another kind) its LoRA's."""
    constants = constants_metadata(model.settings, model.params.theta)
    return {"op4ksr.kind": "transformer", **constants, "op4ksr.training": training}


def save_tensors(
    path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str], dtype: torch.dtype | None = None
) -> None:
    """Write tensors (in ``dtype``, if given) and metadata; whole or not at all. Raises OutputError."""
    path = Path(path)
    tensors = {name: tensor.detach().to("cpu", dtype).contiguous() for name, tensor in tensors.items()}
    try:
        with written_whole(path) as temporary:
            save_file(tensors, temporary, {**OUR_FORMAT, **metadata})
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder") from error


# --- shared -----------------------------------------------------------------------------------


def _shapes(model: nn.Module) -> dict[str, Shape]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


#: What becomes of a tensor (our name, as read, the dtype to compute in) on the way into a model: one of that dtype.
Change = Callable[[str, Tensor, torch.dtype], Tensor]


def _assign(
    model: nn.Module,
    header: Header,
    device: torch.device | str,
    dtype: torch.dtype | None,
    change: Change = lambda name, weight, dtype: weight.to(dtype),
) -> None:
    """Fill a model built on the meta device; refuses missing, unexpected and mismatched tensors by name."""
    check_tensors(model, header, header.layout())
    dtype = dtype or default_dtype(torch.device(device), wide_range=isinstance(model, AutoEncoder))
    state = {name: change(name, tensor, dtype).to(device) for name, tensor in read_state(header).items()}
    model.load_state_dict(state, strict=True, assign=True)


def read_state(header: Header) -> dict[str, Tensor]:
    """The file's weights under our (BFL) names, in the file's dtypes, on the CPU."""
    tensors = {name.removeprefix(header.prefix): t for name, t in read_tensors(header).items()}
    return {name: recipe.make(tensors.__getitem__) for name, recipe in header.layout().items()}


def check_tensors(model: nn.Module, header: Header, layout: Layout, quantized: bool = False) -> None:
    """Raise UnsupportedCheckpointError unless the file holds exactly this model's tensors.

    quantized: it holds others beside them, and packed weights have shapes of their own.
    """
    expected = _shapes(model)
    found = {name: recipe.shape(header.shape) for name, recipe in layout.items()}
    problems: list[str] = []
    if missing := sorted(expected.keys() - found.keys()):
        problems.append(f"{len(missing)} missing ({some_names(missing)})")
    if (unexpected := sorted(found.keys() - expected.keys())) and not quantized:
        problems.append(f"{len(unexpected)} unexpected ({some_names(unexpected)})")
    packed = {n for n, recipe in layout.items() if any(header.dtype_of(name) not in FLOATS for name in recipe.sources)}
    wrong = [n for n in sorted(expected.keys() & found.keys() - packed) if expected[n] != found[n]]
    if wrong:
        name = wrong[0]
        problems.append(f"{len(wrong)} of another shape ({name}: expected {expected[name]}, got {found[name]})")
    if problems:
        raise UnsupportedCheckpointError(
            header.path, f"its tensors do not fit the model: {'; '.join(problems)}; fetch it again, or take another"
        )
