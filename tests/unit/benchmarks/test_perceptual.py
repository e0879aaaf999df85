"""Which of pyiqa's scores can be had without a network. pyiqa itself is replaced: its scores are not judged here.

The replacement has the names, places and calls of pyiqa 0.1.16, and fetching with it fails the test. That the real
0.1.16 is found and run so was tried by hand, without a network, on files of random weights.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.perceptual import METRICS, cut, load_perceptual

HOME = "https://huggingface.co/chaofengc/IQA-PyTorch-Weights/resolve/main/"
FILES = {
    "lpips": ["pyiqa/LPIPS_v0.1_alex-df73285e.pth", "checkpoints/alexnet-owt-7be5be79.pth"],
    "dists": ["pyiqa/DISTS_weights-f5e65c96.pth", "checkpoints/vgg16-397923af.pth"],
    "niqe": ["pyiqa/niqe_modelparameters.mat"],
    "musiq": ["pyiqa/musiq_koniq_ckpt-e95806b9.pth"],
}


class FakePyiqa:
    """Stands in sys.modules for pyiqa and torchvision.models; notes what is asked of it."""

    def __init__(self, hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.hub, self.sizes = hub, {name: [] for name in METRICS}
        self.modules = {name: ModuleType(name) for name in ("pyiqa", "pyiqa.utils.download_util", "torchvision.models")}
        self.modules["pyiqa"].create_metric = self.create_metric  # type: ignore[attr-defined]
        self.modules["pyiqa.utils.download_util"].DEFAULT_CACHE_DIR = str(hub / "pyiqa")  # type: ignore[attr-defined]
        for name, metric in METRICS.items():
            module = ModuleType(metric.module)
            module.default_model_urls = {metric.key: HOME + Path(FILES[name][0]).name}  # type: ignore[attr-defined]
            self.modules[f"pyiqa.archs.{metric.module}"] = module
            if metric.backbone:
                weights = type("W", (), {"url": "https://download.pytorch.org/models/" + Path(FILES[name][1]).name})
                enum = type("E", (), {"IMAGENET1K_V1": weights})
                setattr(self.modules["torchvision.models"], metric.backbone, enum)
        for packages in ("pyiqa.archs", "pyiqa.utils", "torchvision"):
            self.modules[packages] = ModuleType(packages)
        for name, module in self.modules.items():
            monkeypatch.setitem(sys.modules, name, module)
        monkeypatch.setattr(torch.hub, "get_dir", lambda: str(hub))

    def lay(self, *names: str) -> None:
        for name in names:
            (self.hub / name).parent.mkdir(parents=True, exist_ok=True)
            (self.hub / name).touch()

    def create_metric(self, name: str, device: torch.device) -> Any:
        assert all((self.hub / file).is_file() for file in FILES[name]), "pyiqa would fetch now"

        def network(*pictures: Tensor) -> Tensor:
            assert len(pictures) == 1 + METRICS[name].referenced
            self.sizes[name].append(tuple(pictures[0].shape[-2:]))
            return pictures[0].mean() - (pictures[1].mean() if METRICS[name].referenced else 0)

        return network


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakePyiqa:
    return FakePyiqa(tmp_path / "hub", monkeypatch)


def test_scores_without_their_files_are_left_out_by_name(fake: FakePyiqa, caplog: pytest.LogCaptureFixture) -> None:
    fake.lay(*FILES["niqe"], FILES["lpips"][0])
    with caplog.at_level(logging.WARNING):
        found = load_perceptual()
    assert list(found.networks) == ["niqe"] and list(found.missing) == ["lpips", "dists", "musiq"]
    assert found.missing["lpips"] == "alexnet-owt-7be5be79.pth not in torch's hub folder"
    assert "DISTS_weights-f5e65c96.pth and vgg16-397923af.pth" in found.missing["dists"]
    assert not any(str(fake.hub) in reason for reason in found.missing.values())
    assert str(fake.hub / FILES["musiq"][0]) in caplog.text


def test_all_scores_whole_and_in_parts(fake: FakePyiqa) -> None:
    fake.lay(*(file for files in FILES.values() for file in files))
    found = load_perceptual()
    assert not found.missing
    image = torch.rand(1, 3, 192, 1500, generator=torch.Generator().manual_seed(0))
    scores = found.scores(image, image / 2)
    assert scores["niqe"] == pytest.approx(image.mean().item()) and fake.sizes["niqe"] == [(192, 1500)]
    assert scores["lpips"] == pytest.approx(image.mean().item() / 2) and fake.sizes["lpips"] == [(192, 750)] * 2
    assert list(found.scores(image, None)) == ["niqe", "musiq"]
    assert list(found.scores(image[..., :191, :], None)) == ["musiq"] and not found.scores(
        image[..., :31], image[..., :31]
    )


def test_files_that_cannot_be_loaded_are_told(fake: FakePyiqa) -> None:
    def broken(name: str, device: torch.device) -> Any:
        raise EOFError("Ran out of input")

    fake.lay(*FILES["niqe"])
    fake.modules["pyiqa"].create_metric = broken  # type: ignore[attr-defined]
    assert load_perceptual().missing["niqe"] == "its files cannot be loaded (EOFError)"


def test_another_pyiqa_is_not_trusted(fake: FakePyiqa) -> None:
    fake.lay(*(file for files in FILES.values() for file in files))
    fake.modules["pyiqa.archs.dists_arch"].default_model_urls = {}  # type: ignore[attr-defined]
    del fake.modules["pyiqa.archs.niqe_arch"].default_model_urls  # type: ignore[attr-defined]
    found = load_perceptual()
    assert list(found.networks) == ["lpips", "musiq"]
    assert found.missing["dists"] == "this pyiqa is built otherwise than 0.1.16 (KeyError)"
    assert found.missing["niqe"].endswith("(AttributeError)")


def test_without_pyiqa_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    found = load_perceptual()
    assert not found.networks and list(found.missing) == list(METRICS)
    assert found.missing["niqe"] == "pyiqa is not installed (ModuleNotFoundError)"


def test_parts_are_equal_and_cover_the_picture() -> None:
    image = torch.arange(5 * 7.0).view(1, 1, 5, 7)
    parts = cut(image, 3)
    assert [tuple(part.shape[-2:]) for part in parts] == [(3, 3), (3, 2), (3, 2), (2, 3), (2, 2), (2, 2)]
    assert sum(part.sum() for part in parts) == image.sum() and len(cut(image, 7)) == 1
