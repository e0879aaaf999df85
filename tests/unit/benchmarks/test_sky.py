"""The transformer in pieces on a sky, and the 12 B geometry's memory: what is measured, and that it is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.commands import main as cli
from benchmarks.flux_peaks import transformer_peaks
from benchmarks.sky import enlarged_skies, seam_lines, seam_steps, sky
from op4ksr_core import AutoEncoder, AutoEncoderParams, Flux, FluxParams, OneStepSettings, save_autoencoder, save_flux
from op4ksr_core.pieces import Pieces


def test_the_sky_is_smooth_but_for_a_seeded_grain() -> None:
    image = sky(128)
    assert torch.equal(image, sky(128)) and image.shape == (1, 3, 128, 128)
    assert image.amin() > 0.1 and image.amax() <= 1
    steps = image.diff(dim=-1).abs() * 255
    assert 0.3 < steps.mean() < 2 and steps.max() < 8


def test_seams_lie_half_way_between_the_windows_middles() -> None:
    """At 2048 px windows of 1024 that share 512 have their middles at 512, 1024 and 1536."""
    assert seam_lines((2048, 2048), Pieces(), AutoEncoderParams()) == ([768, 1280], [768, 1280])
    rows, columns = seam_lines((512, 1280), Pieces(512, 0), AutoEncoderParams(stride=1))
    assert rows == [] and columns == [512, 896]  # the last of them flush with the end


def test_a_step_at_a_seam_is_told_from_one_elsewhere() -> None:
    levels = torch.zeros(512, 512)
    levels[:, 256:] += 3
    levels[384:] -= 5
    lines: tuple[list[int], list[int]] = ([], [256])
    assert seam_steps(levels, lines) == (3, 5)
    assert seam_steps(levels, ([384], [])) == (5, 3)
    assert seam_steps(torch.zeros(512, 512), ([], [])) == (0, 0)


def test_pieces_no_smaller_than_the_sky_have_no_seam(
    make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    found = enlarged_skies(make_flux(), make_autoencoder(), 64, Pieces(256, 128), True)
    assert torch.equal(found.whole, found.cut) and found.lines == ([], [])
    whole, cut = found.rows("as it comes")[1:]
    assert cut["RMS to the whole"] == cut["largest seam"] == 0 and cut["meter's score"] == whole["meter's score"]


@pytest.mark.slow
def test_the_command_writes_tables_and_a_picture(
    tmp_path: Path, make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    save_autoencoder(tmp_path / "vae.safetensors", make_autoencoder())
    flux = make_flux(settings=OneStepSettings())
    flux.final_layer.linear.weight.mul_(8)
    save_flux(tmp_path / "flux.safetensors", flux)
    models = ["--vae", str(tmp_path / "vae.safetensors"), "--model", str(tmp_path / "flux.safetensors")]
    given = ["--to", "256", "--pieces", "128:64", "--device", "cpu", "-o", str(tmp_path / "out")]
    assert cli.main(["sky", *given, *models]) == 0
    rows = json.loads((tmp_path / "out" / "sky.json").read_text("utf-8"))["tables"]["A smooth sky, whole and in pieces"]
    assert [row["picture"] for row in rows] == ["bicubic", "whole, one pass", "in pieces"] * 2
    assert rows[2]["RMS to the whole"] > rows[1]["RMS to the whole"] == 0
    with Image.open(tmp_path / "out" / "sky.jpg") as picture:
        assert picture.size == (1504, 1200)


def test_sky_needs_a_transformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["sky", "--vae-only", "-o", str(tmp_path)]) == 1
    assert "leave out --vae-only" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["sky", "--to", "0"], "expected 256 to 16384; got 0"),
        (["quality", "--limit", "0"], "expected 1 to 1000000; got 0"),
    ],
)
def test_a_number_out_of_range_is_not_answered_with_every_number(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(words)
    assert capsys.readouterr().err.splitlines()[-1].endswith(said)


@pytest.mark.slow
@pytest.mark.parametrize("side", [2048, 1024])
def test_planned_peaks_are_the_counted_ones(side: int) -> None:
    """Of a geometry whose blocks are counted in a moment; the command counts FLUX.1-dev's."""
    small = FluxParams(512, 4, 1, 1, context_in_dim=64, vec_in_dim=32)
    rows = transformer_peaks(side, small)
    assert [(row["VAE"], row["way"]) for row in rows] == [
        (vae, way) for vae in ("F8", "F16") for way in ("whole", "pieces 1024:512")
    ]
    for row in rows:
        assert row["predicted / counted"] == pytest.approx(1, abs=0.1), row
    passes = 9 if side == 2048 else 1
    assert [row["passes"] for row in rows] == [1, passes] * 2
