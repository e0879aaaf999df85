"""The ablation: what differs between its runs, and that it is gone on with where it was stopped."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.ablation import Measure, draw_figure, mesh, run_ablation, smooth_picture, summed
from benchmarks.ablation_runs import THETAS, VARIANTS, Ablation, jobs
from benchmarks.commands import ablation as cli_ablation
from benchmarks.commands.main import main
from op4ksr_core import Flux, OptionError, save_autoencoder
from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.weights.description import describe_flux


@pytest.fixture
def tiny(tmp_path: Path, make_autoencoder) -> Ablation:
    save_autoencoder(tmp_path / "vae.safetensors", make_autoencoder())
    return Ablation(
        tmp_path / "out",
        steps=2,
        batch=1,
        crop=128,
        seeds=(0,),
        hidden=128,
        heads=1,
        single=1,
        pictures=2,
        measured=1,
        large_tokens=6,
        thetas={"10000 (Flux)": 10000.0, "16": 16.0},
        autoencoder=tmp_path / "vae.safetensors",
        device="cpu",
        precision="fp32",
    )


def test_the_thetas_are_those_asked_for() -> None:
    values = [round(theta) for theta in THETAS.values()]
    assert values == [40000, 20520, 10000, 1000, 256, 100, 23, 47, 16]


def test_nothing_but_theta_and_l_ap_differs(tiny: Ablation) -> None:
    found = {name: config for part, name, config in jobs(replace(tiny, seeds=(3,)), ["variants"])}
    assert set(found) == set(VARIANTS)
    plain = found["neither"]
    for name, (rfr, l_ap) in VARIANTS.items():
        config = found[name]
        assert config.rfr.theta == ((tiny.theta,) if rfr else (10000.0,))
        assert config.loss.periodicity == (tiny.periodicity if l_ap else 0)
        loss = replace(config.loss, periodicity=plain.loss.periodicity)
        assert replace(config, run=plain.run, rfr=plain.rfr, loss=loss) == plain
    assert len(jobs(tiny, ["variants", "theta"])) == 4 + 2 and len(jobs(Ablation(Path()), ["variants", "theta"])) == 21


@pytest.mark.slow
def test_it_measures_every_run_at_both_grids_and_trains_none_twice(
    tiny: Ablation, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: list[str] = []
    measured: list[bool] = []
    rows_of = Measure.rows

    def rows_counted(self: Measure, flux: Flux | None):
        measured.append(flux is not None)
        return rows_of(self, flux)

    monkeypatch.setattr(Measure, "rows", rows_counted)

    def on_name(name: str):
        return lambda done, total, line: shown.append(name)

    report = run_ablation(tiny, on_name=on_name)
    text = report.read_text("utf-8")
    for title in ("4 tokens", "4 tokens, smooth", "6 tokens"):
        assert f"### RFR and L_AP, at {title}\n" in text
        assert f"### Theta, at {title}\n" in text
    details = json.loads((tiny.folder / "ablation.json").read_text("utf-8"))["details"]
    rows = [row for row in details if row.get("part")]
    assert len(rows) == 3 * 6 and all(row["psnr"] > 3 and row["periodicity"] >= 0 for row in rows)
    weights = tiny.folder / f"runs/theta_{tiny.theta:.5g}_l_ap_0/checkpoints/flux_0000002.safetensors"
    assert describe_flux(weights).params.theta[0] == tiny.theta
    assert len(list((tiny.folder / "runs").iterdir())) == 5, "theta 10000 stands in both parts and is one run"
    assert sorted(measured) == [False] + 5 * [True], "and is measured once"
    steps = len(shown)
    assert steps > 0
    run_ablation(tiny, on_name=on_name)
    assert len(shown) == steps, "a finished run was trained again"


def test_means_are_over_the_seeds() -> None:
    rows = [{"name": "a", "theta": 16.0, "periodicity": p, "psnr": 20.0, "train_seconds": 5} for p in (1.0, 3.0)]
    assert summed(rows) == [
        {
            "model": "a",
            "theta": "16",
            "seeds": 2,
            "periodicity": 2.0,
            "+-": 2.0**0.5,
            "psnr": 20.0,
            "train_seconds": 5.0,
        }
    ]


def test_sizes_that_cannot_be_are_refused(tiny: Ablation) -> None:
    with pytest.raises(OptionError, match="heads of 128"):
        replace(tiny, heads=2)
    with pytest.raises(OptionError, match="ablation.heads: expected at least 1, got 0"):
        replace(tiny, heads=0)
    with pytest.raises(OptionError, match="ablation.large_tokens: expected at least 0, got -1"):
        replace(tiny, large_tokens=-1)
    with pytest.raises(OptionError, match="at least one seed"):
        replace(tiny, seeds=())


def test_photos_that_are_all_too_small_are_refused_before_any_step(tiny: Ablation, capsys) -> None:
    photo = tiny.folder.parent / "small.png"
    save_image(photo, Picture(torch.rand(1, 3, 300, 127)))
    given = ["--vae", str(tiny.autoencoder), "--photos", str(photo), "--device", "cpu"]
    assert main(["ablation", "--quick", "-o", str(tiny.folder), *given]) == 1
    message = capsys.readouterr().err.strip()
    assert message == "error: benchmarks ablation: none of the photos has 128 px on both sides; name larger ones"
    assert not (tiny.folder / "runs").exists()


def test_the_command_sets_the_sizes(tmp_path: Path, monkeypatch, capsys) -> None:
    seen: list[tuple[Ablation, tuple[str, ...]]] = []

    def run(ablation: Ablation, parts: tuple[str, ...], on_name: object) -> Path:
        seen.append((ablation, tuple(parts)))
        (tmp_path / "ablation.md").write_text("the table")
        return tmp_path / "ablation.md"

    monkeypatch.setattr(cli_ablation, "run_ablation", run)
    assert main(["ablation", "-o", str(tmp_path), "--quick", "--seeds", "4", "5", "--only", "theta"]) == 0
    assert main(["ablation", "-o", str(tmp_path), "--large-tokens", "64", "--steps", "7"]) == 0
    (quick, parts), (plain, both) = seen
    assert quick.seeds == (4, 5) and quick.hidden == 128 and quick.steps == 6 and parts == ("theta",)
    assert plain.large_tokens == 64 and plain.steps == 7 and plain.batch == 4 and both == ("variants", "theta")
    assert "the table" in capsys.readouterr().out


def test_the_figure_shows_every_run_and_the_autoencoder_alone(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    details = [{"part": "", "name": "autoencoder alone", "grid": "8 tokens", "mesh": 0.25, "psnr": 21.0}]
    for part, name, theta, level in (
        ("variants", "neither", 10000.0, 0.5),
        ("variants", "neither", 10000.0, 0.7),
        ("variants", "both", 46.7, 0.1),
        ("theta", "16", 16.0, 0.3),
        ("theta", "100", 100.0, 0.4),
    ):
        details.append({"part": part, "name": name, "theta": theta, "grid": "8 tokens", "mesh": level, "psnr": 22.0})
    drawn: list[Figure] = []
    keep = Figure.savefig

    def savefig(self: Figure, *args: object, **kwargs: object) -> None:
        drawn.append(self)
        keep(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", savefig)
        draw_figure(details, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").read_bytes()[:4] == b"\x89PNG"
    left, right = (sorted_points(axis) for axis in drawn[0].axes[:2])
    assert left[0] == [(0, 0.5), (0, 0.7), (1, 0.1)] and left[1] == [(0, 0.6), (1, 0.1)]
    assert right[1] == [(16.0, 0.3), (100.0, 0.4)] and right[2][0][1] == 0.25


def test_without_matplotlib_the_figure_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OptionError, match=r"^the figure needs matplotlib: pip install matplotlib \(.*matplotlib"):
        draw_figure([], tmp_path / "figure.png")
    assert not list(tmp_path.iterdir())


def sorted_points(axis) -> list[list[tuple[float, float]]]:
    return [sorted((x, round(y, 6)) for x, y in zip(*line.get_data(), strict=True)) for line in axis.lines]


def test_a_mesh_is_measured_in_grey_levels() -> None:
    high = smooth_picture(3, 320)
    assert high.shape == (1, 3, 320, 320) and 0.02 < float(high.std()) < 0.3
    assert torch.equal(high, smooth_picture(3, 320)) and not torch.equal(high, smooth_picture(4, 320))
    tile = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    tile = (tile - tile.mean()) / tile.std(correction=0)
    for level in (0.5, 2.0):
        gridded = high + level / 255 * tile.repeat(10, 10)
        assert mesh(gridded, high) == pytest.approx(level, rel=0.05)
    noise = torch.randn(1, 3, 320, 320, generator=torch.Generator().manual_seed(2)) * 2 / 255
    assert mesh(high + noise, high) < 0.2 and mesh(high, high) == 0
    other = torch.randn(29, 29, generator=torch.Generator().manual_seed(3)).repeat(12, 12)[:320, :320]
    assert mesh(high + 2 / 255 * other, high) < 0.2, "another period is no mesh of tokens"
    lines = torch.randn(1, 320, generator=torch.Generator().manual_seed(5)).expand(320, 320)
    assert mesh(high + 2 / 255 * lines, high) < 0.3, "nor are lines, which correlate at every period"
