"""``pipeline``: ratios and shares are those of the numbers shown, and the command writes both files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.ceiling import matmul_ceiling
from benchmarks.commands import main as cli
from benchmarks.patches import Cut
from benchmarks.pipeline import QUICK, PipelineSettings, f8_tables, patches_way, stage_table, versus
from benchmarks.stage_times import Measured, flops_of, plan_of
from op4ksr_core import AutoEncoder, Flux, OptionError, Target
from op4ksr_core.one_step import CoreStages

CPU = torch.device("cpu")


def measured(turns: list[dict[str, float]], flops: dict[str, float]) -> Measured:
    return Measured(torch.zeros(1, 3, 4, 4), {stage: 2 * 10**9 for stage in turns[0]}, flops, turns)


@pytest.fixture(scope="module")
def core(make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]) -> CoreStages:
    return CoreStages(make_flux(), make_autoencoder())


def test_the_share_of_the_ceiling_is_that_of_the_numbers_shown(core: CoreStages) -> None:
    turns = [{"enlarge": 1.0, "encode": s, "decode": 2 * s, "save": 9.0} for s in (4.0, 2.0, 9.0)]
    own = measured(turns, {"encode": 8e12, "decode": 4e12})
    table = stage_table(
        own, plan_of((64, 64), Target(scale=2), core), [{"px": 1, "TFLOP/s": 1.0}, {"px": 2, "TFLOP/s": 4.0}]
    )
    rows = {row["stage"]: row for row in table}
    assert list(rows) == ["enlarge", "encode", "decode", "together", "save"]
    assert (rows["encode"]["s"], rows["encode"]["min"], rows["encode"]["max"]) == (4, 2, 9)
    assert rows["together"]["s"] == 13 and rows["together"]["TFLOP"] == 12 and rows["encode"]["of all"] == 4 / 13
    for name in ("encode", "decode", "together"):
        row = rows[name]
        assert row["TFLOP/s"] == pytest.approx(row["TFLOP"] / row["s"])
        assert row["of the ceiling"] == pytest.approx(row["TFLOP"] / row["s"] / 4)
    assert rows["enlarge"]["of the ceiling"] == rows["save"]["of all"] == ""


def test_ratios_are_to_the_first_way_named() -> None:
    found = {
        "a": measured([{"encode": 2.0}], {"encode": 1e12}),
        "b": measured([{"encode": 3.0, "blend": 1.0}], {"encode": 5e12}),
    }
    first, second, blend = versus(found, {"a": "none", "b": "many"}, ("encode", "blend"))
    assert (first["way"], first["s / none"]) == ("none", 1)
    assert (second["way"], second["s / none"], second["TFLOP / none"], second["GB / none"]) == ("many", 1.5, 5, 1)
    assert blend["s"] == 1 and blend["s / none"] == blend["TFLOP"] == ""


def test_the_patches_work_is_the_sum_of_theirs(core: CoreStages) -> None:
    target = Target(long_edge=64)
    core = core.with_strips(plan_of((32, 32), target, core).strips())
    whole = flops_of(plan_of((32, 32), target, core))

    def work(cut: Cut) -> Any:
        return patches_way(core, (64, 64), PipelineSettings(32, 64, cut)).flops

    assert work(Cut(64, 16)) == whole
    part = flops_of(plan_of((32, 32), Target(scale=1), core))
    assert work(Cut(32, 0)) == pytest.approx({stage: 4 * flops for stage, flops in part.items()})


def test_the_ceiling_is_that_of_products_on_the_device() -> None:
    rows = matmul_ceiling(CPU, torch.bfloat16, (32, 64), repeats=2)
    assert [row["px"] for row in rows] == [32, 64] and all(row["TFLOP/s"] > 0 for row in rows)


def test_f8_has_four_times_the_tokens(core: CoreStages) -> None:
    settings = PipelineSettings(16, 64, repeats=1)
    tables, turns = f8_tables(core.flux, "bundled", CPU, torch.float32, settings)
    (title, rows), (_, sizes) = tables.items()
    assert "random weights" in title and [row["way"] for row in rows] == ["F16", "F8"] * 2
    assert [row["tokens"] for row in sizes] == [4, 16]
    assert sizes[1]["transformer TFLOP"] > 2 * sizes[0]["transformer TFLOP"]
    assert all(row["TFLOP / F16"] > 1.5 for row in rows[1::2]) and len(turns) == 2


def test_sides_below_one_are_refused() -> None:
    with pytest.raises(OptionError, match="expected sides from 1 px up, got 0"):
        PipelineSettings(start=0)


def run(folder: Path, *more: str) -> dict[str, Any]:
    command = ["pipeline", "--quick", "--repeats", "1", "-o", str(folder), *more]
    assert cli.main(command) == 0
    return json.loads((folder / "pipeline.json").read_text("utf-8"))


@pytest.mark.slow
def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = run(tmp_path, "--device", "cpu")
    titles = list(report["tables"])
    words = ["Settings", "Stages", "ceiling", "Strips", "Patches of 96 px", "How far", "F8", "tokens"]
    assert len(titles) == len(words) and all(word in title for word, title in zip(words, titles, strict=True))
    told = {row["setting"]: row["value"] for row in report["tables"]["Settings"]}
    assert told["VAE file"] == "op4ksr_small_f16_vae.safetensors" and "32x32 -> 128x128" in told["picture"]
    plain, patches = report["tables"][titles[5]]
    # Strips are exact, patches are not: as far apart as the little that the bundled transformer adds allows.
    assert 20 * plain["largest"] < 0.01 < patches["largest"] and plain["RMS"] < 0.1 * patches["RMS"]
    assert [turn["way"] for turn in report["details"]] == ["patch-free", "plain passes", "patches", "F16", "F8"]
    assert (tmp_path / "pipeline.md").read_text("utf-8") in capsys.readouterr().out


def test_comparisons_and_the_transformer_can_be_left_out(tmp_path: Path) -> None:
    more = ["--device", "cpu", "--dtype", "bfloat16", "--vae-only", "--from", "16", "--to", "32"]
    report = run(tmp_path, *more, "--compare", "plain", "--strips", "tiny:16")
    assert [title.split()[0] for title in report["tables"]] == ["Settings", "Stages", "The", "Strips", "How"]
    told = {row["setting"]: row["value"] for row in report["tables"]["Settings"]}
    assert told["strips"] == "encode: strips of 16 rows, tiny; decode: strips of 16 rows, tiny"
    assert told["model file"] == "none" and "cpu, bfloat16" in told["models"]
    assert "transformer" not in {row["stage"] for row in report["tables"]["Stages of one upscale"]}
    assert len(run(tmp_path, *more, "--compare")["tables"]) == 3


def test_a_wrong_size_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["pipeline", "--quick", "--device", "cpu", "-o", str(tmp_path)]
    assert cli.main([*command, "--overlap", str(QUICK.cut.side)]) == 1
    assert "take a smaller overlap" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda(tmp_path: Path) -> None:
    report = run(tmp_path, "--device", "cuda", "--f8", "bundled")
    assert all(row["GB"] > 0 for row in report["tables"]["Stages of one upscale"])
