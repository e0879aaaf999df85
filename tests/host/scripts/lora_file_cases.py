"""LoRA files as they are in the wild: what Load SR LoRA makes of the weights, against the core's merge."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import comfy.lora
import harness
import torch
from safetensors.torch import save_file
from torch import Tensor
from weights import TINY, noise, prompt, write_flux

from op4ksr_core import load_flux
from op4ksr_core.weights.lora import describe_lora, merged_weight, read_merge

FLUX = "lora_base.safetensors"
KOHYA, PEFT = "lora_unet_double_blocks_0_img_attn_qkv", "transformer.transformer_blocks.0.attn.to_q"
QKV, PROJ = "double_blocks.0.img_attn.qkv.weight", "double_blocks.0.img_attn.proj.weight"
WIDE, SINGLE = TINY["hidden_size"], "single_blocks.0.linear1.weight"
Tensors = dict[str, Tensor]


def pair(base: str, rows: int, columns: int = WIDE, rank: int = 4, ends: tuple[str, str] = ("up", "down")) -> Tensors:
    return {
        f"{base}.lora_{ends[0]}.weight": noise(rows, rank) / 8,
        f"{base}.lora_{ends[1]}.weight": noise(rank, columns),
    }


def peft(base: str = PEFT, rank: int = 4) -> Tensors:
    return pair(base, WIDE, rank=rank, ends=("B", "A"))


def adapter(**values: Any) -> dict[str, str]:
    return {"lora_adapter_metadata": json.dumps(values)}


def lokr(base: str) -> Tensors:
    return {f"{base}.lokr_w1": noise(4, 4), f"{base}.lokr_w2": noise(3 * WIDE // 4, WIDE // 4, seed=2)}


def loha(base: str) -> Tensors:
    rows = 3 * WIDE
    shapes = {"hada_w1_a": (rows, 4), "hada_w1_b": (4, WIDE), "hada_w2_a": (rows, 4), "hada_w2_b": (4, WIDE)}
    return {f"{base}.{part}": noise(*shape, seed=i) for i, (part, shape) in enumerate(shapes.items())}


def decomposed(base: str) -> Tensors:
    shapes = {"lokr_w1": (4, 4), "lokr_w2_a": (3 * WIDE // 4, 2), "lokr_w2_b": (2, WIDE // 4)}
    return {f"{base}.{part}": noise(*shape, seed=i) for i, (part, shape) in enumerate(shapes.items())}


ALPHA = {f"{KOHYA}.alpha": torch.tensor(2.0)}
TEXT = pair("lora_te1_text_model_encoder_layers_0_mlp_fc1", 8, 8)
XLABS = {
    name.replace(".lora_", "."): tensor
    for name, tensor in {
        **pair("double_blocks.0.processor.qkv_lora1", 3 * WIDE),
        **pair("double_blocks.0.processor.proj_lora1", WIDE),
        **pair("single_blocks.0.processor.qkv_lora", 3 * WIDE),
    }.items()
}

#: Case -> tensors and metadata; each is loaded by the node and merged by the core.
SAME: dict[str, tuple[Tensors, dict[str, str]]] = {
    "alpha_tensor": ({**pair(KOHYA, 3 * WIDE), **ALPHA}, adapter(r=4, lora_alpha=99)),
    "adapter_metadata": (peft(), adapter(**{"transformer.r": 4, "transformer.lora_alpha": 8, "text_encoder.r": 1})),
    "adapter_without_prefix": (peft(), adapter(r=4, lora_alpha="10")),
    "rslora": (peft(), adapter(r=4, lora_alpha=8, use_rslora=True)),
    "patterns": (
        {**peft(), **peft("transformer.transformer_blocks.0.attn.to_k", rank=2)},
        adapter(r=4, lora_alpha=8, alpha_pattern={"attn.to_k": 6}, rank_pattern={"transformer_blocks.0.attn.to_k": 2}),
    ),
    "plain_keys": (peft(), {"lora_alpha": "12", "r": "4"}),
    "simpletuner": (peft(), {"transformer.lora_alpha": "64", "transformer.r": "4"}),
    "kohya_metadata": (pair(KOHYA, 3 * WIDE), {"ss_network_alpha": "16.0", "ss_network_dim": "4"}),
    "nothing_stated": (peft(), {"ss_network_dim": "Dynamic", "ss_network_alpha": "Dynamic"}),
    "text_encoders": ({**pair(KOHYA, 3 * WIDE), **ALPHA, **TEXT}, {}),
    "lokr": ({**lokr(KOHYA), **ALPHA}, {}),
    "lokr_of_factors": ({**decomposed(KOHYA), **ALPHA}, {}),
    "lokr_of_diffusers": ({f"lycoris_transformer_blocks_0_attn_to_q.{k}": v for k, v in
                           {"lokr_w1": noise(4, 4), "lokr_w2": noise(WIDE // 4, WIDE // 4)}.items()}, {}),
    "loha": ({**loha(KOHYA), **ALPHA}, {}),
    "xlabs": (XLABS, {}),
    "swapped_halves": (pair("transformer.norm_out.linear", 2 * WIDE, ends=("B", "A")), adapter(r=4, lora_alpha=8)),
}  # fmt: skip


def write(name: str, tensors: Tensors, metadata: dict[str, str] | None = None) -> str:
    settings = prompt()
    file = f"{name}.safetensors"
    save_file({**tensors, "op4ksr.txt": settings.txt, "op4ksr.vec": settings.vec}, harness.FOLDER / "loras" / file,
              metadata or {})  # fmt: skip
    return file


def load(name: str, tensors: Tensors, metadata: dict[str, str] | None = None, strength: float = 0.7) -> Any:
    model = harness.load_model(write_flux(FLUX))
    return harness.run("OP4KSR_LoadSRLoRA", model, write(name, tensors, metadata), strength)[0]


def changed(patcher: Any) -> Tensors:
    """The patched weights, as the host computes them."""
    weights = patcher.model.state_dict()
    return {
        key.removeprefix("diffusion_model."): comfy.lora.calculate_weight(patches, weights[key].clone().float(), key)
        for key, patches in patcher.patches.items()
    }


def as_the_core_merges() -> dict[str, Any]:
    """Case -> the largest difference over the largest change, and the weights that were changed."""
    found: dict[str, Any] = {}
    for name, (tensors, metadata) in SAME.items():
        with harness.Log() as log:
            theirs = changed(load(name, tensors, metadata))
        state = load_flux(harness.FOLDER / "diffusion_models" / FLUX).state_dict()
        header = describe_lora(harness.FOLDER / "loras" / f"{name}.safetensors").header
        lora = read_merge(header, {key: tuple(weight.shape) for key, weight in state.items()}, 0.7)
        ours = {key: merged_weight(key, state[key], [lora]) for key in lora.parts}
        change = max(float((ours[key] - state[key]).abs().max()) for key in ours)
        found[name] = {
            "weights": sorted(ours),
            "same_weights": ours.keys() == theirs.keys(),
            "change": change,
            "error": max(float((ours[key] - theirs[key]).abs().max()) for key in ours) / change,
            "log": [line for line in log.warnings if "left out" in line],
        }
    return found


def dora() -> dict[str, Any]:
    """Over its input axis: the host's to apply."""
    scale = 1 + noise(1, WIDE, seed=5).abs()
    theirs = changed(load("dora", {**pair(KOHYA, 3 * WIDE), f"{KOHYA}.dora_scale": scale}, strength=1.0))[QKV]
    base = load_flux(harness.FOLDER / "diffusion_models" / FLUX).state_dict()[QKV]
    up, down = pair(KOHYA, 3 * WIDE).values()
    whole = base + up @ down
    expected = whole * scale / whole.norm(dim=0, keepdim=True)
    return {"error": float((theirs - expected).abs().max()), "change": float((theirs - base).abs().max())}


