"""Prompt embeddings as files: a one-step model has one prompt, so its text encoders are needed once."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..op4ksr_core.errors import OptionError
from ..op4ksr_core.plain_text import plain_logger
from ..op4ksr_core.weights.checkpoint import save_prompt
from ..op4ksr_core.weights.prompt import TOKENS_LIMIT, read_prompt
from .host.files import check_file, file_options, file_path
from .host.inputs import checked
from .host.names import check_prefix, choose_place, claimed
from .host.prompt import conditioning_of, prompt_of
from .host.schema import advanced, schema

log = plain_logger(__name__)

_SUFFIX = ".safetensors"


class SavePromptEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_SavePromptEmbedding",
            display_name="Save Prompt Embedding (OP4KSR)",
            category="model/conditioning",
            description="Saves a prompt's CONDITIONING as a small safetensors file, so that one-step models run "
            "without text encoders from then on. Move the file into models/embeddings and open it with Load Prompt "
            "Embedding.",
            search_aliases=["save conditioning", "prompt", "embedding", "text encoder", "t5", "flux", "op4ksr"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", tooltip="Of one prompt, from CLIP Text Encode with Flux's text encoders."
                ),
                io.String.Input(
                    "filename_prefix",
                    default="prompt_embedding",
                    tooltip="A name in the output folder, folders before it if you like; _00001_.safetensors follows.",
                ),
            ],
            outputs=[],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return check_prefix(filename_prefix)

    @classmethod
    @checked
    def execute(cls, conditioning: list[Any], filename_prefix: str) -> io.NodeOutput:
        txt, vec, _ = prompt_of(conditioning)
        if vec is None:
            raise OptionError(
                "conditioning: has no pooled_output, which Flux takes beside the tokens; load both of its text "
                "encoders (DualCLIPLoader, type flux)"
            )
        if len(txt) > TOKENS_LIMIT:
            raise OptionError(
                f"conditioning: has {len(txt):,} tokens, and a prompt embedding at most {TOKENS_LIMIT:,}; shorten it"
            )
        place = choose_place(filename_prefix, 0, 0)
        with claimed(place.folder, place.start, place.counter, _SUFFIX) as (path, _):
            save_prompt(path, txt, vec)
        shown = f"{place.subfolder}/{path.name}".lstrip("/")
        text = f"{shown}: {len(txt)} tokens of {txt.shape[1]} channels; move it into models/embeddings"
        log.info("%s", text)
        return io.NodeOutput(ui=ui.PreviewText(text))


class LoadPromptEmbedding(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_LoadPromptEmbedding",
            display_name="Load Prompt Embedding (OP4KSR)",
            category="model/conditioning",
            description="Opens what Save Prompt Embedding wrote: a prompt's CONDITIONING without text encoders, for "
            "Load SR LoRA, One-Step Upscale, or any node that takes Flux's conditioning.",
            search_aliases=["load conditioning", "prompt", "embedding", "text encoder", "t5", "flux", "op4ksr"],
            inputs=[
                io.Combo.Input(
                    "embedding_name",
                    options=[name for name in file_options("embeddings") if name.endswith(_SUFFIX)],
                    tooltip="From models/embeddings: safetensors with op4ksr.txt and op4ksr.vec, or with prompt_embeds "
                    "and pooled_prompt_embeds.",
                ),
                advanced(
                    io.Float.Input(
                        "guidance",
                        optional=True,
                        default=-1.0,
                        min=-1.0,
                        max=100.0,
                        step=0.1,
                        tooltip="-1: none in it, so that the model's own is used. Else as FluxGuidance attaches it.",
                    )
                ),
            ],
            outputs=[io.Conditioning.Output("CONDITIONING", tooltip="One prompt's, as CLIP Text Encode gives it.")],
        )

    @classmethod
    def validate_inputs(cls, embedding_name: str | None = None) -> bool | str:
        return check_file("embeddings", embedding_name)

    @classmethod
    @checked
    def execute(cls, embedding_name: str, guidance: float = -1.0) -> io.NodeOutput:
        tensors = read_prompt(file_path("embeddings", embedding_name))
        return io.NodeOutput(conditioning_of(tensors, guidance if guidance >= 0 else None))
