"""A one-step LoRA on a native MODEL: the host patches the weights, we attach what else the file knows."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import comfy.lora

from ...op4ksr_core.errors import OptionError, UnsupportedCheckpointError
from ...op4ksr_core.models.flux import OneStepSettings
from ...op4ksr_core.models.rope import RescaledEmbedND
from ...op4ksr_core.plain_text import plain, plain_logger
from ...op4ksr_core.weights.constants import check_prompt
from ...op4ksr_core.weights.header import Header
from ...op4ksr_core.weights.lora import check_module_shape, check_places, host_tensors
from ...op4ksr_core.weights.lora_parts import LoraContents, LoraModule, lora_contents
from ...op4ksr_core.weights.shards import some_names
from ...op4ksr_core.weights.sr_lora import SrLora, is_for_ratio, is_theirs, sr_lora_settings, warn_of_prompt_length
from ...op4ksr_core.weights.vae_lora import encoder_changes
from .model import ATTACHMENT, ENCODER_ATTACHMENT, check_conditioning
from .patched_vae import encoder_shapes, patched_vae
from .positions import own_positions, patch_positions
from .prompt import prompt_of

log = plain_logger(__name__)


def load_lora(model: Any, found: SrLora, strength: float, conditioning: list[Any] | None = None) -> Any:
    """A clone of a Flux MODEL with the file's LoRA, theta and one-step settings.

    conditioning: the prompt embedding, in place of the file's. Kinds other than LoRA are the host's to apply; what
    changes text encoders, or no part of this model, is left out and named in the log. alpha / rank is as
    ``weights.lora_scale`` decides, so that the change is ``convert``'s. Raises UnsupportedCheckpointError: no prompt
    embedding, made for another model, of a kind that the host would half apply; OptionError: the MODEL is no Flux, the
    strength no number, the conditioning not one prompt's.
    """
    path, contents = found.path, lora_contents(found.transformer)
    if not math.isfinite(strength):
        raise OptionError(f"strength: expected a number, got {strength}")
    try:
        axes_dim, _ = own_positions(model)
        config = model.model.model_config.unet_config
        dims = config["context_in_dim"], config["vec_in_dim"]
    except (AttributeError, KeyError) as error:
        name = type(model.model).__name__
        raise OptionError(f"MODEL: is a {name}; Load SR LoRA needs the Flux model the LoRA was trained on") from error
    settings = _settings(found, model, dims, conditioning)
    if is_theirs(found) and not config.get("guidance_embed", True):
        text = (
            "%s: was trained on FLUX.1-dev, and this MODEL has no guidance (FLUX.1-schnell has none); load FLUX.1-dev"
        )
        log.warning(text, path.name)
    if line := contents.left_out_line():
        log.warning("%s: %s", path.name, line)
    clone = model.clone()
    _patch_weights(clone, contents, strength)
    if found.theta is not None:  # from now on the model's own
        replaced = patch_positions(clone, RescaledEmbedND(axes_dim, found.theta))
        if replaced:
            log.warning("%s: its theta is the model's from now on. %s", path.name, replaced)
    clone.set_attachments(ATTACHMENT, settings)
    if found.encoder is not None and strength:
        clone.set_attachments(ENCODER_ATTACHMENT, path.name)
    log.info("%s: alpha / rank (%s)", path.name, contents.source)
    for fact, reason in found.why.items():
        known = {"theta": found.theta or "of the model", "origin": found.origin}
        log.info("%s: %s %s (%s)", path.name, fact, known.get(fact) or getattr(settings, fact), reason)
    return clone


def _settings(found: SrLora, model: Any, dims: tuple[int, int], conditioning: list[Any] | None) -> OneStepSettings:
    """The file's constants with the prompt embedding that is connected, else the file's own."""
    if conditioning is not None:
        check_conditioning(model, conditioning)
        txt, vec, guidance = prompt_of(conditioning)
        warn_of_prompt_length(found, len(txt))
        if vec is None:
            log.warning(
                "conditioning: has no pooled_output, so that zeros take its place; load both of Flux's text encoders"
            )
        if guidance is not None and guidance != found.settings.guidance:
            log.info(
                "%s: guidance %s, which it was trained with; the CONDITIONING's %s is left out (the widget guidance of "
                "One-Step Upscale changes it)", found.path.name, found.settings.guidance, guidance
            )  # fmt: skip
        return replace(found.settings, txt=txt, vec=vec)
    if not found.has_prompt:
        whose = (
            "; or make one file of the folder, .pth files included, in this pack's folder: python -m op4ksr_core "
            "convert --sr-lora FOLDER -o FILE.safetensors"
        )
        raise UnsupportedCheckpointError(
            found.path,
            "carries no prompt embedding: connect one to conditioning, from ComfyUI's CLIP Text Encode with the text "
            "it was trained with (none, as a rule), or from Load Prompt Embedding"
            + (whose if found.origin == "FluxSR" else ""),
        )
    check_prompt(found.transformer, *dims)
    return sr_lora_settings(found)


def load_encoder_lora(vae: Any | None, found: SrLora, strength: float) -> Any | None:
    """The VAE with the file's change of its encoder; the VAE itself where the file has none, or at strength 0.

    Raises OptionError where the file changes an encoder and no VAE is connected, or one that cannot be patched;
    UnsupportedCheckpointError where it was made for another VAE.
    """
    _warn_of_other_ratio(vae, found)
    if found.encoder is None or strength == 0:
        return vae
    if vae is None:
        raise OptionError(
            f"vae: {plain(found.path.name)} also changes the VAE's encoder, and no VAE is connected; connect Flux's "
            "own (Load VAE), and use this node's VAE output from here on"
        )
    changes = encoder_changes(found, encoder_shapes(vae))
    log.info("%s: changes %d weights of the VAE's encoder", found.path.name, len(changes))
    return patched_vae(vae, changes, strength)


def _warn_of_other_ratio(vae: Any | None, found: SrLora) -> None:
    ratio = getattr(vae, "spacial_compression_encode", lambda: None)()
    if ratio is not None and not is_for_ratio(found, ratio):
        log.warning(
            "%s: was trained with Flux's own 8x VAE, and this one is %sx; connect Flux's (ae.safetensors), in Load F16 "
            "VAE with compression 8x", found.path.name, ratio
        )  # fmt: skip


def _patch_weights(clone: Any, contents: LoraContents, strength: float) -> None:
    """As the host's load_lora_for_models does it, with an error where that only warns or leaves a weight as it was."""
    header = contents.header
    if parts := contents.unknown_parts:
        raise UnsupportedCheckpointError(
            header.path, f"holds parts of a kind that is not known here ({some_names(parts)}); choose another LoRA"
        )
    keys: dict[str, Any] = comfy.lora.model_lora_keys_unet(clone.model, {})
    check_places(contents, keys)
    shapes = {name: tuple(weight.shape) for name, weight in clone.model.state_dict().items() if _is_matrix(weight)}
    for base, module in contents.modules.items():
        if base in keys:
            _check_module(header, module, _target_shape(keys[base], shapes))
    left = [name for base, module in contents.modules.items() if base not in keys for name in module.names.values()]
    tensors = host_tensors(contents)
    patches = comfy.lora.load_lora(tensors, keys, log_missing=False)
    if not clone.add_patches(patches, strength):
        raise UnsupportedCheckpointError(
            header.path, f"none of its {len(tensors)} tensors fits this model; load the model the LoRA was trained on"
        )
    if left := [*left, *contents.unknown]:
        log.warning("%s: %d tensors fit nothing in this model and are left out (%s)", header.path.name, len(left),
                    some_names(left))  # fmt: skip


