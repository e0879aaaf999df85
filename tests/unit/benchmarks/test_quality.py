"""``quality``: what is compared with what, and how the shares are counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from benchmarks.quality import BASE, quality, reconstruction, shares
from benchmarks.tables import Row, means
from op4ksr_core import AutoEncoder, Flux
from op4ksr_core.images.color import back_project
from op4ksr_core.images.io import load_image
from op4ksr_core.images.metrics import psnr
from op4ksr_core.images.resize import resize
from op4ksr_core.training.data.leaves import picture


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    paths = [tmp_path_factory.mktemp("photos") / f"photo{i}.png" for i in range(2)]
    for i, path in enumerate(paths):
        Image.fromarray(picture(i, 130, 102)).save(path)
    return paths


@pytest.fixture(scope="module")
def without_piq() -> Iterator[None]:
    def scores(image: Tensor, target: Tensor) -> dict[str, float]:
        return {"psnr": psnr(image, target), "gmsd": float((image - target).abs().mean())}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.quality.load_piq", lambda: None)
        patch.setattr("benchmarks.quality.fidelity_scores", scores)
        yield


@pytest.fixture(scope="module")
def rows(
    photos: list[Path], without_piq: None, make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> list[Row]:
    return quality(photos, make_flux(), make_autoencoder())


def test_every_photo_by_every_method_clean_and_degraded(photos: list[Path], rows: list[Row]) -> None:
    assert len(rows) == 2 * 2 * 7
    found = {(row["photo"], row["degradation"], row["method"]): row for row in rows}
    high = load_image(photos[1]).image[..., :128, :100]
    low = (resize(high, 32, 25).clamp(0, 1) * 255).round() / 255
    enlarged = resize(low, 128, 100).clamp(0, 1)
    projected = back_project(enlarged, low, 1.0).clamp(0, 1)
    for name, output in (("bicubic", enlarged), (BASE, projected)):
        rounded = (output * 255).round() / 255
        assert found["photo1", "clean", name]["psnr"] == pytest.approx(psnr(rounded, high))
    as_pillow = Image.fromarray((low[0].permute(1, 2, 0) * 255).round().byte().numpy()).resize((100, 128), 1)
    lanczos = torch.from_numpy(np.array(as_pillow)).permute(2, 0, 1)[None].float() / 255
    assert found["photo1", "clean", "Lanczos"]["psnr"] == pytest.approx(psnr(lanczos, high))
    for method in ("bicubic", BASE, "full"):
        assert found["photo1", "degraded", method]["psnr"] < found["photo1", "clean", method]["psnr"]
    clean = [row for row in means([r for r in rows if r["degradation"] == "clean"]) if row["method"] == "bicubic"]
    assert clean[0]["photos"] == 2 and {"psnr", "gmsd", "alarms"} <= set(clean[0])


def test_fidelity_and_the_transformer_make_a_difference(rows: list[Row]) -> None:
    scores = {r["method"]: r["psnr"] for r in rows if (r["photo"], r["degradation"]) == ("photo0", "clean")}
    assert scores["full"] > scores["full, fidelity 0"] and scores["VAE only"] > scores["VAE only, fidelity 0"]
    assert len(set(scores.values())) == 7


def test_the_autoencoder_is_judged_on_what_it_was_given(
    photos: list[Path], without_piq: None, make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    rows = reconstruction(photos, make_autoencoder())
    assert [row["picture"] for row in rows] == ["sharp", "enlarged"] * 2
    assert all(4 < row["psnr"] < 40 and row["alarms"] in (0, 1) for row in rows)


def test_shares_know_which_scores_are_better_small() -> None:
    def row(photo: str, method: str, psnr: float, gmsd: float) -> dict[str, object]:
        return {"photo": "same", "set": photo, "method": method, "psnr": psnr, "gmsd": gmsd, "alarms": 0.0}

    rows = [row("a", BASE, 20.0, 0.2), row("b", BASE, 30.0, 0.2)]
    rows += [row("a", "full", 21.0, 0.1), row("b", "full", 29.0, 0.1)]
    assert shares(rows) == [{"method": "full", "photos": 2, "psnr": 0.5, "gmsd": 1.0}]
