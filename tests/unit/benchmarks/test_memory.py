"""``memory`` and ``speed``: their tables hold what they say, and the tiles they compare with are tiles."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import memory
from benchmarks.commands import main as cli
from benchmarks.memory import QUICK_CASES, end_to_end, exactness, peaks, random_autoencoder, uneven
from benchmarks.tables import Row, write_report
from benchmarks.tiles import three_passes
from op4ksr_core import Op4ksrError, OutputError
from op4ksr_core.planning.geometries import AUTOENCODERS


@pytest.fixture(scope="module")
def rows() -> list[Row]:
    return exactness(QUICK_CASES[1:])


@pytest.mark.slow
def test_strips_are_exact_and_tiles_are_not(rows: list[Row]) -> None:
    for row in rows:
        if row["dtype"] == "float32":
            assert (row["max"] <= 2e-5) == (row["way"] != "tiles"), row
    assert len({row["way"] for row in rows}) == 5


@pytest.mark.slow
def test_bfloat16_strips_are_as_near_to_float32_as_the_plain_pass(rows: list[Row]) -> None:
    found = [row for row in rows if row["dtype"] == "bfloat16" and row["way"] != "tiles"]
    assert len(found) == 8
    for row in found:
        assert 0 < row["rms"] <= 1.1 * row["rms of plain"], row


@pytest.mark.slow
def test_outputs_are_of_order_one(rows: list[Row]) -> None:
    assert all(0.05 < row["std"] < 1 for row in rows)


@pytest.mark.slow
def test_peaks_are_counted_and_predicted() -> None:
    found = peaks(("F16, bundled",), (64,), (512,))
    by_way = {(row["stage"], row["px"], row["way"]): row["GB"] for row in found}
    for stage in ("encode", "decode"):
        gigabytes = [by_way[stage, 512, way] for way in ("plain", "fast", "lean", "tiny")]
        assert gigabytes == sorted(gigabytes, reverse=True) and gigabytes[0] > 2 * gigabytes[3]
    assert all(0.9 < row["predicted / counted"] < 1.1 for row in found if row["px"] == 512 and row["way"] != "plain")


@pytest.mark.slow
def test_end_to_end_is_a_process_of_its_own() -> None:
    (row,) = [memory._in_a_process("tiny", 32, 2)]
    assert row["px"] == "32 -> 64" and 0.05 < row["GB at start"] <= row["GB at peak"] < 2


def test_a_run_that_the_system_kills_is_told_with_what_to_do() -> None:
    """As a system short of memory ends a process: without a word."""

    def kill() -> None:
        while not (found := multiprocessing.active_children()):
            time.sleep(0.02)
        found[0].kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    with pytest.raises(Op4ksrError, match=r"the run of 32 px with plain ended with code -?\d+ \(.*; free memory, or "):
        end_to_end(32, 2)
    killer.join()


def test_tiles_of_a_local_function_are_the_function() -> None:
    x = torch.rand(1, 2, 40, 54, generator=torch.Generator().manual_seed(0))

    def double(part: Tensor) -> Tensor:
        return part.repeat_interleave(2, 2).repeat_interleave(2, 3)

    torch.testing.assert_close(three_passes(x, double, 16, 4, 2), double(x))
    torch.testing.assert_close(three_passes(x, lambda part: part[:, :, ::2, ::2], 16, 4, 0.5), x[:, :, ::2, ::2])


def test_tiles_see_their_own_statistics_only() -> None:
    x = torch.arange(64.0).view(1, 1, 1, 64).expand(1, 1, 64, 64)
    assert (three_passes(x, lambda part: part - part.mean(), 16, 4, 1) - (x - x.mean())).abs().max() > 10


def test_random_weights_are_seeded_and_scaled() -> None:
    first, again = (random_autoencoder(AUTOENCODERS["F16, bundled"]) for _ in range(2))
    latent = uneven(1, 16, 8, 8)
    assert torch.equal(first.decode_pixels(latent), again.decode_pixels(latent))
    assert first.decode_pixels(latent).std() < 1


def test_the_command_writes_json_and_markdown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "QUICK_SPEED_CASES", (("F16, bundled", 128, torch.float32),))
    assert cli.main(["speed", "--quick", "--repeats", "1", "--device", "cpu", "-o", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "speed.json").read_text("utf-8"))
    assert report["machine"]["torch"] == torch.__version__
    assert report["command"].startswith("python -m benchmarks ")
    (table,) = report["tables"].values()
    assert [row["way"] for row in table] == ["plain", "fast", "lean", "tiny"] * 2
    assert table[0]["of plain"] == 1 and all(row["seconds"] > 0 for row in table)
    assert "| weights | px |" in capsys.readouterr().out


def test_tables_that_cannot_be_written_name_the_folder(tmp_path: Path) -> None:
    place = tmp_path / "a file"
    place.touch()
    with pytest.raises(OutputError, match=r"a file: cannot be created \(File exists\); choose another folder$"):
        write_report(place, "memory", {"peaks": [{"GB": 1.0}]})
