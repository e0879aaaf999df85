"""The trainer: a run folder, a run gone on with bit for bit, and a tiny set that is learnt by heart."""

from __future__ import annotations

import contextlib
import csv
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from host_support import free_port
from lora_merge import merge
from PIL import Image

from op4ksr_core import (
    OneStepSettings,
    Op4ksrError,
    OptionError,
    load_autoencoder,
    load_flux,
    save_autoencoder,
    save_flux,
)
from op4ksr_core.cli.main import main
from op4ksr_core.images.color import back_project
from op4ksr_core.images.resize import resize
from op4ksr_core.models.latent import process_in
from op4ksr_core.models.rope import fit_theta
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.training.data.sources import open_source
from op4ksr_core.training.optimization import rate_at
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.one_step import OneStepTask
from op4ksr_core.training.tasks.task import UNIT, projected
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.weights.description import describe_flux
from op4ksr_core.weights.header import read_header, read_tensors

TINY_FLUX = "hidden_size = 64\nnum_heads = 2\ndepth = 1\ndepth_single_blocks = 1\ncontext_in_dim = 8\nvec_in_dim = 8\n"


@pytest.fixture
def folder(tmp_path: Path, make_autoencoder, make_flux) -> Path:
    save_autoencoder(tmp_path / "vae.safetensors", make_autoencoder())
    save_flux(tmp_path / "flux.safetensors", make_flux(theta=(300.0, 300.0)))
    return tmp_path


def config(folder: Path, kind: str = "one_step", run: str = "run", **sections: str) -> str:
    """A tiny run's TOML; a section's text is added to it."""
    model = {
        "autoencoder": "widths = [8, 16, 16, 16]\nnorm_groups = 2\nlayers_per_block = 1\n",
        "one_step": TINY_FLUX + f'autoencoder = "{(folder / "vae.safetensors").as_posix()}"\n',
        "lora": f'start = "{(folder / "flux.safetensors").as_posix()}"\nlora_rank = 4\n'
        f'autoencoder = "{(folder / "vae.safetensors").as_posix()}"\n',
    }[kind]
    text = {
        "model": model,
        "data": "pictures = 2\npicture_side = 128\ncrop = 64\n",
        "loss": "frequency = 0.1\nperiodicity = 0.1\n",
        "train": "steps = 6\nbatch = 2\nwarmup = 2\nprecision = 'fp32'\ndevice = 'cpu'\n",
        "output": "log_every = 1\nsave_every = 3\nsample_every = 0\nsamples = 1\nsample_side = 64\ndtype = 'fp32'\n",
    }
    for name, more in sections.items():
        text[name] = text.get(name, "") + more
    tables = "".join(f"[{name}]\n{body}" for name, body in text.items())
    return f'kind = "{kind}"\nrun = "{(folder / run).as_posix()}"\n{tables}'


def short(text: str) -> str:
    """The run in two steps, where what is looked at is there after any."""
    return text.replace("steps = 6", "steps = 2").replace("save_every = 3", "save_every = 2")


def sampled(text: str) -> str:
    """The run with sample pictures at its two ends, which cost a third of its time."""
    return text.replace("sample_every = 0", "sample_every = 6")


def train(text: str, resume: bool = False) -> Path:
    return Trainer(parse_config(text), text, resume).run()


def load(path: Path) -> dict[str, torch.Tensor]:
    return read_tensors(read_header(path))


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def same_file(one: Path, other: Path) -> bool:
    """The same tensors, bit for bit, and the same metadata (safetensors writes it in no fixed order)."""
    headers = [read_header(path) for path in (one, other)]
    a, b = (read_tensors(header) for header in headers)
    equal = a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    return equal and headers[0].metadata == headers[1].metadata


class StoppedError(Exception):
    """Stands for a kill: nothing is saved on the way out."""


def killed_at(step: int):
    def on_step(done: int, total: int, line: str) -> None:
        if done == step:
            raise StoppedError

    return on_step


