"""Save Prompt Embedding and Load Prompt Embedding: there and back, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import comfy.sd
import folder_paths
import harness
import torch
from comfy.text_encoders.flux import FluxTokenizer
from harness import FOLDER, refusal
from safetensors.torch import load_file, save_file
from weights import noise, prompt, write_lora

import nodes
from op4ksr_core.weights.convert import Conversion, convert
from op4ksr_core.weights.prompt import PromptEmbedding, read_prompt
from op4ksr_core.weights.sr_lora import describe_sr_lora, sr_lora_settings

OUTPUT = FOLDER / "output"
OUTPUT.mkdir()
folder_paths.set_output_directory(str(OUTPUT))

TXT, VEC = noise(1, 5, 64), noise(1, 32, seed=2)
ONE = [[TXT, {"pooled_output": VEC, "guidance": 3.5}]]


def save(conditioning: Any = ONE, prefix: str = "prompt_embedding") -> list[Path]:
    """The files that are new after the node ran."""
    before = set(OUTPUT.rglob("*.*"))
    nodes.NODE_CLASS_MAPPINGS["OP4KSR_SavePromptEmbedding"].execute(conditioning, prefix)
    return sorted(set(OUTPUT.rglob("*.*")) - before)


def move(path: Path, name: str) -> str:
    """As a user does it: out of the output folder into models/embeddings."""
    path.replace(FOLDER / "embeddings" / name)
    return name


def load(name: str, **widgets: Any) -> Any:
    return harness.run("OP4KSR_LoadPromptEmbedding", name, **widgets)[0]


def there_and_back() -> dict[str, Any]:
    (first,), (second,) = save(), save()
    (deep,) = save(prefix="sub/empty text")
    tensors = load_file(first)
    ((txt, extra),) = load(move(first, "one.safetensors"))
    guided = load("one.safetensors", guidance=2.0)
    half = [[TXT.to(torch.bfloat16), {"pooled_output": VEC.half()}]]
    ((half_txt, _),) = load(move(save(half)[0], "half.safetensors"))
    return {
        "names": [str(path.relative_to(OUTPUT).as_posix()) for path in (first, second, deep)],
        "keys": {name: list(tensor.shape) for name, tensor in tensors.items()},
        "same": torch.equal(txt, TXT) and torch.equal(extra["pooled_output"], VEC),
        "guidance": ["guidance" in extra, guided[0][1]["guidance"]],
        "half": torch.equal(half_txt, TXT.to(torch.bfloat16).float()),
        "listed": "one.safetensors" in nodes.NODE_CLASS_MAPPINGS["OP4KSR_LoadPromptEmbedding"].INPUT_TYPES()
        ["required"]["embedding_name"][1]["options"],
    }  # fmt: skip


def diffusers_names() -> bool:
    save_file({"prompt_embeds": TXT, "pooled_prompt_embeds": VEC}, FOLDER / "embeddings" / "theirs.safetensors")
    return torch.equal(load("theirs.safetensors")[0][0], TXT)


def into_a_lora() -> bool:
    """convert --prompt-embedding makes it part of a LoRA's file."""
    base, whole = "lora_unet_single_blocks_0_linear2.lora", FOLDER / "loras" / "whole.safetensors"
    name = write_lora("bare.safetensors", {f"{base}_up.weight": noise(128, 4), f"{base}_down.weight": noise(4, 640)})
    (saved,) = save()
    convert(FOLDER / "loras" / name, whole, Conversion(prompt=PromptEmbedding((saved,), read_prompt(saved))))
    settings = sr_lora_settings(describe_sr_lora(whole))
    return settings.txt is not None and torch.equal(settings.txt, TXT[0])


def an_empty_text() -> dict[str, Any]:
    """Tokens of T5 that the host makes of it: by itself, and with the node that the templates have."""
    if "T5TokenizerOptions" not in nodes.NODE_CLASS_MAPPINGS:
        raise harness.LackingError("this ComfyUI always pads to one length")
    clip = comfy.sd.CLIP(no_init=True)
    clip.tokenizer, clip.tokenizer_options, clip.layer_idx = FluxTokenizer(), {}, None
    clip.patcher, clip.cond_stage_model = Patcher(), None
    clip.use_clip_schedule, clip.apply_hooks_to_conds = False, None
    (padded,) = harness.run("T5TokenizerOptions", clip, 0, 512)
    return {name: len(one.tokenize("")["t5xxl"][0]) for name, one in (("alone", clip), ("padded", padded))}


class Patcher:
    """In the place of the text encoders' weights, which tokens do not need."""

    def clone(self, **_: Any) -> Patcher:
        return self


def left_out() -> list[str]:
    """What is no part of a prompt embedding is named; a prompt's own CONDITIONING is saved without a word."""
    with harness.Log() as log:
        save()
        save([[TXT, {"pooled_output": VEC, "area": (8, 8, 0, 0), "mask": None, "strength": 0.5}]])
    return log.warnings


def refused() -> dict[str, Any]:
    before = set(OUTPUT.rglob("*"))
    embeddings = FOLDER / "embeddings"
    settings = prompt()
    assert settings.txt is not None
    save_file({"emb_params": noise(2, 768)}, embeddings / "inversion.safetensors")
    save_file({"op4ksr.txt": settings.txt / 0, "op4ksr.vec": VEC[0]}, embeddings / "nan.safetensors")
    save_file({"op4ksr.txt": noise(2, 5, 64), "op4ksr.vec": VEC[0]}, embeddings / "batch.safetensors")
    (embeddings / "text.safetensors").write_text("no")
    found = {
        "two": refusal(lambda: save(ONE * 2)),
        "batch": refusal(lambda: save([[noise(2, 5, 64), {"pooled_output": noise(2, 32)}]])),
        "no_pooled": refusal(lambda: save([[TXT, {}]])),
        "long": refusal(lambda: save([[noise(1, 4097, 4), {"pooled_output": VEC}]])),
        "nan": refusal(lambda: save([[TXT / 0, {"pooled_output": VEC}]])),
        "outside": refusal(lambda: save(prefix="../../out")),
        "absolute": refusal(lambda: save(prefix="/etc/out")),
        "missing": refusal(lambda: load("gone.safetensors")),
        **{f"load_{name}": refusal(lambda name=name: load(f"{name}.safetensors"))
           for name in ("inversion", "nan", "batch", "text")},
    }  # fmt: skip
    return {**found, "nothing_is_left": before == set(OUTPUT.rglob("*"))}


CASES = (there_and_back, diffusers_names, into_a_lora, an_empty_text, left_out, refused)
