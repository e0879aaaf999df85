"""``upscale`` and ``plan`` with --pieces and --rfr: what runs is what the library runs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from op4ksr_core import AutoEncoder, Flux, OneStepOptions, OneStepSettings, Rfr, Target, save_autoencoder, save_flux
from op4ksr_core import upscale as library_upscale
from op4ksr_core.cli import main as cli
from op4ksr_core.images.io import Picture, load_image, save_image
from op4ksr_core.pieces import Pieces
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def files(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., AutoEncoder],
    make_flux: Callable[..., Flux],
) -> dict[str, Path]:
    """Tiny models of an 8x VAE, loud enough that pieces and positions show, and a picture of 40 x 24 px."""
    folder = tmp_path_factory.mktemp("files")
    save_autoencoder(folder / "vae.safetensors", make_autoencoder(loud=True, stride=1))
    flux = make_flux(settings=OneStepSettings(sigma=0.5, train_tokens=4))
    flux.final_layer.linear.weight.mul_(8)
    for block in flux.single_blocks:
        block.norm.query_norm.scale.mul_(4)  # pyright: ignore
    save_flux(folder / "flux.safetensors", flux)
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    save_image(folder / "in.png", Picture(image, None))
    return {name: folder / file for name, file in _NAMES.items()}


_NAMES = {"vae": "vae.safetensors", "model": "flux.safetensors", "picture": "in.png"}


def command(name: str, files: dict[str, Path], *given: Any) -> int:
    models = ["--vae", files["vae"], "--model", files["model"], "--device", "cpu"]
    return cli.main([str(argument) for argument in (name, files["picture"], *given, *models)])


def enlarged(files: dict[str, Path], output: Path, *given: Any) -> torch.Tensor:
    assert command("upscale", files, "-o", output, "--bits", 16, *given) == 0
    return load_image(output).image


@pytest.mark.parametrize("policy", [None, "ntk", "interpolate", "parts"])
@pytest.mark.parametrize("pieces", [None, Pieces(64, 32), Pieces(96, 16)], ids=str)
@pytest.mark.slow
def test_what_runs_is_what_the_library_runs(
    files: dict[str, Path], tmp_path: Path, pieces: Pieces | None, policy: Any
) -> None:
    """The policy takes the file's trained tokens, and its sigma."""
    given = [] if pieces is None else ["--pieces", f"{pieces.size_px}:{pieces.overlap_px}"]
    found = enlarged(files, tmp_path / "out.png", *given, *(["--rfr", policy] if policy else []))
    rfr = Rfr(policy, train_tokens=4, sigma=0.5) if policy else None
    models = load_flux(files["model"]), load_autoencoder(files["vae"])
    options = OneStepOptions(Target(scale=4), pieces=pieces)
    expected = library_upscale(load_image(files["picture"]).image, *models, options, rfr=rfr)
    assert (found - expected).abs().max() <= 1 / 65535
    plain = library_upscale(load_image(files["picture"]).image, *models, OneStepOptions(Target(scale=4)))
    assert bool((expected - plain).abs().max() > 1e-3) is (pieces is not None or policy is not None)


def test_the_overlap_is_half_of_a_window(files: dict[str, Path], tmp_path: Path) -> None:
    half = enlarged(files, tmp_path / "half.png", "--pieces", 64)
    assert torch.equal(half, enlarged(files, tmp_path / "stated.png", "--pieces", "64:32"))


def test_the_report_says_what_ran(files: dict[str, Path], tmp_path: Path, capsys: Capture) -> None:
    given = ("--pieces", 64, "--rfr", "ntk", "--json")
    assert command("upscale", files, "-o", tmp_path / "out.png", *given) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["pieces"] == [64, 32] and report["rfr"] == "ntk"


def test_the_plan_knows_pieces_and_positions(files: dict[str, Path], capsys: Capture) -> None:
    assert command("plan", files, "--pieces", 64) == 0
    text = capsys.readouterr().out
    assert "10 x 6 = 60 tokens, in 8 pieces of 4 x 4 = 16" in text and "warning" not in text
    assert command("plan", files, "--rfr", "parts") == 0
    assert "it is computed, with RFR parts, but nobody knows" in capsys.readouterr().out
    assert command("plan", files) == 0
    assert "try --rfr ntk, interpolate or parts, pieces (--pieces 64:32), or a target of" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", ["0", "-16", "16.5", "many", "64:", "64:64", "64:sky", "64:32:16", ":32"])
def test_what_is_no_size_of_pieces(files: dict[str, Path], capsys: Capture, wrong: str) -> None:
    with pytest.raises(SystemExit):
        command("plan", files, f"--pieces={wrong}")
    assert "--pieces" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["plan", "upscale"])
def test_pieces_of_no_whole_tokens(files: dict[str, Path], tmp_path: Path, capsys: Capture, name: str) -> None:
    output = ["-o", tmp_path / "out.png"] if name == "upscale" else []
    assert command(name, files, "--pieces", "40:8", *output) == 1
    err = capsys.readouterr().err
    assert "multiples of 16 px for this VAE (8x), got 40 and 8; take 32 and 0" in err and err.count("\n") == 1
    assert not (tmp_path / "out.png").exists()
