"""Block numbers in tensors' names decide how large a model is built: none is believed before it is checked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lora_merge import merge
from safetensors.torch import load_file, save_file
from torch import Tensor

from op4ksr_core import (
    AutoEncoder,
    Flux,
    UnsupportedCheckpointError,
    load_autoencoder,
    load_flux,
    save_autoencoder,
    save_flux,
)
from op4ksr_core.cli.main import main
from op4ksr_core.weights.blocks import count_blocks, numbering_fault
from op4ksr_core.weights.description import DOUBLE_BLOCK_TENSORS, RESNET_TENSORS, SINGLE_BLOCK_TENSORS, describe_flux
from op4ksr_core.weights.inspect import inspect_file

Tensors = dict[str, Tensor]

#: Numbers that count nothing: far too large, no number's usual spelling, not even a number, too long for Python's int.
NUMBERS = ["100000000", "7", "01", "-1", "1_0", "x", "", "\u0663", "9" * 5000]


@pytest.fixture(params=["bfl", "diffusers"])
def flux_file(request, tmp_path: Path, make_flux: Callable[..., Flux], make_diffusers_flux: Any) -> Path:
    path = tmp_path / "flux.safetensors"
    if request.param == "bfl":
        save_flux(path, make_flux())
    else:
        save_file(dict(make_diffusers_flux().state_dict()), path)
    return path


@pytest.fixture(params=["bfl", "diffusers"])
def vae_file(request, tmp_path: Path, make_autoencoder: Any, make_diffusers_autoencoder: Any) -> Path:
    path = tmp_path / "vae.safetensors"
    if request.param == "bfl":
        save_autoencoder(path, make_autoencoder(widths=(32, 32, 64, 64), norm_groups=32))
    else:
        save_file(dict(make_diffusers_autoencoder(norm_num_groups=32).state_dict()), path)
    return path


def add(path: Path, *names: str) -> None:
    save_file({**load_file(path), **{name: torch.zeros(1) for name in names}}, path)


def refusal(use: Callable[[], Any]) -> str:
    with pytest.raises(UnsupportedCheckpointError) as caught:
        use()
    text = str(caught.value)
    assert "fetch it again" in text and "\n" not in text and len(text) < 400
    return text


def refused(path: Path, load: Callable[[Path], Any], number: str, capsys: pytest.CaptureFixture[str]) -> str:
    """The sentence of the loader; for the first of ``NUMBERS`` inspect, convert and plan end with it too."""
    text = refusal(lambda: load(path))
    if number != NUMBERS[0]:
        return text
    assert refusal(lambda: inspect_file(path)) == text
    out, option = path.parent / "out.safetensors", "--vae" if load is load_autoencoder else "--model"
    for arguments in (["convert", str(path), "-o", str(out)], ["plan", "64x64", option, str(path)]):
        assert main(arguments) == 1
        assert capsys.readouterr().err == f"error: {text}\n"
    assert not out.exists()
    return text


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12].encode("unicode_escape").decode())
def test_numbers_of_a_transformers_blocks(flux_file: Path, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours = "double_blocks.0.img_attn.qkv.weight" in load_file(flux_file)
    for blocks in ("double_blocks", "single_blocks") if ours else ("transformer_blocks", "single_transformer_blocks"):
        before = flux_file.read_bytes()
        add(flux_file, f"{blocks}.{number}.x")
        text = refused(flux_file, load_flux, number, capsys)
        assert words(number, blocks) in text
        flux_file.write_bytes(before)


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12].encode("unicode_escape").decode())
def test_numbers_of_a_vaes_blocks(vae_file: Path, number: str, capsys: pytest.CaptureFixture[str]) -> None:
    ours = "encoder.down.0.block.0.conv1.weight" in load_file(vae_file)
    lists = ["encoder.down", "decoder.up", "encoder.down.0.block", "decoder.up.3.block"]
    if not ours:
        lists = ["encoder.down_blocks", "decoder.up_blocks", "encoder.down_blocks.0.resnets"]
    for blocks in lists:
        before = vae_file.read_bytes()
        add(vae_file, f"{blocks}.{number}.x")
        text = refused(vae_file, load_autoencoder, number, capsys)
        assert words(number, blocks) in text
        vae_file.write_bytes(before)


def words(number: str, blocks: str) -> str:
    """Digits that are no ASCII are refused with the name they are in."""
    ours = f"expected blocks numbered from 0 without gaps: {blocks}."
    return ours if number.isascii() else "the name of a tensor is none that a trainer writes"


def test_a_number_that_ends_a_name_is_of_no_block(vae_file: Path) -> None:
    for blocks in ("encoder.down", "decoder.up", "encoder.down_blocks", "decoder.up_blocks"):
        before = vae_file.read_bytes()
        add(vae_file, f"{blocks}.{'9' * 5000}")
        refusal(lambda: load_autoencoder(vae_file))
        vae_file.write_bytes(before)


def test_a_gap_is_named() -> None:
    names = [f"double_blocks.{i}.x" for i in (0, 1, 3, 12)]
    assert numbering_fault(names) == "double_blocks.2 is missing, but there is double_blocks.12"
    assert numbering_fault([*names, "double_blocks.2.x"]) == "double_blocks.4 is missing, but there is double_blocks.12"
    assert numbering_fault(names[:2]) is None and numbering_fault([]) is None
    names = ["encoder.down.0.block.0.conv1.weight", "encoder.down.1.block.0.x", "encoder.down.1.block.1.x"]
    assert numbering_fault([*names, "img_mlp.0.weight", "img_mlp.2.weight", "final_layer.adaLN_modulation.1.x"]) is None
    assert count_blocks(names, "encoder.down") == 2 and count_blocks(names, "encoder.down.1.block") == 2
    assert count_blocks(names, "encoder.down.1.bloc") == count_blocks(names, "decoder.up") == 0


def test_names_without_gaps_that_promise_more_than_the_file_holds_are_refused_before_anything_is_built(
    tmp_path: Path, make_flux: Callable[..., Flux], make_autoencoder: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One tensor for each of many blocks; levels times layers, which multiply."""
    for network in (Flux, AutoEncoder):
        monkeypatch.setattr(f"op4ksr_core.weights.checkpoint.{network.__name__}", None)
    flux, vae = tmp_path / "flux.safetensors", tmp_path / "vae.safetensors"
    save_flux(flux, make_flux())
    add(flux, *(f"double_blocks.{i}.x" for i in range(1, 400)))
    text = refusal(lambda: load_flux(flux))
    assert f"take {400 * 24 + 2 * 8} tensors, but it holds {len(load_file(flux))}" in text
    save_autoencoder(vae, make_autoencoder())
    add(vae, *(f"encoder.down.{i}.block.0.conv1.weight" for i in range(4, 60)))
    add(vae, *(f"encoder.down.0.block.{i}.x" for i in range(1, 60)))
    text = refusal(lambda: load_autoencoder(vae))
    assert f"take {60 * 121 * 8} tensors, but it holds {len(load_file(vae))}" in text


