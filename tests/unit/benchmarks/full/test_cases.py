"""``benchmark full``: cases come in order, one that fails is a row, what is there is not measured twice."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.commands import main as cli
from benchmarks.full import cases as benchmark_full
from benchmarks.full.cases import FullSettings, blocks_compiled, expected_seconds, full, outcome, setup_of, work_of
from benchmarks.full.tables import Case, Findings, Record, aim_rows, check_same, paper_row, read_findings, tables_of
from benchmarks.random_models import random_autoencoder_on, random_flux, weights_bytes
from op4ksr_core import Op4ksrError, OptionError, OutOfMemoryError
from op4ksr_core.planning.geometries import GEOMETRIES
from op4ksr_core.vae.strips import StripSettings

CPU = torch.device("cpu")
TINY = FullSettings("small", (64,), ("bf16",), (False,), repeats=1, ceiling=(64,))
CASE = Case(4096, "bf16", False)


def record(case: Case, seconds: float, flops: float = 4e14, **more: Any) -> Record:
    stages = {"encode": seconds / 4, "transformer": seconds / 2, "decode": seconds / 4}
    return Record(case, turns=[stages], peaks={"decode": 10**9}, flops={"transformer": flops}, **more)


# --- the geometry -----------------------------------------------------------------------------


def test_the_geometry_is_that_of_12_b_and_its_work_is_the_issues() -> None:
    shape = GEOMETRIES["flux"]
    assert (shape.flux.depth, shape.flux.depth_single_blocks, shape.flux.hidden_size) == (19, 38, 3072)
    assert shape.autoencoder.widths[0] == 128 and shape.autoencoder.stride == 2
    assert work_of(shape) == pytest.approx(0.49e15, rel=0.01)
    assert paper_row(work_of(shape))["of the peak"] == pytest.approx(0.57, abs=0.01)


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


# --- running ----------------------------------------------------------------------------------


def test_cases_are_run_by_dtype_then_compile_then_side() -> None:
    cases = FullSettings(sides=(64, 32), dtypes=("fp8", "bf16"), compiled=(True, False)).cases()
    assert cases[:3] == [Case(64, "fp8", True), Case(32, "fp8", True), Case(64, "fp8", False)]
    assert len(cases) == 8 and cases[-1] == Case(32, "bf16", False)


def test_compiled_blocks_are_the_blocks_and_equal_ones_share_a_graph() -> None:
    flux = random_flux(GEOMETRIES["small"], CPU, torch.float32)
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(0))
    given = (latent, torch.tensor([0.5]), *flux.prompt(1))
    with torch.no_grad():
        plain, blocks = flux(*given), flux.single_blocks
        with blocks_compiled(flux, True, "eager") as graphs:
            torch.testing.assert_close(flux(*given), plain)
            assert graphs() == 2 and flux.single_blocks is not blocks  # one of each kind, of 3 blocks
            flux(*given)
            assert graphs() == 2
    assert flux.single_blocks is blocks


def test_the_memory_tells_the_weights_apart() -> None:
    found = Findings(setup_of(TINY, CPU))
    full(TINY, CPU, found)
    (own,) = found.records
    assert own.done and own.first > 0 and len(own.turns) == 1 and own.graphs == own.later_graphs == 0
    assert own.peak == own.weights + max(own.peaks.values())
    assert own.work == pytest.approx(sum(own.flops.values())) and set(own.flops) == {"encode", "transformer", "decode"}


@pytest.mark.parametrize("error", [OutOfMemoryError("x"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_out_of_memory_is_a_row(error: Exception) -> None:
    def fail() -> Record:
        raise error

    assert outcome(CASE, fail).status == "out of memory"


@pytest.mark.parametrize("error", [Op4ksrError("the VAE's output is not finite"), OptionError("x"), RuntimeError("x")])
def test_any_other_failure_is_a_row_too(error: Exception) -> None:
    """Or the same case would end every later call as well."""

    def fail() -> Record:
        raise error

    assert outcome(CASE, fail).status == f"failed: {error}"


def test_a_case_that_fails_is_a_row_and_the_next_is_run(monkeypatch: pytest.MonkeyPatch) -> None:
    measure_case = benchmark_full.measure_case

    def once(core: Any, case: Case, settings: FullSettings) -> Record:
        if case.side == 64:
            raise RuntimeError("no kernel | for this\nand more")
        return measure_case(core, case, settings)

    monkeypatch.setattr(benchmark_full, "measure_case", once)
    found, told = Findings({}), []
    settings = FullSettings("small", (64, 32), ("bf16",), (False,), 1, ceiling=(64,))
    full(settings, CPU, found, lambda left: told.append(len(left)))
    assert [r.status for r in found.records] == ["failed: no kernel / for this", "done"]
    assert told == [2, 1, 0, 0]


def test_a_device_without_fp8_products_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark_full, "has_scaled_mm", lambda device: False)
    found = Findings({})
    full(FullSettings("small", (32,), ("fp8",), (False,), 1, ceiling=(64,)), CPU, found)
    assert found.records[0].status == "failed: fp8: this device has no products of 8-bit floats; take fp8-cast"
    assert list(found.ceilings) == ["bf16"]


def test_no_case_is_begun_that_would_end_too_late() -> None:
    left: dict[Case, str] = {}
    found = Findings({}, {"bf16": [{"px": 1, "TFLOP/s": 1e-6}]})
    settings = FullSettings("small", (32,), ("bf16",), (False,), 1, minutes=0.01)
    assert expected_seconds(settings.cases()[0], settings, found) > 1
    full(settings, CPU, found, left.update)
    assert not found.records and left == {Case(32, "bf16", False): "no time left"}
    assert expected_seconds(Case(32, "bf16", True), settings, found) > 90


def test_sides_that_are_too_small_are_refused() -> None:
    with pytest.raises(OptionError, match="expected sides from 4 px up, got 2"):
        FullSettings(sides=(2,))


def test_only_cuda_devices_can_be_limited() -> None:
    with pytest.raises(OptionError, match="PyTorch limits the memory of CUDA devices only, this is cpu"):
        full(replace(TINY, limit=16), CPU, Findings({}))


# --- tables -----------------------------------------------------------------------------------


def test_shares_are_those_of_the_numbers_shown() -> None:
    ceilings = {"bf16": [{"px": 1, "TFLOP/s": 800.0}], "fp8": [{"px": 1, "TFLOP/s": 1600.0}]}
    found = Findings({}, ceilings, [record(Case(4096, "fp8", False), 0.5, weights=12 * 10**9)])
    tables = tables_of(found, {CASE: "no time left"}, 4.9e14, True)
    row, missing = tables["Cases"]
    assert row["TFLOP/s"] == pytest.approx(800) and row["of ceiling"] == pytest.approx(0.5)
    assert row["of bf16 ceiling"] == pytest.approx(1) and row["GB"] == pytest.approx(13)
    assert missing["outcome"] == "no time left" and missing["s"] == "" and list(missing) == list(row)
    stage = tables["Stages of each case"][1]
    assert stage["of bf16 ceiling"] == pytest.approx(2) and stage["of all"] == pytest.approx(0.5)


def test_aims_are_met_missed_or_not_measured() -> None:
    ceilings = {"bf16": [{"px": 1, "TFLOP/s": 790.0}]}
    records = [record(CASE, 1.1), record(Case(4096, "bf16", True), 0.9), record(Case(2048, "fp8", False), 0.1)]
    rows = {row["aim"]: row for row in aim_rows(Findings({"gpu": "NVIDIA H200"}, ceilings, records))}
    assert (rows["bf16: seconds"]["measured"], rows["bf16: seconds"]["verdict"]) == (0.9, "met")
    assert rows["bf16: share of the measured ceiling"]["verdict"] == "missed by 9%"
    assert rows["fp8: seconds"]["verdict"] == rows["fp8: GB, weights included"]["verdict"] == "not measured"
    assert "benchmark host" in rows["weights offloaded: GB"]["verdict"]
    elsewhere = list(aim_rows(Findings({"gpu": "another"}, ceilings, records)))
    assert elsewhere[0]["verdict"] == "met, but this is no H200"


# --- the command ------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> Callable[..., int]:
    def run(*more: str) -> int:
        start = ["full", "--quick", "--sides", "32", "--repeats", "1", "--device", "cpu"]
        return cli.main([*start, "--backend", "eager", "-o", str(tmp_path), *more])

    return run


def test_the_command_goes_on_where_it_was(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cut off after the first dtype, say; the second command adds to the report, and measures nothing twice."""
    assert command("--dtypes", "bf16", "--compile", "no") == 0
    before = read_findings(tmp_path / "full.json")
    assert command("--dtypes", "bf16", "fp8-cast", "--compile", "both") == 0
    after = read_findings(tmp_path / "full.json")
    assert before is not None and after is not None
    assert after.records[0] == before.records[0] and after.ceilings == before.ceilings
    names = [(r.case.dtype, r.case.compiled, r.status) for r in after.records]
    assert names[1:] == [("bf16", True, "done"), ("fp8-cast", False, "done"), ("fp8-cast", True, "done")]
    assert after.records[1].graphs == 2 and after.records[1].peak is None  # compiled: not seen on a CPU
    text = (tmp_path / "full.md").read_text("utf-8")
    assert text in capsys.readouterr().out and "random (seeded): time and memory, never quality" in text
    assert "Aims" not in text  # another geometry's


