"""Weights files as no loader should get them, through each loader node: what is said, and how soon."""

from __future__ import annotations

import json
import os
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from weights import noise, prompt, write_flux, write_vae

FOLDERS = {"vae": "OP4KSR_LoadF16VAE", "diffusion_models": "OP4KSR_LoadFluxSR", "loras": "OP4KSR_LoadSRLoRA"}
BASE = "lora_unet_double_blocks_0_img_attn_qkv"
Tensors = dict[str, Tensor]


def good() -> dict[str, Path]:
    lora = {f"{BASE}.lora_up.weight": noise(384, 4), f"{BASE}.lora_down.weight": noise(4, 128)}
    settings = prompt()
    lora |= {"op4ksr.txt": settings.txt, "op4ksr.vec": settings.vec}
    save_file(lora, harness.FOLDER / "loras" / "good.safetensors")
    names = {"vae": write_vae("good.safetensors"), "diffusion_models": write_flux("good.safetensors")}
    return {kind: harness.FOLDER / kind / names.get(kind, "good.safetensors") for kind in FOLDERS}


def with_tensors(source: Path, change: Callable[[Tensors], Any]) -> Callable[[Path], Any]:
    def write(path: Path) -> None:
        tensors = load_file(source)
        change(tensors)
        save_file(tensors, path, {"op4ksr.norm_groups": "4", "op4ksr.vae_stride": "2"})

    return write


def raw(header: bytes, data: bytes = b"") -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def content(text: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(text)


def first(tensors: Tensors) -> str:
    return next(name for name in sorted(tensors) if name.endswith("weight"))


def odd_files(kind: str, source: Path) -> dict[str, Callable[[Path], Any]]:
    block = {"vae": "encoder.down.0.block.{}.x", "diffusion_models": "double_blocks.{}.x",
             "loras": "lora_unet_double_blocks_{}_img_attn_proj.lora_up.weight"}[kind]  # fmt: skip
    entry = json.dumps({"dtype": "F32", "shape": [1], "data_offsets": [0, 4]})

    def cast(dtype: torch.dtype) -> Callable[[Tensors], Any]:
        return lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].to(dtype)})

    return {
        "bomb": with_tensors(source, lambda tensors: tensors.update({block.format(999999999): torch.zeros(1)})),
        "bool": with_tensors(source, cast(torch.bool)),
        "integers": with_tensors(source, cast(torch.int32)),
        "complex": with_tensors(source, cast(torch.complex64)),
        "escape": raw(f'{{"a\\u001b[2J":{entry}}}'.encode(), bytes(4)),
        "deep": raw(b'{"a":' + b"[" * 100_000),
        "web_page": content(b"<!DOCTYPE html><html><body>Sign in</body></html>"),
        "lfs": content(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n"),
        "pipe": os.mkfifo,
        "folder": Path.mkdir,
        "empty": content(b""),
    }


def odd_weights() -> dict[str, Any]:
    """{loader: {file: what is said}}; the longest that any took."""
    found: dict[str, Any] = {"seconds": 0.0}
    for kind, source in good().items():
        model = harness.load_model("good.safetensors") if kind == "loras" else None
        found[kind] = {}
        for name, write in odd_files(kind, source).items():
            path = harness.FOLDER / kind / f"{name}.safetensors"
            write(path)
            start = time.monotonic()
            arguments = (path.name,) if model is None else (model, path.name)
            found[kind][name] = harness.refusal(lambda a=arguments, k=kind: harness.run(FOLDERS[k], *a))
            found["seconds"] = max(found["seconds"], time.monotonic() - start)
    return found


def quantized() -> dict[str, Any]:
    """A file with scales that the host does not know, or whose tensors do not fit."""
    source = good()["diffusion_models"]
    weight = "double_blocks.0.img_attn.qkv.weight"
    note = torch.tensor(list(b'{"format": "unheard_of"}'), dtype=torch.uint8)

    def unheard_of(tensors: Tensors) -> None:
        tensors[weight.replace("weight", "comfy_quant")] = note
        tensors[weight.replace("weight", "weight_scale")] = torch.ones(1)

    def misfit(tensors: Tensors) -> None:
        tensors[weight.replace("weight", "scale_weight")] = torch.ones(1)
        tensors["scaled_fp8"] = torch.zeros(2).to(torch.float8_e4m3fn)
        tensors[weight] = torch.zeros(3, 3)

    found: dict[str, Any] = {}
    for name, change in {"unheard_of": unheard_of, "misfit": misfit}.items():
        with_tensors(source, change)(harness.FOLDER / "diffusion_models" / f"{name}.safetensors")
        found[name] = harness.refusal(lambda n=name: harness.load_model(f"{n}.safetensors"))
    return found


CASES = [odd_weights, quantized]
