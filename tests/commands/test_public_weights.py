"""The commands of docs/public_weights.md, line by line, on small files under the names that users have."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import one_step_downloads as downloads
import pytest
import torch
from PIL import Image

from op4ksr_core.cli.main import main
from op4ksr_core.images.io import load_image
from op4ksr_core.models.flux_schedule import MAX_SHIFT, sigma_of_time
from op4ksr_core.weights.header import read_header, read_tensors

PAGE = Path(__file__).resolve().parents[2] / "docs" / "public_weights.md"


def lines() -> list[list[str]]:
    """The words of each command of the page's section."""
    section = PAGE.read_text("utf-8").split("## From download to 4K")[1].split("\n## ")[0]
    return [shlex.split(line)[1:] for line in re.findall(r"^op4ksr .+$", section, re.MULTILINE)]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """As the page says: the downloads in one folder, beside a photo."""
    downloads.write_flux(tmp_path / "flux1-dev.safetensors")
    downloads.write_autoencoder(tmp_path / "ae.safetensors")
    downloads.write_omgsr(tmp_path / "omgsr-f-1024-adapter")
    downloads.write_fluxsr(tmp_path / "FluxSR")
    downloads.write_prompt(tmp_path / "empty_prompt.safetensors")
    pixels = torch.rand(24, 32, 3, generator=torch.Generator().manual_seed(0))
    Image.fromarray((pixels * 255).byte().numpy()).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_line_of_the_page_does_what_it_says(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = [(words[0], main(words)) for words in lines()]
    assert {name for name, _ in ends} == {"inspect", "convert", "plan", "upscale", "periodicity"}
    assert all(end == 0 or (name, end) == ("periodicity", 3) for name, end in ends), capsys.readouterr().err
    made = {name: load_image(folder / f"photo_{name}.png").image for name in ("omgsr", "fluxsr")}
    assert {tuple(image.shape) for image in made.values()} == {(1, 3, 96, 128)}
    assert float((made["omgsr"] - made["fluxsr"]).abs().mean()) > 0.01


def test_the_files_that_it_makes_carry_what_the_page_lists(folder: Path) -> None:
    converts = [words for words in lines() if words[0] == "convert"]
    assert [main(words) for words in converts] == [0, 0]
    txt, vec = downloads.prompt()
    for name, sigma, encode in (("omgsr", sigma_of_time(244 / 999, MAX_SHIFT), "sample"), ("fluxsr", 0.25, "mean")):
        header = read_header(folder / f"{name}.safetensors")
        tensors = read_tensors(header)
        assert header.kind == "lora" and float(header.metadata["op4ksr.sigma"]) == pytest.approx(sigma, abs=1e-6)
        assert header.metadata.get("op4ksr.encode", "mean") == encode and header.metadata["op4ksr.guidance"] == "1.0"
        assert torch.equal(tensors["op4ksr.txt"], txt) and torch.equal(tensors["op4ksr.vec"], vec)


def test_without_a_prompt_the_first_line_alone_does_not_upscale(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """OMGSR's folder as it is: what is missing is told in one sentence, with what to do."""
    words = next(words for words in lines() if words[0] == "upscale")
    assert main([word.replace("omgsr.safetensors", "omgsr-f-1024-adapter") for word in words]) == 1
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "prompt" in told and "--prompt-embedding" in told