def left_out() -> dict[str, Any]:
    """A module that this model lacks is named, once; the rest is applied."""
    lacking = pair("lora_unet_single_blocks_30_linear2", WIDE, 5 * WIDE)
    with harness.Log() as log:
        weights = changed(load("lacking", {**pair(KOHYA, 3 * WIDE), **lacking}))
    return {"weights": sorted(weights), "log": [line for line in log.warnings if "lora" in line.lower()]}


def refusals() -> dict[str, Any]:
    nan = pair(KOHYA, 3 * WIDE)
    nan[f"{KOHYA}.lora_up.weight"] = nan[f"{KOHYA}.lora_up.weight"] * float("nan")
    whole = {**pair(KOHYA, 3 * WIDE)}
    up = whole[f"{KOHYA}.lora_up.weight"]
    files: dict[str, tuple[Tensors, dict[str, str]]] = {
        "rank_0": (pair(KOHYA, 3 * WIDE, rank=0), {}),
        "alpha_of_two": ({**whole, f"{KOHYA}.alpha": torch.ones(2)}, {}),
        "alpha_nan": ({**whole, f"{KOHYA}.alpha": torch.tensor(float("nan"))}, {}),
        "alpha_bool": ({**whole, f"{KOHYA}.alpha": torch.tensor(True)}, {}),
        "nan": (nan, {}),
        "half": ({f"{KOHYA}.lora_up.weight": up}, {}),
        "ranks": ({**whole, f"{KOHYA}.lora_down.weight": noise(5, WIDE)}, {}),
        "size": (pair(KOHYA, 3 * WIDE, WIDE + 8), {}),
        "rows": (pair(PEFT, WIDE + 8, ends=("B", "A")), {}),
        "unknown": ({**whole, f"{KOHYA}.lora_sideways.weight": up.clone()}, {}),
        "unknown_alone": ({f"{KOHYA}.lora_sideways.weight": up}, {}),
        "magnitude": ({**peft(), f"{PEFT}.lora_magnitude_vector": noise(WIDE)}, {}),
        "dora_size": ({**whole, f"{KOHYA}.dora_scale": noise(7, 1)}, {}),
        "text_alone": (TEXT, {}),
        "integers": ({**whole, f"{KOHYA}.lora_up.weight": torch.ones(3 * WIDE, 4, dtype=torch.int32)}, {}),
        "metadata_text": (peft(), adapter(r=4, lora_alpha="much")),
        "metadata_nan": (peft(), adapter(r=4, lora_alpha=float("nan"))),
        "metadata_negative": (peft(), {"lora_alpha": "-8"}),
        "metadata_rank": (peft(), adapter(r=8, lora_alpha=8)),
        "metadata_deep": (peft(), {"lora_adapter_metadata": "[" * 100_000}),
        "metadata_list": (peft(), {"lora_adapter_metadata": "[]"}),
        "two_names": ({**whole, **{"diffusion_model.double_blocks.0.img_attn.qkv.lora_B.weight": up.clone()},
                       "double_blocks.0.img_attn.qkv.lora_B.weight": up.clone()}, {}),
        "two_layouts": ({**whole, **pair("diffusion_model.double_blocks.0.img_attn.qkv", 3 * WIDE)}, {}),
        "other_model": (pair("lora_unet_input_blocks_1_0", 8, 8), {}),
    }  # fmt: skip

    def attempt(name: str, tensors: Tensors, metadata: dict[str, str]) -> Callable[[], Any]:
        return lambda: load(f"bad_{name}", tensors, metadata)

    found = {name: harness.refusal(attempt(name, *file)) for name, file in files.items()}
    return found | {"strength": harness.refusal(lambda: load("strong", peft(), {}, float("nan")))}


CASES = [as_the_core_merges, dora, left_out, refusals]
