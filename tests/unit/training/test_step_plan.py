"""The plan of a training step, held to a real step's counters on the CPU; the 12 B geometry; what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import autocast
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from unit.training.tasks.test_frozen import by_hand
from unit.training.test_trainer import config, folder  # noqa: F401 - folder is a fixture

from benchmarks.commands.main import main as benchmark
from benchmarks.train import Step, train_rows
from op4ksr_core import OptionError, OutOfMemoryError
from op4ksr_core.cli import train as cli_train
from op4ksr_core.cli.main import main
from op4ksr_core.planning.cost import flux_flops
from op4ksr_core.planning.geometries import GEOMETRIES
from op4ksr_core.training.config import LossConfig, TrainConfig
from op4ksr_core.training.config_file import parse_config, read_config
from op4ksr_core.training.step_meter import CudaRules, StepMeter
from op4ksr_core.training.step_plan import (
    CARDS,
    StepPlan,
    geometry_of,
    largest_batch,
    plan_step,
    refuse_if_hopeless,
)
from op4ksr_core.training.tasks import frozen
from op4ksr_core.training.tasks.model_source import Files

CONFIGS = Path(__file__).resolve().parents[3] / "configs"

#: Of the counted peak: what a real step makes besides, such as its loss's scalars. Measured: 0.0 to 1.2 %.
NEAR = 0.02


def told(folder: Path, kind: str = "lora", **more: Any) -> TrainConfig:  # noqa: F811
    found = parse_config(config(folder, kind))
    crop = more.pop("crop", 128)
    data = replace(found.data, crop=crop, picture_side=max(crop, 128), cached=more.pop("cached", 0))
    return replace(found, data=data, train=replace(found.train, **more))


def real_step(found: TrainConfig) -> tuple[dict[str, int], float]:
    """Bytes held, bytes at the peak, and FLOPs of a step on the CPU."""
    step = Step(found, Files(found), torch.device("cpu"))
    step.run()
    held = step.held
    step.optimizer.zero_grad(set_to_none=True)
    with StepMeter() as meter:
        step.run()
    return {"held": held, "peak": held + meter.peak}, meter.flops


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "precision", "checkpointing", "accumulate"),
    [
        ("lora", "bf16", True, 2),
        pytest.param("lora", "fp32", False, 1, marks=pytest.mark.slow),
        pytest.param("lora", "bf16", False, 1, marks=pytest.mark.slow),
        pytest.param("one_step", "bf16", False, 2, marks=pytest.mark.slow),
        pytest.param("one_step", "fp32", True, 1, marks=pytest.mark.slow),
    ],
)
def test_the_plan_is_what_a_real_step_takes(folder, kind, precision, checkpointing, accumulate) -> None:  # noqa: F811
    found = told(folder, kind, precision=precision, checkpointing=checkpointing, accumulate=accumulate)
    plan = plan_step(found, geometry_of(found), "cpu")
    real, work = real_step(found)
    held = sum(size for name, size in plan.held.items() if name != "gradients")
    assert held == pytest.approx(real["held"], rel=0.005)
    assert plan.peak == pytest.approx(real["peak"], rel=NEAR)
    assert plan.work * accumulate == pytest.approx(work, rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize("base", [pytest.param("fp8", marks=pytest.mark.slow), "int8"])
def test_the_plan_knows_the_stored_base(folder, base, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.setattr(frozen, "quantized", by_hand)
    found = told(folder, base=base, precision="bf16", checkpointing=True)
    plan = plan_step(found, geometry_of(found), "cpu")
    real, work = real_step(found)
    assert plan.peak == pytest.approx(real["peak"], rel=NEAR) and plan.work == pytest.approx(work)
    plain = plan_step(replace(found, train=replace(found.train, base="plain")), geometry_of(found), "cpu")
    assert plan.held["transformer, frozen"] < 0.4 * plain.held["transformer, frozen"]


@pytest.mark.slow
def test_checkpointing_and_a_cache_take_less(folder) -> None:  # noqa: F811
    kept, again = (plan_step(told(folder, checkpointing=c), geometry_of(told(folder)), "cpu") for c in (False, True))
    assert again.peak < 0.8 * kept.peak and again.work > 1.1 * kept.work
    cached = plan_step(told(folder, cached=4), geometry_of(told(folder)), "cpu")
    assert cached.flops["encode"] == 0 < kept.flops["encode"] and cached.peaks["encode"] < kept.peaks["encode"]


@pytest.mark.slow
def test_the_work_is_pytorchs_count_and_the_closed_forms(folder) -> None:  # noqa: F811
    found = told(folder, "one_step", crop=256, batch=1)
    plan = plan_step(found, geometry_of(found), "cpu")
    step = Step(found, Files(found), torch.device("cpu"))
    params = step.task.flux.params
    tokens = (256 // 32) ** 2
    assert plan.flops["transformer"] == pytest.approx(flux_flops(params, tokens, found.model.prompt_tokens), rel=0.01)
    with FlopCounterMode(display=False) as counter, StepMeter() as meter:
        step.run()
    attention = 4 * (tokens + found.model.prompt_tokens) ** 2 * params.hidden_size * 2 * 3.5  # both blocks, and back
    attention += 4 * (256 // 16) ** 4 * 16 * (2 + 3.5)  # the VAE's: encoded twice, decoded, and back
    assert meter.flops == pytest.approx(counter.get_total_flops() + attention, rel=1e-6)  # it has none for the CPU


@pytest.mark.slow
def test_cudas_rules_keep_norms_in_float32_and_so_take_more(folder) -> None:  # noqa: F811
    x = torch.randn(2, 4, 8, 8).bfloat16()
    with CudaRules():
        assert F.group_norm(x, 2).dtype == torch.bfloat16
        with autocast("cpu", torch.bfloat16):
            assert {F.group_norm(x, 2).dtype, F.layer_norm(x, (8,)).dtype, F.rms_norm(x, (8,)).dtype} == {torch.float32}
            assert F.interpolate(x, scale_factor=2.0).dtype == torch.float32
            assert F.silu(x).dtype == torch.bfloat16
    found = told(folder, precision="bf16")
    cpu, cuda = (plan_step(found, geometry_of(found), device) for device in ("cpu", "cuda"))
    assert max(cuda.peaks.values()) > 1.2 * max(cpu.peaks.values())
    assert cuda.held["transformer, frozen"] < cpu.held["transformer, frozen"]  # bf16 there


def test_adamw_on_cuda_takes_a_root_of_every_moment() -> None:
    """There it works on all parameters at once, as ``foreach`` does here."""
    parameters = [torch.nn.Parameter(torch.randn(64, 64)) for _ in range(8)]
    optimizer = torch.optim.AdamW(parameters, foreach=True)
    for _ in range(2):
        for parameter in parameters:
            parameter.grad = torch.ones_like(parameter)
        with StepMeter() as meter:
            optimizer.step()
    assert meter.peak == pytest.approx(8 * 64 * 64 * 4, rel=0.01)


@pytest.mark.slow
def test_the_largest_batch_and_terms_that_need_a_library(folder) -> None:  # noqa: F811
    found = told(folder)
    late = replace(found, data=replace(found.data, late_from=0.5, late_crop=256, late_batch=1, picture_side=256))
    assert largest_batch(found) == (2, 3, 128, 128) and largest_batch(late) == (1, 3, 256, 256)
    alone = LossConfig(pixel=0, gradient=0, latent=0, perceptual=1.0)
    plan = plan_step(replace(found, loss=alone), geometry_of(found), "cpu")
    assert plan.uncounted == ("perceptual",) and plan.flops["decode and losses"] > 0


@pytest.mark.slow
def test_only_headers_are_read(folder) -> None:  # noqa: F811
    found = told(folder)
    geometry = geometry_of(found)
    assert geometry.flux.hidden_size == 64 and geometry.autoencoder.widths == (8, 16, 16, 16)
    for name in ("vae.safetensors", "flux.safetensors"):
        (folder / name).unlink()
    assert plan_step(found, geometry, "cpu").peak > 0


# --- FLUX.1-dev's size ------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "card", "held"), [("24gb", 24, 11.98e9), ("48gb", 48, 23.80e9), ("80gb", 80, 23.80e9)]
)
def test_the_recipes_fit_the_cards_that_they_are_named_after(name: str, card: int, held: float) -> None:
    """12 B parameters, counted: half a minute each."""
    plan = plan_step(read_config(CONFIGS / f"lora_flux_{name}.toml"), GEOMETRIES["flux"])
    assert plan.fits(card * 1e9)
    assert [c for c in CARDS if plan.fits(c * 1e9)] == [c for c in CARDS if c >= card]
    assert plan.held["transformer, frozen"] == pytest.approx(held, rel=0.001)


# --- the commands -----------------------------------------------------------------------------


@pytest.fixture
def file(folder: Path) -> Path:  # noqa: F811
    path = folder / "lora.toml"
    path.write_text(config(folder, "lora"))
    return path


@pytest.mark.slow
def test_the_plan_of_the_command(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", str(file), "--plan"]) == 0
    text = capsys.readouterr().out
    assert "adapters" in text and "24 GB card: fits" in text and "not measured" in text
    assert not (file.parent / "run").exists()
    changes = ["--set", "loss.perceptual=0.1", "--set", 'train.device="cuda"']
    assert main(["train", str(file), "--plan", "--json", "--geometry", "small", *changes]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["not_counted"] == ["perceptual"] and report["fits"] == {"24 GB": True, "48 GB": True, "80 GB": True}
    assert report["peak_bytes"] == sum(report["held_bytes"].values()) + max(report["peak_bytes_by_stage"].values())


@pytest.mark.slow
def test_a_step_that_cannot_fit_is_told_before_it_begins(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli_train.check_memory(read_config(file)) is None  # a small model on the CPU
    monkeypatch.setattr(cli_train, "WORTH_A_PLAN", 0)
    plan = cli_train.check_memory(read_config(file))
    assert plan is not None
    monkeypatch.setattr(cli_train, "plan_step", lambda *_: plan)
    monkeypatch.setattr(cli_train, "free_memory", lambda device: plan.peak - 1)
    assert main(["train", str(file)]) == 1
    assert "one step needs" in capsys.readouterr().err and not (file.parent / "run").exists()
    assert main(["train", str(file), "--anyway"]) == 0
    monkeypatch.setattr(cli_train, "free_memory", lambda device: plan.peak)
    assert main(["train", str(file), "--resume", "--steps", "7"]) == 0


def test_a_count_that_fails_does_not_cost_the_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Tensors without values are PyTorch's own affair, and another version's may lack an operation."""

    def fails(*_: Any) -> None:
        raise NotImplementedError("aten::something")

    monkeypatch.setattr(cli_train, "WORTH_A_PLAN", 0)
    monkeypatch.setattr(cli_train, "plan_step", fails)
    assert cli_train.check_memory(read_config(file)) is None
    assert "aten::something" in caplog.text