def _is_matrix(weight: Any) -> bool:
    """Whether its shape is the layer's: packed weights of quantized models have another."""
    return weight.ndim == 2 and weight.is_floating_point()


def _target_shape(key: Any, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...] | None:
    """(rows, columns) that a key of the host's stands for: a name, or a name and (axis, start, length)."""
    name, offset = (key, None) if isinstance(key, str) else (key[0], key[1])
    if (shape := shapes.get(name)) is None or offset is None:
        return shape
    axis, _, length = offset
    return tuple(length if i == axis else size for i, size in enumerate(shape))


def _check_module(header: Header, module: LoraModule, target: tuple[int, ...] | None) -> None:
    """Refuse what the host would leave out with a line in its log, or half apply."""
    if not module.in_host:
        raise UnsupportedCheckpointError(
            header.path,
            f"is {module.kind} ({plain(module.base)}), which ComfyUI does not apply to Flux; choose another LoRA",
        )
    if target is None:
        return
    check_module_shape(header, module, target)
    if (difference := module.shapes.get("diff", target)) != target:
        raise UnsupportedCheckpointError(
            header.path, f"{plain(module.names['diff'])} {difference} does not fit {target}; take another file"
        )
    scale = module.shapes.get("dora_scale")
    if scale is not None and scale not in ((target[0], 1), (1, target[1])):
        raise UnsupportedCheckpointError(
            header.path, f"{plain(module.names['dora_scale'])} {scale} does not fit {target}; take another file"
        )
