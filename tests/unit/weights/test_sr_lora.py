"""One-step LoRAs as they are found on disk: a file of ours, OMGSR's folder, FluxSR's folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_merge import merge
from safetensors.torch import save_file
from torch import Tensor

from op4ksr_core import AutoEncoder, UnsupportedCheckpointError
from op4ksr_core.weights.convert import Conversion, convert
from op4ksr_core.weights.header import ENCODER_PREFIX, read_header
from op4ksr_core.weights.inspect import inspect_file
from op4ksr_core.weights.sr_convert import convert_sr_lora
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
        "decoder": (factors("decoder.conv_in", (4, 16, 3, 3), (16, 4, 1, 1)), "that no VAE's encoder has"),
        "transformer": (factors("x_embedder", (4, 64), (64, 4)), "changes 1 modules that no VAE's encoder has"),
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


def test_an_adapters_name_in_the_keys_and_other_names_of_the_folders_change_nothing(omgsr: Path) -> None:
    """As a model's own state dict has the keys; and whoever unpacked the folders may have named them."""
    expected = describe_sr_lora(omgsr)
    (omgsr / "flux_adapter").rename(omgsr / "a")
    (omgsr / "vae_encoder_adapter").rename(omgsr / "b")
    save_file(transformer(adapter=".flux_adapter"), omgsr / "a" / "adapter_model.safetensors")
    save_file(encoder(adapter=".vae_encoder_adapter"), omgsr / "b" / "adapter_model.safetensors")
    for path in (omgsr, omgsr / "a", omgsr / "b" / "adapter_model.safetensors"):
        found = describe_sr_lora(path)
        assert (found.origin, found.settings) == ("OMGSR", expected.settings)
        assert found.transformer.files[0].parent.name == "a" and found.encoder is not None


def test_links_stand_for_what_they_point_to(omgsr: Path, tmp_path: Path) -> None:
    """As the Hugging Face cache has its files, and disks their folders."""
    cache = tmp_path / "blobs"
    cache.mkdir()
    for number, file in enumerate(sorted(omgsr.rglob("*.*"))):
        file.rename(cache / str(number))
        file.symlink_to(cache / str(number))
    (tmp_path / "link").symlink_to(omgsr)
    for path in (omgsr, tmp_path / "link", tmp_path / "link" / "flux_adapter" / "adapter_model.safetensors"):
        assert describe_sr_lora(path).origin == "OMGSR"


def test_what_else_lies_beside_a_folder_is_itself(omgsr: Path, fluxsr: Path) -> None:
    for folder in (omgsr, omgsr / "flux_adapter", fluxsr):
        path = folder / "mine.safetensors"
        save_file(transformer("transformer."), path, {"op4ksr.sigma": "0.4"})
        found = describe_sr_lora(path)
        assert (found.origin, found.settings.sigma) == ("OP4KSR", 0.4)


def test_an_alpha_beside_the_file_is_believed_last(omgsr: Path, tmp_path: Path) -> None:
    """Also by who reads one adapter alone, and a copy does not lose it."""
    file = omgsr / "flux_adapter" / "adapter_model.safetensors"
    assert inspect_file(file)["scales"] == [2.0]
    copy = tmp_path / "copy.safetensors"
    convert(file, copy, Conversion())
    assert inspect_file(copy)["scales"] == [2.0]
    save_file(transformer(), file, {"lora_adapter_metadata": json.dumps({"lora_alpha": 12, "r": 4})})
    assert inspect_file(file)["scales"] == [3.0]
    save_file({**transformer(), f"base_model.model.{QUERY}.alpha": torch.tensor(2.0)}, file)
    assert inspect_file(file)["scales"] == [0.5]


def write_json(path: Path, value: Any) -> None:
    path.write_text(value if isinstance(value, str) else json.dumps(value))


