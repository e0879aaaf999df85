"""The shift of a Flux model's time steps, by the tokens that a 16x VAE really makes."""

from __future__ import annotations

import math
from typing import Any

import comfy.model_sampling
from comfy_api.latest import io

from ..op4ksr_core.errors import OptionError
from ..op4ksr_core.models.flux_schedule import BASE_SHIFT, MAX_SHIFT, ULTRAFLUX_SHIFT, mu_of_shift, mu_of_tokens
from ..op4ksr_core.models.latent import PATCH
from ..op4ksr_core.plain_text import plain_logger
from .host.inputs import checked
from .host.model import check_flow
from .host.schema import advanced, schema
from .host.widgets import RATIO, side_widgets

log = plain_logger(__name__)

_MODES = ("fixed", "by tokens")

#: mu at which all steps but the last are at full noise, or none. Our choice: float32 tells no sigma from 1 before.
_MOST = 20


class _FluxSampling(comfy.model_sampling.ModelSamplingFlux, comfy.model_sampling.CONST):
    """What the host's own ModelSamplingFlux node puts into a MODEL."""


class FluxShift16x(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_FluxShift16x",
            display_name="Flux Shift at 16x (OP4KSR)",
            category="model/patch",
            description="Sets how much of a many-step run is spent at high noise. ComfyUI's ModelSamplingFlux counts "
            "tokens as if the VAE were 8x: four times too many at 16x. As it comes, this node sets what UltraFlux's "
            "published script runs with, a fixed shift of 3. One-step models do not need it.",
            search_aliases=["shift", "mu", "sampling", "ultraflux", "16x", "4k", "modelsamplingflux", "schedule"],
            inputs=[
                io.Model.Input("model", tooltip="Any Flux-family model that generates in several steps."),
                io.Combo.Input(
                    "mode",
                    options=list(_MODES),
                    default=_MODES[0],
                    tooltip="fixed: the shift below at every size (UltraFlux). by tokens: FLUX.1-dev's rule, "
                    "with the true number of tokens of the size below.",
                ),
                io.Float.Input(
                    "shift",
                    default=ULTRAFLUX_SHIFT,
                    min=0.01,
                    max=100.0,
                    step=0.05,
                    tooltip="Mode fixed: sigma = s t / (1 + (s - 1) t). 3: UltraFlux. 1: none.",
                ),
                *side_widgets("Mode by tokens: {} of the picture in px."),
                advanced(
                    io.Float.Input(
                        "base_shift",
                        default=BASE_SHIFT,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="Mode by tokens: mu at 256 tokens (FLUX.1-dev: 0.5).",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "max_shift",
                        default=MAX_SHIFT,
                        min=0.0,
                        max=100.0,
                        step=0.01,
                        tooltip="Mode by tokens: mu at 4096 tokens (FLUX.1-dev: 1.15); beyond, on along that line.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="A clone with that shift; take the sigmas from it."),
                io.String.Output("REPORT", tooltip="Tokens, shift and mu in one sentence."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        mode: str,
        shift: float,
        width: int,
        height: int,
        base_shift: float = BASE_SHIFT,
        max_shift: float = MAX_SHIFT,
    ) -> io.NodeOutput:
        check_flow(model)
        if mode == _MODES[0]:
            mu, why = mu_of_shift(shift), "fixed"
        else:
            tokens = math.ceil(width / (RATIO * PATCH)) * math.ceil(height / (RATIO * PATCH))
            mu, why = mu_of_tokens(tokens, base_shift, max_shift), f"for {tokens:,} tokens"
            if abs(mu) > _MOST:
                raise OptionError(
                    f"base_shift, max_shift: {base_shift:g} and {max_shift:g} give mu {mu:,.0f} for {tokens:,} tokens, "
                    f"at most {_MOST} leaves any steps; bring them nearer to each other"
                )
        sampling = _FluxSampling(model.model.model_config)
        sampling.set_parameters(shift=mu)
        clone = model.clone()
        clone.add_object_patch("model_sampling", sampling)
        report = f"Shift {math.exp(mu):.4g} (mu {mu:.4f}), {why}."
        log.info(report)
        return io.NodeOutput(clone, report)
