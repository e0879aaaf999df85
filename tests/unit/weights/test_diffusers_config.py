"""config.json beside a file: believed where it can be that file's, and named in ``why`` where it cannot."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from op4ksr_core import Flux, UnsupportedCheckpointError, load_autoencoder, load_flux, save_autoencoder, save_flux
from op4ksr_core.weights.description import describe_autoencoder

#: The sizes of the files below, as diffusers states them.
SIZES = {"_class_name": "AutoencoderKL", "block_out_channels": [32, 32, 64, 64], "layers_per_block": 1}
SIZES |= {"latent_channels": 16}
DIFFUSERS_NAME = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def write_vae(tmp_path: Path, make_autoencoder: Callable[..., Any]) -> Callable[..., Path]:
    """write_vae(name) -> a 16x VAE that says nothing of itself, in models/vae."""

    def write(name: str) -> Path:
        folder = tmp_path / "models" / "vae"
        folder.mkdir(parents=True, exist_ok=True)
        save_autoencoder(folder / name, make_autoencoder(widths=(32, 32, 64, 64), norm_groups=32))
        save_file(load_file(folder / name), folder / name)
        return folder / name

    return write


def write_config(beside: Path, **changes: Any) -> None:
    values = {key: value for key, value in {**SIZES, **changes}.items() if value is not ...}
    beside.with_name("config.json").write_text(json.dumps(values), "utf-8")


@pytest.mark.parametrize("name", [DIFFUSERS_NAME, "diffusion_pytorch_model.fp16.safetensors", "renamed.safetensors"])
@pytest.mark.parametrize(("stated", "stride"), [({"stride": 2}, 2), ({"stride": 1}, 1), ({}, 1)], ids=str)
def test_a_files_own_config_is_believed(
    write_vae: Callable[..., Path], name: str, stated: dict[str, Any], stride: int
) -> None:
    """A folder of its own: the diffusers layout, and the same with the file renamed."""
    path = write_vae(name)
    path.with_name(f"._{name}").write_bytes(bytes(100))  # macOS's, and no model
    write_config(path, norm_num_groups=16, **stated)
    found = describe_autoencoder(path)
    assert (found.params.stride, found.params.norm_groups) == (stride, 16)
    assert "config.json" in found.why["stride"] and found.assumed == ()
    assert found.why["norm_groups"] == "config.json beside the file"


@pytest.mark.parametrize("neighbour", ["other.safetensors", "other.ckpt", "other.SFT"])
def test_in_a_folder_of_many_models_no_config_is_a_files_own(write_vae: Callable[..., Path], neighbour: str) -> None:
    """models/vae with the config of Flux's 8x VAE, whose shapes are a 16x VAE's too."""
    path = write_vae("ultraflux.safetensors")
    path.with_name(neighbour).write_bytes(b"")
    write_config(path, norm_num_groups=16)
    found = describe_autoencoder(path)
    assert (found.params.stride, found.params.norm_groups) == (2, 32) and found.assumed == ("stride",)
    assert "config.json beside the file is ignored: other models lie in this folder" in found.why["stride"]
    assert load_autoencoder(path).params.stride == 2


def test_in_a_folder_of_many_models_it_belongs_to_the_file_of_diffusers_name(write_vae: Callable[..., Path]) -> None:
    path, variant = write_vae(DIFFUSERS_NAME), write_vae("diffusion_pytorch_model.fp16.safetensors")
    others = [write_vae(name) for name in ("other.safetensors", "diffusion_pytorch_model (1).safetensors")]
    write_config(path)
    assert [describe_autoencoder(file).params.stride for file in (path, variant, *others)] == [1, 1, 2, 2]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"block_out_channels": [128, 256, 512, 512]}, "it states [128, 256, 512, 512] for block_out_channels"),
        ({"block_out_channels": ...}, "it states nothing for block_out_channels"),
        ({"layers_per_block": 2}, "it states 2 for layers_per_block, the file's tensors say 1"),
        ({"latent_channels": 4}, "it states 4 for latent_channels"),
        ({"_class_name": "FluxTransformer2DModel"}, "it is not an autoencoder's"),
        ({"_class_name": ...}, "it is not an autoencoder's"),
    ],
    ids=str,
)
@pytest.mark.parametrize("name", [DIFFUSERS_NAME, "renamed.safetensors"])
def test_another_models_config_is_ignored_and_that_is_said(
    write_vae: Callable[..., Path], name: str, changes: dict[str, Any], words: str
) -> None:
    path = write_vae(name)
    write_config(path, norm_num_groups=16, stride=1, **changes)
    found = describe_autoencoder(path)
    assert (found.params.stride, found.params.norm_groups) == (2, 32) and found.assumed == ("stride",)
    assert f"config.json beside the file is ignored: {words}" in found.why["stride"]


@pytest.mark.parametrize("content", ["[]", "{", "null", "[" * 100_000, '{"a": ' * 100_000, '{"stride": ' + "9" * 5000])
def test_a_config_of_garbage_is_ignored(write_vae: Callable[..., Path], content: str) -> None:
    path = write_vae(DIFFUSERS_NAME)
    path.with_name("config.json").write_text(content, "utf-8")
    found = describe_autoencoder(path)
    assert found.assumed == ("stride",) and "config.json beside the file is ignored" in found.why["stride"]


def test_a_config_that_is_no_text_or_no_file_is_ignored(write_vae: Callable[..., Path]) -> None:
    path = write_vae(DIFFUSERS_NAME)
    path.with_name("config.json").write_bytes(b"\xff\xfe\x00")
    assert "cannot be read as JSON" in describe_autoencoder(path).why["stride"]
    path.with_name("config.json").unlink()
    path.with_name("config.json").mkdir()
    assert "cannot be read as JSON" in describe_autoencoder(path).why["stride"]


def test_metadata_is_believed_over_a_config(write_vae: Callable[..., Path]) -> None:
    path = write_vae(DIFFUSERS_NAME)
    save_file(load_file(path), path, {"op4ksr.vae_stride": "2", "op4ksr.norm_groups": "8"})
    write_config(path, stride=1, norm_num_groups=16)
    found = describe_autoencoder(path)
    assert (found.params.stride, found.params.norm_groups) == (2, 8)
    assert found.why["stride"] == found.why["norm_groups"] == "the file's metadata"


@pytest.mark.parametrize(
    "config", [{"stride": "two"}, {"stride": None}, {"stride": True}, {"stride": 2, "norm_num_groups": "x"}], ids=str
)
def test_wrong_numbers_in_a_config_are_refused(write_vae: Callable[..., Path], config: dict[str, Any]) -> None:
    path = write_vae(DIFFUSERS_NAME)
    write_config(path, **config)
    with pytest.raises(UnsupportedCheckpointError, match=r"in config\.json is no number"):
        load_autoencoder(path)


def test_a_diffusers_folder_of_either_model_loads(
    tmp_path: Path, make_diffusers_autoencoder: Any, make_diffusers_flux: Any
) -> None:
    """As diffusers itself writes them, the VAE at its F8."""
    make_diffusers_autoencoder().save_pretrained(tmp_path / "vae")
    make_diffusers_flux().save_pretrained(tmp_path / "transformer")
    vae = load_autoencoder(tmp_path / "vae")
    assert (vae.params.stride, vae.params.norm_groups) == (1, 8)
    assert load_flux(tmp_path / "transformer").params.depth == 2


@pytest.mark.parametrize("content", [json.dumps(SIZES), '{"_class_name": "FluxTransformer2DModel", "num_layers": 99}'])
def test_a_transformers_sizes_are_its_tensors_whatever_lies_beside(
    tmp_path: Path, make_flux: Callable[..., Flux], content: str
) -> None:
    path = tmp_path / DIFFUSERS_NAME
    save_flux(path, make_flux())
    (tmp_path / "config.json").write_text(content, "utf-8")
    assert load_flux(path).params == make_flux().params