@pytest.mark.parametrize(
    ("kind", "first"),
    [
        pytest.param("autoencoder", 0, marks=pytest.mark.slow),
        pytest.param("autoencoder", 2, marks=pytest.mark.slow),
        ("autoencoder", 4),
        pytest.param("one_step", 0, marks=pytest.mark.slow),
        ("one_step", 2),
        pytest.param("lora", 0, marks=pytest.mark.slow),
    ],
)
def test_a_killed_run_goes_on_bit_for_bit(folder: Path, kind: str, first: int) -> None:
    """first: steps of the linear start, or on latents alone."""
    more = {"train": "accumulate = 2\ngrid_every = 4\ngrid_tokens = [8]\ngrid_pictures = 2\nunit_at = 0.5\n"}
    if kind == "autoencoder" and first:
        more = {"train": f"linear_steps = {first}\n"}
    elif first:
        more = {"train": more["train"] + f"latent_steps = {first}\n"}
    whole = train(config(folder, kind, "whole", **more))
    text = config(folder, kind, "killed", **more)
    with pytest.raises(StoppedError):
        Trainer(parse_config(text), text, False, killed_at(5)).run()
    assert len(rows(folder / "killed")) >= 5
    again = train(text, resume=True)
    assert same_file(again, whole)
    first, second = (rows(folder / name) for name in ("whole", "killed"))
    assert [r["loss"] for r in first] == [r["loss"] for r in second] and len(first) == 7
    states = [read_header(folder / name / "checkpoints" / "state.safetensors") for name in ("whole", "killed")]
    a, b = (read_tensors(state) for state in states)
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    assert any(name.startswith("optimizer.") for name in a) and any(name.startswith("ema.") for name in a)


def test_the_run_folder_holds_what_a_person_looks_for(folder: Path) -> None:
    text = sampled(config(folder))
    weights = train(text)
    run = folder / "run"
    assert (run / "config.toml").read_text() == text
    assert {p.name for p in run.iterdir()} == {"config.toml", "log.csv", "samples", "checkpoints", "cache"}
    assert sorted(p.name for p in (run / "samples").iterdir()) == ["step_0000000_0.png", "step_0000006_0.png"]
    assert not list(run.rglob("*.part*"))
    last = rows(run)[-1]
    assert {"loss", "pixel", "gradient", "frequency", "latent", "periodicity"} <= set(last)
    assert float(last["sample_psnr"]) > 5 and float(last["sample_periodicity"]) >= 0
    total = sum(float(last[name]) for name in ("pixel", "gradient", "frequency", "latent", "periodicity"))
    assert float(last["loss"]) == pytest.approx(total, rel=1e-3)
    assert weights.name == "flux_0000006.safetensors" and load_flux(weights).settings.txt is not None


def test_the_rfr_policy_is_written_into_the_file_as_a_number(folder: Path) -> None:
    rfr = 'policy = "fit"\nturns = 1.0\ntokens = 64\n'
    found = describe_flux(train(short(config(folder, rfr=rfr, model="sigma = 0.7\ntrain_tokens = 64\n"))))
    theta = fit_theta(64, 1.0, 14)
    assert found.params.theta == (theta, theta) and found.settings.sigma == 0.7 and found.settings.train_tokens == 64
    assert "one_step" in found.header.metadata["op4ksr.training"]
    assert "periodicity 0.1" in found.header.metadata["op4ksr.training"]


@pytest.mark.parametrize("kind", ["one_step", "lora"])
def test_a_run_from_weights_that_encode_a_sample_says_that_it_encodes_the_mean(
    folder: Path, make_flux, kind: str
) -> None:
    save_flux(folder / "flux.safetensors", make_flux(settings=OneStepSettings(encode="sample")))
    assert describe_flux(folder / "flux.safetensors").settings.encode == "sample"
    text = short(config(folder, kind))
    if kind == "one_step":
        text = text.replace("[model]\n", f'[model]\nstart = "{(folder / "flux.safetensors").as_posix()}"\n')
    header = read_header(train(text))
    assert header.metadata.get("op4ksr.encode", "mean") == "mean"


def test_a_lora_keeps_or_changes_its_models_theta(folder: Path) -> None:
    kept = read_header(train(short(config(folder, "lora", "kept"))))
    assert kept.kind == "lora" and kept.metadata["op4ksr.rope_theta"] == "300.0"
    other = config(folder, "lora", "other", rfr='policy = "theta"\ntheta = 100\n')
    path = train(other)
    assert read_header(path).metadata["op4ksr.rope_theta"] == "100.0"
    model = load_flux(folder / "flux.safetensors")
    assert merge(model, path) > 5


