"""The tables are what they say: split by photo, bootstrapped by photo, no photo needed to test that."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from benchmarks import periodicity as benchmark_periodicity
from benchmarks import periodicity_cases
from benchmarks.commands import main as cli
from benchmarks.periodicity import detection_table, half_of, interval, loss_table, measure_cost
from benchmarks.periodicity_cases import crops_of
from op4ksr_core import ImageError, OptionError
from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.periodicity.calibration import ALONE, WITH_REFERENCE


@pytest.fixture
def photos(tmp_path: Path, natural) -> list[Path]:
    paths = [tmp_path / f"photo_{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        save_image(path, Picture(natural(200, 240, i)))
    return paths


def test_halves_have_no_photo_in_common() -> None:
    photos = [Path(f"{i}.png") for i in range(7)]
    tuning, held = half_of(photos, "tuning"), half_of(photos, "held-out")
    assert [i for i, _ in tuning] == [0, 2, 4, 6] and [i for i, _ in held] == [1, 3, 5]
    assert [i for i, _ in half_of(photos, "all")] == list(range(7))
    with pytest.raises(OptionError, match="at least 2"):
        half_of(photos[:1], "tuning")


def test_crops_are_the_same_each_time_and_differ(photos) -> None:
    first, again = list(crops_of(3, photos[0], 2)), list(crops_of(3, photos[0], 2))
    assert all((a.image == b.image).all() for a, b in zip(first, again, strict=True))
    assert first[0].image.shape != first[1].image.shape or not (first[0].image == first[1].image).all()
    for crop in first:
        assert crop.low.shape[-1] * 4 == crop.image.shape[-1]


def row(photo: str, case: str, score: float, **more: object) -> dict[str, object]:
    fields = {"photo": photo, "case": case, "grey levels": 0.0 if case == "clean" else 1.0, "mode": "alone"}
    return fields | {"score": score, "alarm": score > 2, "period right": True} | more


def test_the_interval_is_over_photos() -> None:
    rows = [row("a", "clean", 3)] * 50 + [row("b", "clean", 0)] * 50
    low, high = interval(rows, lambda r: float(r["alarm"]))
    assert (low, high) == (0, 1)  # two photos that disagree say nothing, however many crops


def test_detection_table_counts() -> None:
    clean = [row(str(i), "clean", 0.01 * i) for i in range(100)]
    rows = clean + [row("a", "white32", 5.0), row("b", "white32", 0.5)]
    rows += [r | {"mode": "reference"} for r in rows]
    table = {(r["mode"], r["case"]): r for r in detection_table(rows)}
    found = table["alone", "white32"]
    assert (found["pictures"], found["alarms"], found["period right"]) == (2, 0.5, 1)
    assert found["AUC"] == pytest.approx((1 + 0.505) / 2) and found["above 1 % of clean"] == 0.5
    assert table["reference", "clean"]["alarms"] == 0


def test_a_photo_that_is_too_small_is_named(tmp_path: Path, natural) -> None:
    path = tmp_path / "small.png"
    save_image(path, Picture(natural(88, 200, 0)))
    with pytest.raises(ImageError, match=r"small\.png: 200x88 px, shrunk by 0\.72, are fewer than the 64 px"):
        next(crops_of(0, path, 1))


def test_loss_table_tells_who_rises() -> None:
    rows = [{"photo": "a", "loss at 0": 0.0, "loss at 1": 1.0}, {"photo": "b", "loss at 0": 0.0, "loss at 1": 0.0}]
    assert loss_table(rows)[1]["rises from the one before"] == 0.5


@pytest.mark.slow
def test_the_command_writes_its_tables(photos, tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(periodicity_cases, "GREY_LEVELS", {"white32": (2,)})
    monkeypatch.setattr(benchmark_periodicity, "SUPPRESSED", {"white32": (4,)})
    monkeypatch.setattr(benchmark_periodicity, "CLEAN_CROPS", 2)
    out = tmp_path / "out"
    parts = ["--part", "detection", "--part", "suppression", "--part", "loss"]
    assert cli.main(["periodicity", *map(str, photos), "-o", str(out), *parts]) == 0
    names = {path.name for path in out.iterdir()}
    assert names == {f"periodicity_{p}.{e}" for p in ("detection", "suppression", "loss") for e in ("md", "json")}
    table = json.loads((out / "periodicity_suppression.json").read_text("utf-8"))["tables"]["suppression"]
    spoilt = next(r for r in table if r["case"] == "white32" and r["mode"] == "reference")
    assert spoilt["acted"] == 1 and spoilt["gain dB"] > 3
    assert "| mode |" in (out / "periodicity_detection.md").read_text("utf-8")


@pytest.mark.slow
def test_the_calibration_is_made_of_clean_pictures_and_more_photos(photos, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(benchmark_periodicity, "CLEAN_CROPS", 2)
    out = tmp_path / "out"
    command = ["periodicity", *map(str, photos), "-o", str(out), "--part", "calibration"]
    assert cli.main([*command, "--half", "tuning", "--more", str(photos[1])]) == 0
    report = json.loads((out / "periodicity_calibration.json").read_text("utf-8"))
    rows, table = report["details"], report["tables"]["calibration"]
    assert {r["photo"].split("/")[1] for r in rows} == {"photo_0", "photo_1"}
    assert {r["case"] for r in rows} == {"clean", "jpeg90", "lrjpeg50"}
    entries = {(r["mode"], r["family"], r["period"]) for r in table}
    for mode, known in (("alone", ALONE), ("reference", WITH_REFERENCE)):
        mine = {(family, period) for m, family, period in entries if m == mode}
        assert {("tile", 32), ("free_tile", 0), ("start, scale", 0)} <= mine
        assert mine - {("start, scale", 0)} <= {(f, p) for f, periods in known.table.items() for p in periods}


@pytest.mark.slow
def test_a_cost_run_that_fails_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a picture that cannot be; and of a process that the system ends without a word, being short of memory."""
    remedy = "; free memory, or name the parts that you want with --part"
    with pytest.raises(OptionError, match=rf"the 0 px run failed \(.*ImageError: image: .*\){remedy}$") as caught:
        measure_cost(0)
    assert "\n" not in str(caught.value)
    killed = subprocess.CompletedProcess([], -9, "", "")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: killed)
    with pytest.raises(OptionError, match=rf"the 64 px run failed \(code -9: killed for memory\?\){remedy}$"):
        measure_cost(64)
