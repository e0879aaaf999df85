"""The run's files: the log is whole all the time, and the state in memory does not hang on the file."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from unit.training.test_trainer import config, folder, short, train  # noqa: F401

from op4ksr_core import OptionError, OutputError
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.run_log import CsvLog
from op4ksr_core.training.trainer import Trainer


def written(path: Path, steps: int) -> None:
    log = CsvLog(path, ["step", "loss"], 0)
    for step in range(1, steps + 1):
        log.write({"step": step, "loss": 1 / step})


def test_a_log_keeps_the_rows_up_to_the_state(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    written(path, 5)
    CsvLog(path, ["step", "loss", "new"], 3).write({"step": 4, "new": 2.0})
    assert path.read_text().splitlines() == ["step,loss,new", "1,1,", "2,0.5,", "3,0.333333,", "4,,2"]


def test_a_row_that_was_cut_short_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    written(path, 2)
    path.write_text(path.read_text() + "1")
    CsvLog(path, ["step", "loss"], 30)
    assert path.read_text() == "step,loss\n1,1\n2,0.5\n"


@pytest.mark.parametrize("place", ["writerows", "writeheader"])
def test_no_row_is_lost_where_resuming_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    path = tmp_path / "log.csv"
    written(path, 3)
    before = path.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, place, killed)
    with pytest.raises(KeyboardInterrupt):
        CsvLog(path, ["step", "loss"], 3)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_another_file_in_the_logs_place_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("something,else\n1,2\n")
    with pytest.raises(OptionError, match=r"log\.csv: is no log of a run \(.*\); move it to another place"):
        CsvLog(path, ["step"], 1)


def test_a_full_disk_is_told_with_the_file(tmp_path: Path) -> None:
    """/dev/full takes nothing, and says so when the file is closed."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    path = tmp_path / "log.csv"
    log = CsvLog(path, ["step"], 0)
    path.unlink()
    path.symlink_to("/dev/full")
    with pytest.raises(OutputError) as caught:
        log.write({"step": 1})
    assert str(caught.value) == f"{path}: cannot be written (No space left on device); choose another run folder"


def test_what_is_resumed_does_not_change_with_the_file(folder: Path) -> None:  # noqa: F811
    """AdamW keeps the very tensors that are loaded, and the next save replaces their file."""
    text = short(config(folder))
    train(text)
    trainer = Trainer(parse_config(text), text, resume=True)
    moments = [t for entry in trainer.optimizer.state.values() for t in entry.values() if isinstance(t, torch.Tensor)]
    before = [t.clone() for t in moments]
    with trainer.folder.state.open("r+b") as file:  # in place, as no save of ours does: a map would show it
        size = file.seek(0, 2)
        file.seek(0)
        file.write(b"\x7f" * size)
    assert moments and all(map(torch.equal, moments, before))
