"""What a weights file is, before a tensor of it is read: geometry, constants, and why each is believed.

Order of belief for each fact: the caller's keyword, our metadata, a diffusers ``config.json`` beside
the file, the tensors' shapes, a named default. ``Description.why`` keeps the reason.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import UnsupportedCheckpointError
from ..models.flux import FluxParams, OneStepSettings, split_head
from ..models.latent import PATCH
from ..vae.autoencoder import AutoEncoderParams
from .blocks import count_blocks
from .constants import REQUESTED, check_prompt, number, settings_of, theta_of, with_prompt
from .diffusers_config import DiffusersConfig, autoencoder_config, shown
from .header import FLOATS, PACKED, PROMPT_ALONE, PROMPT_KEYS, Header, check_dtypes, read_header
from .layouts import Shape
from .lora import additions, check_strength
from .lora_parts import lora_contents
from .shards import some_names
from .sr_lora import SrLora
from .vae_lora import encoder_contents, encoder_places

Params = TypeVar("Params", AutoEncoderParams, FluxParams)

#: Widths of the public F16 checkpoints, which were all trained with the 1 px shift.
_PUBLIC_WIDTHS = (128, 256, 512, 512)
_LATENT_CHANNELS = 16

#: Tensors in one block of each kind.
RESNET_TENSORS, DOUBLE_BLOCK_TENSORS, SINGLE_BLOCK_TENSORS = 8, 24, 8

#: Names of what quantization adds beside a weight: scaled fp8, ComfyUI's own formats.
_SCALES = re.compile(r"scaled_fp8|scale_weight|weight_scale|comfy_quant")


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
    #: A one-step LoRA that is added to the weights when they are read, and how strongly.
    lora: SrLora | None = None
    strength: float = 1.0

    def facts(self) -> Iterator[str]:
        """A line for the log for each fact of ``why``: its name, its value, and where that is from."""
        for fact, reason in self.why.items():
            home = self.params if hasattr(self.params, fact) else self.settings
            yield f"{fact} {getattr(home, fact)} ({reason})"


# --- autoencoder ------------------------------------------------------------------------------


def describe_autoencoder(
    source: Description | Header | str | Path,
    *,
    stride: int | None = None,
    shift: int | None = None,
    lora: SrLora | None = None,
    strength: float = 1.0,
) -> Description:
    """Geometry of an autoencoder file; only its header is read, and nothing is where ``source`` holds one already.

    source: a path, a header, or an earlier description, which is returned as it is unless stride (1 or 2),
    shift (0 or 1) or a LoRA are given; the two override what the file says. lora: whose changes of the encoder belong
    to it. Raises UnsupportedCheckpointError: no Flux-type VAE, damaged names, shapes or dtypes, wrong metadata, a LoRA
    for another encoder; OptionError for a strength that is no number.
    """
    same = stride is shift is lora is None
    if isinstance(source, Description) and isinstance(source.params, AutoEncoderParams) and same:
        return source
    header = _header_of(source)
    if header.kind != "vae":
        raise UnsupportedCheckpointError(header.path, f"expected a Flux-type VAE, got {_what(header)}")
    shapes = _shapes_of(header)
    check_dtypes(header, header.shapes)
    channels = _dimension(header, shapes, "decoder.conv_in.weight", 1)
    if channels != _LATENT_CHANNELS or "quant_conv.weight" in shapes:
        raise UnsupportedCheckpointError(
            header.path,
            f"expected a Flux-type VAE with 16 latent channels, got one with {channels}"
            f"{' and a quant_conv' if 'quant_conv.weight' in shapes else ''} (Stable Diffusion 1, 2, XL or 3?); "
            "choose a Flux or UltraFlux VAE",
        )
    depth, layers = max(1, count_blocks(shapes, "encoder.down")), count_blocks(shapes, "encoder.down.0.block")
    widths = tuple(_dimension(header, shapes, f"encoder.down.{i}.block.0.conv1.weight", 0) for i in range(depth))
    why: dict[str, str] = {}
    assumed: list[str] = []
    check_filled(header, depth * (2 * layers + 1) * RESNET_TENSORS, max(widths) ** 2)
    sizes = {"block_out_channels": list(widths), "layers_per_block": layers, "latent_channels": channels}
    config = autoencoder_config(header, sizes)
    stride = _stride(header, stride, config, why, assumed)
    params = _checked(
        header,
        AutoEncoderParams,
        widths=widths,
        layers_per_block=layers,
        latent_channels=channels,
        norm_groups=_norm_groups(header, widths, config, why),
        mid_attention="decoder.mid.attn_1.q.weight" in shapes,
        stride=stride,
        shift=_shift(header, widths, stride, shift, why),
    )
    found = Description(header, params, None, why, tuple(assumed))
    if lora is None or lora.encoder is None:
        return found
    check_strength(strength)
    encoder_places(encoder_contents(lora.encoder), shapes)
    return replace(found, lora=lora, strength=strength)


def _stride(
    header: Header, requested: int | None, config: DiffusersConfig, why: dict[str, str], assumed: list[str]
) -> int:
    if requested is not None:
        why["stride"] = "as requested"
        return requested
    if (stated := header.metadata.get("op4ksr.vae_stride")) is not None:
        why["stride"] = "the file's metadata"
        return number(header, "op4ksr.vae_stride", stated, int)
    if config.values:
        says = "says so" if "stride" in config.values else "names no stride: F8"
        why["stride"] = f"config.json beside the file {says}"
        return number(header, "stride in config.json", shown(config.values.get("stride", 1)), int)
    why["stride"] = "assumed: nothing in the file says so, and no tensor's shape can; inspect --probe PHOTO tells"
    why["stride"] += config.note
    assumed.append("stride")
    return 2


def _shift(header: Header, widths: Shape, stride: int, requested: int | None, why: dict[str, str]) -> int:
    if requested is not None:
        why["shift"] = "as requested"
        return requested
    if (stated := header.metadata.get("op4ksr.vae_shift")) is not None:
        why["shift"] = "the file's metadata"
        return number(header, "op4ksr.vae_shift", stated, int)
    if stride == 2 and widths == _PUBLIC_WIDTHS and "op4ksr.format" not in header.metadata:
        why["shift"] = "assumed: the public full-width F16 VAEs were trained with it"
        return 1
    why["shift"] = "an 8x VAE has none" if stride == 1 else "default: no shift"
    return 0


def _norm_groups(header: Header, widths: Shape, config: DiffusersConfig, why: dict[str, str]) -> int:
    if (stated := header.metadata.get("op4ksr.norm_groups")) is not None:
        why["norm_groups"] = "the file's metadata"
        return number(header, "op4ksr.norm_groups", stated, int)
    if "norm_num_groups" in config.values:
        why["norm_groups"] = "config.json beside the file"
        return number(header, "norm_num_groups in config.json", shown(config.values["norm_num_groups"]), int)
    if all(width % 32 == 0 for width in widths):
        why["norm_groups"] = "default: Flux's 32"
        return 32
    raise UnsupportedCheckpointError(
        header.path,
        f"widths {widths} do not fit Flux's 32 norm groups and the file does not say how many it has{config.note}; "
        "write metadata op4ksr.norm_groups",
    )


# --- transformer ------------------------------------------------------------------------------


def describe_flux(
    source: Description | Header | str | Path,
    *,
    theta: float | str | tuple[float, float] | None = None,
    sigma: float | None = None,
    lora: SrLora | None = None,
    strength: float = 1.0,
) -> Description:
    """Geometry and constants of a transformer file; only its header is read, and nothing is where ``source`` holds one.

    source: a path, a header, or an earlier description, which is returned as it is unless theta (one number or
    rows and columns, at least 1), sigma (above 0, at most 1) or a LoRA are given. theta and sigma override what the
    file and the LoRA say; the LoRA's constants take the place of the file's. Raises UnsupportedCheckpointError: no
    Flux transformer, damaged names, shapes or dtypes, wrong metadata, a LoRA for another transformer; OptionError for
    a theta, sigma or strength out of range.
    """
    same = theta is sigma is lora is None
    if isinstance(source, Description) and isinstance(source.params, FluxParams) and same:
        return source
    header = _header_of(source)
    if header.kind != "transformer":
        raise UnsupportedCheckpointError(header.path, f"expected a Flux transformer, got {_what(header)}")
    shapes = _shapes_of(header)
    quantized = any(_SCALES.search(name) for name in shapes)
    prompt = [key for key in PROMPT_KEYS if key in header.shapes]
    check_dtypes(header, prompt if quantized else header.shapes)
    if quantized:  # how scales and packed weights are stored is the host's business
        check_dtypes(header, (), header.shapes.keys() - set(prompt), (*FLOATS, *PACKED))
    hidden = _dimension(header, shapes, "img_in.weight", 0)
    head = _dimension(header, shapes, "double_blocks.0.img_attn.norm.query_norm.scale", 0)
    depth, singles = count_blocks(shapes, "double_blocks"), count_blocks(shapes, "single_blocks")
    context = _dimension(header, shapes, "txt_in.weight", 1)
    pooled = _dimension(header, shapes, "vector_in.in_layer.weight", 1)
    mlp = _dimension(header, shapes, "double_blocks.0.img_mlp.0.weight", 0)
    tensors = depth * DOUBLE_BLOCK_TENSORS + singles * SINGLE_BLOCK_TENSORS
    check_filled(header, tensors, hidden * max(hidden, mlp, context, pooled))
    why: dict[str, str] = {}
    params = _checked(
        header,
        FluxParams,
        hidden_size=hidden,
        num_heads=hidden // head,
        depth=depth,
        depth_single_blocks=singles,
        in_channels=_dimension(header, shapes, "img_in.weight", 1) // PATCH**2,
        context_in_dim=context,
        vec_in_dim=pooled,
        mlp_ratio=mlp / hidden,
        guidance_embed="guidance_in.in_layer.weight" in shapes,
        axes_dim=axes_of_head(header.path, head),
        theta=theta_of(header, theta, why),
    )
    check_prompt(header, params.context_in_dim, params.vec_in_dim)
    found = Description(header, params, settings_of(header, sigma, why), why, quantized=quantized)
    return found if lora is None else _with_lora(found, lora, strength, shapes)


def _with_lora(found: Description, lora: SrLora, strength: float, shapes: dict[str, Shape]) -> Description:
    """The transformer as it is with the LoRA: what was not asked for is the LoRA's, and no longer the file's."""
    params, settings, why = found.params, found.settings, dict(found.why)
    assert isinstance(params, FluxParams) and settings is not None
    check_strength(strength)
    check_prompt(lora.transformer, params.context_in_dim, params.vec_in_dim)
    if not found.quantized:
        additions(lora_contents(lora.transformer), shapes)
    asked = {fact for fact, reason in why.items() if reason == REQUESTED}
    if lora.theta is not None and "theta" not in asked:
        params, why["theta"] = replace(params, theta=lora.theta), "the LoRA"
    asked_sigma = {"sigma": settings.sigma, "sigma_repair": None} if "sigma" in asked else {}
    settings = replace(lora.settings, **asked_sigma)
    constants = {fact: f"the LoRA: {reason}" for fact, reason in lora.why.items() if hasattr(settings, fact)}
    why |= {fact: reason for fact, reason in constants.items() if fact not in asked}
    return replace(found, params=params, settings=settings, why=why, lora=lora, strength=strength)


def settings_with_prompt(found: Description) -> OneStepSettings:
    """The described constants, with the prompt embedding that the file, or else its LoRA, carries."""
    assert found.settings is not None
    return with_prompt(found.header if found.lora is None else found.lora.transformer, found.settings)


def axes_of_head(path: Path, head: int) -> tuple[int, int, int]:
    """``split_head`` of a file's heads. Raises UnsupportedCheckpointError where that leaves odd or broken axes."""
    axes = split_head(head)
    if head % 16 or any(dim % 2 for dim in axes):
        raise UnsupportedCheckpointError(
            path, f"head dimension {head} does not divide into Flux's axes (16/56/56 of 128); take another"
        )
    return axes


