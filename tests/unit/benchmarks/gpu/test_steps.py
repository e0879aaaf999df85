"""The steps: what they write while they run, what they answer, and what becomes of a failure inside one."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.gpu import attention as attention_step
from benchmarks.gpu import checks
from benchmarks.gpu.attention import Attention, attention_rows, fastest, float64_rows
from benchmarks.gpu.checks import YES, Check, check_rows
from benchmarks.gpu.step import StepReport
from benchmarks.gpu.upscale import measure_upscale
from benchmarks.random_models import random_autoencoder_on, random_flux, weights_bytes
from op4ksr_core import OptionError
from op4ksr_core.planning.cost import flux_flops
from op4ksr_core.planning.geometries import GEOMETRIES

CPU = torch.device("cpu")


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


# --- models -----------------------------------------------------------------------------------


def test_the_geometry_is_that_of_12_b() -> None:
    shape = GEOMETRIES["flux"]
    assert (shape.flux.depth, shape.flux.depth_single_blocks, shape.flux.hidden_size) == (19, 38, 3072)
    assert shape.autoencoder.widths[0] == 128 and shape.autoencoder.stride == 2
    assert flux_flops(shape.flux, 128 * 128, shape.text_tokens) == pytest.approx(0.42e15, rel=0.02)  # 4096 px


def test_weights_are_made_in_place_and_depend_on_nothing_but_their_name() -> None:
    shape = GEOMETRIES["small"]
    one, two = (random_flux(shape, CPU, torch.bfloat16) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert one.dtype == torch.bfloat16 and not any(p.is_meta or p.requires_grad for p in one.parameters())
    assert one.settings.txt is not None and one.settings.txt.shape == (16, 64)
    vae = random_autoencoder_on(shape, CPU, torch.float32)
    image = vae.decode(torch.randn(1, 16, 4, 4, generator=torch.Generator().manual_seed(0)))
    assert image.isfinite().all() and image.std() > 0.05
    assert weights_bytes(vae) == 4 * sum(p.numel() for p in vae.parameters())


# --- reports ----------------------------------------------------------------------------------


def test_a_report_is_whole_after_every_row(tmp_path: Path) -> None:
    report = StepReport(tmp_path / "step.json")
    for number in (1, 2):
        report.add("rows", {"n": number})
        assert read(report.path) == {"answer": "", "tables": {"rows": [{"n": n} for n in range(1, number + 1)]}}
    report.conclude("two rows")
    assert read(report.path)["answer"] == "two rows" and [path.name for path in tmp_path.iterdir()] == ["step.json"]


# --- checks -----------------------------------------------------------------------------------


def test_checks_found_before_another_fails_stay_and_the_next_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(device: torch.device) -> Iterator[Check]:
        yield Check("the first", 0.0, 1.0)
        raise RuntimeError("no kernel | for this\nmore")

    monkeypatch.setattr(checks, "CHECKS", {"breaks": breaks, "after": lambda device: iter([Check("x", 2, 1)])})
    first, second, third = check_rows(CPU, ["breaks", "after"])
    assert (first["check"], first["holds"], third["holds"]) == ("the first", YES, "NO")
    assert second["holds"] == "could not be tried: no kernel / for this" and list(second) == list(first)


def test_the_step_answers_what_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        checks, "CHECKS", {"a": lambda device: iter([Check("x", 1, 1), Check("y", 2, 1)]), "peaks": checks.peak_checks}
    )
    monkeypatch.setattr(sys, "argv", ["checks", "--device", "cpu", "-o", str(tmp_path / "step.json")])
    assert checks.main() == 0
    assert read(tmp_path / "step.json")["answer"] == "1 of 2 hold; not: y"


# --- attention --------------------------------------------------------------------------------


def test_errors_are_from_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that is wrong by a hundredth has an error of a hundredth; one without memory is a row."""
    case, monkey = Attention("small", 2, 32, 100), {}

    def ways(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> dict[str, Any]:
        def full() -> torch.Tensor:
            raise torch.OutOfMemoryError("CUDA out of memory | here")

        monkey["truth"] = float64_rows(q, k, v)
        torch.testing.assert_close(
            monkey["truth"], torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
        )
        return {"wrong": lambda: 1.01 * monkey["truth"], "full": full}

    monkeypatch.setattr(attention_step, "_ways", ways)
    wrong, full = attention_rows(case, CPU)
    assert wrong["error"] == pytest.approx(0.01) and list(wrong) == list(full)
    assert full["outcome"] == "not here: CUDA out of memory / here" and full["s"] is None


def test_the_fastest_is_one_that_is_exact() -> None:
    def row(kernel: str, seconds: float, error: float) -> dict[str, Any]:
        return {"kernel": kernel, "s": seconds, "error": error, "outcome": "done"}

    rows = [row("the pack's", 0.02, 1e-3), row("coarse", 0.001, 1e-2), row("good", 0.01, 1.2e-3)]
    assert fastest(rows).endswith("fastest of the exact ones: good 10 ms (error 1.2e-03)")
    assert fastest([]) == "the pack's attention does not run here"


# --- upscales ---------------------------------------------------------------------------------


def test_an_upscale_is_beside_its_plan() -> None:
    answer, tables = measure_upscale("small", 64, "bf16", CPU, repeats=1)
    assert "of the bf16 ceiling; peak" in answer and "of the plan's" in answer
    assert {row["stage"] for row in tables["Stages of one upscale"]} >= {"encode", "transformer", "decode", "together"}
    assert "random (seeded), small" in tables["Settings"][-1]["value"]


def test_fp8_without_its_products_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.gpu.upscale.has_scaled_mm", lambda device: False)
    with pytest.raises(OptionError, match="fp8: torch._scaled_mm does not run on cpu; take --weights bf16"):
        measure_upscale("small", 64, "fp8", CPU)


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--start"]])
def test_training_is_started_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: list[str]) -> None:
    words = ["--device", "cpu", "--geometry", "small", "-o", str(tmp_path / "step.json"), *more]
    monkeypatch.setattr(sys, "argv", ["training", *words])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("benchmarks.gpu.training", run_name="__main__")
    found = read(tmp_path / "step.json")
    assert ended.value.code == 0
    assert "detail_h200.toml: starts" in found["answer"] if more else "planned" in found["answer"]
