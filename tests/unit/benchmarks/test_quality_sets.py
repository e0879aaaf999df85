"""``quality`` on sets of LR and HR, and of LR alone."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from unit.benchmarks.test_picture_sets import draw

from benchmarks.commands import main as cli
from benchmarks.commands import quality as cli_quality
from benchmarks.methods import Method
from benchmarks.perceptual import Perceptual
from benchmarks.picture_sets import SetRecipe, make_set, open_set
from benchmarks.quality import methods_of
from benchmarks.quality_sets import USUAL, SetChoices, by_set, check_set, set_quality, settings
from benchmarks.variants import Variant
from op4ksr_core import ImageError, OptionError, load_autoencoder
from op4ksr_core.images.io import load_image
from op4ksr_core.images.metrics import psnr
from op4ksr_core.images.resize import resize

pytestmark = pytest.mark.usefixtures("without_piq")

NONE = Perceptual({}, {"niqe": "no file"})
CPU = torch.device("cpu")


def chosen(weights: Variant, names: Sequence[str] = USUAL) -> list[Method]:
    methods = methods_of(weights)
    return [methods[name] for name in names]


@pytest.fixture
def syn(tmp_path: Path) -> Path:
    sources = [draw(tmp_path / "photos" / f"{i}.png", 128, 96 + i, i) for i in range(2)]
    make_set(sources, tmp_path / "Syn", SetRecipe())
    return tmp_path / "Syn"


@pytest.fixture
def real(tmp_path: Path) -> Path:
    draw(tmp_path / "RealVary" / "LR" / "wide.png", 80, 32)
    draw(tmp_path / "RealVary" / "LR" / "tall.png", 32, 48)
    return tmp_path / "RealVary"


@pytest.mark.slow
def test_a_syn_set_has_every_score_that_can_be_had(syn: Path, weights: Variant) -> None:
    told: list[str] = []
    perceptual = Perceptual({"lpips": lambda x, y: (x - y).abs().mean()}, {})
    rows = set_quality(open_set(syn), chosen(weights), perceptual, SetChoices(), CPU, told.append)
    assert [row["method"] for row in rows] == list(USUAL) * 2
    assert told == ["Syn: 0.png (1 of 2)", "Syn: 1.png (2 of 2)"]
    low, high = load_image(syn / "LR" / "1.png").image, load_image(syn / "HR" / "1.png").image
    enlarged = (resize(low, 96, 128).clamp(0, 1) * 255).round() / 255
    row = rows[4]
    assert row["method"] == "bicubic" and row["psnr"] == pytest.approx(psnr(enlarged, high))
    assert row["lpips"] == pytest.approx((enlarged - high).abs().mean().item(), rel=1e-5)
    assert row["px"] == "128x96" and row["set"] == "Syn" and row["picture"] == "1"
    assert all(row["alarms"] in (0.0, 1.0) and row["periodicity"] >= 0 and row["s"] > 0 for row in rows)
    assert rows[7]["GB"] > rows[4]["GB"] >= 128 * 96 * 3 * 4 / 1e9


def test_a_real_set_has_only_what_needs_no_hr(real: Path, weights: Variant) -> None:
    perceptual = Perceptual({"musiq": lambda x: x.mean(), "dists": lambda x, y: (x - y).mean()}, {})
    rows = set_quality(open_set(real), chosen(weights, ("bicubic", "full")), perceptual, SetChoices(2), CPU)
    assert [row["px"] for row in rows] == ["64x96"] * 2 + ["160x64"] * 2
    assert set(rows[0]) == {"set", "picture", "method", "px", "musiq", "periodicity", "alarms", "s", "GB"}


def test_large_pictures_are_bounded(real: Path, weights: Variant) -> None:
    rows = set_quality(open_set(real), chosen(weights, ("bicubic",)), NONE, SetChoices(4, 64), CPU)
    assert [row["px"] for row in rows] == ["64x64", "64x64"]
    with pytest.raises(OptionError, match="--largest: expected at least 64 px, got 63"):
        SetChoices(largest=63)


def test_pictures_too_small_to_score_are_told(real: Path) -> None:
    with pytest.raises(ImageError, match=r"tall\.png: is under 64 px a side even when enlarged"):
        check_set(open_set(real), SetChoices(factor=1))


def test_the_table_has_means_the_highest_peak_and_empty_cells() -> None:
    def row(name: str, **scores: float) -> dict[str, object]:
        return {"set": name, "picture": "p", "px": "8x8", "method": "full", **scores}

    rows = [row("a", psnr=20.0, periodicity=1.0, alarms=0.0, s=1.0, GB=3.0)]
    rows += [row("a", psnr=30.0, periodicity=2.0, alarms=1.0, s=2.0, GB=1.0)]
    rows += [row("b", periodicity=0.0, alarms=0.0, s=4.0, GB=2.0)]
    head = {"method": "full", "psnr": None, "periodicity": 0.0, "alarms": 0.0, "s": 4.0, "GB": 2.0}
    assert by_set(rows) == [
        {"set": "a", "method": "full", "pictures": 2, "psnr": 25.0, "periodicity": 1.5, "alarms": 0.5, "s": 1.5}
        | {"GB": 3.0},
        {"set": "b", "pictures": 1, **head},
    ]


def test_settings_say_what_is_not_there(syn: Path, real: Path, weights: Variant) -> None:
    told = settings([open_set(syn), open_set(real)], load_autoencoder(weights.vae), NONE, SetChoices())
    assert told["sets"] == "Syn: LR and HR, RealVary: LR only, x4" and told["niqe left out"] == "no file"


@pytest.mark.slow
def test_the_command_takes_sets_and_photos_together(
    syn: Path, real: Path, tmp_path: Path, weights: Variant, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_quality, "load_perceptual", lambda _: NONE)
    highs = tmp_path / "Highs" / "HR" / "one.png"
    highs.parent.mkdir(parents=True)
    Image.open(tmp_path / "photos" / "0.png").save(highs)
    words = ["quality", str(syn), str(real), str(tmp_path / "Highs"), "--limit", "1", "--device", "cpu"]
    words += ["--vae", str(weights.vae), "--model", str(weights.model)]
    words += ["--degradation", "clean", "--methods", "bicubic", "full", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0
    report = json.loads((tmp_path / "out" / "quality.json").read_text("utf-8"))
    assert [(row["set"], row["method"]) for row in report["tables"]["By set"]] == [
        ("Syn", "bicubic"),
        ("Syn", "full"),
        ("RealVary", "bicubic"),
        ("RealVary", "full"),
    ]
    assert "x4, clean" in report["tables"] and "x4, degraded" not in report["tables"]
    assert {row["set"] for row in report["details"] if "set" in row} == {"Highs", "Syn", "RealVary"}


def test_every_picture_is_read_before_any_is_enlarged(
    syn: Path, real: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("benchmarks.variants.loaded", lambda *_: pytest.fail("the pictures come first"))
    (real / "LR" / "zz.png").write_bytes(b"no picture")
    assert cli.main(["quality", str(syn), str(real), "-o", str(tmp_path / "out")]) == 1
    assert "zz.png: is no picture" in capsys.readouterr().err
