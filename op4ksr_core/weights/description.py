"""What a weights file is, before a tensor of it is read: geometry, constants, and why each is believed.

Order of belief for each fact: the caller's keyword, our metadata, a diffusers ``config.json`` beside
the file, the tensors' shapes, a named default. ``Description.why`` keeps the reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import OptionError, UnsupportedCheckpointError
from ..models.flux import DEFAULT_GUIDANCE, DEFAULT_SIGMA, FluxParams, OneStepSettings, check_sigma, split_head
from ..models.latent import PATCH
from ..models.rope import FLUX_THETA, parse_theta
from ..vae.autoencoder import AutoEncoderParams
from .header import PROMPT_KEYS, Header, read_header, read_tensors
from .layouts import Shape

Params = TypeVar("Params", AutoEncoderParams, FluxParams)

#: Widths of the public F16 checkpoints, which were all trained with the 1 px shift.
_PUBLIC_WIDTHS = (128, 256, 512, 512)
_LATENT_CHANNELS = 16


@dataclass(frozen=True)
class Description:
    """What a file is, before a tensor of it is read."""

    header: Header
    params: AutoEncoderParams | FluxParams
    settings: OneStepSettings | None = None
    #: Fact -> where it is from, for the log and for ``inspect``.
    why: dict[str, str] = field(default_factory=dict[str, str])
    #: Facts that nothing in the file or beside it states.
    assumed: tuple[str, ...] = ()
    #: Holds scales beside its weights (scaled fp8 and the like), which only the host can run.
    quantized: bool = False

    def facts(self) -> Iterator[str]:
        """A line for the log for each fact of ``why``: its name, its value, and where that is from."""
        for fact, reason in self.why.items():
            home = self.params if hasattr(self.params, fact) else self.settings
            yield f"{fact} {getattr(home, fact)} ({reason})"


# --- autoencoder ------------------------------------------------------------------------------


def describe_autoencoder(
    source: Header | str | Path, *, stride: int | None = None, shift: int | None = None
) -> Description:
    """Geometry of an autoencoder file. Raises UnsupportedCheckpointError if it is none of ours."""
    header = source if isinstance(source, Header) else read_header(source)
    if header.kind != "vae":
        raise UnsupportedCheckpointError(header.path, f"expected a Flux-type VAE, got {_what(header)}")
    shapes = {ours: recipe.shape(header.shape) for ours, recipe in header.layout().items()}
    channels = _dimension(header, shapes, "decoder.conv_in.weight", 1)
    if channels != _LATENT_CHANNELS or "quant_conv.weight" in shapes:
        raise UnsupportedCheckpointError(
            header.path,
            f"expected a Flux-type VAE with 16 latent channels, got one with {channels}"
            f"{' and a quant_conv' if 'quant_conv.weight' in shapes else ''} (Stable Diffusion 1, 2, XL or 3?); "
            "choose a Flux or UltraFlux VAE",
        )
    depth = max(1, _count(shapes, r"encoder\.down\.(\d+)\.block\."))
    widths = tuple(_dimension(header, shapes, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(depth))
    why: dict[str, str] = {}
    assumed: list[str] = []
    stride = _stride(header, stride, why, assumed)
    params = _checked(
        header,
        AutoEncoderParams,
        widths=widths,
        layers_per_block=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=channels,
        norm_groups=_norm_groups(header, widths, why),
        mid_attention="decoder.mid.attn_1.q.weight" in shapes,
        stride=stride,
        shift=_shift(header, widths, stride, shift, why),
    )
    return Description(header, params, None, why, tuple(assumed))


def _stride(header: Header, wish: int | None, why: dict[str, str], assumed: list[str]) -> int:
    if wish is not None:
        why["stride"] = "as asked for"
        return wish
    if (stated := header.metadata.get("op4ksr.vae_stride")) is not None:
        why["stride"] = "the file's metadata"
        return _number(header, "op4ksr.vae_stride", stated, int)
    if (config := header.config()) is not None:
        why["stride"] = f"config.json beside the file {'says so' if 'stride' in config else 'names no stride: F8'}"
        return _number(header, "stride in config.json", str(config.get("stride", 1)), int)
    why["stride"] = "assumed: nothing in the file says so, and no tensor's shape can; inspect --probe PHOTO tells"
    assumed.append("stride")
    return 2


def _shift(header: Header, widths: Shape, stride: int, wish: int | None, why: dict[str, str]) -> int:
    if wish is not None:
        why["shift"] = "as asked for"
        return wish
    if (stated := header.metadata.get("op4ksr.vae_shift")) is not None:
        why["shift"] = "the file's metadata"
        return _number(header, "op4ksr.vae_shift", stated, int)
    if stride == 2 and widths == _PUBLIC_WIDTHS and "op4ksr.format" not in header.metadata:
        why["shift"] = "assumed: the public full-width F16 VAEs were trained with it"
        return 1
    why["shift"] = "an 8x VAE has none" if stride == 1 else "default: no shift"
    return 0


def _norm_groups(header: Header, widths: Shape, why: dict[str, str]) -> int:
    if (stated := header.metadata.get("op4ksr.norm_groups")) is not None:
        why["norm_groups"] = "the file's metadata"
        return _number(header, "op4ksr.norm_groups", stated, int)
    if (config := header.config()) is not None and "norm_num_groups" in config:
        why["norm_groups"] = "config.json beside the file"
        return _number(header, "norm_num_groups in config.json", str(config["norm_num_groups"]), int)
    if all(width % 32 == 0 for width in widths):
        why["norm_groups"] = "default: Flux's 32"
        return 32
    raise UnsupportedCheckpointError(
        header.path,
        f"widths {widths} do not fit Flux's 32 norm groups and the file does not say how many it has; "
        "write metadata op4ksr.norm_groups",
    )


# --- transformer ------------------------------------------------------------------------------


def describe_flux(
    source: Header | str | Path, *, theta: float | str | tuple[float, float] | None = None, sigma: float | None = None
) -> Description:
    """Geometry and constants of a transformer file. Raises UnsupportedCheckpointError if it is none."""
    header = source if isinstance(source, Header) else read_header(source)
    if header.kind != "transformer":
        raise UnsupportedCheckpointError(header.path, f"expected a Flux transformer, got {_what(header)}")
    shapes = {ours: recipe.shape(header.shape) for ours, recipe in header.layout().items()}
    quantized = any(re.search(r"scaled_fp8|scale_weight|weight_scale|comfy_quant", name) for name in shapes)
    hidden = _dimension(header, shapes, "img_in.weight", 0)
    head = _dimension(header, shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 0)
    why: dict[str, str] = {}
    params = _checked(
        header,
        FluxParams,
        hidden_size=hidden,
        num_heads=hidden // max(1, head),
        depth=_count(shapes, r"double_blocks\.(\d+)\."),
        depth_single_blocks=_count(shapes, r"single_blocks\.(\d+)\."),
        in_channels=_dimension(header, shapes, "img_in.weight", 1) // PATCH**2,
        context_in_dim=_dimension(header, shapes, "txt_in.weight", 1),
        vec_in_dim=_dimension(header, shapes, "vector_in.in_layer.weight", 1),
        mlp_ratio=_dimension(header, shapes, "double_blocks.0.img_mlp.0.weight", 0) / max(1, hidden),
        guidance_embed="guidance_in.in_layer.weight" in shapes,
        axes_dim=axes_of_head(header.path, head),
        theta=_theta(header, theta, why),
    )
    check_prompt(header, params.context_in_dim, params.vec_in_dim)
    return Description(header, params, _settings(header, sigma, why), why, quantized=quantized)


def constants(header: Header) -> tuple[tuple[float, float], OneStepSettings, dict[str, str]]:
    """theta, sigma and the other constants that a transformer or LoRA file names (or our defaults), and why."""
    why: dict[str, str] = {}
    return _theta(header, None, why), _settings(header, None, why), why


def settings_with_prompt(found: Description) -> OneStepSettings:
    """The described constants, with the prompt embedding read from the file if it carries one."""
    assert found.settings is not None
    return with_prompt(found.header, found.settings)


def with_prompt(header: Header, settings: OneStepSettings) -> OneStepSettings:
    """The settings with the prompt embedding that the file carries, float32; None where it carries none."""
    tensors = read_tensors(header, set(PROMPT_KEYS))
    txt, vec = (tensors.get(key) for key in PROMPT_KEYS)
    return replace(settings, txt=None if txt is None else txt.float(), vec=None if vec is None else vec.float())


def check_prompt(header: Header, context_in_dim: int, vec_in_dim: int) -> None:
    """Refuse a prompt embedding that is not (T, context_in_dim), or a pooled one not (vec_in_dim,)."""
    txt, vec = (header.shapes.get(key) for key in PROMPT_KEYS)
    if txt is not None and (len(txt) != 2 or txt[0] < 1 or txt[1] != context_in_dim):
        expected, got = f"op4ksr.txt of (T, {context_in_dim})", txt
    elif vec is not None and vec != (vec_in_dim,):
        expected, got = f"op4ksr.vec of ({vec_in_dim},)", vec
    else:
        return
    raise UnsupportedCheckpointError(
        header.path, f"carries another model's prompt embedding: expected {expected}, got {got}; fetch it again"
    )


def axes_of_head(path: Path, head: int) -> tuple[int, int, int]:
    """``split_head`` of a file's heads. Raises UnsupportedCheckpointError where that leaves odd or broken axes."""
    axes = split_head(head)
    if head % 16 or any(dim % 2 for dim in axes):
        raise UnsupportedCheckpointError(
            path, f"head dimension {head} does not divide into Flux's axes (16/56/56 of 128); take another"
        )
    return axes


