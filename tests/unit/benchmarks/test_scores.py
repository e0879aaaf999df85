"""Scores of a pair of pictures: best where they are equal."""

from __future__ import annotations

import math

import pytest
import torch
from unit.benchmarks.conftest import plain_scores

from benchmarks.scores import fidelity_scores, mean_tile, photo_scores
from op4ksr_core.images.resize import resize


def test_scores_are_best_for_the_same_picture_and_worse_for_a_worse_one() -> None:
    pytest.importorskip("piq")
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    same, near, far = (fidelity_scores(image + error * torch.randn(image.shape), image) for error in (0, 0.02, 0.2))
    assert (same["psnr"], same["gmsd"]) == (math.inf, 0) and same["ssim"] == pytest.approx(1)
    assert same["haarpsi"] == pytest.approx(1, abs=1e-4)
    assert near["psnr"] > far["psnr"] and near["gmsd"] < far["gmsd"]
    assert near["ssim"] > far["ssim"] and near["haarpsi"] > far["haarpsi"]


def test_the_mean_tile_is_what_repeats_and_nothing_else() -> None:
    high = torch.full((1, 3, 66, 130), 0.5)
    tile = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]) / 255
    mesh = tile.repeat(33, 65)
    assert mean_tile(high + mesh, high, 2) == pytest.approx(1, rel=1e-4)
    assert mean_tile(high + mesh, high, 4) == pytest.approx(1, rel=1e-4)
    assert mean_tile(high + mesh, high, 3) < 0.05  # what does not fit averages out
    assert mean_tile(high + 9 / 255, high, 2) == pytest.approx(0, abs=1e-6)  # a shift of the whole is no tile
    assert mean_tile(high, high, 128) == 0  # fewer than two fit


def test_all_scores_of_a_photo_are_those_of_its_8_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.scores.fidelity_scores", plain_scores)
    generator = torch.Generator().manual_seed(0)
    low = (torch.rand(1, 3, 32, 32, generator=generator) * 255).round() / 255
    high = resize(low, 128, 128).clamp(0, 1)
    found = photo_scores(high + 0.1 / 255, low, high)
    assert found == photo_scores((high + 0.1 / 255).mul(255).round().div(255), low, high)
    assert {"psnr", "ssim", "gmsd", "haarpsi", "lr_psnr", "alarms", "tile", "tile_16", "tile_32"} == set(found)
    assert found["lr_psnr"] > photo_scores((high + 0.2).clamp(0, 1), low, high)["lr_psnr"] + 3
    mesh = torch.zeros(4, 4)
    mesh[0, 0] = 16 / 255
    assert photo_scores((high * 0.8 + mesh.repeat(32, 32)), low, high * 0.8)["tile"] == pytest.approx(3.87, rel=0.1)
