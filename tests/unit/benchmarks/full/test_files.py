"""``benchmark write-weights``: files that the core opens as what they are, refused where the disk is too small."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.commands import main as cli
from benchmarks.full.files import write_random
from benchmarks.random_models import random_flux
from op4ksr_core import OutputError
from op4ksr_core.planning.geometries import GEOMETRIES
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux
from op4ksr_core.weights.description import describe_flux
from op4ksr_core.weights.header import read_header

CPU = torch.device("cpu")
SMALL = GEOMETRIES["small"]
Usage = namedtuple("Usage", "total used free")


def test_the_files_are_the_geometry_with_its_metadata(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["write-weights", "--geometry", "small", "--device", "cpu", "-o", str(tmp_path)]) == 0
    vae_file, half, small = (Path(line) for line in capsys.readouterr().out.split())
    vae = load_autoencoder(vae_file)
    assert vae.params == SMALL.autoencoder
    header = read_header(half)
    assert header.layout_name == "bfl" and header.dtype == "BF16" and header.metadata["op4ksr.kind"] == "transformer"
    assert "random" in header.metadata["op4ksr.training"]
    found = describe_flux(small)
    assert found.params == SMALL.flux and not found.quantized
    assert set(found.header.dtypes.values()) == {"F8_E4M3", "BF16"}
    assert small.stat().st_size < 0.6 * half.stat().st_size


def test_the_file_and_the_model_made_on_the_device_are_the_same(tmp_path: Path) -> None:
    _, path = write_random(tmp_path, "small", SMALL, ("bf16",), CPU)
    written, made = load_flux(path, dtype=torch.bfloat16), random_flux(SMALL, CPU, torch.bfloat16)
    for name, tensor in made.state_dict().items():
        assert torch.equal(written.state_dict()[name], tensor), name
    assert made.settings.txt is not None and written.settings.txt is not None
    assert torch.equal(written.settings.txt.bfloat16(), made.settings.txt.bfloat16())


def test_a_full_disk_is_refused_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(path: Any) -> Any:
        return Usage(0, 0, 30 * 10**9)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    with pytest.raises(OutputError, match=r"need 3[56]\.\d GB, and 1 GB shall stay free, but there are 30.0 GB"):
        write_random(tmp_path, "flux", GEOMETRIES["flux"], ("bf16", "fp8"), CPU)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(OutputError, match="choose another folder"):
        write_random(tmp_path / "file" / "folder", "small", SMALL, ("bf16",), CPU)
