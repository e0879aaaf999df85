"""What the tensors of a LoRA file are called: the module that one changes, and which part of the change it is.

Kinds and their parts as ComfyUI's ``comfy.weight_adapter`` and LyCORIS name them; the spellings of kohya, PEFT,
diffusers, DiffSynth, SimpleTuner, OneTrainer and XLabs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

#: Kinds that ``lora_parts`` computes itself. All others only the host applies.
COMPUTED = ("LoRA", "LoHa", "LoKr")

#: Ending -> kind, part. A LoRA's ends are brought to the first two spellings before.
_ENDINGS = {
    ".lora_up.weight": ("LoRA", "up"),
    ".lora_down.weight": ("LoRA", "down"),
    ".lora_B.weight": ("LoRA", "up"),
    ".lora_A.weight": ("LoRA", "down"),
    ".lora_mid.weight": ("Tucker", "mid"),
    **{f".hada_{part}": ("LoHa", part) for part in ("w1_a", "w1_b", "w2_a", "w2_b")},
    ".hada_t1": ("Tucker", "t1"),
    ".hada_t2": ("Tucker", "t2"),
    **{f".lokr_{part}": ("LoKr", part) for part in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b")},
    ".lokr_t2": ("Tucker", "t2"),
    ".dora_scale": ("DoRA", "dora_scale"),
    ".lora_magnitude_vector": ("DoRA", "magnitude"),
    **{f".{part}.weight": ("GLoRA", part) for part in ("a1", "a2", "b1", "b2")},
    ".oft_blocks": ("OFT", "blocks"),
    ".oft_diag": ("OFT", "blocks"),
    ".rescale": ("OFT", "rescale"),
    ".diff": ("difference", "diff"),
    ".diff_b": ("difference", "diff_b"),
    ".w_norm": ("difference", "w_norm"),
    ".b_norm": ("difference", "b_norm"),
    ".set_weight": ("difference", "set_weight"),
    ".reshape_weight": ("difference", "reshape_weight"),
    ".alpha": ("", "alpha"),
}
_ENDING = re.compile("(" + "|".join(re.escape(end) for end in sorted(_ENDINGS, key=len, reverse=True)) + ")$")

#: Of text encoders, and embeddings that trainers pack beside them: no MODEL has these.
_TEXT_ENCODER = re.compile(
    r"(base_model\.model\.)?"
    r"(lora_te\d*_|lycoris_te\d*_|lora_prior_te_|text_encoders?(_\d)?\.|text_model\.|clip_[lgh]\.|t5xxl\.|bundle_emb\.)"
)

#: PEFT's factors, and the DoRA's magnitudes, also with the adapter's name as a model's own state dict has it.
_PEFT = re.compile(r"\.(?:(lora_[AB])|lora_magnitude_vector)(\.(?!weight$|bias$)\w+)?(\.weight)?$", re.ASCII)

_BFL_TOP = r"(double_blocks|single_blocks|img_in|txt_in|time_in|vector_in|guidance_in|final_layer)\."
_DIFFUSERS_TOP = (
    r"(transformer_blocks|single_transformer_blocks|x_embedder|context_embedder|time_text_embed|norm_out)\."
)

#: XLabs' names: the streams are numbered, the single blocks' q, k and v are the first rows of ``linear1``.
_XLABS = re.compile(r"(double|single)_blocks\.(\d+)\.processor\.(qkv|proj)_lora([12]?)\.(up|down)\.weight$", re.ASCII)
_XLABS_MODULES = {
    ("double", "qkv", "1"): "img_attn.qkv",
    ("double", "qkv", "2"): "txt_attn.qkv",
    ("double", "proj", "1"): "img_attn.proj",
    ("double", "proj", "2"): "txt_attn.proj",
    ("single", "qkv", ""): "linear1_qkv",
    ("single", "proj", ""): "linear2",
}


@dataclass(frozen=True)
class LoraName:
    """A canonical name taken apart: the module it changes, the kind of change, and its part. kind of an alpha: ''."""

    base: str
    kind: str
    part: str


def parse_name(canonical: str) -> LoraName | None:
    """None for a name that is no part of any kind of change that we know."""
    if (found := _ENDING.search(canonical)) is None or not found.start():
        return None
    return LoraName(canonical[: found.start()], *_ENDINGS[found[0]])


def is_lora_name(name: str) -> bool:
    """Whether a tensor of this name says that its file is a LoRA of some kind."""
    if ".lora_" in name or "lora_A" in name or "lora_down" in name:
        return True
    found = parse_name(canonical_name(name))
    return found is not None and found.kind != ""


def is_text_encoders(name: str) -> bool:
    """Whether the tensor changes a text encoder, which a one-step model does not have."""
    return _TEXT_ENCODER.match(name) is not None


def canonical_name(name: str) -> str:
    """A LoRA tensor's name -> the spelling that ComfyUI's loader maps for Flux."""
    if is_text_encoders(name):
        return name
    name = name.removeprefix("base_model.model.").replace("model.diffusion_model.", "diffusion_model.")
    name = _PEFT.sub(lambda found: f".{found[1]}.weight" if found[1] else ".lora_magnitude_vector", name)
    name = re.sub(r"[._]lora(_linear_layer)?\.(up|down)\.weight$", r".lora_\2.weight", _of_xlabs(name))
    name = re.sub(r"^(lora_unet|lycoris)_(?=(single_)?transformer_blocks_)", "lora_transformer_", name)
    rest = re.sub(r"^(transformer|diffusion_model|unet)\.", "", name)
    if re.match(_BFL_TOP, rest):
        return f"diffusion_model.{rest}"
    if re.match(_DIFFUSERS_TOP, rest) or re.match(r"proj_out\.(lora|alpha|lokr|hada|dora|diff)", rest):
        return f"transformer.{rest}"
    return name


def _of_xlabs(name: str) -> str:
    if (found := _XLABS.search(name)) is None:
        return name
    module = _XLABS_MODULES.get((found[1], found[3], found[4]))
    return name if module is None else f"{found[1]}_blocks.{found[2]}.{module}.lora_{found[5]}.weight"
