"""Models in several files: an index, its shards, and indexes that no one may trust."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from op4ksr_core import Flux, UnsupportedCheckpointError, load_flux, save_autoencoder, save_flux
from op4ksr_core.cli.main import main
from op4ksr_core.weights.header import read_header

MakeFlux = Callable[..., Flux]


@pytest.fixture
def flux_file(tmp_path: Path, make_flux: MakeFlux) -> Path:
    path = tmp_path / "flux.safetensors"
    save_flux(path, make_flux())
    return path


@pytest.fixture
def vae_file(tmp_path: Path, make_autoencoder: Callable[..., Any]) -> Path:
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, make_autoencoder())
    return path


def refusal(load: Callable[[Path], Any], path: Path, culprit: Path | None = None) -> str:
    """The one sentence that refuses ``path`` and names the file at fault."""
    with pytest.raises(UnsupportedCheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{culprit or path}: ") and "\n" not in text and len(text) < 800
    return text


def shard(path: Path, count: int = 3) -> Path:
    """Split a file into shards with an index, as diffusers names them; the original is removed."""
    tensors = load_file(path)
    with safe_open(path, framework="pt") as opened:
        metadata = opened.metadata()
    names = sorted(tensors)
    weight_map: dict[str, str] = {}
    for i in range(count):
        file = f"model-{i + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[i::count]}
        save_file(part, path.parent / file, metadata)
        weight_map |= dict.fromkeys(part, file)
    path.unlink()
    index = path.parent / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}), "utf-8")
    return index


def test_shards_are_one_model_by_folder_index_or_any_shard(flux_file: Path, make_flux: MakeFlux) -> None:
    index = shard(flux_file)
    folder = index.parent
    for path in (folder, index, *folder.glob("*-of-*.safetensors")):
        state, expected = load_flux(path).state_dict(), make_flux().state_dict()
        assert state.keys() == expected.keys() and all(state[name].equal(expected[name]) for name in state)
        assert len(read_header(path).files) == 3


def test_a_missing_shard_is_named(flux_file: Path) -> None:
    index = shard(flux_file)
    (index.parent / "model-00002-of-00003.safetensors").unlink()
    for path in (index, index.parent, index.parent / "model-00001-of-00003.safetensors"):
        assert "model-00002-of-00003.safetensors" in refusal(load_flux, path, index)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"weight_map": 5}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 5}}',
        '{"weight_map": {"a": ["b"]}}',
        '{"weight_map": null}',
        "[" * 100_000,
        '{"weight_map": ' * 50_000,
        '{"weight_map": {"a": ' + "9" * 5000 + "}}",
    ],
    ids=lambda content: content[:30],
)
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content, "utf-8")
    assert "shard index" in refusal(load_flux, index)


@pytest.mark.parametrize("content", ["{", '{"weight_map": {"a": "gone.safetensors"}}'])
def test_another_models_broken_index_in_the_same_folder_does_no_harm(flux_file: Path, content: str) -> None:
    """ComfyUI keeps all models in one folder."""
    (flux_file.parent / "other.safetensors.index.json").write_text(content, "utf-8")
    assert load_flux(flux_file).params.hidden_size == 64


def test_a_folder_of_several_models_is_refused(tmp_path: Path, vae_file: Path, flux_file: Path) -> None:
    assert "got 2 files; name one" in refusal(load_flux, tmp_path)


def test_hidden_files_in_a_folder_are_no_models(flux_file: Path) -> None:
    """As macOS leaves them on disks of other systems: 4 kB of attributes under the file's name."""

    def sidecars() -> None:
        for file in list(flux_file.parent.iterdir()):
            file.with_name(f"._{file.name}").write_bytes(b"\0\5\x16\7" + bytes(4088))

    sidecars()
    assert load_flux(flux_file.parent).params.hidden_size == 64
    index = shard(flux_file)
    sidecars()
    for path in (
        index.parent,
        index,
        index.with_name(next(iter(json.loads(index.read_text())["weight_map"].values()))),
    ):
        assert load_flux(path).params.hidden_size == 64


def test_a_cache_of_links_to_blobs_without_an_ending_is_read(flux_file: Path) -> None:
    """As huggingface_hub keeps its files."""
    index = shard(flux_file)
    snapshot, blobs = index.parent / "snapshots" / "rev", index.parent / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for i, file in enumerate([file for file in index.parent.iterdir() if file.is_file()]):
        file.rename(blobs / f"{i:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{i:064x}")
    for path in (snapshot, *snapshot.iterdir()):
        assert load_flux(path).params.hidden_size == 64


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    assert "got 0 files" in refusal(load_flux, tmp_path)


