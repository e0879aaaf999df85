"""The parts of a one-step run, each by itself, for graphs of the user's own."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_management
import torch
from comfy_api.latest import io

from ..op4ksr_core.models.flux import check_sigma, sigma_at
from ..op4ksr_core.plain_text import plain_logger
from .host.inputs import checked
from .host.memory import check_room
from .host.model import check_flow, settings_of
from .host.schema import schema
from .host.stages import OneStepSampler
from .host.widgets import RATIO, side_widgets, sigma_widget

log = plain_logger(__name__)

#: Of the latent that a VAE of the Flux kind makes of a picture.
CHANNELS = 16


class OneStepSamplerNode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_OneStepSampler",
            display_name="One-Step Sampler (OP4KSR)",
            category="model/sampling/custom",
            description="SAMPLER and SIGMAS for SamplerCustomAdvanced: one call of the model at the model's own sigma, "
            "on the latent of the enlarged picture as it is. No noise is added, whatever the noise node says. "
            "ComfyUI's Euler with one step is something else: it would weaken the latent first.",
            search_aliases=["one step", "sampler", "sigmas", "4k", "upscale", "super resolution", "sr", "op4ksr"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="A one-step model: its sigma is taken (0.5 where its file names none)."
                ),
                sigma_widget(),
            ],
            outputs=[
                io.Sampler.Output("SAMPLER", tooltip="For SamplerCustomAdvanced; honours a latent's noise mask."),
                io.Sigmas.Output("SIGMAS", tooltip="That sigma, then 0: one step."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, model: Any, sigma: float = 0.0) -> io.NodeOutput:
        check_flow(model)
        settings = settings_of(model)
        if settings.output == "detail":
            log.warning(
                "MODEL: adds detail to an enlarged picture, and what this sampler's latent decodes to lacks what the "
                "VAE loses of that picture; One-Step Upscale to 4K lays the detail over the picture itself"
            )
        value = check_sigma(sigma) if sigma else sigma_at(settings, settings.repair)
        return io.NodeOutput(OneStepSampler(), torch.tensor([value, 0.0]))


class EmptyLatent16x(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_EmptyLatent16x",
            display_name="Empty Latent 16x (OP4KSR)",
            category="model/latent",
            description="An empty latent for a 16x VAE of the Flux kind (UltraFlux). ComfyUI's own ones assume "
            "8x and would give a picture twice as wide and high as asked for.",
            search_aliases=["empty latent", "16x", "f16", "ultraflux", "4k", "text to image"],
            inputs=[
                *side_widgets("Of the picture, in px; a multiple of 32 (one token)."),
                io.Int.Input("batch_size", default=1, min=1, max=4096, tooltip="How many pictures at once."),
            ],
            outputs=[io.Latent.Output("LATENT", tooltip="Zeros: 16 channels, a sixteenth of the width and height.")],
        )

    @classmethod
    @checked
    def execute(cls, width: int, height: int, batch_size: int = 1) -> io.NodeOutput:
        device = comfy.model_management.intermediate_device()
        shape = (batch_size, CHANNELS, height // RATIO, width // RATIO)
        check_room(f"batch_size: {batch_size} latents of {width}x{height} px", 4 * math.prod(shape), device)
        samples = torch.zeros(shape, device=device)
        return io.NodeOutput({"samples": samples})  # no downscale_ratio_spacial: the host would resize to Flux's 8x
