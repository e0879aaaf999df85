"""Loader nodes: weights files -> native VAE and MODEL."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..op4ksr_core.weights.sr_lora import describe_sr_lora
from .host.exact_vae import ExactVAE, memory_widget, strips_of
from .host.files import check_file, file_options, file_path
from .host.inputs import checked
from .host.lora import load_encoder_lora, load_lora
from .host.model import WEIGHT_DTYPES, load_model, prompt_conditioning
from .host.schema import advanced, schema
from .host.vae import load_vae
from .host.widgets import chosen

_STRIDES = {"auto": None, "16x": 2, "8x": 1}
_SHIFTS = {"auto": None, "0": 0, "1": 1}


class LoadF16VAE(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_LoadF16VAE",
            display_name="Load F16 VAE (OP4KSR)",
            found_as="Load F16 VAE, 16x (OP4KSR)",
            category="loaders",
            description="Loads a VAE that compresses 16x instead of 8x, so that 4096 px are 16,384 Flux tokens. "
            "The result is a native VAE: VAE Encode, VAE Decode and tiled decoding work with it.",
            search_aliases=["f16", "16x vae", "ultraflux vae", "4k", "upscale", "super resolution"],
            inputs=[
                io.Combo.Input(
                    "vae_name",
                    options=file_options("vae"),
                    tooltip="A Flux-type 16x VAE from models/vae, or the small bundled one.",
                ),
                advanced(
                    io.Combo.Input(
                        "compression",
                        options=list(_STRIDES),
                        default="auto",
                        tooltip="auto: as the file's metadata or config.json says, else 16x. "
                        "No tensor's shape tells 16x from 8x.",
                    )
                ),
                advanced(
                    io.Combo.Input(
                        "shift",
                        options=list(_SHIFTS),
                        default="auto",
                        tooltip="1: the decoder of the published 16x VAEs (UltraFlux), which moves it by 1 px. "
                        "auto: as the file says, else 1 for the full-width public VAEs and 0 for others.",
                    )
                ),
                memory_widget(),
            ],
            outputs=[io.Vae.Output("VAE", tooltip="A native VAE with 16 channels at 16x.")],
        )

    @classmethod
    def validate_inputs(cls, vae_name: str | None = None) -> bool | str:
        return check_file("vae", vae_name)

    @classmethod
    @checked
    def execute(
        cls, vae_name: str, compression: str = "auto", shift: str = "auto", memory: str = "auto"
    ) -> io.NodeOutput:
        path = file_path("vae", vae_name)
        return io.NodeOutput(
            load_vae(path, chosen("compression", compression, _STRIDES), chosen("shift", shift, _SHIFTS), memory)
        )


class ExactVAENode(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_ExactVAE",
            display_name="Exact VAE, Low Memory (OP4KSR)",
            found_as="Exact VAE: no seams, low VRAM (OP4KSR)",
            category="advanced/vae",
            description="Lets any Flux-type picture VAE encode and decode in strips: the same picture as without, to "
            "rounding, in a fraction of the memory, without tiles and their seams. Load F16 VAE has this built in.",
            search_aliases=[
                "vae",
                "tiled",
                "tiles",
                "seam",
                "out of memory",
                "oom",
                "low vram",
                "no seams",
                "4k",
                "8k",
            ],
            inputs=[
                io.Vae.Input("vae", tooltip="Flux's own 8x VAE, SDXL's, or any other of that kind. It stays as it is."),
                memory_widget(),
            ],
            outputs=[io.Vae.Output("VAE", tooltip="The same VAE in strips; it shares the weights of the input.")],
        )

    @classmethod
    @checked
    def execute(cls, vae: Any, memory: str = "auto") -> io.NodeOutput:
        return io.NodeOutput(ExactVAE.of(vae, strips_of(memory)))


class LoadFluxSR(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_LoadFluxSR",
            display_name="Load Flux SR Model (OP4KSR)",
            category="loaders",
            description="Loads a one-step Flux super-resolution model. Theta, sigma, guidance and the prompt embedding "
            "come from the file and travel with the MODEL, so no text encoder and no typed numbers are needed.",
            search_aliases=["flux", "4k", "upscale", "super resolution", "one step", "op4ksr"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=file_options("diffusion_models"),
                    tooltip="A Flux transformer from models/diffusion_models (BFL or diffusers layout), "
                    "or the small bundled one.",
                ),
                advanced(
                    io.Combo.Input(
                        "weight_dtype",
                        options=WEIGHT_DTYPES,
                        default="default",
                        tooltip="How the weights are held in memory; fp8 halves a 12B model's 24 GB.",
                    )
                ),
            ],
            outputs=[
                io.Model.Output(
                    "MODEL", tooltip="A native MODEL: LoRA, ApplyRFR, compile and attention nodes take it."
                ),
                io.Conditioning.Output(
                    "CONDITIONING",
                    tooltip="The prompt embedding the model was trained with; zeros if the file has none.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, model_name: str | None = None) -> bool | str:
        return check_file("diffusion_models", model_name)

    @classmethod
    @checked
    def execute(cls, model_name: str, weight_dtype: str = "default") -> io.NodeOutput:
        model = load_model(file_path("diffusion_models", model_name), weight_dtype)
        return io.NodeOutput(model, prompt_conditioning(model))


class LoadSRLoRA(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_LoadSRLoRA",
            display_name="Load SR LoRA (OP4KSR)",
            category="loaders",
            description="Turns a Flux model into a one-step super-resolution model by a LoRA: one file that also "
            "carries theta, sigma, guidance and its prompt embedding, or OMGSR-F's or FluxSR's folder. An "
            "ordinary LoRA needs ComfyUI's own loader instead.",
            search_aliases=[
                "lora",
                "flux",
                "4k",
                "upscale",
                "super resolution",
                "one step",
                "omgsr",
                "fluxsr",
                "op4ksr",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The Flux model that the LoRA was trained on, from any loader."),
                io.Combo.Input(
                    "lora_name",
                    options=file_options("loras"),
                    tooltip="From models/loras: a one-step LoRA made for OP4KSR, or any file of OMGSR-F's or FluxSR's "
                    "folder, which is then taken whole.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    tooltip="Of the change of the weights; theta, sigma and the prompt are always the file's.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Flux's own VAE, for a LoRA that also changes its encoder (OMGSR-F). It stays as it is.",
                ),
                io.Conditioning.Input(
                    "conditioning",
                    optional=True,
                    tooltip="The prompt embedding, for a file that carries none: CLIP Text Encode with an empty text, "
                    "or Load Prompt Embedding. It wins over the file's own.",
                ),
            ],
            outputs=[
                io.Model.Output("MODEL", tooltip="A clone with the LoRA, its theta and its constants."),
                io.Conditioning.Output(
                    "CONDITIONING", tooltip="The prompt embedding the LoRA was trained with, or the one connected."
                ),
                io.Vae.Output(
                    "VAE", tooltip="The VAE with the LoRA in its encoder; as it came where the file changes none."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, lora_name: str | None = None) -> bool | str:
        return check_file("loras", lora_name)

    @classmethod
    @checked
    def execute(
        cls,
        model: Any,
        lora_name: str,
        strength: float = 1.0,
        vae: Any | None = None,
        conditioning: list[Any] | None = None,
    ) -> io.NodeOutput:
        found = describe_sr_lora(file_path("loras", lora_name))
        patched = load_lora(model, found, strength, conditioning)
        return io.NodeOutput(patched, prompt_conditioning(patched), load_encoder_lora(vae, found, strength))
