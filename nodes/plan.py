"""The plan before the run, for the host's MODEL and VAE, as a node of its own and for the one-step node."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import comfy.model_management
from comfy_api.latest import io, ui

from ..op4ksr_core.base import Base
from ..op4ksr_core.errors import OptionError
from ..op4ksr_core.images.resize import DEFAULT_CEILING_MEGAPIXELS, Target
from ..op4ksr_core.models.flux import FluxParams
from ..op4ksr_core.pieces import DEFAULT_OVERLAP_PX, Pieces
from ..op4ksr_core.plain_text import plain_logger
from ..op4ksr_core.planning.make import Models, make_plan
from ..op4ksr_core.planning.plan import Machine, Plan, Weights
from .host.enlarge import base_of
from .host.exact_vae import ExactVAE, usable_memory
from .host.inputs import checked
from .host.model import settings_of
from .host.positions import policy_of
from .host.schema import schema
from .host.stages import HostStages
from .host.widgets import (
    asked,
    base_widgets,
    ceiling_widget,
    detail_widget,
    pieces_of,
    pieces_widgets,
    repair_widget,
    size_widgets,
    target_of,
)

log = plain_logger(__name__)


def host_plan(
    size: tuple[int, int],
    target: Target,
    model: Any,
    vae: ExactVAE,
    vae_only: bool = False,
    batch: int = 1,
    pieces: Pieces | None = None,
    base: Base | None = None,
    detail: float = 1.0,
    repair: float | None = None,
) -> Plan:
    """The plan for ``batch`` pictures of ``size`` (height, width) under the host's memory manager.

    repair: None: what the model recommends.

    A GPU is a stage's own: weights are moved out of the way, pictures wait in ordinary memory. The CPU
    holds everything.
    """
    device, dtype = vae.device, vae.vae_dtype
    total = int(comfy.model_management.get_total_memory(device))
    on_cpu = device.type == "cpu"
    models = Models(vae.params_of("decode"), vae.params_of("encode"), strips=vae.strips, pieces=pieces)
    settings = settings_of(model)
    repair = settings.repair if repair is None else repair
    models = replace(models, base=base or models.base, repair=repair, output=settings.output, detail=detail)
    models = replace(models, weights=(_weights("VAE", vae.patcher),))
    if not vae_only:
        models = _with_transformer(models, model)
    models = replace(models, weights=(*models.weights, *_base_weights(models.base)))
    usable = usable_memory(vae, sum(w.size for w in models.weights) if on_cpu else 0)
    machine = Machine(str(device), dtype, total, on_cpu, on_cpu, host=True, usable=usable)
    return make_plan(size, target, models, machine, batch)


def _with_transformer(models: Models, model: Any) -> Models:
    settings, flux, diffusion = settings_of(model), flux_params(model), model.model
    text_tokens = 1 if settings.txt is None else len(settings.txt)
    dtype = getattr(diffusion, "manual_cast_dtype", None) or diffusion.get_dtype()

    def peak(rows: int, columns: int) -> int:
        if flux is None:  # another architecture: what the host itself asks for
            return int(diffusion.memory_required([1, models.autoencoder.latent_channels, 2 * rows, 2 * columns]))
        return flux_peak_bytes(flux, rows * columns, text_tokens, dtype)

    return replace(
        models,
        flux=flux,
        text_tokens=text_tokens,
        transformer_dtype=dtype,
        transformer_peak=peak,
        weights=(*models.weights, _weights("model", model)),
        train_tokens=settings.train_tokens,
        positions=policy_of(model),
    )


def flux_peak_bytes(params: FluxParams, tokens: int, text_tokens: int, dtype: Any) -> int:
    """Largest number of bytes live in the host's own Flux, with fused attention, as counted on 0.3, 0.8 and 0.33.

    From 0.8 on its norms and rotation keep no float32 copies that count, so the MLP decides.
    """
    ratio, total = params.mlp_ratio, tokens + text_tokens
    old = not hasattr(io, "DynamicCombo")  # 0.3
    double = (10.15 if old else 3.15) + 2 * ratio if params.depth else 0.0
    single = (12.15 if old else 6.15) + 2 * ratio if params.depth_single_blocks else 0.0
    return int(max(double, single) * total * params.hidden_size * dtype.itemsize) + 8 * sum(params.axes_dim) * total


def flux_params(model: Any) -> FluxParams | None:
    """The geometry of a native Flux MODEL; None for another architecture."""
    config = model.model.model_config.unet_config
    try:
        if config["image_model"] != "flux":
            return None
        return FluxParams(
            hidden_size=config["hidden_size"],
            num_heads=config["num_heads"],
            depth=config["depth"],
            depth_single_blocks=config["depth_single_blocks"],
            in_channels=config["in_channels"],
            context_in_dim=config["context_in_dim"],
            vec_in_dim=config["vec_in_dim"] or 768,
            mlp_ratio=config["mlp_ratio"],
            guidance_embed=config["guidance_embed"],
            axes_dim=tuple(config["axes_dim"]),
        )
    except (KeyError, ValueError, TypeError):  # a relative of Flux with other parts
        return None


def _base_weights(base: Base) -> list[Weights]:
    """Of what enlarges, which is moved in while it runs."""
    device, waits = comfy.model_management.get_torch_device(), comfy.model_management.unet_offload_device()
    place = f"on {device}" if device == waits else f"wait on {waits} for {device}"
    return [Weights(base.name, base.weights, place)] if base.weights else []


def _weights(name: str, patcher: Any) -> Weights:
    size, loaded = int(patcher.model_size()), int(patcher.loaded_size())
    device, waits = patcher.load_device, patcher.offload_device
    place = f"on {device}" if loaded >= size or device == waits else f"wait on {waits} for {device}"
    if 0 < loaded < size and device != waits:
        place = f"{loaded / 1e9:.2f} GB on {device}, the rest on {waits}"
    return Weights(name, size, place)


class PlanRun(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_Plan",
            display_name="Plan 4K Upscale (OP4KSR)",
            category="image/upscaling",
            description="Says before anything is computed what One-Step Upscale will need: exact size, tokens, work, "
            "memory of every stage, and whether it fits this device.",
            search_aliases=["plan", "memory", "vram", "estimate", "will it fit", "4k", "size"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The model that One-Step Upscale will run."),
                io.Vae.Input("vae", tooltip="The VAE that One-Step Upscale will run."),
                io.Image.Input("image", optional=True, tooltip="The picture; left open, width and height count."),
                io.Int.Input("width", default=1024, min=1, max=32768, tooltip="Of the picture, without an image."),
                io.Int.Input("height", default=1024, min=1, max=32768, tooltip="Of the picture, without an image."),
                *size_widgets(),
                io.Boolean.Input("vae_only", default=False, tooltip="Plan without the transformer."),
                ceiling_widget("Ceiling: a larger output is refused."),
                *pieces_widgets(),
                *base_widgets(),
                detail_widget("As in One-Step Upscale. 0: no model runs."),
                repair_widget("As in One-Step Upscale. Above 0 the bundled enlarger has four times the work."),
            ],
            outputs=[
                io.String.Output("PLAN", tooltip="The plan in words."),
                io.Int.Output("WIDTH", tooltip="Of the output, in px."),
                io.Int.Output("HEIGHT", tooltip="Of the output, in px."),
                io.Boolean.Output("FITS", tooltip="Whether it fits this device."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        vae: Any,
        width: int,
        height: int,
        target: str,
        pixels: int,
        factor: float,
        megapixels: float,
        vae_only: bool,
        image: Any = None,
        max_megapixels: float = DEFAULT_CEILING_MEGAPIXELS,
        pieces: int = 0,
        pieces_overlap: int = DEFAULT_OVERLAP_PX,
        upscale_model: Any = None,
        enlarger: str = "auto",
        detail: float = 1.0,
        repair: float = -1.0,
    ) -> io.NodeOutput:
        batch, height, width = (1, height, width) if image is None else image.shape[:3]
        base = base_of(enlarger, upscale_model, model)
        exact = HostStages(model, vae, None, None, None).vae  # which refuses what cannot run
        if not isinstance(exact, ExactVAE):
            raise OptionError("VAE: has other layers than Flux's, so its memory cannot be estimated; choose another")
        size = target_of(target, pixels, factor, megapixels, max_megapixels)
        windows = pieces_of(pieces, pieces_overlap)
        plan = host_plan((height, width), size, model, exact, vae_only, batch, windows, base, detail, asked(repair))
        text = plan.text()
        for line in text.splitlines():  # which a log makes visible within one message
            log.info("%s", line)
        return io.NodeOutput(text, plan.output[1], plan.output[0], plan.fits is not False, ui=ui.PreviewText(text))
