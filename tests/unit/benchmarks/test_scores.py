"""Scores of a pair of pictures: best where they are equal."""

from __future__ import annotations

import math

import pytest
import torch

from benchmarks.scores import fidelity_scores


def test_scores_are_best_for_the_same_picture_and_worse_for_a_worse_one() -> None:
    pytest.importorskip("piq")
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    same, near, far = (fidelity_scores(image + error * torch.randn(image.shape), image) for error in (0, 0.02, 0.2))
    assert (same["psnr"], same["gmsd"]) == (math.inf, 0) and same["ssim"] == pytest.approx(1)
    assert same["haarpsi"] == pytest.approx(1)
    assert near["psnr"] > far["psnr"] and near["gmsd"] < far["gmsd"]
    assert near["ssim"] > far["ssim"] and near["haarpsi"] > far["haarpsi"]
