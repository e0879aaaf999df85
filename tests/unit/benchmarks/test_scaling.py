"""``scaling``: the fit finds a power law that is known, theory is fitted in the same way, both files come."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.commands import main as cli
from benchmarks.scaling import exponents, fit_exponent, scaling
from benchmarks.tables import Row
from op4ksr_core import AutoEncoder, OptionError

PIXELS = [512.0**2, 1024.0**2, 2048.0**2, 4096.0**2]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.37, 2.0])
def test_the_fit_finds_a_known_power(power: float) -> None:
    assert fit_exponent(PIXELS, [3e-7 * x**power for x in PIXELS]) == pytest.approx(power)


def test_the_fit_lies_between_two_powers() -> None:
    assert 1.0 < fit_exponent(PIXELS, [1e7 * x + x**2 for x in PIXELS]) < 2.0


def test_theory_is_fitted_as_the_measurement_is_over_all_sides_and_the_largest() -> None:
    sides = [256, 512, 1024, 2048]
    rows: list[Row] = [
        {"stage": "encode", "px": s, "s": s**2.2, "TFLOP": s**2.0, "GB": s**2.0, "estimated GB": s**1.6} for s in sides
    ]
    rows[0]["s"] *= 10  # a start that costs time of its own, in the smallest alone
    seconds, upper, size, _ = exponents(rows)
    assert (seconds["sides"], seconds["points"], upper["sides"], upper["points"]) == (
        "256 to 2048",
        4,
        "512 to 2048",
        3,
    )
    assert upper["measured"] == pytest.approx(1.1) and upper["theory"] == pytest.approx(1)
    assert upper["measured / theory"] == pytest.approx(1.1) and seconds["measured"] < 0.9
    assert (size["of"], size["measured / theory"]) == ("bytes", pytest.approx(1.25))
    assert len(exponents(rows[1:])) == 2  # three sides are the upper three


@pytest.mark.parametrize("sides", [[], [64], [64, 64], [0, 64]])
def test_one_side_has_no_exponent(make_autoencoder: Callable[..., AutoEncoder], sides: list[int]) -> None:
    with pytest.raises(OptionError, match="2 or more different sides"):
        scaling(None, make_autoencoder(), sides, 1)


def test_work_and_bytes_grow_with_the_picture(make_autoencoder: Callable[..., AutoEncoder]) -> None:
    tables, turns = scaling(None, make_autoencoder(), [128, 64], 1)
    small, large = [row for row in tables["By the output's side"] if row["stage"] == "decode"]
    assert (small["px"], large["px"], large["tokens"]) == (64, 128, 16)
    assert small["TFLOP"] < large["TFLOP"] and small["GB"] < large["GB"]
    assert {row["stage"] for row in tables["By the output's side"]} == {"encode", "decode"}
    assert [turn["way"] for turn in turns] == ["64 px", "128 px"]


@pytest.mark.slow
def test_the_command_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        cli.main(
            ["scaling", "--sides", "32", "48", "64", "96", "--repeats", "1", "--device", "cpu", "-o", str(tmp_path)]
        )
        == 0
    )
    report = json.loads((tmp_path / "scaling.json").read_text("utf-8"))
    settings, by_side, fitted = report["tables"].values()
    assert len(by_side) == 3 * 4 and len(fitted) == 2 * 3 * 2
    assert settings[0] == {"setting": "VAE file", "value": "op4ksr_small_f16_vae.safetensors"}
    assert all(row["measured / theory"] == pytest.approx(row["measured"] / row["theory"]) for row in fitted)
    assert (tmp_path / "scaling.md").read_text("utf-8") in capsys.readouterr().out
