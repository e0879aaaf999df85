"""rope: the table and its JSON against the arithmetic, and against the published facts on Flux."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from op4ksr_core import Flux, save_flux
from op4ksr_core.cli.main import main


def axes(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> list[dict[str, Any]]:
    assert main(["rope", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_fluxs_own_turns_on_128_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    """10 of 28 pairs make a full turn, 4 more 0.28 to 0.76, the rest hardly move (shared design, by hand)."""
    for axis in axes(capsys):
        turns = axis["turns_before"]
        assert turns == axis["turns_after"] and axis["tokens"] == 128
        assert sum(t >= 1 for t in turns) == 10
        assert [round(t, 2) for t in turns if 0.25 < t < 1] == [0.76, 0.55, 0.39, 0.28]
        assert turns == pytest.approx([128 / (2 * math.pi) * 10000 ** (-2 * i / 56) for i in range(28)], rel=1e-12)


def test_a_theta_per_axis_and_a_grid_per_axis(capsys: pytest.CaptureFixture[str]) -> None:
    rows, columns = axes(capsys, "--theta", "46.7,300", "--grid", "128x96")
    assert (rows["tokens"], columns["tokens"]) == (128, 96)
    assert rows["turns_after"][-1] == pytest.approx(128 / (2 * math.pi) * 46.7 ** (-54 / 56))
    assert columns["turns_after"][-1] == pytest.approx(96 / (2 * math.pi) * 300 ** (-54 / 56))
    assert columns["turns_before"][-1] == pytest.approx(96 / (2 * math.pi) * 10000 ** (-54 / 56))


def test_policies(capsys: pytest.CaptureFixture[str]) -> None:
    fit = axes(capsys, "--policy", "fit", "--turns", "0.25", "--grid", "64")[0]
    assert fit["turns_after"][-1] == pytest.approx(0.25)
    ntk = axes(capsys, "--policy", "ntk", "--grid", "128", "--train-tokens", "32")[0]
    assert ntk["turns_after"][-1] == pytest.approx(ntk["turns_before"][-1] / 4)
    squeezed = axes(capsys, "--policy", "interpolate", "--grid", "256")[0]
    assert squeezed["turns_after"] == pytest.approx([turns / 4 for turns in squeezed["turns_before"]])
    parts, at_half = (axes(capsys, "--policy", "parts", "--grid", "256", "--sigma", s)[0] for s in ("1", "0.5"))
    assert parts["magnitude"] == at_half["magnitude"] == pytest.approx(0.1 * math.log(4) + 1)
    assert parts["turns_after"][0] == parts["turns_before"][0] and parts["turns_after"] != at_half["turns_after"]
    ultra = axes(capsys, "--policy", "ultraflux")[0]
    assert ultra["magnitude"] == pytest.approx(0.1 * math.log(2) + 1)


def test_a_files_theta_is_compared_with_fluxs(
    tmp_path: Path, make_flux: Callable[..., Flux], capsys: pytest.CaptureFixture[str]
) -> None:
    path, lora = tmp_path / "flux.safetensors", tmp_path / "lora.safetensors"
    save_flux(path, make_flux(theta=(46.7, 300.0)))
    rows, columns = axes(capsys, path)
    assert len(rows["turns_after"]) == 7  # heads of 32: 14 channels per axis
    assert rows["theta_before"] == 10000
    assert columns["turns_after"][-1] == pytest.approx(128 / (2 * math.pi) * 300 ** (-12 / 14))
    changed = axes(capsys, path, "--theta", "80")[1]
    assert changed["theta_before"] == 300
    save_file({"a.lora_A.weight": torch.zeros(1, 1)}, lora, {"op4ksr.rope_theta": "80"})
    assert axes(capsys, lora)[0]["turns_after"][-1] == pytest.approx(128 / (2 * math.pi) * 80 ** (-54 / 56))


def test_the_table_is_aligned_and_sums_up(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rope", "--policy", "fit"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "rows and columns: turns over 128 tokens, theta 10000 before"
    assert len({len(line) for line in lines[1:30]}) == 1
    assert lines[29].split() == ["27", "0.0028", "0.5000", "176.637"]
    assert lines[30:] == [
        "at least one turn: 10 of 28 pairs before, 22 after",
        "less than a quarter turn: 14 before, 0 after",
    ]
    assert main(["rope", "--theta", "50,60"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("rows: ") and "\ncolumns: " in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--grid", "0"), "expected tokens from 1 to 4096"),
        (("--grid", "12x13x14"), "expected tokens"),
        (("--policy", "theta"), "say --theta"),
        (("--theta", "flat"), "expected a number or two"),
        (("missing.safetensors",), "no such file"),
    ],
)
def test_wrong_wishes(arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rope", *arguments]) == 1
    errors = capsys.readouterr().err
    assert words in errors and errors.count("\n") == 1
