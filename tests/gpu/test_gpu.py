"""What the pack relies on, on a CUDA device; the same questions on the CPU, so that they are asked rightly.

``python -m benchmarks facts`` writes the same as a table.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.commands import main as cli
from benchmarks.full import facts as benchmark_facts
from benchmarks.full.cases import FullSettings, full, setup_of
from benchmarks.full.facts import QUESTIONS, YES, Fact, attention_rows, facts, limited
from benchmarks.full.fp8 import has_scaled_mm
from benchmarks.full.tables import Findings

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(torch.device("cuda"), id="cuda", marks=[pytest.mark.gpu, on_cuda]),
]
each_device = pytest.mark.parametrize("device", DEVICES)


@each_device
@pytest.mark.parametrize("name", QUESTIONS)
def test_fact(name: str, device: torch.device) -> None:
    if name == "fp8" and not has_scaled_mm(device):
        pytest.skip("this device has no products of 8-bit floats")
    rows = [fact.row() for fact in QUESTIONS[name](device)]
    assert rows and not [row for row in rows if row["holds"] != YES]


def test_facts_found_before_another_fails_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    def question(device: torch.device) -> Iterator[Fact]:
        yield Fact("the first", 0.0, 1.0)
        raise RuntimeError("no kernel | for this")

    monkeypatch.setattr(benchmark_facts, "QUESTIONS", {"both": question})
    first, second = facts(torch.device("cpu"))
    assert first["fact"] == "the first" and first["holds"] == YES
    assert second["holds"] == "could not be tried: no kernel / for this"


def test_attention_without_memory_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(benchmark_facts, "attention", full)
    rows = list(attention_rows(torch.device("cpu")))
    assert rows and {row["outcome"] for row in rows} == {"CUDA out of memory"}


@each_device
def test_attention_with_heads_of_512_never_stores_the_matrix(device: torch.device) -> None:
    """As the pack calls it, above its output: 264 x 264 tokens on CUDA, where the matrix would be 9.7 GB."""
    rows = list(attention_rows(device))
    assert {row["kernel"] for row in rows} >= {"the pack's", "auto", "flash", "plain"}
    assert all(row["off"] < 0.02 for row in rows if row["outcome"] == "done")
    by_products = {row["kernel"]: row["off"] for row in rows[-2:]}
    assert by_products["products, in chunks"] < by_products["products, in chunks, bf16 scores"]
    own = [row for row in rows if row["kernel"] == "the pack's"][-1]
    assert own["outcome"] == "done"
    assert own["GB"] < (0.01 if device.type == "cpu" else 1.0)


@each_device
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_full_size_cases_run(device: torch.device, compiled: bool) -> None:
    """The small geometry in every dtype; compiled by inductor on CUDA alone, where that is quick."""
    backend = "inductor" if device.type == "cuda" else "eager"
    settings = FullSettings("small", (128,), compiled=(compiled,), repeats=1, backend=backend, ceiling=(256,))
    found = Findings(setup_of(settings, device))
    full(settings, device, found)
    assert [record.case for record in found.records] == settings.cases()
    lacking = () if has_scaled_mm(device) else ("fp8",)
    assert {record.case.dtype: record.status for record in found.records if not record.done}.keys() == set(lacking)
    assert all(record.later_graphs == 0 for record in found.records)
    if device.type == "cuda":
        assert all(record.peak for record in found.records if record.done)


def test_a_fact_that_does_not_hold_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(device: torch.device) -> list[Fact]:
        raise RuntimeError("no | kernel\nmore")

    monkeypatch.setattr(benchmark_facts, "QUESTIONS", {"a": lambda d: [Fact("x", 2, 1), Fact("y", 1, 1)], "b": broken})
    told: list[int] = []
    rows = facts(torch.device("cpu"), lambda rows: told.append(len(rows)))
    assert [row["holds"] for row in rows] == ["NO", "yes", "could not be tried: no / kernel"] and told == [2, 3]


def test_the_command_writes_both_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_facts, "QUESTIONS", {"memory meter": QUESTIONS["memory meter"]})
    assert cli.main(["facts", "--device", "cpu", "-o", str(tmp_path)]) == 0
    tables = json.loads((tmp_path / "facts.json").read_text("utf-8"))["tables"]
    first, second = tables.values()
    assert {row["holds"] for row in first} == {YES} and len(second) == 2 * 9


@pytest.mark.gpu
@on_cuda
def test_a_limit_makes_a_case_a_row() -> None:
    device = torch.device("cuda")
    settings = FullSettings("small", (256,), ("bf16",), (False,), 1, ceiling=(256,), limit=0.001)
    found = Findings(setup_of(settings, device))
    try:
        full(settings, device, found)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert [record.status for record in found.records] == ["out of memory"]


@pytest.mark.gpu
@on_cuda
def test_a_process_is_really_kept_from_memory() -> None:
    device = torch.device("cuda")
    with pytest.raises(torch.OutOfMemoryError), limited(device, 2**26):
        torch.zeros(2**28, dtype=torch.uint8, device=device)
    torch.zeros(2**28, dtype=torch.uint8, device=device)
