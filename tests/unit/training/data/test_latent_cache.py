"""Crops that are encoded once: the run without a cache, but for what a cache is for."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from unit.training.test_trainer import StoppedError, config, folder, killed_at, rows, same_file, train  # noqa: F401

from op4ksr_core import BUNDLED_AUTOENCODER, OptionError, OutputError, UnsupportedCheckpointError, load_flux, save_flux
from op4ksr_core.training.config import TrainConfig
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.data.latent_cache import PER_FILE, EncodedBatch, LatentCache
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.one_step import LoraTask
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.vae.layers import Decoder, Encoder
from op4ksr_core.weights import checkpoint

#: Crops that keep the 8 bits they came with.
EIGHT_BITS = "shrunk = 0.0\n"


def losses(run: Path) -> list[str]:
    return [row["loss"] for row in rows(run)]


@pytest.mark.parametrize(
    ("kind", "degradation"),
    [
        ("one_step", "factor = [2, 8]\n"),
        pytest.param("lora", "factor = [2, 8]\n", marks=pytest.mark.slow),
        ("lora", ""),
        pytest.param("one_step", "", marks=pytest.mark.slow),
    ],
)
def test_the_first_pass_is_the_run_without_it_bit_for_bit(folder: Path, kind: str, degradation: str) -> None:  # noqa: F811
    more = {"degradation": degradation} if degradation else {}
    plain = train(config(folder, kind, "plain", data=EIGHT_BITS, **more))
    cached = train(config(folder, kind, "cached", data=EIGHT_BITS + "cached = 12\n", **more))
    assert losses(folder / "cached") == losses(folder / "plain")
    assert same_file(cached, plain)


@pytest.mark.slow
def test_shrunk_crops_differ_by_their_rounding_alone(folder: Path) -> None:  # noqa: F811
    train(config(folder, run="plain", data="shrunk = 1.0\n"))
    train(config(folder, run="cached", data="shrunk = 1.0\ncached = 12\n"))
    a, b = ([float(loss) for loss in losses(folder / name)[1:]] for name in ("plain", "cached"))
    assert a == pytest.approx(b, rel=1e-2) and a != b


def test_later_steps_read_and_neither_damage_nor_encode(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    text = config(folder, data="cached = 4\n")
    calls: list[int] = []
    forward = Encoder.forward
    monkeypatch.setattr(Encoder, "forward", lambda self, x: calls.append(len(x)) or forward(self, x))
    train(text)
    assert calls == [2, 2] * 2  # two batches, each the sharp and the damaged one; none in six steps
    files = sorted((folder / "run" / "cache").glob("pairs_*.safetensors"))
    assert len(files) == 1
    train(text.replace("steps = 6", "steps = 8"), resume=True)
    assert calls == [2, 2] * 2 and sorted((folder / "run" / "cache").glob("pairs_*.safetensors")) == files


def test_other_pictures_are_another_cache(folder: Path, tmp_path: Path) -> None:  # noqa: F811
    """One added, or one changed under the same name: the crops are not those that were encoded."""
    photos = tmp_path / "photos"
    photos.mkdir()
    made = parse_config(config(folder, data=f'cached = 4\nsource = "folder"\npath = "{photos.as_posix()}"\n'))
    names = set()
    for name, content in (("a.png", b"1"), ("b.png", b"1"), ("b.png", b"22"), ("notes.txt", b"1")):
        (photos / name).write_bytes(content)
        names.add(LatentCache(made, BUNDLED_AUTOENCODER).name)
    assert len(names) == 3  # the notes are no picture


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(folder: Path) -> None:  # noqa: F811
    more = {"data": "cached = 6\n", "train": "accumulate = 2\n"}
    whole = train(config(folder, "lora", "whole", **more))
    text = config(folder, "lora", "killed", **more)
    with pytest.raises(StoppedError):
        Trainer(parse_config(text), text, False, killed_at(5)).run()
    assert same_file(train(text, resume=True), whole)


def test_each_pass_sees_every_batch_in_an_order_of_its_own(folder: Path) -> None:  # noqa: F811
    told = parse_config(config(folder, data="cached = 6\n"))
    train(config(folder, data="cached = 6\n"))
    cache = LatentCache(told, folder / "vae.safetensors")
    assert cache.batches == 3 and not [*cache.missing()]
    seen = [cache.read(i).picture.float().mean().item() for i in range(30)]
    passes = [seen[i : i + 3] for i in range(0, 30, 3)]
    assert len({tuple(sorted(one)) for one in passes}) == 1 and len(set(passes[0])) == 3
    assert len({tuple(one) for one in passes}) > 1


def test_other_settings_and_another_autoencoder_have_files_of_their_own(folder: Path) -> None:  # noqa: F811
    def name(text: str) -> str:
        return LatentCache(parse_config(text), folder / "vae.safetensors").name

    base = config(folder, data="cached = 4\n")
    assert name(base) == name(base.replace("cached = 4", "cached = 400")) == name(base.replace("frequency = 0.1", ""))
    others = [base.replace("crop = 64", "crop = 96"), base.replace("batch = 2", "batch = 1"), f"seed = 1\n{base}"]
    others.append(base + "[degradation]\nfactor = [2, 8]\n")
    before = name(base)
    (folder / "vae.safetensors").touch()
    assert len({before, name(base), *map(name, others)}) == 6


def test_more_files_are_added_where_more_is_wanted(folder: Path) -> None:  # noqa: F811
    told = parse_config(config(folder, data=f"cached = {2 * PER_FILE + 3}\n"))
    cache = LatentCache(told, folder / "vae.safetensors")
    assert cache.batches == PER_FILE + 2  # of two pictures each
    assert [*cache.missing()] == [range(PER_FILE), range(PER_FILE, PER_FILE + 2)]


def test_a_cache_larger_than_the_disk_is_refused_before_its_second_file(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A thousand million crops: nothing may first be done for each."""
    looked: list[object] = []

    def lexists(path: object) -> bool:
        looked.append(path)
        assert len(looked) < 10
        return False

    text = config(folder, data="cached = 1000000000\n")
    usage = SimpleNamespace(total=10**9, used=0, free=10**9)
    monkeypatch.setattr("op4ksr_core.training.room.shutil.disk_usage", lambda _: usage)
    monkeypatch.setattr("op4ksr_core.training.data.latent_cache.os.path.lexists", lexists)
    with pytest.raises(OutputError, match=r"the disk has 1\.0 GB left; lower data\.cached"):
        Trainer(parse_config(text), text).run()