def test_unknown_memory_refuses_nothing() -> None:
    plan = StepPlan({"weights": 2000}, {"backward": 500}, {"backward": 1e9})
    refuse_if_hopeless(plan, None, "mps")
    refuse_if_hopeless(plan, plan.peak, "cpu")
    with pytest.raises(OutOfMemoryError, match=r"train\.checkpointing"):
        refuse_if_hopeless(plan, plan.peak - 1, "cpu")


@pytest.mark.parametrize("kind", ["autoencoder", "enlarger"])
def test_a_run_without_a_transformer_is_not_counted(kind: str) -> None:
    found = parse_config(f'kind = "{kind}"\nrun = "r"\n')
    with pytest.raises(OptionError, match="--plan"):
        plan_step(found, GEOMETRIES["small"])
    with pytest.raises(OptionError, match="benchmarks train"):
        train_rows(found, GEOMETRIES["small"], random=True, device=torch.device("cpu"))


@pytest.mark.parametrize(
    ("base", "random"),
    [
        pytest.param("plain", False, marks=pytest.mark.slow),
        ("int8", True),
        pytest.param("plain", True, marks=pytest.mark.slow),
        pytest.param("int8", False, marks=pytest.mark.slow),
    ],
)
@pytest.mark.slow
def test_the_benchmark_writes_a_row_beside_its_plan(
    file: Path, random: bool, base: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(frozen, "quantized", by_hand)
    monkeypatch.setattr("benchmarks.train.quantized", by_hand)
    monkeypatch.setattr("benchmarks.ceiling.SIDES", {"cpu": (64,), "other": (64,)})
    output = file.parent / "out"
    command = ["train", str(file), "--repeats", "2", "-o", str(output), "--set", f'train.base="{base}"']
    assert benchmark(command + (["--geometry", "small"] if random else [])) == 0
    assert "never quality" in capsys.readouterr().out or not random
    report = json.loads((output / "train.json").read_text())
    (row,) = report["tables"]["One training step"]
    assert row["seconds"] > 0 and row["base"] == base and len(report["details"]) == 2
    assert row["GB at peak"] == pytest.approx(row["GB planned"], rel=NEAR)
    assert row["TFLOP"] == pytest.approx(row["TFLOP planned"])
    assert row["share of it"] == pytest.approx(row["TFLOP/s"] / row["matmul TFLOP/s"])
