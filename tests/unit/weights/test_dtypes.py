"""Weights are floating-point numbers: integers, booleans and complex numbers are refused, by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_merge import merge
from safetensors.torch import load_file, save_file
from torch import Tensor

from op4ksr_core import Flux, UnsupportedCheckpointError, load_autoencoder, load_flux, save_autoencoder, save_flux
from op4ksr_core.cli.main import main
from op4ksr_core.weights.description import describe_flux
from op4ksr_core.weights.inspect import inspect_file
from op4ksr_core.weights.lora import describe_lora

WRONG = {
    "I16": torch.int16,
    "I64": torch.int64,
    "U8": torch.uint8,
    "U16": torch.uint16,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
RIGHT = [torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2]
LORA = "lora_unet_single_blocks_0_linear2"


@pytest.fixture
def files(tmp_path: Path, make_flux: Callable[..., Flux], make_autoencoder: Any) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.safetensors" for name in ("vae", "flux", "lora")}
    save_autoencoder(paths["vae"], make_autoencoder())
    save_flux(paths["flux"], make_flux())
    factors = {f"{LORA}.lora_down.weight": torch.ones(4, 320), f"{LORA}.lora_up.weight": torch.ones(64, 4)}
    save_file(factors, paths["lora"])
    return paths


def change(path: Path, name: str, tensor: Tensor) -> None:
    save_file({**load_file(path), name: tensor}, path)


def refusal(use: Callable[[], Any]) -> str:
    with pytest.raises(UnsupportedCheckpointError) as caught:
        use()
    return str(caught.value)


LOAD: dict[str, Callable[[Path], Any]] = {"vae": load_autoencoder, "flux": load_flux, "lora": describe_lora}


@pytest.mark.parametrize("dtype", WRONG)
@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("vae", "encoder.conv_in.bias"),
        ("flux", "single_blocks.1.linear1.weight"),
        ("flux", "op4ksr.txt"),
        ("lora", f"{LORA}.lora_up.weight"),
        ("lora", "op4ksr.vec"),
    ],
)
def test_numbers_that_are_no_weights_are_refused_by_name(
    files: dict[str, Path], kind: str, name: str, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, shapes = files[kind], {"op4ksr.txt": (3, 24), "op4ksr.vec": (12,)}
    change(path, "op4ksr.txt", torch.zeros(3, 24)) if name == "op4ksr.vec" else None
    shape = shapes.get(name) or load_file(path)[name].shape
    change(path, name, torch.ones(shape, dtype=WRONG[dtype]))
    text = refusal(lambda: LOAD[kind](path))
    assert text.startswith(f"{path}: {name}: expected one of the dtypes F64, F32, F16, BF16, F8_E4M3, F8_E5M2, got ")
    assert text.endswith(f"got {dtype}; take another file")
    assert main(["convert", str(path), "-o", str(path.with_name("out.safetensors"))]) == 1
    assert capsys.readouterr().err == f"error: {text}\n"
    if kind != "lora" or name == "op4ksr.vec":
        assert refusal(lambda: inspect_file(path)) == text


@pytest.mark.parametrize("dtype", RIGHT, ids=str)
def test_every_floating_point_dtype_is_read(files: dict[str, Path], dtype: torch.dtype) -> None:
    for kind in ("vae", "flux"):
        exact = load_file(files[kind])
        tensors = {name: tensor.to(dtype) for name, tensor in exact.items()}
        metadata = {"op4ksr.norm_groups": "4", "op4ksr.vae_stride": "2"}
        save_file(tensors, files[kind], metadata)
        state = LOAD[kind](files[kind]).state_dict()
        assert all(torch.equal(state[name], tensors[name].float()) for name in state)


def test_a_prompt_of_integers_is_refused_in_a_quantized_file_too(files: dict[str, Path]) -> None:
    """How its weights and scales are stored is the host's business."""
    path = files["flux"]
    change(path, "double_blocks.0.img_attn.qkv.comfy_quant", torch.zeros(8, dtype=torch.uint8))
    change(path, "double_blocks.0.img_attn.qkv.weight", torch.zeros(192, 64, dtype=torch.int8))
    assert describe_flux(path).quantized
    change(path, "op4ksr.txt", torch.zeros(3, 24, dtype=torch.int64))
    assert "op4ksr.txt: expected" in refusal(lambda: describe_flux(path))