def _theta(header: Header, wish: float | str | tuple[float, float] | None, why: dict[str, str]) -> tuple[float, float]:
    if wish is not None:
        why["theta"] = "as asked for"
        return parse_theta(wish)
    if (stated := header.metadata.get("op4ksr.rope_theta")) is not None:
        why["theta"] = "the file's metadata"
        try:
            return parse_theta(stated)
        except OptionError as error:
            raise UnsupportedCheckpointError(
                header.path, f"its metadata op4ksr.rope_theta is wrong: {error}; pass a theta, or fetch it again"
            ) from error
    why["theta"] = "default: Flux's, as the file names none"
    return FLUX_THETA, FLUX_THETA


def _settings(header: Header, sigma: float | None, why: dict[str, str]) -> OneStepSettings:
    value = DEFAULT_SIGMA
    if sigma is not None:
        why["sigma"] = "as asked for"
        value = check_sigma(sigma)
    elif (stated := header.metadata.get("op4ksr.sigma")) is not None:
        why["sigma"] = "the file's metadata"
        value = _number(header, "op4ksr.sigma", stated, float)
    else:
        why["sigma"] = "default, as the file names none"
    guidance, tokens = header.metadata.get("op4ksr.guidance"), header.metadata.get("op4ksr.train_tokens")
    why["guidance"] = "the file's metadata" if guidance is not None else "default: FLUX.1-dev's, as the file names none"
    try:
        return OneStepSettings(
            sigma=value,
            guidance=DEFAULT_GUIDANCE if guidance is None else _number(header, "op4ksr.guidance", guidance, float),
            train_tokens=None if tokens is None else _number(header, "op4ksr.train_tokens", tokens, int),
        )
    except OptionError as error:
        raise UnsupportedCheckpointError(header.path, f"its metadata is wrong: {error}; fetch it again") from error


