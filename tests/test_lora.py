"""LoRA: what is attached, what the file holds, and that merging it gives what was trained."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from op4ksr_core import OneStepSettings, OptionError, UnsupportedCheckpointError
from op4ksr_core.checkpoint import save_tensors
from op4ksr_core.header import read_header, read_tensors
from op4ksr_core.lora import attach, merge, save_lora, state_dict

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
    plain, model = make_flux(), make_flux()
    adapters = attach(model, 4, 4.0, TARGETS)
    assert torch.equal(velocity(plain), velocity(model))
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 2 * len(adapters) and all(name.endswith((".up", ".down")) for name in trained)
    assert {"double_blocks.0.img_attn.qkv", "single_blocks.1.linear1", "double_blocks.0.txt_mlp.2"} <= set(adapters)


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


def test_what_does_not_fit_is_refused(make_flux, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="lora_targets"):
        attach(make_flux(), 4, 4.0, ("nothing",))
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
