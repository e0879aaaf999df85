"""Files of tiny models, photos, and scores that need no piq."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from torch import Tensor

from benchmarks import variants
from benchmarks.variants import Variant
from op4ksr_core import AutoEncoder, Flux, save_autoencoder, save_flux
from op4ksr_core.images.metrics import psnr
from op4ksr_core.training.data.leaves import picture


def plain_scores(image: Tensor, target: Tensor) -> dict[str, float]:
    """In place of piq's."""
    error = float((image - target).abs().mean())
    return {"psnr": psnr(image, target), "ssim": 1 - error, "gmsd": error, "haarpsi": 1 - error}


@pytest.fixture
def without_piq(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("quality", "quality_sets", "commands.photo_run"):
        monkeypatch.setattr(f"benchmarks.{module}.load_piq", lambda: None)
    for module in ("quality_sets", "scores"):
        monkeypatch.setattr(f"benchmarks.{module}.fidelity_scores", plain_scores)
    monkeypatch.setattr("benchmarks.commands.photo_run.more_scores", lambda: ({}, {"features": "not asked for"}))


@pytest.fixture
def without_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes most of the time of scoring tiny pictures."""
    monkeypatch.setattr("benchmarks.scores.measure_periodicity", lambda *_: SimpleNamespace(alarm=False))


@pytest.fixture(scope="session")
def weights(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., AutoEncoder],
    make_flux: Callable[..., Flux],
) -> Variant:
    """A variant whose files are tiny, and whose transformer does something."""
    folder = tmp_path_factory.mktemp("weights")
    save_autoencoder(folder / "a_vae.safetensors", make_autoencoder())
    flux = make_flux()
    flux.final_layer.linear.weight.mul_(8)
    save_flux(folder / "a_flux.safetensors", flux)
    return Variant("full", folder / "a_vae.safetensors", folder / "a_flux.safetensors")


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    """Two photos of one folder, "photos"."""
    paths = [tmp_path / "photos" / f"photo{i}.png" for i in range(2)]
    paths[0].parent.mkdir()
    for i, path in enumerate(paths):
        Image.fromarray(picture(i, 130, 102)).save(path)
    return paths


@pytest.fixture(autouse=True)
def forget_models() -> None:
    """Files of one name may be others in the next test."""
    variants.loaded.cache_clear()
