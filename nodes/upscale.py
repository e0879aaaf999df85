"""The one-step node: IMAGE in, 4K IMAGE out."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io

from ..op4ksr_core.images.color import COLOR_FIXES
from ..op4ksr_core.images.resize import DEFAULT_CEILING_MEGAPIXELS
from ..op4ksr_core.one_step import OneStepOptions, run, upscale_alpha
from ..op4ksr_core.pieces import DEFAULT_OVERLAP_PX
from ..op4ksr_core.plain_text import plain_logger
from ..op4ksr_core.planning.plan import Plan
from .host.enlarge import base_of
from .host.exact_vae import ExactVAE
from .host.inputs import checked
from .host.schema import advanced, schema
from .host.stages import HostStages, image_to_core, image_to_host, progress_bar
from .host.widgets import (
    asked,
    base_widgets,
    ceiling_widget,
    detail_widget,
    pieces_of,
    pieces_widgets,
    repair_widget,
    sigma_widget,
    size_widgets,
    target_of,
)
from .plan import host_plan

log = plain_logger(__name__)


class OneStepUpscale(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_OneStepUpscale",
            display_name="One-Step Upscale to 4K (OP4KSR)",
            found_as="4K Upscale, Seamless Super Resolution (OP4KSR)",
            category="image/upscaling",
            description="Enlarges a whole picture in one forward pass of a Flux model, without tiles. "
            "Size, aspect ratio and alpha are kept; sigma, guidance and prompt come with the MODEL.",
            search_aliases=[
                "4k",
                "upscale",
                "upscaler",
                "super resolution",
                "enlarge",
                "hires",
                "sr",
                "seam",
                "tile free",
            ],
            inputs=[
                io.Image.Input("image", tooltip="The picture(s) to enlarge; a batch is done one by one."),
                io.Model.Input("model", tooltip="A one-step Flux model (Load Flux SR Model)."),
                io.Vae.Input("vae", tooltip="The VAE the model was trained with: a 16x one, or Flux's own 8x."),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="Prompt embedding; left open, the one that came with the model is used.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Transparency, as LoadImage gives it (1 = transparent); enlarged beside the picture, "
                    "whose hidden colours are filled from around it.",
                ),
                *size_widgets(),
                io.Combo.Input(
                    "color_fix",
                    options=list(COLOR_FIXES),
                    default="wavelet",
                    tooltip="wavelet: colours and coarse tones from the input. adain: only its mean and contrast. "
                    "none: the model's own. lab: mean and contrast of lightness and colour, in CIELAB.",
                ),
                io.Float.Input(
                    "fidelity",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="1: the result, shrunk again, is the input. Lower it for noisy or JPEG pictures.",
                ),
                io.Boolean.Input(
                    "vae_only",
                    default=False,
                    tooltip="Skip the transformer: the enlarged picture, through the VAE and back.",
                ),
                advanced(sigma_widget()),
                advanced(
                    io.Float.Input(
                        "guidance",
                        default=-1.0,
                        min=-1.0,
                        max=100.0,
                        step=0.1,
                        tooltip="-1: the model's own (or the conditioning's). Ignored by models without guidance.",
                    )
                ),
                ceiling_widget("Ceiling: a larger output is refused before anything is computed."),
                advanced(
                    io.Int.Input(
                        "seed",
                        optional=True,  # prompts saved before it existed still run
                        default=0,
                        min=0,
                        max=2**64 - 1,
                        control_after_generate=False,
                        tooltip="Of the VAE's sample, for models that were trained with one (OMGSR-F); others do not "
                        "use it. Picture i of a batch takes seed + i. The same seed gives the same picture.",
                    )
                ),
                *pieces_widgets(),
                *base_widgets(),
                detail_widget(
                    "How much of what the model makes is laid over the enlarged picture. 0: the enlarged picture "
                    "alone, and no model runs. 1: as trained. 2: twice as much."
                ),
                repair_widget(
                    "How much damage (blur, noise, JPEG) to repair. 0: none, and every speck is kept. 1: as "
                    "much as the model knows; fidelity gives way, from 0.25 on wholly. -1: what the model recommends."
                ),
            ],
            outputs=[
                io.Image.Output("IMAGE", tooltip="The enlarged picture(s)."),
                io.Mask.Output("MASK", tooltip="The enlarged transparency; all 0 without a mask."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        image: torch.Tensor,
        model: Any,
        vae: Any,
        target: str,
        pixels: int,
        factor: float,
        megapixels: float,
        color_fix: str,
        fidelity: float,
        vae_only: bool,
        conditioning: list[Any] | None = None,
        mask: torch.Tensor | None = None,
        sigma: float = 0.0,
        guidance: float = -1.0,
        max_megapixels: float = DEFAULT_CEILING_MEGAPIXELS,
        seed: int = 0,
        pieces: int = 0,
        pieces_overlap: int = DEFAULT_OVERLAP_PX,
        upscale_model: Any = None,
        enlarger: str = "auto",
        detail: float = 1.0,
        repair: float = -1.0,
    ) -> io.NodeOutput:
        mask = own_mask(image) if mask is None else mask
        low = image_to_core(image)
        options = OneStepOptions(
            target=target_of(target, pixels, factor, megapixels, max_megapixels),
            color=color_fix,  # pyright: ignore
            fidelity=fidelity,
            vae_only=vae_only,
            seed=seed,
            pieces=pieces_of(pieces, pieces_overlap),
            detail=detail,
            repair=asked(repair),
        )
        base = base_of(enlarger, upscale_model, model)
        stages = HostStages(model, vae, conditioning, sigma or None, guidance if guidance >= 0 else None, base)
        plan = announce(low, options, stages)
        if plan is not None:
            stages = stages.with_strips(plan.strips())
        alpha = None if mask is None else 1 - mask.reshape(-1, 1, *mask.shape[-2:])
        result = run(low, stages, options, progress_bar(), torch.channels_last, alpha)
        return io.NodeOutput(image_to_host(result), enlarge_mask(mask, result))


def announce(low: torch.Tensor, options: OneStepOptions, stages: HostStages) -> Plan | None:
    """Log the plan and return it; None for a VAE that runs as the host runs it.

    Raises OutOfMemoryError, before anything is computed, where it cannot fit.
    """
    if not isinstance(stages.vae, ExactVAE):
        return None
    batch, _, height, width = low.shape
    plan = host_plan(
        (height, width),
        options.target,
        stages.model,
        stages.vae,
        options.vae_only,
        batch,
        options.pieces,
        stages.base,
        options.detail,
        options.repair,
    )
    for line in plan.text().splitlines():  # which a log makes visible within one message
        log.info("%s", line)
    for warning in plan.warnings:
        log.warning("%s", warning)
    plan.refuse_if_hopeless()
    return plan


def own_mask(image: torch.Tensor) -> torch.Tensor | None:
    """The MASK (B, H, W) of an IMAGE (B, H, W, 4), which brings its own transparency; None for other IMAGEs."""
    return 1 - image[..., 3] if image.shape[-1] == 4 else None


def enlarge_mask(mask: torch.Tensor | None, result: torch.Tensor) -> torch.Tensor:
    """MASK (B, h, w) or None -> (B, H, W) of the result (B, 3, H, W)."""
    if mask is None:
        return result.new_zeros(len(result), *result.shape[-2:])
    return upscale_alpha(mask[:, None], *result.shape[-2:])[:, 0]