@pytest.mark.slow
def test_the_decoder_alone_leaves_the_encoder_as_it_is(folder: Path) -> None:
    start = f'start = "{(folder / "vae.safetensors").as_posix()}"\npart = "decoder"\n'
    text = short(config(folder, "autoencoder", model=start))
    before, after = load_autoencoder(folder / "vae.safetensors"), load_autoencoder(train(text))
    assert all(torch.equal(a, b) for a, b in zip(before.encoder.parameters(), after.encoder.parameters(), strict=True))
    assert not torch.equal(before.decoder.conv_out.weight, after.decoder.conv_out.weight)


@pytest.mark.slow
def test_checkpointing_and_workers_change_nothing(folder: Path) -> None:
    plain = train(config(folder, run="plain"))
    other = train(config(folder, run="other", train="checkpointing = true\n", data="workers = 2\n"))
    assert torch.allclose(
        load_flux(plain).final_layer.linear.weight, load_flux(other).final_layer.linear.weight, atol=1e-6
    )


@pytest.mark.slow
def test_the_adversarial_term_comes_in_when_it_should_and_resumes(folder: Path) -> None:
    loss = "adversarial = 0.01\nadversarial_from = 0.5\n"
    whole = train(config(folder, run="whole", loss=loss))
    terms = [row["adversarial"] for row in rows(folder / "whole")]
    assert terms[:4] == [""] * 4 and all(terms[4:])
    text = config(folder, run="killed", loss=loss)
    with pytest.raises(StoppedError):
        Trainer(parse_config(text), text, False, killed_at(5)).run()
    assert same_file(train(text, resume=True), whole)


def test_degraded_pictures_and_late_crops(folder: Path) -> None:
    more = {"degradation": "factor = [2, 8]\n", "data": "late_from = 0.5\nlate_crop = 96\nlate_batch = 1\n"}
    train(config(folder, **more))
    assert len(rows(folder / "run")) == 7


def test_a_run_is_not_overwritten_nor_mixed_with_another(folder: Path) -> None:
    train(short(config(folder)))
    with pytest.raises(OptionError, match="--resume"):
        train(config(folder))
    with pytest.raises(OptionError, match="seed"):
        train(config(folder).replace("kind", "seed = 5\nkind", 1), resume=True)
    with pytest.raises(OptionError, match="another model"):
        train(config(folder).replace("depth_single_blocks = 1", "depth_single_blocks = 2"), resume=True)


def test_a_loss_that_is_not_finite_stops_the_run_with_a_remedy(folder: Path) -> None:
    with pytest.raises(Op4ksrError, match=r"train\.rate"):
        train(config(folder, train="rate = 1e30\nclip = 1e30\n"))


@pytest.mark.parametrize(
    ("module", "more", "told"),
    [
        ("accelerate", {"train": "accelerate = true\n"}, "train.accelerate: needs accelerate: pip install accelerate"),
        (
            "torch.utils.tensorboard",
            {"output": "tensorboard = true\n"},
            "output.tensorboard: needs tensorboard: pip install tensorboard",
        ),
    ],
    ids=["accelerate", "tensorboard"],
)
def test_a_package_that_is_not_there_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, module: str, more: dict[str, str], told: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=f"^{told}$"):
        train(config(folder, **more))