@pytest.mark.parametrize("damage", ["cut", "other", "gone"])
def test_a_damaged_file_is_told_with_the_remedy(folder: Path, damage: str) -> None:  # noqa: F811
    found = parse_config(config(folder, data="cached = 4\n"))
    cache = filled(found, folder, 0.0)
    file = cache.path(0)
    if damage == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:100] if damage == "cut" else (folder / "vae.safetensors").read_bytes())
    with pytest.raises(UnsupportedCheckpointError, match="delete it, and it is made again"):
        cache.read(0)


def filled(found: TrainConfig, folder: Path, value: float) -> LatentCache:  # noqa: F811
    """The config's cache with batches of one value in it."""
    cache = LatentCache(found, folder / "vae.safetensors")
    for file in cache.missing():
        cache.write(file.start, batches(len(file), value))
    return cache


def batches(count: int, value: float) -> list[EncodedBatch]:
    def batch() -> EncodedBatch:
        picture = torch.full((2, 3, 64, 64), int(value), dtype=torch.uint8)
        return EncodedBatch(*(torch.full((2, 16, 4, 4), value) for _ in range(2)), picture)

    return [batch() for _ in range(count)]


def test_a_run_with_fewer_crops_does_not_take_another_runs_away(folder: Path) -> None:  # noqa: F811
    """Both share the folder, and the shorter cache is written after the longer one."""
    short, long = (parse_config(config(folder, data=f"cached = {n}\n")) for n in (4, 2 * PER_FILE + 8))
    slow = LatentCache(short, folder / "vae.safetensors")
    assert [*slow.missing()] == [range(2)]
    cache = filled(long, folder, 1.0)
    slow.write(0, batches(2, 2.0))
    assert not [*cache.missing()]
    assert [float(cache.read(i).low.mean()) for i in range(cache.batches)] == [1.0] * cache.batches


def test_runs_that_write_one_file_at_once_do_not_spoil_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    found = parse_config(config(folder, data="cached = 4\n"))
    save = checkpoint.save_file

    def interrupted(tensors: dict[str, torch.Tensor], path: Path, metadata: dict[str, str]) -> None:
        monkeypatch.setattr(checkpoint, "save_file", save)
        path.write_bytes(b"half of it")
        filled(found, folder, 1.0)
        save(tensors, path, metadata)

    monkeypatch.setattr(checkpoint, "save_file", interrupted)
    cache = filled(found, folder, 2.0)
    assert [float(cache.read(i).low.mean()) for i in (0, 1)] == [2.0, 2.0]
    assert list(cache.folder.iterdir()) == [cache.path(0)]


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("autoencoder", {"data": "cached = 4\n"}),
        ("one_step", {"data": "cached = -1\n"}),
        ("one_step", {"data": "cached = 4\nlate_from = 0.5\n"}),
        ("lora", {"data": "cached = 4\n", "train": "accelerate = true\n"}),
    ],
)
def test_what_cannot_be_cached_is_refused(folder: Path, kind: str, more: dict[str, str]) -> None:  # noqa: F811
    with pytest.raises(OptionError, match=r"data\.cached"):
        parse_config(config(folder, kind, **more))


def test_where_no_term_sees_the_picture_nothing_is_decoded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    text = config(folder, "lora").replace("frequency = 0.1\nperiodicity = 0.1\n", "pixel = 0.0\ngradient = 0.0\n")
    calls: list[torch.Size] = []
    forward = Decoder.forward
    monkeypatch.setattr(Decoder, "forward", lambda self, z: calls.append(z.shape) or forward(self, z))
    train(text)
    assert calls == [] and float(rows(folder / "run")[-1]["latent"]) > 0


def test_no_text_encoder_is_needed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """The prompt embedding is the file's constant."""
    for package in ("transformers", "diffusers", "tokenizers"):
        monkeypatch.setitem(sys.modules, package, None)
    model = load_flux(folder / "flux.safetensors")
    model.settings = replace(model.settings, txt=torch.randn(3, 24), vec=torch.randn(12))
    save_flux(folder / "flux.safetensors", model)
    task = make_task(parse_config(config(folder, "lora")))
    assert isinstance(task, LoraTask) and task.flux.settings.txt is not None
    assert torch.equal(task.flux.prompt(2)[0][1], model.settings.txt) and train(config(folder, "lora")).exists()