# --- shared -----------------------------------------------------------------------------------


def _header_of(source: Description | Header | str | Path) -> Header:
    if isinstance(source, Description):
        return source.header
    return source if isinstance(source, Header) else read_header(source)


def _shapes_of(header: Header) -> dict[str, Shape]:
    """Shapes of our tensors, by our names."""
    return {ours: recipe.shape(header.shape) for ours, recipe in header.layout().items()}


def _dimension(header: Header, shapes: dict[str, Shape], name: str, axis: int) -> int:
    """A size that the model is built with, read off one tensor."""
    try:
        size = shapes[name][axis]
    except (KeyError, IndexError) as error:
        what = "VAE" if header.kind == "vae" else "transformer"
        raise UnsupportedCheckpointError(
            header.path, f"is no complete Flux {what}: {name} is missing; fetch it again, or take another"
        ) from error
    if size < 1:
        raise UnsupportedCheckpointError(
            header.path, f"{name} has the shape {shapes[name]}, which holds nothing; fetch it again, or take another"
        )
    return size


def check_filled(header: Header, tensors: int, numbers: int) -> None:
    """Refuse names and shapes that promise a far larger model than the file holds, before it is built.

    tensors: how many the blocks take that its names count; numbers: in the largest of its matrices. Our choice:
    beyond twice the file's tensors, or 8 times its numbers (packed dtypes hold up to 8 in one), nothing is missing,
    it is damaged; below, ``check_tensors`` names what is.
    """
    held = sum(math.prod(shape) for shape in header.shapes.values())
    if tensors > 2 * len(header.shapes):
        fault = f"the blocks that its names count take {tensors} tensors, but it holds {len(header.shapes)}"
    elif numbers > 8 * held:
        fault = f"a matrix of the sizes that its shapes state takes {numbers} numbers, but it holds {held} in all"
    else:
        return
    raise UnsupportedCheckpointError(header.path, f"{fault}; it is damaged: fetch it again")


def _checked(header: Header, params: type[Params], **values: Any) -> Params:
    try:
        return params(**values)
    except ValueError as error:
        raise UnsupportedCheckpointError(header.path, f"has a geometry we cannot run: {error}; take another") from error


def _what(header: Header) -> str:
    """What a file is, for the sentence that refuses it."""
    names = header.names
    if header.is_prompt:
        return PROMPT_ALONE
    if header.kind == "vae":
        return "a VAE; choose it as the VAE"
    if header.kind == "transformer":
        return "a Flux transformer; choose it as the model"
    if header.kind == "lora":
        return "a LoRA; load the full model first, then the LoRA with a LoRA loader"
    if header.kind == "enlarger":
        return "an enlarger; choose a Flux or UltraFlux file"
    if any(name.startswith("decoder.") for name in names) or any(name.startswith("encoder.") for name in names):
        return "another kind of VAE; choose a Flux or UltraFlux VAE"
    if any("diffusion_model" in name or "input_blocks" in name for name in header.shapes):
        return "another diffusion model or a full checkpoint; choose a Flux file with this part alone"
    return f"something else ({some_names(sorted(names))}); choose a Flux or UltraFlux file"
