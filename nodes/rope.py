"""RFR on the host's models: the positions of a cloned MODEL, replaced by an object patch."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..op4ksr_core.errors import OptionError
from ..op4ksr_core.models.rope import FLUX_TRAIN_TOKENS, POLICIES, RescaledEmbedND, Rfr
from ..op4ksr_core.plain_text import plain_logger
from .host.inputs import checked
from .host.model import settings_of
from .host.positions import describe, own_positions, patch_positions
from .host.schema import advanced, schema

log = plain_logger(__name__)


def apply_rfr(model: Any, rfr: Rfr) -> tuple[Any, str]:
    """A clone of a Flux-family MODEL under the policy, and a sentence on what was done.

    The model passed in, and every other branch that uses it, keeps its positions. Raises OptionError
    for a model without Flux's position embedder.
    """
    try:
        axes_dim, theta = own_positions(model)
    except AttributeError as error:
        name = type(model.model.diffusion_model).__name__
        raise OptionError(
            f"MODEL: is a {name} without Flux's rotary positions; Apply RFR needs a Flux model"
        ) from error
    patched = RescaledEmbedND(axes_dim, theta, rfr)
    clone = model.clone()
    replaced = patch_positions(clone, patched)
    return clone, f"{describe(patched)} {replaced}".rstrip()


class ApplyRFR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_ApplyRFR",
            display_name="Apply RFR (RoPE theta, OP4KSR)",
            category="model/patch",
            description="Rescales the RoPE base theta of any Flux-family model on its two image axes. A model runs "
            "best with the theta it was trained with (policy checkpoint); the others are for pretrained generators at "
            "sizes they never saw, for UltraFlux's weights, and for experiments.",
            search_aliases=["rope", "theta", "rfr", "ntk", "yarn", "ultraflux", "grid", "stripes", "4k"],
            inputs=[
                io.Model.Input("model", tooltip="Any Flux-family model from any loader."),
                io.Combo.Input(
                    "policy",
                    options=list(POLICIES),
                    default="checkpoint",
                    tooltip="checkpoint: the model's own theta. theta: the numbers below. fit: the slowest pair makes "
                    "'turns' turns over 'tokens'. ntk: theta grows with the grid beyond 'train_tokens'. "
                    "ultraflux: the positions UltraFlux's weights were trained with. interpolate: positions beyond "
                    "'train_tokens' are squeezed into them. parts: NTK by parts beyond them, DyPE's at one 'sigma'.",
                ),
                io.Float.Input(
                    "theta_rows",
                    default=10000.0,
                    min=1.01,
                    max=1e9,
                    step=1.0,
                    tooltip="Policy theta: base of the vertical axis (Flux: 10000).",
                ),
                io.Float.Input(
                    "theta_columns",
                    default=10000.0,
                    min=1.01,
                    max=1e9,
                    step=1.0,
                    tooltip="Policy theta: base of the horizontal axis (Flux: 10000).",
                ),
                advanced(
                    io.Float.Input(
                        "turns",
                        default=0.5,
                        min=0.01,
                        max=1000.0,
                        step=0.05,
                        tooltip="Policy fit: turns of the slowest pair; at 0.5 its phase alone orders all tokens.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "tokens_rows",
                        default=128,
                        min=1,
                        max=4096,
                        tooltip="Policy fit: tokens from top to bottom (4096 px are 128 at 16x).",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "tokens_columns",
                        default=128,
                        min=1,
                        max=4096,
                        tooltip="Policy fit: tokens from left to right.",
                    )
                ),
                advanced(
                    io.Int.Input(
                        "train_tokens",
                        default=FLUX_TRAIN_TOKENS,
                        min=1,
                        max=4096,
                        tooltip="Policies ntk, interpolate, parts: tokens per side the model was trained on "
                        "(FLUX.1: 64).",
                    )
                ),
                advanced(
                    io.Float.Input(
                        "sigma",
                        optional=True,
                        default=0.0,
                        min=0.0,
                        max=1.0,
                        step=0.01,
                        tooltip="Policy parts: the point of the flow for which it is computed, which DyPE moves with "
                        "the step; 0: the one-step model's own (0.5 where none is known), 1: without DyPE.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    "MODEL",
                    tooltip="A clone with the new positions; the input keeps its own. Another node after this one that "
                    "patches positions (DyPE) replaces them: the last one wins, and the log says so at every run.",
                ),
                io.String.Output("REPORT", tooltip="What was done, and whose positions it replaced."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        policy: str,
        theta_rows: float,
        theta_columns: float,
        turns: float = 0.5,
        tokens_rows: int = 128,
        tokens_columns: int = 128,
        train_tokens: int = FLUX_TRAIN_TOKENS,
        sigma: float = 0.0,
    ) -> io.NodeOutput:
        theta = (theta_rows, theta_columns) if policy == "theta" else None
        at = sigma or settings_of(model).sigma
        rfr = Rfr(policy, theta, turns, (tokens_rows, tokens_columns), train_tokens, at)  # pyright: ignore
        patched, report = apply_rfr(model, rfr)
        log.info(report)
        return io.NodeOutput(patched, report, ui=ui.PreviewText(report))