def test_a_quantized_file_holds_all_weights_and_those_of_floats_have_their_shapes(files: dict[str, Path]) -> None:
    path, weight = files["flux"], "double_blocks.0.img_attn.qkv.weight"
    change(path, weight.replace("weight", "scale_weight"), torch.ones(1))
    change(path, "scaled_fp8", torch.zeros(0).to(torch.float8_e4m3fn))
    change(path, weight, torch.zeros(192, 64).to(torch.float8_e4m3fn))
    assert "in ComfyUI alone" in inspect_file(path)["usable"]
    change(path, weight, torch.zeros(192, 32, dtype=torch.uint8))  # two numbers in one
    assert "in ComfyUI alone" in inspect_file(path)["usable"]
    change(path, weight, torch.zeros(192, 32))
    assert f"1 of another shape ({weight}: expected (192, 64), got (192, 32))" in refusal(lambda: inspect_file(path))
    other = "double_blocks.0.img_attn.proj.weight"
    save_file({name: tensor for name, tensor in load_file(path).items() if name != other}, path)
    assert f"1 missing ({other})" in refusal(lambda: inspect_file(path))


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.int32, torch.complex64], ids=str)
def test_a_quantized_file_holds_no_integers_that_no_format_packs(files: dict[str, Path], dtype: torch.dtype) -> None:
    path = files["flux"]
    change(path, "double_blocks.0.img_attn.qkv.scale_weight", torch.ones(1))
    assert describe_flux(path).quantized
    change(path, "double_blocks.0.img_attn.qkv.weight", torch.ones(192, 64, dtype=dtype))
    assert "double_blocks.0.img_attn.qkv.weight: expected one of the dtypes" in refusal(lambda: describe_flux(path))


def test_a_file_of_prompt_embeddings_holds_floating_point_numbers(
    files: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    prompt, out = files["vae"].with_name("prompt.safetensors"), files["vae"].with_name("out.safetensors")
    save_file({"txt": torch.ones(3, 24, dtype=torch.int64), "vec": torch.ones(12)}, prompt)
    assert main(["convert", str(files["flux"]), "-o", str(out), "--prompt-embedding", str(prompt)]) == 1
    assert f"{prompt}: txt: expected one of the dtypes" in capsys.readouterr().err


def test_an_alpha_may_be_an_integer_as_trainers_write_it(files: dict[str, Path], make_flux: Any) -> None:
    """kohya's is ``torch.tensor(alpha)`` of whatever the option was."""
    change(files["lora"], f"{LORA}.alpha", torch.tensor(2))
    model, plain = make_flux(), make_flux()
    merge(model, files["lora"])
    name = "single_blocks.0.linear2.weight"
    assert torch.allclose(model.get_parameter(name), plain.get_parameter(name) + 2 / 4 * 4, atol=1e-6)
    change(files["lora"], f"{LORA}.alpha", torch.tensor(True))
    assert "expected one of the dtypes F64, F32, F16, BF16, F8_E4M3, F8_E5M2, I64" in refusal(
        lambda: describe_lora(files["lora"])
    )


def test_a_lora_of_rank_0_is_refused(files: dict[str, Path], make_flux: Any) -> None:
    factors = {f"{LORA}.lora_down.weight": torch.ones(0, 320), f"{LORA}.lora_up.weight": torch.ones(64, 0)}
    save_file({**factors, f"{LORA}.alpha": torch.tensor(2.0)}, files["lora"])
    assert "has rank 0, so that it changes nothing" in refusal(lambda: merge(make_flux(), files["lora"]))