#: Names that reach beyond the index's own folder, on this or another system, or that no file can have.
OUTSIDE = ["../{}", "../../{}", "{folder}/{}", "sub/{}", "..\\\\{}", "C:{}", "{}:stream", "{}\\u0000", "..", ".", ""]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_files_beside_it_and_no_others(flux_file: Path, name: str) -> None:
    """The named files exist, so that nothing but the names is wrong with them."""
    folder = flux_file.parent / "model"
    (folder / "sub").mkdir(parents=True)
    for place in (folder, folder / "sub", flux_file.parent.parent):
        (place / flux_file.name).write_bytes(flux_file.read_bytes())
    index = folder / "model.safetensors.index.json"
    text = name.replace("{folder}", flux_file.parent.as_posix()).replace("{}", flux_file.name)
    index.write_text(f'{{"weight_map": {{"img_in.weight": "{text}", "x": "flux.safetensors"}}}}', "utf-8")
    for source in (index, folder):
        assert "expected the names of files in its own folder" in refusal(load_flux, source, index)


def test_a_name_longer_than_any_files_is_a_sentence(tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "x" * 3000}}), "utf-8")
    refusal(load_flux, index)


@pytest.mark.parametrize("content", ["[" * 100_000, '{"weight_map": {"a": "../../x.safetensors"}}'])
def test_the_commands_say_it_in_one_sentence(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content, "utf-8")
    for arguments in (["inspect", str(index)], ["convert", str(index), "-o", str(tmp_path / "out.safetensors")]):
        assert main(arguments) == 1
        text = capsys.readouterr().err
        assert text.startswith(f"error: {index}: is no shard index") and text.count("\n") == 1


@pytest.mark.parametrize(
    ("index", "shards"),
    [
        ("m.safetensors.index.fp16.json", "m.fp16-{}.safetensors"),  # diffusers
        ("m.safetensors.index.fp16.json", "m-{}.fp16.safetensors"),  # diffusers, before 0.32
        ("m.fp16.safetensors.index.json", "m.fp16-{}.safetensors"),
    ],
)
def test_a_variants_shards_are_one_model_too(flux_file: Path, make_flux: MakeFlux, index: str, shards: str) -> None:
    plain = shard(flux_file)
    text = plain.read_text("utf-8")
    for old in flux_file.parent.glob("*-of-*.safetensors"):
        new = shards.format(old.stem.removeprefix("model-"))
        text = text.replace(old.name, new)
        old.rename(old.with_name(new))
    plain.unlink()
    path = plain.with_name(index)
    path.write_text(text, "utf-8")
    for source in (path, path.parent, *path.parent.glob("*-of-*")):
        assert load_flux(source).state_dict()["img_in.weight"].equal(make_flux().state_dict()["img_in.weight"])


@pytest.mark.parametrize("name", ["a-00001-of-00003.safetensors", "a-00002-of-00003.fp16.safetensors"])
def test_a_lone_shard_is_told_for_what_it_is(flux_file: Path, name: str) -> None:
    path = flux_file.rename(flux_file.with_name(name))
    for source in (path, path.parent):
        text = refusal(load_flux, source, path)
        assert f"is shard {name[6]} of 3 of a model, and no shard index beside it lists it" in text


def test_a_shard_that_is_all_of_its_model_is_a_model(flux_file: Path) -> None:
    assert load_flux(flux_file.rename(flux_file.with_name("a-00001-of-00001.safetensors"))).params.hidden_size == 64


def test_two_indexes_in_a_folder_are_a_choice(flux_file: Path) -> None:
    index = shard(flux_file)
    index.with_name("model.safetensors.index.fp16.json").write_bytes(index.read_bytes())
    assert "got 2 shard indexes; name one" in refusal(load_flux, index.parent)
    assert load_flux(index).params.hidden_size == 64


def test_one_tensor_in_two_shards_is_refused(flux_file: Path) -> None:
    index = shard(flux_file)
    second, third = (index.with_name(f"model-0000{i}-of-00003.safetensors") for i in (2, 3))
    third.write_bytes(second.read_bytes())
    assert f"which {second.name} holds too" in refusal(load_flux, index, third)


@pytest.mark.parametrize("kind", ["loop", "folder", "pipe"])
@pytest.mark.timeout(20)
def test_a_shard_that_is_no_file_is_named(flux_file: Path, kind: str) -> None:
    index = shard(flux_file)
    path = index.with_name("model-00002-of-00003.safetensors")
    path.unlink()
    made = {"loop": lambda: path.symlink_to(path.name), "folder": path.mkdir, "pipe": lambda: os.mkfifo(path)}
    made[kind]()
    text = refusal(load_flux, index)
    assert f"its shard {path.name} is " in text and {"loop": "not readable", "pipe": "pipe"}.get(kind, kind) in text
