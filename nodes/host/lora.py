"""A one-step LoRA on a native MODEL: the host patches the weights, we attach what else the file knows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.lora
import comfy.lora_convert

from ...op4ksr_core.errors import OptionError, UnsupportedCheckpointError
from ...op4ksr_core.models.rope import RescaledEmbedND
from ...op4ksr_core.plain_text import plain_logger
from ...op4ksr_core.weights.constants import check_prompt
from ...op4ksr_core.weights.lora import describe_lora, lora_settings, lora_tensors
from .model import ATTACHMENT
from .positions import own_positions, patch_positions

log = plain_logger(__name__)


def load_lora(model: Any, path: Path, strength: float) -> Any:
    """A clone of a Flux MODEL with the file's LoRA, theta and one-step settings.

    Raises UnsupportedCheckpointError: no LoRA, no prompt embedding, made for another model; OptionError:
    the MODEL is no Flux.
    """
    found = describe_lora(path)
    settings = lora_settings(found)
    try:
        axes_dim, _ = own_positions(model)
        config = model.model.model_config.unet_config
        dims = config["context_in_dim"], config["vec_in_dim"]
    except (AttributeError, KeyError) as error:
        name = type(model.model).__name__
        raise OptionError(f"MODEL: is a {name}; Load SR LoRA needs the Flux model the LoRA was trained on") from error
    check_prompt(found.header, *dims)
    clone = model.clone()
    _patch_weights(clone, path, lora_tensors(found.header), strength)
    if found.theta is not None:  # from now on the model's own
        replaced = patch_positions(clone, RescaledEmbedND(axes_dim, found.theta))
        if replaced:
            log.warning("%s: its theta is the model's from now on. %s", path.name, replaced)
    clone.set_attachments(ATTACHMENT, settings)
    for fact, reason in found.why.items():
        value = found.theta or "of the model" if fact == "theta" else getattr(settings, fact)
        log.info("%s: %s %s (%s)", path.name, fact, value, reason)
    return clone


def _patch_weights(clone: Any, path: Path, tensors: dict[str, Any], strength: float) -> None:
    """As the host's load_lora_for_models does it, with an error where that only warns."""
    keys = comfy.lora.model_lora_keys_unet(clone.model, {})
    patches = comfy.lora.load_lora(comfy.lora_convert.convert_lora(tensors), keys)
    if not clone.add_patches(patches, strength):
        raise UnsupportedCheckpointError(
            path, f"none of its {len(tensors)} tensors fits this model; load the model the LoRA was trained on"
        )
