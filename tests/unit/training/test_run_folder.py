"""The run's files: the log is whole all the time, and the state in memory does not hang on the file."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from unit.training.test_trainer import config, folder, short, train  # noqa: F401

from op4ksr_core import Op4ksrError, OptionError, OutputError, UnsupportedCheckpointError
from op4ksr_core.files import is_temporary, written_whole
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.run_folder import RunFolder
from op4ksr_core.training.run_log import CsvLog
from op4ksr_core.training.run_state import Facts, check_moments, check_parameters, load_state, save_state
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.weights.checkpoint import save_tensors


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


def test_a_killed_runs_unfinished_files_go_and_nobody_elses(tmp_path: Path) -> None:
    run, shared = RunFolder(tmp_path / "run"), tmp_path / "shared"
    run.begin("", False)
    shared.mkdir()
    run.cache.mkdir()
    with written_whole(tmp_path / "any") as temporary:
        name = temporary.name
    unfinished = [run.path / name, run.checkpoints / name, run.samples / name, run.cache / f"{name}.npy"]
    others = [shared / name, run.path / ".op4ksr-notes", run.checkpoints / "notes.part", run.path / f"my_{name}"]
    for file in (*unfinished, *others):
        file.write_text("half")
    run.begin("", True)
    assert [file.exists() for file in (*unfinished, *others)] == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    "content",
    [b"step,loss\n1,\x00\n2,1\n", b"step,loss\n1\n2,1\n", b"step,loss\n1,2,3\n", b'step,loss\n"1,2\n2,1\n', b"\xff\n",
     b"step,loss\n" + b"9" * 5000 + b",1\n", b"step,loss\n1," + b"1" * 200_000 + b"\n", b"step,step\n1,1\n", b""],
)  # fmt: skip
def test_a_damaged_log_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "log.csv"
    path.write_bytes(content)
    with pytest.raises(OptionError, match=r"log\.csv: is no log of a run \(.*\); move it to another place$"):
        CsvLog(path, ["step", "loss"], 2)
    assert path.read_bytes() == content


def test_a_log_that_lost_rows_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    written(path, 3)
    assert CsvLog(path, ["step", "loss"], 3, 3).count == 3
    path.write_text("step,loss\n1,1\n")
    with pytest.raises(OptionError, match="it has 1 rows up to step 3, and the run had 3"):
        CsvLog(path, ["step", "loss"], 3, 3)
    path.unlink()
    assert CsvLog(path, ["step", "loss"], 3, 3).count == 0


@pytest.mark.skipif(os.name == "nt", reason="Windows has no named pipes in folders")
@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_file_in_a_files_place_is_named_and_not_waited_for(tmp_path: Path, make: Callable) -> None:
    log, state = tmp_path / "log.csv", tmp_path / "state.safetensors"
    make(log)
    make(state)
    with pytest.raises(OptionError, match="is no log of a run \\(a (folder|named pipe)\\)"):
        CsvLog(log, ["step"], 1)
    with pytest.raises(UnsupportedCheckpointError, match="is no state of a run \\(a (folder|named pipe)\\)"):
        load_state(state)


FACTS = Facts(3, 1.5, 3, "lora", 0, 2)


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        "[1]",
        "[" * 100_000,
        '{"step": ' + "9" * 5000 + "}",
        "x",
        '{"step": -1}',
        '{"step": NaN}',
        '{"step": true}',
    ],
)
def test_damaged_facts_of_a_state_are_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "state.safetensors"
    if text.startswith('{"step": ') and len(text) < 20:
        text = json.dumps({**asdict(FACTS), "step": "@"}).replace('"@"', text[9:-1])
    save_tensors(path, {"model.a": torch.ones(2)}, {"op4ksr.state": text})
    with pytest.raises(UnsupportedCheckpointError, match=r"state\.safetensors: is no state of a run \("):
        load_state(path)


def test_a_state_with_zeros_in_the_place_of_bytes_is_named(tmp_path: Path) -> None:
    path = tmp_path / "state.safetensors"
    save_state(path, {"model.a": torch.ones(100)}, FACTS)
    assert load_state(path)[1] == FACTS
    path.write_bytes(path.read_bytes()[:-100] + bytes(100))
    with pytest.raises(UnsupportedCheckpointError, match="the bytes of model.a are not those that were saved"):
        load_state(path)


@pytest.mark.parametrize("part", ["model", "ema", "optimizer.0"])
@pytest.mark.parametrize("change", ["missing", "nan", "half", "shape"])
def test_damaged_tensors_of_a_state_are_named(tmp_path: Path, part: str, change: str) -> None:
    like, path = torch.ones(2, 2), tmp_path / "run" / "checkpoints" / "state.safetensors"
    tensors = {"model.a": like, "ema.a": like, "optimizer.0.exp_avg": like, "optimizer.0.exp_avg_sq": like}
    tensors["optimizer.0.step"] = torch.tensor(3.0)
    check_parameters(path, tensors, {"a": like})
    check_moments(path, tensors, "optimizer", [like])
    name = f"{part}.exp_avg" if "." in part else f"{part}.a"
    changed = {"nan": like * float("nan"), "half": like.half(), "shape": like[:1]}
    tensors = {
        k: changed.get(change, t) if k == name else t for k, t in tensors.items() if (k, change) != (name, "missing")
    }
    with pytest.raises(Op4ksrError, match="is no state of a run|trains another model"):
        check_parameters(path, tensors, {"a": like})
        check_moments(path, tensors, "optimizer", [like])


def test_weights_that_are_not_finite_are_not_saved(folder: Path) -> None:  # noqa: F811
    """The state before stays."""
    text = config(folder)
    trainer = Trainer(parse_config(text), text)
    before = trainer.task.before

    def spoil(step: int) -> bool:
        if step == 5:
            trainer.optimizer.step = lambda: next(iter(trainer.parameters.values())).data.fill_(float("inf"))  # pyright: ignore
        return before(step)

    trainer.task.before = spoil
    with pytest.raises(Op4ksrError, match="step 6: the weights are not finite; lower train.rate"):
        trainer.run()
    assert load_state(trainer.folder.state)[1].step == 3


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such limit")
def test_a_full_disk_while_saving_leaves_the_earlier_state(folder: Path) -> None:  # noqa: F811
    import resource

    text = config(folder)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(done: int, total: int, line: str) -> None:
        if done == 5:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))

    trainer = Trainer(parse_config(text), text, False, fill)
    try:
        with pytest.raises(OutputError, match="cannot be written"):
            trainer.run()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_state(trainer.folder.state)[1].step == 3
    assert not [file for file in trainer.folder.path.rglob("*") if is_temporary(file.name)]
    assert train(text, resume=True).exists()
