"""PSNR and luma by their definitions."""

from __future__ import annotations

import math

import pytest
import torch

from op4ksr_core.images.metrics import is_finite, luma, psnr


def test_psnr_of_a_known_error() -> None:
    image = torch.full((1, 3, 8, 8), 0.5)
    assert psnr(image, image + 0.1) == pytest.approx(20, abs=1e-4)
    assert psnr(image, image + 0.01) == pytest.approx(40, abs=1e-3)


def test_psnr_of_equal_pictures_is_infinite() -> None:
    image = torch.rand(1, 3, 4, 4)
    assert psnr(image, image) == math.inf


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_wrong_value_makes_a_picture_not_finite(dtype: torch.dtype) -> None:
    image = torch.full((1, 3, 64, 64), 6e4, dtype=dtype)  # whose sum float16 could not hold
    assert is_finite(image)
    for wrong in ((math.nan,), (math.inf,), (math.inf, -math.inf)):
        image[0, 1, 2, : len(wrong)] = torch.tensor(wrong, dtype=dtype)
        assert not is_finite(image)


def test_luma_is_rec_601() -> None:
    colours = torch.eye(3)[..., None, None]  # red, green, blue
    assert luma(colours).flatten().tolist() == pytest.approx([0.299, 0.587, 0.114])