ADAPTER_FAULTS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda f: (f / "adapter_config.json").unlink(), "expected adapter_config.json beside"),
    "no tensors": (lambda f: (f / "adapter_model.safetensors").unlink(), "expected adapter_model.safetensors in this"),
    "a pickle": (
        lambda f: (f / "adapter_model.safetensors").rename(f / "adapter_model.bin"),
        "adapter_model.bin: is a PyTorch pickle",
    ),
    "no json": (lambda f: write_json(f / "adapter_config.json", "{"), "adapter_config.json is wrong: it cannot be"),
    "json of another kind": (lambda f: write_json(f / "adapter_config.json", []), "it is no JSON object"),
    "no alpha": (lambda f: write_json(f / "adapter_config.json", {"r": 4}), "it states no lora_alpha"),
    "odd alpha": (lambda f: write_json(f / "adapter_config.json", {"r": 4, "lora_alpha": "\x1b"}), "got '\\x1b'"),
    "other rank": (
        lambda f: write_json(f / "adapter_config.json", {"r": 16, "lora_alpha": 16}),
        "its adapter_config.json beside the file states rank 16 and its tensors have 4",
    ),
    "a folder": (
        lambda f: ((f / "adapter_model.safetensors").unlink(), (f / "adapter_model.safetensors").mkdir()),
        "expected one safetensors file",
    ),
    "a dead link": (
        lambda f: ((f / "adapter_model.safetensors").unlink(), (f / "adapter_model.safetensors").symlink_to("gone")),
        "no such file",
    ),
    "cut short": (lambda f: (f / "adapter_model.safetensors").write_bytes(b"\x10" + 9 * b"\0"), "is "),
    "integers": (
        lambda f: save_file({"base_model.model.conv_in.lora_A.weight": torch.ones(4, 3, 3, 3, dtype=torch.int8)},
                            f / "adapter_model.safetensors"),
        "expected one of the dtypes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("half", ["flux_adapter", "vae_encoder_adapter"])
@pytest.mark.parametrize("fault", ADAPTER_FAULTS)
def test_a_faulty_half_is_one_sentence(omgsr: Path, tmp_path: Path, half: str, fault: str) -> None:
    spoil, words = ADAPTER_FAULTS[fault]
    spoil(omgsr / half)
    output = tmp_path / "out.safetensors"
    for use in (lambda: describe_sr_lora(omgsr), lambda: convert_sr_lora(omgsr, output)):
        with pytest.raises(UnsupportedCheckpointError) as caught:
            use()
        text = str(caught.value)
        assert words in text and half in text and text.isprintable() and "; " in text
    assert not output.exists()


def test_the_sister_for_stable_diffusion_and_two_at_once_are_named(tmp_path: Path) -> None:
    sister = tmp_path / "omgsr-s"
    write_adapter(
        sister / "unet_lora_adapter", factors("base_model.model.mid_block.attentions.0.proj_in", (4, 8), (8, 4))
    )
    write_adapter(sister / "vae_encoder_lora_adapter", encoder())
    with pytest.raises(UnsupportedCheckpointError, match="is OMGSR-S, a LoRA for Stable Diffusion 2.1"):
        describe_sr_lora(sister)
    both = tmp_path / "both"
    for name in ("one", "two"):
        write_adapter(both / name / "flux_adapter", transformer())
        write_adapter(both / name / "vae_encoder_adapter", encoder())
    with pytest.raises(UnsupportedCheckpointError, match=r"holds 2 folders of an OMGSR-F LoRA \(one, two\); name one"):
        describe_sr_lora(both)


CONFIGS: dict[str, tuple[Any, float | str]] = {
    "t_l": ({"t_l": 0.3}, 0.3),
    "TL in an object": ({"args": {"TL": "0.25"}}, 0.25),
    "in a list": ({"stages": [{"tl": 0.5}]}, 0.5),
    "twice alike": ({"T_L": 0.25, "flow": {"t_l": 0.25}}, 0.25),
    "twice, not alike": ({"T_L": 0.25, "flow": {"t_l": 0.5}}, "expected one number, got T_L 0.25, t_l 0.5"),
    "none": ({"rank": 64}, "states no T_L, the sigma of the one step (looked for T_L, t_l, TL, tl"),
    "null": ({"T_L": None}, "states no T_L"),
    "a word": ({"T_L": "quarter"}, "expected one number, got T_L quarter"),
    "true": ({"T_L": True}, "expected one number"),
    "of 1000": ({"T_L": 250}, "sigma: expected above 0 and at most 1, got 250"),
    "not a number": ('{"T_L": NaN}', "expected one number, got T_L nan"),
    "huge": ('{"T_L": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    "no object": ([0.25], "is no JSON object"),
    "no JSON": ("T_L: 0.25", "cannot be read as JSON"),
    "odd guidance": ({"T_L": 0.25, "guidance": -1}, "guidance: expected 0 to 100, got -1"),
    "deep": ("[" * 100_000, "nested too deeply"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_t_l_is_found_or_asked_for(fluxsr: Path, case: str) -> None:
    config, expected = CONFIGS[case]
    write_json(fluxsr / "training_config.json", config)
    if isinstance(expected, float):
        assert describe_sr_lora(fluxsr).settings.sigma == expected
        return
    with pytest.raises(UnsupportedCheckpointError) as caught:
        describe_sr_lora(fluxsr)
    assert expected in str(caught.value) and str(caught.value).startswith(str(fluxsr / "training_config.json"))


def test_a_config_that_is_no_file_is_not_called_damaged(fluxsr: Path) -> None:
    config = fluxsr / "training_config.json"
    config.unlink()
    config.mkdir()
    with pytest.raises(UnsupportedCheckpointError, match=r"it is a folder\); fetch it again$"):
        describe_sr_lora(fluxsr)


def test_what_else_fluxsrs_config_says_counts(fluxsr: Path) -> None:
    config = {"T_L": 0.25, "guidance_scale": 3.5, "resolution": 512, "lora_alpha": 8, "rank": 4}
    write_json(fluxsr / "training_config.json", config)
    found = describe_sr_lora(fluxsr)
    assert (found.settings.guidance, found.settings.train_tokens) == (3.5, 32)
    assert found.why["guidance"] == "guidance_scale of training_config.json"
    assert inspect_file(fluxsr)["scales"] == [2.0]
    write_json(fluxsr / "training_config.json", {**config, "resolution": "as it comes"})
    assert describe_sr_lora(fluxsr).settings.train_tokens is None


def test_a_lora_of_another_kind_is_no_one_step_lora(tmp_path: Path, fluxsr: Path) -> None:
    plain = tmp_path / "plain.safetensors"
    save_file(transformer("transformer."), plain)
    with pytest.raises(UnsupportedCheckpointError, match="names neither its sigma"):
        describe_sr_lora(plain)
    save_file({**transformer("transformer."), "op4ksr.txt": noise(3, 24)}, plain, {"op4ksr.sigma": "0.4"})
    with pytest.raises(UnsupportedCheckpointError, match="half a prompt embedding"):
        describe_sr_lora(plain)
    save_file(factors("unet.down_blocks.0.attn.to_q", (4, 8), (8, 4)), fluxsr / "pytorch_lora_weights.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="expected a LoRA of a Flux transformer"):
        describe_sr_lora(fluxsr)


def test_nan_is_refused_and_nothing_is_written(omgsr: Path, tmp_path: Path) -> None:
    tensors = encoder()
    next(iter(tensors.values()))[0] = torch.nan
    save_file(tensors, omgsr / "vae_encoder_adapter" / "adapter_model.safetensors")
    with pytest.raises(UnsupportedCheckpointError, match="holds NaN or infinite numbers"):
        convert_sr_lora(omgsr, tmp_path / "out.safetensors")
    assert not list(tmp_path.glob("*out*")) and not list(tmp_path.glob(".op4ksr*"))


def test_an_encoders_half_is_left_out_where_only_a_transformer_is_changed(
    tmp_path: Path, make_flux: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "one.safetensors"
    save_file({**factors(f"transformer.{QUERY}", (4, 64), (64, 4)), **encoder(ENCODER_PREFIX)}, path)
    assert merge(make_flux(), path) == 1
    assert "6 tensors change the VAE's encoder and are left out here" in caplog.text


@pytest.mark.parametrize(("tokens", "warned"), [(512, False), (256, True)])
def test_a_prompt_shorter_than_the_trained_one_is_warned_of(
    omgsr: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, tokens: int, warned: bool
) -> None:
    """ComfyUI pads an empty text to 256 tokens, diffusers to the 512 that OMGSR-F knows."""
    prompt = tmp_path / "prompt.safetensors"
    save_file({"op4ksr.txt": torch.zeros(tokens, 64), "op4ksr.vec": torch.zeros(32)}, prompt)
    one = tmp_path / "one.safetensors"
    for use in (
        lambda: convert_sr_lora(omgsr, one, prompt=prompt),
        lambda: sr_lora_settings(describe_sr_lora(one)),
    ):
        caplog.clear()
        use()
        assert (f"with a prompt of 512 tokens, and this embedding has {tokens}" in caplog.text) is warned
