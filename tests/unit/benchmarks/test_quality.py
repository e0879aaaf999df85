"""``quality``: what is compared with what."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.commands import main as cli
from benchmarks.damages import shrunk
from benchmarks.methods import BASE
from benchmarks.quality import CHOICES, SharpLatent, methods_of, reconstruction
from benchmarks.variants import Variant
from op4ksr_core import AutoEncoder, OptionError
from op4ksr_core.base import Bicubic
from op4ksr_core.images.color import back_project
from op4ksr_core.images.io import load_image
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.one_step import OneStepOptions, run
from op4ksr_core.vae.autoencoder import AutoEncoderParams

pytestmark = pytest.mark.usefixtures("without_piq")


def test_what_needs_no_network_is_as_others_have_it() -> None:
    low = (torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0)) * 255).round() / 255
    methods = methods_of(Variant("full"))
    enlarged = resize(low, 64, 80).clamp(0, 1)
    assert torch.equal(methods["bicubic"].enlarge(low, 4), enlarged)
    assert torch.equal(methods[BASE].enlarge(low, 4), back_project(enlarged, low, 1.0).clamp(0, 1))
    as_pillow = Image.fromarray((low[0].permute(1, 2, 0) * 255).round().byte().numpy()).resize((80, 64), 1)
    lanczos = torch.from_numpy(np.array(as_pillow)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(methods["Lanczos"].enlarge(low, 4), lanczos)


def test_every_choice_is_a_method(weights: Variant) -> None:
    assert set(CHOICES) == set(methods_of(weights, weights.vae.parent))
    assert set(CHOICES) - set(methods_of(weights)) == {"v1"}


@pytest.mark.slow
@pytest.mark.usefixtures("without_meter")
def test_the_command_compares_all_of_a_photo(photos: list[Path], tmp_path: Path, weights: Variant) -> None:
    words = ["quality", str(photos[0].parent), "--vae", str(weights.vae), "--model", str(weights.model)]
    words += ["--old", str(weights.vae.parent), "--enlarger", "bundled", "-o", str(tmp_path / "out")]
    assert cli.main(words) == 0
    report = json.loads((tmp_path / "out" / "quality.json").read_text("utf-8"))
    clean = {row["method"]: row for row in report["tables"]["x4, clean"]}
    assert list(clean) == list(CHOICES) or set(clean) == set(CHOICES)
    assert all(row["photos"] == 2 for row in clean.values())
    assert len({row["psnr"] for row in clean.values()}) == len(CHOICES)
    assert clean["full"]["lr_psnr"] > clean["full, fidelity 0"]["lr_psnr"]
    assert clean["base alone"]["psnr"] > clean[BASE]["psnr"]  # the bundled enlarger's
    damaged = {row["method"]: row for row in report["tables"]["x4, degraded"]}
    assert damaged["bicubic"]["psnr"] < clean["bicubic"]["psnr"]
    settings = {row["setting"]: row["value"] for row in report["tables"]["Settings"]}
    assert settings["features left out"] == "not asked for"
    assert len(list((tmp_path / "out" / "scores").iterdir())) == 4


def test_other_weights_are_asked_for_by_their_folder(
    photos: list[Path], tmp_path: Path, weights: Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quality", str(photos[0]), "--methods", "v1", "-o", str(tmp_path / "out")]) == 1
    assert "--methods v1: needs --old FOLDER" in capsys.readouterr().err
    with pytest.raises(OptionError, match="expected one file whose name has 'vae' .* found 0; name a folder"):
        methods_of(weights, photos[0].parent)
    assert methods_of(weights, weights.vae.parent)["v1"].key == replace(weights, enlarger="auto").key()


def test_a_photo_named_twice_is_told(photos: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["quality", str(photos[0]), str(photos[0].parent), "-o", str(tmp_path / "out")]) == 1
    assert "one is named twice" in capsys.readouterr().err


def test_the_autoencoder_is_judged_on_what_it_was_given(
    photos: list[Path], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    rows = reconstruction(photos, make_autoencoder(), Bicubic())
    assert [row["picture"] for row in rows] == ["sharp", "enlarged", "base", "base and its detail"] * 2
    assert all(4 < row["psnr"] < 40 and row["alarms"] in (0, 1) for row in rows)


class Lossless(AutoEncoder):
    """Moves pixels into channels and back."""

    def encode(self, image: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        return torch.nn.functional.pixel_unshuffle(image, self.params.ratio)

    def decode(self, latent: torch.Tensor, *args: object, **options: object) -> torch.Tensor:
        return torch.nn.functional.pixel_shuffle(latent, self.params.ratio)

    def decode_onto(self, latent: torch.Tensor, onto: torch.Tensor, weight: float, *args: object, **o: object) -> None:
        onto.add_(self.decode(latent), alpha=weight)


def test_a_transformer_that_never_errs_brings_back_what_the_autoencoder_carries(photos: list[Path]) -> None:
    """One whose autoencoder loses nothing would give the photo itself."""
    high = load_image(photos[0]).image[..., :96, :100]
    stages = SharpLatent(Lossless(AutoEncoderParams(widths=(8, 8, 8, 8), norm_groups=1)), high, Bicubic())
    options = OneStepOptions(Target(scale=4), color="none", fidelity=0.0)
    assert torch.allclose(run(shrunk(high, 4), stages, options), high, atol=1e-5)