def test_a_device_that_cannot_be_used_is_refused_before_anything_is_written(folder: Path, capsys) -> None:
    path = folder / "c.toml"
    path.write_text(config(folder))
    assert main(["train", str(path), "--set", "train.device='abacus'"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: train.device: 'abacus' cannot be used (") and told.endswith('); try "cpu"\n')
    assert told.count("\n") == 1 and not (folder / "run").exists()


@pytest.mark.parametrize("damage", ["cut short", "another file"])
def test_a_state_that_is_none_is_refused_by_name(folder: Path, capsys, damage: str) -> None:
    path, state = folder / "c.toml", folder / "run" / "checkpoints" / "state.safetensors"
    path.write_text(config(folder))
    train(short(config(folder)))
    state.write_bytes(state.read_bytes()[:-9] if damage == "cut short" else (folder / "vae.safetensors").read_bytes())
    assert main(["train", str(path), "--resume"]) == 1
    told = capsys.readouterr().err
    assert told.startswith(f"error: {state}: is no state of a run (") and told.count("\n") == 1
    assert told.endswith("); start in another folder\n")


def test_a_config_that_cannot_be_copied_is_told(folder: Path, capsys) -> None:
    path, copy = folder / "c.toml", folder / "run" / "config.toml"
    path.write_text(config(folder))
    copy.mkdir(parents=True)
    assert main(["train", str(path)]) == 1
    told = capsys.readouterr().err
    assert told == f"error: {copy}: cannot be written (Is a directory); choose another folder\n"
    assert sorted(p.name for p in copy.parent.iterdir()) == ["checkpoints", "config.toml", "samples"]


@pytest.mark.parametrize(
    ("kind", "changed"),
    [
        ("lora", "model.lora_rank = 2"),
        ("one_step", "model.hidden_size = 128"),
        ("autoencoder", "model.widths = [8, 16, 16, 32]"),
    ],
)
def test_a_run_of_another_shape_is_not_gone_on_with(folder: Path, kind: str, changed: str) -> None:
    text = short(config(folder, kind))
    train(text)
    found = parse_config(text, changes=[changed, "train.steps = 8"])
    with pytest.raises(OptionError, match="its run trains another model; name another run folder"):
        Trainer(found, text, resume=True)


@pytest.mark.slow
def test_a_judge_may_join_a_run_that_had_none(folder: Path) -> None:
    text = short(config(folder))
    train(text)
    found = parse_config(text, changes=["train.steps = 8", "loss.adversarial = 0.1", "loss.adversarial_from = 0.0"])
    assert Trainer(found, text, resume=True).run().name.endswith("0000008.safetensors")


@pytest.mark.slow
def test_samples_are_whole_tokens_whatever_side_is_asked_for(folder: Path) -> None:
    train(sampled(config(folder)).replace("samples = 1", "samples = 2").replace("sample_side = 64", "sample_side = 70"))
    with Image.open(next((folder / "run" / "samples").glob("*_1.png"))) as sample:
        assert sample.height == 64


def test_no_samples_are_none(folder: Path) -> None:
    train(sampled(config(folder)).replace("samples = 1", "samples = 0"))
    assert not list((folder / "run" / "samples").iterdir())


def test_the_command(folder: Path, capsys) -> None:
    path = folder / "c.toml"
    path.write_text(config(folder, loss=""))
    changes = ["--steps", "2", "--run", str(folder / "named"), "--set", "train.batch=1", "--set", "output.dtype='bf16'"]
    assert main(["train", str(path), *changes]) == 0
    told = capsys.readouterr()
    assert "flux_0000002.safetensors" in told.out and "step 2 of 2" in told.err and "pictures/s" in told.err
    assert "# changed by the command: train.batch=1\n" in (folder / "named" / "config.toml").read_text()
    assert read_header(folder / "named/checkpoints/flux_0000002.safetensors").dtype == "BF16"
    assert main(["train", str(path), "--steps", "0"]) == 1
    assert "train.steps: expected at least 1, got 0" in capsys.readouterr().err
    path.write_text(config(folder).replace("steps", "stepps"))
    assert main(["train", str(path)]) == 1
    assert "did you mean 'train.steps'" in capsys.readouterr().err


def test_the_rate_warms_up_and_falls(folder: Path) -> None:
    found = parse_config(config(folder, train="rate = 2.0\nfinal = 0.1\n"))
    rates = [rate_at(step, found) for step in range(7)]
    assert rates[:2] == [1.0, 2.0] and rates[2] == pytest.approx(2.0) and rates[6] == pytest.approx(0.2)
    assert all(a >= b for a, b in zip(rates[1:], rates[2:], strict=False))


def test_the_linear_steps_have_a_rise_and_a_fall_of_their_own(folder: Path) -> None:
    text = "linear_steps = 20\nlinear_rate = 0.5\nfinal = 0.1\nrate = 2.0\n"
    found = parse_config(config(folder, "autoencoder", train=text), changes=["train.steps=60"])
    rates = [rate_at(step, found) for step in range(60)]
    assert rates[:2] == [0.25, 0.5] and rates[2] == pytest.approx(0.5) and 0.05 < rates[19] < 0.06
    assert rates[20:30] == pytest.approx([2 * (i + 1) / 10 for i in range(10)]), "a longer warm-up after it"
    assert all(a >= b for part in (rates[1:20], rates[29:]) for a, b in zip(part, part[1:], strict=False))
    on = replace(found, model=replace(found.model, start="bundled"))
    plain = replace(found, train=replace(found.train, linear_steps=0))
    assert [rate_at(step, on) for step in range(60)] == [rate_at(step, plain) for step in range(60)]


def test_finishing_scales_the_latents_of_the_file_and_not_of_the_state(folder: Path) -> None:
    """A run that gets more steps goes on from what was trained, its mean on the same scale as its weights."""
    weights = train(config(folder, "autoencoder", train="linear_steps = 3\n"))
    state = read_tensors(read_header(folder / "run" / "checkpoints" / "state.safetensors"))
    name = "encoder.conv_out.weight"
    sizes = [
        float(t[:16].std()) for t in (state[f"model.model.{name}"], state[f"ema.model.{name}"], load(weights)[name])
    ]
    assert 0.5 < sizes[1] / sizes[0] < 2 and not 0.5 < sizes[2] / sizes[0] < 2


def test_the_pictures_that_scale_latents_are_read_once_and_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of shards then stands at the same place whether or not the run was broken off."""
    text = config(folder, "autoencoder", train="linear_steps = 3\n")
    asked: list[tuple[int, ...]] = []

    def listened(resume: bool, *stop: Any) -> list[tuple[int, ...]]:
        trainer = Trainer(parse_config(text), text, resume, *stop)
        crops = trainer.source.crops
        monkeypatch.setattr(trainer.source, "crops", lambda seed, *size: asked.append(seed) or crops(seed, *size))
        with contextlib.suppress(StoppedError):
            trainer.run()
        return [asked.pop(0) for _ in range(len(asked))]

    first, again = listened(False, killed_at(5)), listened(True)
    assert [seed.index(UNIT) for seed in (first[0], again[0])] == [1, 1]
    assert not any(len(seed) == 2 for seed in first[1:] + again[1:])


@pytest.mark.slow
def test_the_linear_steps_look_at_the_squared_error_alone(folder: Path) -> None:
    train(config(folder, "autoencoder", train="linear_steps = 3\n"))
    done = [row for row in rows(folder / "run") if row["loss"]]
    assert [row["loss"] == row["pixel"] for row in done] == [True] * 3 + [False] * 3
    assert [bool(row["gradient"]) for row in done] == [False] * 3 + [True] * 3


def test_latents_of_a_linear_start_are_unit_in_the_end(folder: Path) -> None:
    model = load_autoencoder(train(config(folder, "autoencoder", train="linear_steps = 3\n")))
    source = open_source(parse_config(config(folder, "autoencoder")).data, 0, folder / "run" / "cache")
    latent = process_in(model.encode_pixels(source.crops((0, UNIT), 64, 96) * 2 - 1))
    torch.testing.assert_close(latent.std((0, 2, 3)), torch.ones(16), rtol=1e-3, atol=0)
    torch.testing.assert_close(latent.mean((0, 2, 3)), torch.zeros(16), rtol=0, atol=1e-3)


def test_latent_steps_ask_for_no_picture_and_no_autoencoder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = config(folder, train="latent_steps = 4\ngrid_pictures = 2\n")
    trainer = Trainer(parse_config(text), text, False)
    asked: list[int] = []
    crops = trainer.source.crops
    monkeypatch.setattr(trainer.source, "crops", lambda *args: asked.append(trainer.step) or crops(*args))
    trainer.run()
    done = [row for row in rows(folder / "run") if row["loss"]]
    assert [bool(row["pixel"]) for row in done] == [False] * 4 + [True] * 2
    assert all(row["loss"] == row["latent"] for row in done[:4])
    assert asked == [0, 0, 4, 5], "two pictures beforehand, then those of the last two steps"


def test_latent_crops_are_of_one_place_and_away_from_the_border(folder: Path) -> None:
    task = make_task(parse_config(config(folder, train="latent_steps = 4\n")))
    assert isinstance(task, OneStepTask)
    row, column = torch.arange(8.0).expand(8, 8).T, torch.arange(8.0).expand(8, 8)
    tiles = torch.stack([i * 100 + row * 10 + column for i in range(3)])[:, None]
    task.tiles = (tiles, tiles + 0.5)
    low, high = task.latent_crops(200, (1,))
    assert low.shape == (200, 1, 4, 4) and torch.equal(high, low + 0.5)
    corners = low[:, 0, 0, 0]
    assert sorted(set(corners.tolist())) == [
        i * 100 + y * 10 + x for i in range(3) for y in range(1, 4) for x in range(1, 4)
    ]
    assert torch.equal(low[:, 0], corners[:, None, None] + (row * 10 + column)[:4, :4])


def test_projected_is_what_fidelity_1_leaves() -> None:
    torch.manual_seed(0)
    output, target = torch.rand(2, 3, 64, 96), torch.rand(2, 3, 64, 96)
    expected = back_project(output, resize(target, 16, 24), 1.0)
    torch.testing.assert_close(projected(output, target), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("share", "left"), [(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)])
def test_a_share_of_the_terms_forgives_what_back_projection_mends(folder: Path, share: float, left: float) -> None:
    task = make_task(parse_config(config(folder, loss=f"projected = {share}\n")))
    assert isinstance(task, OneStepTask)
    target = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert float(task.pictures(target + 0.1, target)["pixel"]) == pytest.approx(0.1 * left, abs=1e-5)


@pytest.mark.slow
def test_accelerate_in_one_process_gives_the_same(folder: Path) -> None:
    pytest.importorskip("accelerate")
    plain = load_flux(train(config(folder, run="plain")))
    other = load_flux(train(config(folder, run="other", train="accelerate = true\n")))
    assert torch.allclose(plain.final_layer.linear.weight, other.final_layer.linear.weight, atol=1e-7)


@pytest.mark.slow
def test_two_processes_share_a_run(folder: Path) -> None:
    """As ``accelerate launch`` starts them; on CPUs torch's own starter does the same."""
    pytest.importorskip("accelerate")
    path = folder / "c.toml"
    more = {"train": "accelerate = true\ngrid_every = 4\ngrid_tokens = [8]\ngrid_pictures = 2\ncheckpointing = true\n"}
    path.write_text(config(folder, loss="diversity = 0.1\n", **more))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc_per_node",
        "2",
        "--master_port",
        str(free_port()),
    ]
    pack = str(Path(__file__).resolve().parents[3])
    done = subprocess.run([*command, "-m", "op4ksr_core", "train", str(path)], cwd=pack, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    header = read_header(folder / "run/checkpoints/flux_0000006.safetensors")
    assert "6 steps of 4" in header.metadata["op4ksr.training"] and len(rows(folder / "run")) == 7


OVERFIT = """
[data]
source = "folder"
path = "{folder}"
crop = 64
shrunk = 0.0
[output]
log_every = 20
save_every = 1000
sample_every = 0
[train]
batch = 4
warmup = 10
ema = 0.9
precision = "fp32"
device = "cpu"
threads = 1
latent_noise = 0.0
unit_at = 0.0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "model", "loss", "ending", "left"),
    [
        ("one_step", TINY_FLUX, "latent = 1.0\npixel = 0.0\ngradient = 0.0\n", "steps = 140\nrate = 3e-3\n", 0.25),
        ("autoencoder", "widths = [16, 32, 48, 48]\nnorm_groups = 4\n", "", "steps = 100\nrate = 1e-3\n", 0.75),
    ],
    ids=["one_step", "autoencoder"],
)
def test_a_picture_is_learnt_by_heart(
    tmp_path: Path, kind: str, model: str, loss: str, ending: str, left: float
) -> None:
    """A one-step model learns one picture's latents (all turns of it) nearly by heart."""
    Image.fromarray(picture(5, 64, 64)).save(tmp_path / "one.png")
    text = f'kind = "{kind}"\nseed = 1\nrun = "{(tmp_path / "run").as_posix()}"\n[model]\n{model}[loss]\n{loss}'
    train(text + OVERFIT.format(folder=tmp_path.as_posix()) + ending)
    losses = [float(row["loss"]) for row in rows(tmp_path / "run") if row["loss"]]
    assert losses[-1] < left * losses[0], losses