def test_tensors_in_a_block_are_counted_as_they_are(make_flux: Callable[..., Flux], make_autoencoder: Any) -> None:
    flux, vae = make_flux(), make_autoencoder()
    assert len(flux.double_blocks[0].state_dict()) == DOUBLE_BLOCK_TENSORS
    assert len(flux.single_blocks[0].state_dict()) == SINGLE_BLOCK_TENSORS
    assert len(vae.encoder.down[0].block[0].state_dict()) == RESNET_TENSORS


@pytest.mark.parametrize(
    ("name", "shape", "words"),
    [
        ("img_in.weight", (1_000_000, 1), "takes 1000000000000 numbers"),
        ("double_blocks.0.img_mlp.0.weight", (2**40, 0), "takes"),
        ("img_in.weight", (2**62, 0), "takes"),
        ("img_in.weight", (64, 0), "holds nothing"),
        ("img_in.weight", (0, 64), "holds nothing"),
        ("txt_in.weight", (64, 0), "holds nothing"),
        ("double_blocks.0.img_attn.norm.query_norm.scale", (0,), "holds nothing"),
        ("img_in.weight", (), "missing"),
    ],
    ids=str,
)
@pytest.mark.parametrize("quantized", [False, True])
def test_sizes_are_held_against_the_files_own_tensors(
    tmp_path: Path, make_flux: Callable[..., Flux], name: str, shape: tuple[int, ...], words: str, quantized: bool
) -> None:
    path = tmp_path / "flux.safetensors"
    save_flux(path, make_flux())
    tensors = {**load_file(path), name: torch.zeros(shape, dtype=torch.uint8 if quantized else torch.float16)}
    if quantized:
        tensors["double_blocks.0.img_attn.qkv.scale_weight"] = torch.ones(1)
    save_file(tensors, path)
    assert words in refusal(lambda: describe_flux(path))


