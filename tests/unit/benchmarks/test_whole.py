"""Whole runs in processes of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import whole
from benchmarks.commands import main as cli
from benchmarks.variants import Variant
from op4ksr_core import Op4ksrError


def test_rows_are_over_the_first(monkeypatch: pytest.MonkeyPatch, weights: Variant) -> None:
    found = {"v1": ([4.0, 2.0, 9.0], 2.0), "full": ([1.0, 2.0, 3.0], 1.0)}
    monkeypatch.setattr(whole, "_in_a_process", lambda variant, *_: found[variant.name])
    rows = whole.whole_rows([Variant("v1"), Variant("full")], 1024, 4, 2, 3)
    assert rows[0] == {"run": "v1", "px": "1024 -> 4096", "s": 4.0, "GB at peak": 2.0, "s over": 1.0, "GB over": 1.0}
    assert (rows[1]["s"], rows[1]["s over"], rows[1]["GB over"]) == (2.0, 0.5, 0.5)


@pytest.mark.slow
def test_the_command_runs_each_in_its_own_process(tmp_path: Path, weights: Variant) -> None:
    words = ["whole", "--vae", str(weights.vae), "--model", str(weights.model), "--old", str(weights.vae.parent)]
    words += ["--side", "64", "--factor", "2", "--threads", "1", "--repeats", "1", "-o", str(tmp_path)]
    assert cli.main(words) == 0
    rows = json.loads((tmp_path / "whole.json").read_text("utf-8"))["tables"]["Whole runs"]
    assert [row["run"] for row in rows] == ["v1", "full", "base alone"]
    assert all(row["s"] > 0 and row["GB at peak"] > 0.1 for row in rows)


def test_files_that_cannot_be_read_are_told_before_a_process_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(whole, "_in_a_process", lambda *_: pytest.fail("began"))
    (tmp_path / "x.safetensors").write_bytes(b"no weights")
    assert cli.main(["whole", "--vae", str(tmp_path / "x.safetensors"), "-o", str(tmp_path)]) == 1
    assert "x.safetensors" in (told := capsys.readouterr().err) and "Traceback" not in told


@pytest.mark.slow
def test_a_process_that_dies_is_a_sentence(weights: Variant) -> None:
    with pytest.raises(Op4ksrError, match="the run of gone ended with code 1"):
        whole.whole_rows([Variant("gone", Path("none.safetensors"))], 64, 2, 1, 1)
