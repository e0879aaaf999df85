"""Spandrel for tests, and a tiny upscale model of another's layout; or a skip."""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from seeded_models import seeded

_NAMES = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")


def import_spandrel() -> Any:
    """The library. It imports torchvision, for architectures that are not used here: without one a likeness does,
    which is gone again afterwards."""
    if "spandrel" in sys.modules or importlib.util.find_spec("torchvision") is not None:
        return pytest.importorskip("spandrel")
    for name in _NAMES:
        sys.modules[name] = module = ModuleType(name)
        vars(module).update(normalize=None, rotate=None, InterpolationMode=SimpleNamespace(BILINEAR=None))
    try:
        return pytest.importorskip("spandrel")
    finally:
        for name in _NAMES:
            del sys.modules[name]


def tiny_esrgan(factor: int, channels: int = 3, seed: int = 0) -> Any:
    """A tiny ESRGAN, of 3 or 1 channels. Its names and tensors are those of any file of that kind."""
    import_spandrel()
    from spandrel.architectures.ESRGAN.__arch.RRDB import RRDBNet

    return seeded(lambda: RRDBNet(in_nc=channels, out_nc=channels, num_filters=8, num_blocks=1, scale=factor), seed)


def state_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