def test_a_vaes_width_is_held_against_its_tensors(tmp_path: Path, make_autoencoder: Any) -> None:
    path, name = tmp_path / "vae.safetensors", "encoder.down.1.block.0.conv1.weight"
    save_autoencoder(path, make_autoencoder())
    save_file({**load_file(path), name: torch.zeros(2**20, 1, 1, 1)}, path, {"op4ksr.norm_groups": "4"})
    assert "takes 1099511627776 numbers" in refusal(lambda: load_autoencoder(path))


def test_two_names_for_one_tensor_are_refused(vae_file: Path, flux_file: Path) -> None:
    tensors = load_file(flux_file)
    scale, module = "double_blocks.0.img_attn.norm.query_norm.scale", "double_blocks.0.img_attn.norm.query_norm.weight"
    if scale in tensors:
        save_file({**tensors, module: tensors[scale] + 1}, flux_file)
        assert "two names at once" in refusal(lambda: load_flux(flux_file))
    tensors = load_file(vae_file)
    name = "encoder.down_blocks.0.resnets.0.conv1.bias"
    if name in tensors:
        save_file({**tensors, "encoder.down.0.block.0.conv1.bias": tensors[name] + 1}, vae_file)
        assert "two names at once" in refusal(lambda: load_autoencoder(vae_file))


@pytest.mark.parametrize("shape", [(64, 32), (64,), ()], ids=str)
def test_parts_that_cannot_be_put_together_are_named(
    tmp_path: Path, make_diffusers_flux: Any, shape: tuple[int, ...]
) -> None:
    path, name = tmp_path / "flux.safetensors", "transformer_blocks.0.attn.to_k.weight"
    save_file({**make_diffusers_flux().state_dict(), name: torch.zeros(shape)}, path)
    assert f"{name} {shape} do not fit together" in refusal(lambda: load_flux(path))


def test_parts_of_different_dtypes_are_put_together_in_float32(tmp_path: Path, make_diffusers_flux: Any) -> None:
    path, name = tmp_path / "flux.safetensors", "transformer_blocks.0.attn.to_k.weight"
    state = dict(make_diffusers_flux().state_dict())
    save_file({**state, name: state[name].to(torch.float8_e4m3fn)}, path)
    qkv = load_flux(path).get_parameter("double_blocks.0.img_attn.qkv.weight")
    assert torch.equal(qkv[64:128], state[name].to(torch.float8_e4m3fn).float())
    assert torch.equal(qkv[:64], state[name.replace("to_k", "to_q")])


@pytest.mark.parametrize("number", ["100000000", "9" * 5000], ids=["large", "long"])
@pytest.mark.parametrize(
    "name",
    [
        "double_blocks.{}.img_attn.proj",
        "transformer.transformer_blocks.{}.attn.to_q",
        "lora_unet_single_blocks_{}_linear2",
        "lora_transformer_single_transformer_blocks_{}_attn_to_v",
    ],
)
def test_a_loras_block_numbers_are_looked_up_and_never_counted(
    tmp_path: Path, make_flux: Callable[..., Flux], name: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A LoRA may change some blocks only, so that gaps are no fault; a block that the model has not, is one."""
    down, up = ("lora_A", "lora_B") if "." in name else ("lora_down", "lora_up")
    base, path, flux = name.format(number), tmp_path / "lora.safetensors", tmp_path / "flux.safetensors"
    save_file({f"{base}.{down}.weight": torch.zeros(4, 64), f"{base}.{up}.weight": torch.zeros(64, 4)}, path)
    save_flux(flux, make_flux())
    assert "with a LoRA loader" in inspect_file(path)["usable"]
    with pytest.raises(UnsupportedCheckpointError, match="fit nothing in this transformer"):
        merge(make_flux(), path)
    assert main(["convert", str(flux), "-o", str(tmp_path / "out.safetensors"), "--merge-lora", str(path)]) == 1
    text = capsys.readouterr().err
    assert "fit nothing in this transformer" in text and text.count("\n") == 1 and len(text) < 900
