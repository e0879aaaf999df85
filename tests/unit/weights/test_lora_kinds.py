"""LoRAs of every day: text encoders' keys, XLabs, LoHa, LoKr, and the kinds that are named and not merged."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_merge import merge
from safetensors.torch import load_file, save_file
from torch import Tensor

from op4ksr_core import Flux, OptionError, UnsupportedCheckpointError, save_flux
from op4ksr_core.cli.main import main
from op4ksr_core.weights.convert import Conversion, convert
from op4ksr_core.weights.inspect import inspect_file

MakeFlux = Callable[..., Flux]
Tensors = dict[str, Tensor]
BASE = "lora_unet_double_blocks_0_img_attn_qkv"
QKV, PROJ = "double_blocks.0.img_attn.qkv.weight", "double_blocks.0.txt_attn.proj.weight"


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / 4


def pair(base: str = BASE, rows: int = 192, rank: int = 4, columns: int = 64) -> Tensors:
    return {f"{base}.lora_up.weight": noise(rows, rank), f"{base}.lora_down.weight": noise(rank, columns, seed=1)}


def changes(path: Path, make_flux: MakeFlux, tensors: Tensors, **metadata: str) -> Tensors:
    """{weight: what merging the file added to it}."""
    save_file(tensors, path, metadata)
    plain, merged = make_flux(), make_flux()
    merge(merged, path)
    old = dict(plain.named_parameters())
    return {name: new - old[name] for name, new in merged.named_parameters() if not torch.equal(new, old[name])}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "l.safetensors"


TEXT_ENCODERS = [
    "lora_te1_text_model_encoder_layers_0_mlp_fc1",
    "lora_te2_encoder_block_0_layer_0_SelfAttention_q",
    "lora_te_text_model_encoder_layers_0_mlp_fc1",
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    "text_encoder_2.encoder.block.0.layer.0.SelfAttention.q",
    "text_encoders.clip_l.transformer.text_model.encoder.layers.0.mlp.fc1",
    "text_model.encoder.layers.0.mlp.fc1",
    "base_model.model.text_model.encoder.layers.0.mlp.fc1",
]


@pytest.mark.parametrize("name", TEXT_ENCODERS)
def test_text_encoders_are_left_out_and_named_in_one_line(
    path: Path, make_flux: MakeFlux, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        found = changes(path, make_flux, {**pair(), **pair(name, 8, 2, 8), f"{name}.alpha": torch.tensor(1.0)})
    assert found.keys() == {QKV} and torch.allclose(found[QKV], noise(192, 4) @ noise(4, 64, seed=1), atol=1e-6)
    (line,) = caplog.messages
    assert line.startswith(f"{path.name}: 3 tensors change text encoders and are left out ({name}.alpha, ")
    assert len(inspect_file(path)["left_out"]) == 3


def test_what_changes_text_encoders_alone_is_refused(path: Path, make_flux: MakeFlux) -> None:
    with pytest.raises(UnsupportedCheckpointError, match="changes text encoders alone"):
        changes(path, make_flux, pair(TEXT_ENCODERS[0], 8, 2, 8))


def test_loha_is_the_product_of_two_loras(path: Path, make_flux: MakeFlux) -> None:
    shapes = {"hada_w1_a": (192, 3), "hada_w1_b": (3, 64), "hada_w2_a": (192, 3), "hada_w2_b": (3, 64)}
    parts = {part: noise(*shape, seed=i) for i, (part, shape) in enumerate(shapes.items())}
    tensors = {f"{BASE}.{part}": tensor for part, tensor in parts.items()} | {f"{BASE}.alpha": torch.tensor(6.0)}
    a, b, c, d = parts.values()
    assert torch.allclose(changes(path, make_flux, tensors)[QKV], 2 * (a @ b) * (c @ d), atol=1e-6)
    assert inspect_file(path)["changes"] == ["LoHa"] and inspect_file(path)["ranks"] == [3]


@pytest.mark.parametrize(
    ("shapes", "scale"),
    [
        ({"lokr_w1": (4, 4), "lokr_w2": (48, 16)}, 1.0),  # of no rank, so that its alpha has no part in it
        ({"lokr_w1": (4, 4), "lokr_w2_a": (48, 2), "lokr_w2_b": (2, 16)}, 4.0),
        ({"lokr_w1_a": (4, 2), "lokr_w1_b": (2, 4), "lokr_w2": (48, 16)}, 4.0),
        ({"lokr_w1_a": (4, 1), "lokr_w1_b": (1, 4), "lokr_w2_a": (48, 2), "lokr_w2_b": (2, 16)}, 4.0),
    ],
)
def test_lokr_is_a_kronecker_product(
    path: Path, make_flux: MakeFlux, shapes: dict[str, tuple[int, int]], scale: float
) -> None:
    parts = {part: noise(*shape, seed=i) for i, (part, shape) in enumerate(shapes.items())}
    tensors = {f"{BASE}.{part}": tensor for part, tensor in parts.items()} | {f"{BASE}.alpha": torch.tensor(8.0)}
    first, second = (parts.get(w, parts[f"{w}_a"] @ parts[f"{w}_b"] if f"{w}_a" in parts else None)
                     for w in ("lokr_w1", "lokr_w2"))  # fmt: skip
    found = changes(path, make_flux, tensors)[QKV]
    assert torch.allclose(found[:48, :16], scale * first[0, 0] * second, atol=1e-6)
    assert torch.allclose(found[-48:, 16:32], scale * first[3, 1] * second, atol=1e-6)
    assert inspect_file(path)["changes"] == ["LoKr"]


def test_a_lokr_of_a_part_of_a_fused_weight(path: Path, make_flux: MakeFlux) -> None:
    base = "lycoris_single_transformer_blocks_1_attn_to_v"
    tensors = {f"{base}.lokr_w1": noise(4, 4), f"{base}.lokr_w2": noise(16, 16, seed=1)}
    found = changes(path, make_flux, tensors)["single_blocks.1.linear1.weight"]
    assert torch.allclose(found[128:192], torch.kron(*tensors.values()), atol=1e-6)
    assert not found[:128].any() and not found[192:].any()


def test_xlabs_names(path: Path, make_flux: MakeFlux) -> None:
    places = {
        "double_blocks.0.processor.qkv_lora1": (QKV, 192, 64),
        "double_blocks.0.processor.qkv_lora2": ("double_blocks.0.txt_attn.qkv.weight", 192, 64),
        "double_blocks.0.processor.proj_lora1": ("double_blocks.0.img_attn.proj.weight", 64, 64),
        "double_blocks.0.processor.proj_lora2": (PROJ, 64, 64),
        "single_blocks.1.processor.qkv_lora": ("single_blocks.1.linear1.weight", 192, 64),
        "single_blocks.1.processor.proj_lora": ("single_blocks.1.linear2.weight", 64, 320),
    }
    tensors: Tensors = {}
    for base, (_, rows, columns) in places.items():
        up, down = pair("x", rows, 4, columns).values()
        tensors |= {f"{base}.up.weight": up, f"{base}.down.weight": down}
    found = changes(path, make_flux, tensors)
    assert found.keys() == {weight for weight, *_ in places.values()}
    for base, (weight, rows, _) in places.items():
        expected = tensors[f"{base}.up.weight"] @ tensors[f"{base}.down.weight"]
        assert torch.allclose(found[weight][:rows], expected, atol=1e-5) and not found[weight][rows:].any()


@pytest.mark.parametrize("ends", [("lora.up.weight", "lora.down.weight"), ("lora_B", "lora_A"),
                                  ("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
                                  ("lora_B.default.weight", "lora_A.default.weight")])  # fmt: skip
@pytest.mark.parametrize("prefix", ["transformer.", "", "diffusion_model.", "base_model.model."])
def test_more_spellings(path: Path, make_flux: MakeFlux, ends: tuple[str, str], prefix: str) -> None:
    base = f"{prefix}transformer_blocks.0.attn.to_add_out"
    up, down = pair("x", 64).values()
    found = changes(path, make_flux, {f"{base}.{ends[0]}": up, f"{base}.{ends[1]}": down})
    assert found.keys() == {PROJ} and torch.allclose(found[PROJ], up @ down, atol=1e-6)


NOT_MERGED: dict[str, tuple[str, Tensors]] = {
    "dora": ("DoRA (LoRA)", {**pair(), f"{BASE}.dora_scale": noise(1, 64)}),
    "peft's dora": ("DoRA (LoRA)", {**pair(), f"{BASE}.lora_magnitude_vector": noise(192)}),
    "glora": ("GLoRA", {f"{BASE}.{p}.weight": noise(4, 4) for p in ("a1", "a2", "b1", "b2")}),
    "oft": ("OFT", {f"{BASE}.oft_blocks": noise(4, 48, 48)}),
    "difference": ("difference", {f"{BASE}.diff": noise(192, 64)}),
    "peft's dora, adapter named": ("DoRA (LoRA)", {**pair(), f"{BASE}.lora_magnitude_vector.run.weight": noise(192)}),
    "tucker": ("Tucker (LoRA)", {**pair(), f"{BASE}.lora_mid.weight": noise(4, 4, 3, 3)}),
    "tucker's lokr": (
        "Tucker (LoKr)",
        {f"{BASE}.lokr_{part}": noise(*shape) for part, shape in
         {"w1": (4, 4), "t2": (2, 2, 1, 1), "w2_a": (2, 48), "w2_b": (2, 16)}.items()},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", NOT_MERGED)
def test_what_is_not_merged_is_named(path: Path, make_flux: MakeFlux, kind: str) -> None:
    name, tensors = NOT_MERGED[kind]
    with pytest.raises(UnsupportedCheckpointError) as caught:
        changes(path, make_flux, tensors)
    assert f"is {name} ({BASE}), which is not merged here (only LoRA, LoHa, LoKr are)" in str(caught.value)
    not_in_host = "ComfyUI does not apply it either, so choose another LoRA"
    assert str(caught.value).endswith(not_in_host if "peft" in kind or "tucker" in kind else "save the model there")
    assert inspect_file(path)["kind"] == "lora" and inspect_file(path)["changes"] == [name]


def broken() -> dict[str, tuple[str, Tensors]]:
    whole, up = pair(), f"{BASE}.lora_up.weight"
    nan, infinite = whole[up].clone(), whole[up].clone()
    nan[3, 2], infinite[5, 1] = float("nan"), float("inf")
    lokr = {f"{BASE}.lokr_w1": noise(4, 4), f"{BASE}.lokr_w2": noise(48, 16)}
    return {
        "rank 0": ("has rank 0", pair(rank=0)),
        "loha of rank 0": (
            "has rank 0",
            {f"{BASE}.hada_{p}": noise(*s) for p, s in
             {"w1_a": (192, 0), "w1_b": (0, 64), "w2_a": (192, 0), "w2_b": (0, 64)}.items()},
        ),
        "lokr of nothing": ("has rank 0", {**lokr, f"{BASE}.lokr_w2": noise(0, 16)}),
        "nan": ("lora_up.weight holds NaN or infinite numbers", {**whole, up: nan}),
        "inf": ("holds NaN or infinite numbers", {**whole, up: infinite}),
        "alpha nan": ("holds NaN or infinite", {**whole, f"{BASE}.alpha": torch.tensor(float("nan"))}),
        "alpha of two": ("expected a single number, got the shape (2,)", {**whole, f"{BASE}.alpha": torch.ones(2)}),
        "alpha of none": ("expected a single number, got the shape (0,)", {**whole, f"{BASE}.alpha": torch.ones(0)}),
        "alpha bool": ("expected one of the dtypes", {**whole, f"{BASE}.alpha": torch.tensor(True)}),
        "half": ("is half a LoRA (down missing)", {up: whole[up]}),
        "half a loha": ("is half a LoHa", {f"{BASE}.hada_w1_a": noise(192, 4)}),
        "half a lokr": ("is half a LoKr", {f"{BASE}.lokr_w1": noise(4, 4)}),
        "both": ("has both LoKr and LoRA", {**whole, **lokr}),
        "alpha alone": ("has an alpha and nothing", {**whole, "lora_unet_img_in.alpha": torch.tensor(1.0)}),
        "scale alone": ("has the scale of a DoRA", {**whole, "lora_unet_img_in.dora_scale": noise(64, 1)}),
        "lokr of a vector": ("expected a matrix", {**lokr, f"{BASE}.lokr_w1": noise(4)}),
        "lokr of another size": ("model of another size", {**lokr, f"{BASE}.lokr_w1": noise(4, 5)}),
        "two names": (
            "changes one module under two names",
            {**pair("double_blocks.0.img_attn.qkv"), **pair("diffusion_model.double_blocks.0.img_attn.qkv")},
        ),
        "two layouts' names": (
            "changes one module under two names",
            {**pair(), **pair("diffusion_model.double_blocks.0.img_attn.qkv")},
        ),
        "unknown": ("1 of its 3 tensors fit nothing", {**whole, f"{BASE}.lora_sideways.weight": noise(4, 4)}),
        "unknown alone": ("holds no LoRA that we know", {f"{BASE}.lora_sideways.weight": noise(4, 4)}),
        "complex": ("expected one of the dtypes", {**whole, up: whole[up].to(torch.complex64)}),
    }  # fmt: skip


@pytest.mark.parametrize("case", broken())
def test_a_broken_lora_is_one_sentence_and_nothing_is_written(
    path: Path, make_flux: MakeFlux, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words, tensors = broken()[case]
    save_flux(path.with_name("flux.safetensors"), make_flux())
    save_file(tensors, path)
    out = path.with_name("out.safetensors")
    assert main(["convert", str(path.with_name("flux.safetensors")), "-o", str(out), "--merge-lora", str(path)]) == 1
    text = capsys.readouterr().err
    assert words in text and text.startswith(f"error: {path}: ") and text.count("\n") == 1 and len(text) < 700
    assert {file.name for file in path.parent.iterdir()} == {"flux.safetensors", "l.safetensors"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_a_sum_that_the_dtype_cannot_hold_is_refused_and_nothing_written(
    path: Path, make_flux: MakeFlux, dtype: torch.dtype, capsys: pytest.CaptureFixture[str]
) -> None:
    model = path.with_name("flux.safetensors")
    save_flux(model, make_flux(), dtype=dtype)
    size = 1e3 if dtype == torch.float16 else 1e20
    save_file({name: size * tensor for name, tensor in pair().items()}, path)
    arguments = ["convert", str(model), "-o", str(path.with_name("out.safetensors")), "--merge-lora"]
    assert main([*arguments, str(path)]) == 1
    text = capsys.readouterr().err
    assert f"merging makes {QKV} larger than {str(dtype)[6:]} can hold; merge it at a smaller strength" in text
    assert {file.name for file in path.parent.iterdir()} == {"flux.safetensors", "l.safetensors"}
    assert main([*arguments, f"{path}:0"]) == 0
    before, after = load_file(model), load_file(path.with_name("out.safetensors"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("strength", ["1e400", "-1e999"])
def test_a_strength_that_is_no_number_is_refused(
    path: Path, make_flux: MakeFlux, strength: str, capsys: pytest.CaptureFixture[str]
) -> None:
    save_flux(path.with_name("flux.safetensors"), make_flux())
    save_file(pair(), path)
    arguments = ["convert", str(path.with_name("flux.safetensors")), "-o", str(path.with_name("out.safetensors"))]
    assert main([*arguments, "--merge-lora", f"{path}:{strength}"]) == 1
    assert "expected a number" in capsys.readouterr().err
    source, out = path.with_name("flux.safetensors"), path.with_name("out.safetensors")
    with pytest.raises(OptionError, match="expected a strength that is a number"):
        convert(source, out, Conversion(loras=((path, float(strength)),)))


def test_inspect_tells_what_a_lora_is(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lacking = pair("lora_unet_input_blocks_1", 8, 2, 8)
    save_file({**pair(), **pair(TEXT_ENCODERS[0], 8, 2, 8), **lacking}, path, {"lora_alpha": "2"})
    found: dict[str, Any] = inspect_file(path)
    assert (found["changes"], found["modules"], found["ranks"]) == (["LoRA"], 2, [2, 4])
    assert found["scales"] == [0.5, 1.0] and found["scale_from"] == "metadata lora_alpha"
    assert found["target"] == "a Flux transformer, and 1 modules of something else" and len(found["left_out"]) == 2
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert "scale_from: metadata lora_alpha" in out and "ranks: [2, 4]" in out