# --- shared -----------------------------------------------------------------------------------


def _count(shapes: dict[str, Shape], pattern: str) -> int:
    return 1 + max((int(match[1]) for name in shapes if (match := re.match(pattern, name))), default=-1)


def _dimension(header: Header, shapes: dict[str, Shape], name: str, axis: int) -> int:
    try:
        return shapes[name][axis]
    except (KeyError, IndexError) as error:
        what = "VAE" if header.kind == "vae" else "transformer"
        raise UnsupportedCheckpointError(
            header.path, f"is no complete Flux {what}: {name} is missing; fetch it again, or take another"
        ) from error


def _number(header: Header, key: str, text: str, kind: type[Any]) -> Any:
    try:
        return kind(text)
    except ValueError as error:
        raise UnsupportedCheckpointError(
            header.path, f"its metadata is wrong: {key} is no number: {text!r}; correct it, or fetch it again"
        ) from error


def _checked(header: Header, params: type[Params], **values: Any) -> Params:
    try:
        return params(**values)
    except ValueError as error:
        raise UnsupportedCheckpointError(header.path, f"has a geometry we cannot run: {error}; take another") from error


def _what(header: Header) -> str:
    """What a file is, for the sentence that refuses it."""
    names = header.names
    if header.kind == "vae":
        return "a VAE; choose it as the VAE"
    if header.kind == "transformer":
        return "a Flux transformer; choose it as the model"
    if header.kind == "lora":
        return "a LoRA; load the full model first, then the LoRA with a LoRA loader"
    if any(name.startswith("decoder.") for name in names) or any(name.startswith("encoder.") for name in names):
        return "another kind of VAE; choose a Flux or UltraFlux VAE"
    if any("diffusion_model" in name or "input_blocks" in name for name in header.shapes):
        return "another diffusion model or a full checkpoint; choose a Flux file with this part alone"
    return f"something else ({some_names(sorted(names))}); choose a Flux or UltraFlux file"


def some_names(names: Sequence[str], count: int = 3) -> str:
    """The first few names in a row, with dots for the others, for an error."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
