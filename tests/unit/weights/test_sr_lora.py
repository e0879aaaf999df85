"""One-step LoRAs as they are found on disk: a file of ours, OMGSR's folder, FluxSR's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from op4ksr_core import AutoEncoder, UnsupportedCheckpointError
from op4ksr_core.weights.header import ENCODER_PREFIX, read_header
from op4ksr_core.weights.sr_lora import SrLora, describe_sr_lora, sr_lora_settings
from op4ksr_core.weights.vae_lora import encoder_changes

MakeAutoEncoder = Callable[..., AutoEncoder]
Tensors = dict[str, Tensor]

QUERY = "transformer_blocks.0.attn.to_q"
CONV, ATTENTION, SHORTCUT = (
    "down_blocks.0.resnets.0.conv1",
    "mid_block.attentions.0.to_out.0",
    "down_blocks.1.resnets.0.conv_shortcut",
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


def factors(base: str, down: tuple[int, ...], up: tuple[int, ...], adapter: str = "") -> Tensors:
    return {f"{base}.lora_A{adapter}.weight": noise(*down), f"{base}.lora_B{adapter}.weight": noise(*up, seed=1)}


def transformer(prefix: str = "base_model.model.", adapter: str = "") -> Tensors:
    return factors(prefix + QUERY, (4, 64), (64, 4), adapter)


def encoder(prefix: str = "base_model.model.", adapter: str = "") -> Tensors:
    return {
        **factors(prefix + CONV, (4, 8, 3, 3), (8, 4, 1, 1), adapter),
        **factors(prefix + ATTENTION, (4, 16), (16, 4), adapter),
        **factors(prefix + SHORTCUT, (4, 8, 1, 1), (16, 4, 1, 1), adapter),
    }


def write_adapter(folder: Path, tensors: Tensors, **config: Any) -> Path:
    folder.mkdir(parents=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    values = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, **config}
    (folder / "adapter_config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture
def omgsr(tmp_path: Path) -> Path:
    home = tmp_path / "omgsr-f-1024-adapter"
    write_adapter(home / "flux_adapter", transformer())
    write_adapter(home / "vae_encoder_adapter", encoder())
    return home


@pytest.fixture
def fluxsr(tmp_path: Path) -> Path:
    home = tmp_path / "FluxSR"
    home.mkdir()
    save_file(transformer("transformer."), home / "pytorch_lora_weights.safetensors")
    (home / "training_config.json").write_text(json.dumps({"T_L": 0.25, "rank": 4}))
    return home


@pytest.fixture
def shapes(make_autoencoder: MakeAutoEncoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in make_autoencoder(stride=1).state_dict().items()}


def test_any_file_of_omgsrs_folder_stands_for_it(omgsr: Path) -> None:
    names = ["", "flux_adapter", "vae_encoder_adapter", "flux_adapter/adapter_model.safetensors"]
    names += ["vae_encoder_adapter/adapter_model.safetensors", "vae_encoder_adapter/adapter_config.json"]
    for path in (*(omgsr / name for name in names), omgsr.parent):
        found = describe_sr_lora(path)
        assert (found.path, found.origin, found.has_prompt, found.theta) == (path, "OMGSR", False, None)
        assert len(found.transformer.shapes) == 2 and found.encoder is not None and len(found.encoder.shapes) == 6
        settings = sr_lora_settings(found)
        assert (settings.guidance, settings.train_tokens, settings.encode) == (1.0, 64, "sample")
        assert settings.sigma == pytest.approx(0.5051, abs=1e-4) and settings.txt is None


def test_any_file_of_fluxsrs_folder_stands_for_it(fluxsr: Path) -> None:
    (fluxsr / "t5_embedding.pth").touch()
    for name in ("", "pytorch_lora_weights.safetensors", "training_config.json", "t5_embedding.pth"):
        found = describe_sr_lora(fluxsr / name)
        assert (found.origin, found.encoder, found.has_prompt) == ("FluxSR", None, False)
        assert (found.settings.sigma, found.settings.guidance, found.settings.encode) == (0.25, 1.0, "mean")


def test_one_file_of_ours_holds_both_halves(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    prompt = {"op4ksr.txt": noise(3, 24), "op4ksr.vec": noise(12)}
    metadata = {"op4ksr.sigma": "0.4", "op4ksr.guidance": "1", "op4ksr.encode": "sample", "op4ksr.rope_theta": "46"}
    save_file({**transformer("transformer."), **encoder(ENCODER_PREFIX), **prompt}, path, metadata)
    found = describe_sr_lora(path)
    assert (found.origin, found.has_prompt, found.theta) == ("OP4KSR", True, (46.0, 46.0))
    assert found.encoder is not None and set(found.encoder.shapes) == set(encoder(ENCODER_PREFIX))
    assert not set(found.transformer.shapes) & set(found.encoder.shapes)
    settings = sr_lora_settings(found)
    assert (settings.sigma, settings.encode) == (0.4, "sample")
    assert settings.txt is not None and torch.equal(settings.txt, prompt["op4ksr.txt"])


def encoders(found: SrLora | Path, shapes: Any) -> Tensors:
    return encoder_changes(read_header(found) if isinstance(found, Path) else found, shapes)


@pytest.mark.parametrize("adapter", ["", ".vae_encoder_adapter"])
def test_the_encoders_changes_are_of_our_tensors_and_shapes(tmp_path: Path, shapes: Any, adapter: str) -> None:
    folder = write_adapter(tmp_path / "a", encoder(adapter=adapter))
    changes = encoders(folder / "adapter_model.safetensors", shapes)
    expected = {
        "encoder.down.0.block.0.conv1.weight": CONV,
        "encoder.mid.attn_1.proj_out.weight": ATTENTION,
        "encoder.down.1.block.0.nin_shortcut.weight": SHORTCUT,
    }
    assert changes.keys() == expected.keys()
    for ours, theirs in expected.items():
        a, b = (encoder("", "")[f"{theirs}.lora_{which}.weight"].flatten(1) for which in "AB")
        assert changes[ours].dtype == torch.float32
        assert torch.allclose(changes[ours], 2 * (b @ a).view(shapes[ours]), atol=1e-6)  # alpha 8, rank 4


def test_what_fits_no_encoder_is_refused(tmp_path: Path, shapes: Any) -> None:
    odd: dict[str, tuple[Tensors, str]] = {
        "place": (factors("down_blocks.7.resnets.0.conv1", (4, 8, 3, 3), (8, 4, 1, 1)), "none of this VAE's encoder"),
        "decoder": (factors("decoder.conv_in", (4, 16, 3, 3), (16, 4, 1, 1)), "none of this VAE's encoder"),
        "width": (factors(CONV, (4, 16, 3, 3), (8, 4, 1, 1)), "changes (8, 16, 3, 3), here it is (8, 8, 3, 3)"),
        "kernel": (factors(CONV, (4, 8, 1, 9), (8, 4, 1, 1)), "changes (8, 8, 1, 9)"),
        "matrix": (factors(CONV, (4, 72), (8, 4)), "is for a VAE of another size"),
        "dora": ({**encoder(""), f"{CONV}.lora_magnitude_vector": noise(8)}, "is DoRA (LoRA)"),
        "lokr": ({f"{CONV}.lokr_w1": noise(2, 2), f"{CONV}.lokr_w2": noise(4, 36)}, "is LoKr"),
        "half": ({f"{CONV}.lora_A.weight": noise(4, 8, 3, 3)}, "is half a LoRA (up missing)"),
        "unknown": ({**encoder(""), f"{CONV}.bias": noise(8)}, "that are no LoRA of a VAE's encoder"),
        "nan": ({**encoder(""), f"{CONV}.lora_A.weight": torch.full((4, 8, 3, 3), torch.nan)}, "holds NaN"),
        "twice": (
            {**encoder(""), **factors("encoder.down.0.block.0.conv1", (4, 8, 3, 3), (8, 4, 1, 1))},
            "changes one module under two names",
        ),
    }
    for name, (tensors, words) in odd.items():
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        with pytest.raises(UnsupportedCheckpointError) as caught:
            encoders(path, shapes)
        assert words in str(caught.value) and str(caught.value).startswith(f"{path}: "), name


@pytest.mark.parametrize(("stated", "words"), [("median", "expected mean or sample, got median"), ("", "got ")])
def test_an_encode_of_another_kind_is_refused(tmp_path: Path, stated: str, words: str) -> None:
    path = tmp_path / "one.safetensors"
    save_file(transformer("transformer."), path, {"op4ksr.sigma": "0.4", "op4ksr.encode": stated})
    with pytest.raises(UnsupportedCheckpointError, match=words):
        describe_sr_lora(path)


def test_halves_are_named(omgsr: Path, fluxsr: Path, tmp_path: Path) -> None:
    (omgsr / "vae_encoder_adapter").rename(tmp_path / "away")
    (fluxsr / "training_config.json").unlink()
    one = tmp_path / "one.safetensors"
    save_file(encoder(ENCODER_PREFIX), one, {"op4ksr.sigma": "0.4"})
    cases = {
        omgsr: "the folder vae_encoder_adapter is missing",
        omgsr / "flux_adapter" / "adapter_model.safetensors": "the folder vae_encoder_adapter is missing",
        fluxsr: "training_config.json, whose T_L it is, does not lie beside it",
        one: "the transformer's half is missing",
    }
    for path, words in cases.items():
        with pytest.raises(UnsupportedCheckpointError) as caught:
            describe_sr_lora(path)
        assert words in str(caught.value)
