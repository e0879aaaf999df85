"""LoRA: what is attached, what the file holds, and that merging it gives what was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from lora_merge import merge
from torch.nn import functional as F

from op4ksr_core import OneStepSettings, OptionError, UnsupportedCheckpointError
from op4ksr_core.training.tasks.lora import attach, save_lora, state_dict
from op4ksr_core.weights.checkpoint import save_tensors
from op4ksr_core.weights.header import read_header, read_tensors
from op4ksr_core.weights.lora import canonical_name, describe_lora

TARGETS = ("qkv", "proj", "0", "2", "linear1", "linear2")


def velocity(model, seed: int = 0) -> torch.Tensor:
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(latent, torch.tensor([0.5]), *model.prompt(1))


def stirred(model, rank: int = 4, alpha: float = 8.0):
    adapters = attach(model, rank, alpha, TARGETS, seed=1)
    with torch.no_grad():
        for i, adapter in enumerate(adapters.values()):
            adapter.up.normal_(0, 0.1, generator=torch.Generator().manual_seed(i))
    return adapters


def test_an_adapter_starts_as_nothing_and_alone_is_trained(make_flux) -> None:
    plain, model = make_flux(), make_flux().requires_grad_(True)
    adapters = attach(model, 4, 4.0, TARGETS)
    assert torch.equal(velocity(plain), velocity(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(adapters) and all(name.endswith((".up", ".down")) for name in trained)
    assert {"double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "double_blocks.0.txt_mlp.2"} <= set(adapters)


def test_what_is_added_is_alpha_over_rank_times_up_and_down(make_flux) -> None:
    plain, model = make_flux(), make_flux()
    name = "double_blocks.0.img_attn.proj"
    adapter = stirred(model, rank=4, alpha=10.0)[name]
    x = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    weight = plain.get_parameter(f"{name}.weight") + 10 / 4 * adapter.up @ adapter.down
    assert torch.allclose(adapter(x), F.linear(x, weight, plain.get_parameter(f"{name}.bias")), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("double_blocks.0.img_attn.qkv.lora_A.weight", "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight"),
        ("transformer.single_blocks.1.linear1.alpha", "diffusion_model.single_blocks.1.linear1.alpha"),
        ("model.diffusion_model.img_in.lora_B.weight", "diffusion_model.img_in.lora_B.weight"),
        (
            "base_model.model.transformer_blocks.3.attn.to_q.lora_A.default.weight",
            "transformer.transformer_blocks.3.attn.to_q.lora_A.weight",
        ),
        ("x_embedder.lora_A.my_run_1.weight", "transformer.x_embedder.lora_A.weight"),
        ("x_embedder.lora_B.default_0", "transformer.x_embedder.lora_B.weight"),
        ("x_embedder.lora_B.bias", "transformer.x_embedder.lora_B.bias"),
        ("x_embedder.lora_B.default.bias", "transformer.x_embedder.lora_B.default.bias"),
        ("x_embedder.lora_magnitude_vector.default.weight", "transformer.x_embedder.lora_magnitude_vector"),
        ("x_embedder.lora_magnitude_vector.weight", "transformer.x_embedder.lora_magnitude_vector"),
        ("x_embedder.lora_A.weight", "transformer.x_embedder.lora_A.weight"),
        ("proj_out.lora_B.weight", "transformer.proj_out.lora_B.weight"),
        ("transformer.proj_out.alpha", "transformer.proj_out.alpha"),
        ("lora_unet_double_blocks_0_img_mod_lin.lora_up.weight",) * 2,
        ("lora_transformer_proj_out.lora_up.weight",) * 2,
        ("op4ksr.txt",) * 2,
    ],
)
def test_each_spelling_of_a_name_is_the_hosts(name: str, canonical: str) -> None:
    assert canonical_name(name) == canonical == canonical_name(canonical)


@pytest.mark.parametrize("base", ["lora_transformer_single_transformer_blocks_1_attn_to_v", "lora_unet_img_in"])
def test_kohyas_names_of_either_model_merge(make_flux, tmp_path: Path, base: str) -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(64, 4, generator=generator), torch.randn(4, 64, generator=generator)
    pair = {f"{base}.lora_up.weight": up, f"{base}.lora_down.weight": down}
    save_tensors(tmp_path / "l.safetensors", pair, {})
    plain, merged = make_flux(), make_flux()
    assert merge(merged, tmp_path / "l.safetensors") == 1
    name, rows = ("img_in", slice(0, 64)) if "img_in" in base else ("single_blocks.1.linear1", slice(128, 192))
    expected = plain.get_parameter(f"{name}.weight").clone()
    expected[rows] += up @ down
    assert torch.allclose(merged.get_parameter(f"{name}.weight"), expected, atol=1e-6)


def test_up_and_down_must_have_one_rank_and_the_models_sizes(make_flux, tmp_path: Path) -> None:
    base = "lora_unet_double_blocks_0_img_attn_proj"
    for up, down in (((64, 4), (5, 64)), ((63, 4), (4, 64)), ((64, 4), (4, 65)), ((64, 4), (64,)), ((64,), (4, 64))):
        pair = {f"{base}.lora_up.weight": torch.zeros(up), f"{base}.lora_down.weight": torch.zeros(down)}
        save_tensors(tmp_path / "l.safetensors", pair, {})
        with pytest.raises(UnsupportedCheckpointError, match="for a model of another size|do not fit together"):
            merge(make_flux(), tmp_path / "l.safetensors")


def test_the_merged_file_is_what_was_trained(make_flux, tmp_path: Path) -> None:
    settings = OneStepSettings(sigma=0.3, txt=torch.randn(2, 24), vec=torch.zeros(12), train_tokens=64)
    plain = make_flux(settings=settings, theta=(46.7, 46.7))
    model = copy.deepcopy(plain)
    adapters = stirred(model)
    save_lora(tmp_path / "l.safetensors", model, adapters, training="a line")
    merged = copy.deepcopy(plain)
    changed = merge(merged, tmp_path / "l.safetensors")
    assert torch.allclose(velocity(merged), velocity(model), atol=1e-5)
    assert float((velocity(plain) - velocity(model)).abs().max()) > 1e-2
    assert changed == len(state_dict(adapters)) // 2 == 1 * (3 + 1 + 2) * 2 + 2 * (4 + 1)
    half = copy.deepcopy(plain)
    merge(half, tmp_path / "l.safetensors", 0.5)
    merge(half, tmp_path / "l.safetensors", 0.5)
    assert torch.allclose(velocity(half), velocity(merged), atol=1e-5)


def test_the_file_carries_the_models_constants(make_flux, tmp_path: Path) -> None:
    settings = OneStepSettings(sigma=0.3, txt=torch.randn(2, 24), train_tokens=64)
    model = make_flux(settings=settings, theta=(46.7, 80.0))
    save_lora(tmp_path / "l.safetensors", model, stirred(model), dtype=torch.float16, training="a line")
    header = read_header(tmp_path / "l.safetensors")
    assert header.kind == "lora" and header.metadata["op4ksr.kind"] == "lora"
    assert header.metadata["op4ksr.rope_theta"] == "46.7,80.0" and header.metadata["op4ksr.sigma"] == "0.3"
    assert torch.allclose(read_tensors(header)["op4ksr.txt"].float(), settings.txt, atol=1e-2)
    names = {name.partition(".lora_")[0] for name in header.shapes if "lora_" in name}
    assert "transformer.transformer_blocks.0.attn.to_k" in names
    assert "transformer.single_transformer_blocks.1.proj_mlp" in names


def test_a_theta_is_the_files_own_or_none(make_flux, tmp_path: Path) -> None:
    model = make_flux(theta=(46.7, 80.0))
    save_lora(tmp_path / "l.safetensors", model, stirred(model))
    assert describe_lora(tmp_path / "l.safetensors").theta == (46.7, 80.0)
    save_tensors(tmp_path / "plain.safetensors", {"lora_unet_img_in.lora_up.weight": torch.zeros(64, 4)}, {})
    assert describe_lora(tmp_path / "plain.safetensors").theta is None


def test_what_does_not_fit_is_refused(make_flux, tmp_path: Path) -> None:
    for target in ("nothing", "img_in", "linear"):  # the last two are layers, but of no block
        with pytest.raises(OptionError, match="lora_targets"):
            attach(make_flux(), 4, 4.0, (target,))
    model = make_flux()
    save_lora(tmp_path / "l.safetensors", model, stirred(model))
    with pytest.raises(UnsupportedCheckpointError, match="fit nothing in this transformer"):
        merge(make_flux(depth_single_blocks=1), tmp_path / "l.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="for a model of another size"):
        merge(make_flux(hidden_size=128, num_heads=4), tmp_path / "l.safetensors")
    save_tensors(tmp_path / "none.safetensors", {"x": torch.zeros(1)}, {})
    with pytest.raises(UnsupportedCheckpointError, match="holds no LoRA"):
        merge(make_flux(), tmp_path / "none.safetensors")


def test_kohyas_layout_merges_too_and_a_half_weight_is_rounded_once(make_flux, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    up, down = torch.randn(64, 4, generator=generator), torch.randn(4, 64, generator=generator)
    base = "lora_unet_double_blocks_0_img_attn_proj"
    pair = {f"{base}.lora_up.weight": up, f"{base}.lora_down.weight": down, f"{base}.alpha": torch.tensor(2.0)}
    save_tensors(tmp_path / "l.safetensors", pair, {})
    plain, merged = make_flux().bfloat16(), make_flux().bfloat16()
    assert merge(merged, tmp_path / "l.safetensors", 0.7) == 1
    was = dict(plain.named_parameters())
    name = "double_blocks.0.img_attn.proj.weight"
    for other, weight in merged.named_parameters():
        expected = (was[other].float() + 0.7 * (2.0 / 4 * (up @ down))).bfloat16() if other == name else was[other]
        assert torch.equal(weight, expected), other
    assert not torch.equal(was[name], merged.get_parameter(name))