def test_what_failed_is_tried_again_where_that_is_asked_for(
    command: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(core: Any, case: Case, settings: FullSettings) -> Record:
        raise RuntimeError("no kernel") if case.side == 32 else OutOfMemoryError("x")

    with monkeypatch.context() as patch:
        patch.setattr(benchmark_full, "measure_case", fail)
        assert command("--dtypes", "bf16", "--compile", "no", "--sides", "32", "64") == 0
    for again, statuses in (
        ((), ["failed: no kernel", "out of memory"]),
        (("--again", "failed"), ["out of memory", "done"]),
    ):
        assert command("--dtypes", "bf16", "--compile", "no", "--sides", "32", "64", *again) == 0
        found = read_findings(tmp_path / "full.json")
        assert found is not None and [record.status for record in found.records] == statuses


def test_a_report_of_another_setup_is_refused(
    command: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OptionError, match="has torch '1', this run '2'; name another folder"):
        check_same(Findings({"torch": "1"}), {"torch": "2"})
    plain = setup_of(TINY, CPU)
    for other in (replace(TINY, repeats=2), replace(TINY, strips=StripSettings(32, "tiny"))):
        with pytest.raises(OptionError, match="name another folder"):
            check_same(Findings(plain), setup_of(other, CPU))
    (tmp_path / "full.json").write_text(json.dumps({"details": []}), "utf-8")
    assert command() == 1
    assert "is no report to go on with" in capsys.readouterr().err
    assert command("--again", "--dtypes", "bf16", "--compile", "no") == 0
