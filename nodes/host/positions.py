"""Whose rotary positions a native MODEL runs with: set by an object patch, of which the last one wins."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from comfy.patcher_extension import CallbacksMP

from ...op4ksr_core.models.rope import Policy, RescaledEmbedND, Rfr
from ...op4ksr_core.plain_text import plain_logger

log = plain_logger(__name__)

PE_EMBEDDER = "diffusion_model.pe_embedder"

#: Under which the positions that a node of ours set travel with a MODEL, through every clone.
_ATTACHMENT = "op4ksr_positions"


def own_positions(model: Any) -> tuple[Sequence[int], float | tuple[float, float]]:
    """axes_dim and the MODEL's own theta, also where another pack's patch hides it.

    Raises AttributeError for a MODEL without Flux's position embedder.
    """
    embedder = model.get_attachment(_ATTACHMENT) or model.get_model_object(PE_EMBEDDER)
    return list(embedder.axes_dim), getattr(embedder, "thetas", embedder.theta)


def policy_of(model: Any) -> Policy:
    """The policy that the MODEL's positions are under, as far as they are ours."""
    embedder = getattr(model.get_model_object("diffusion_model"), "pe_embedder", None)
    found = model.object_patches.get(PE_EMBEDDER, embedder)
    return found.rfr.policy if isinstance(found, RescaledEmbedND) else "checkpoint"


def own_theta_is(model: Any, embedder: RescaledEmbedND) -> None:
    """The theta of the MODEL's file, for a MODEL that nobody else has yet.

    It goes into the model itself, so that packs which read the model and not its patches find it (DyPE).
    """
    model.model.diffusion_model.pe_embedder = embedder
    _remember(model, embedder)


def patch_positions(model: Any, embedder: RescaledEmbedND) -> str:
    """Patch a clone. Says what that replaces, in a sentence; "" where that is only the model's own."""
    text = _replaced(model)
    model.add_object_patch(PE_EMBEDDER, embedder)
    _remember(model, embedder)
    return text


def _replaced(model: Any) -> str:
    before = model.get_model_object(PE_EMBEDDER)
    if isinstance(before, RescaledEmbedND):
        return "" if before.rfr == Rfr() else "It replaces an earlier Apply RFR: the last one wins."
    if PE_EMBEDDER in model.object_patches or type(before).__name__ != "EmbedND":
        return f"It replaces the positions that {_whose(before)} had patched in: the last one wins."
    return ""


def _remember(model: Any, embedder: RescaledEmbedND) -> None:
    model.set_attachments(_ATTACHMENT, embedder)
    model.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, _ATTACHMENT)
    model.add_callback_with_key(CallbacksMP.ON_PRE_RUN, _ATTACHMENT, _tell_if_hidden)


def _tell_if_hidden(model: Any) -> None:
    """Before every run, whoever samples: another pack's node, further on in the graph, cannot tell it."""
    ours, found = model.get_attachment(_ATTACHMENT), model.get_model_object(PE_EMBEDDER)
    if ours is None or isinstance(found, RescaledEmbedND) and (found.thetas, found.rfr) == (ours.thetas, ours.rfr):
        return
    log.warning(
        "%s But this run's positions are those of %s, patched in by a later node: the last one wins. "
        "Put Apply RFR after that node, or take one of the two out.",
        describe(ours),
        _whose(found),
    )


def _whose(embedder: Any) -> str:
    """Its class, and the folder of the pack that has it (the host names a pack's modules by their path)."""
    pack = re.split(r"[\\/]", type(embedder).__module__.split(".")[0])
    name = type(embedder).__name__
    return f"{name} ({pack[-1].replace('_x_', '.')})" if len(pack) > 1 else name


def describe(embedder: RescaledEmbedND) -> str:
    """What a policy does, in words."""
    rfr, (rows, columns) = embedder.rfr, embedder.thetas
    own = f"{rows:g}" if rows == columns else f"{rows:g} (rows), {columns:g} (columns)"
    if rfr.policy == "checkpoint":
        return f"RFR checkpoint: the model's own theta {own} at every size."
    if rfr.policy == "ntk":
        return f"RFR ntk: theta {own} grows with the grid beyond {rfr.train_tokens} tokens per side."
    if rfr.policy == "interpolate":
        return f"RFR interpolate: beyond {rfr.train_tokens} tokens per side, positions are squeezed into as many."
    if rfr.policy == "parts":
        return (
            f"RFR parts: NTK by parts, DyPE's at sigma {rfr.sigma:g}, beyond {rfr.train_tokens} tokens per side, "
            f"over theta {own}."
        )
    if rfr.policy == "ultraflux":
        return f"RFR ultraflux: UltraFlux's published positions beyond 64 tokens (2048 px) per side, over theta {own}."
    thetas = embedder.resolved()
    return f"RFR {rfr.policy}: theta {own} -> {thetas[0]:.6g} (rows), {thetas[1]:.6g} (columns)."
