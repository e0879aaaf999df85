"""Ctrl-C and SIGTERM: the step is finished and saved, a second one ends at once."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random

import pytest
from unit.training.test_trainer import config, folder, rows, same_file, train  # noqa: F401

from op4ksr_core import Op4ksrError
from op4ksr_core.cli import train as cli_train
from op4ksr_core.cli.main import main
from op4ksr_core.signals import ENDINGS
from op4ksr_core.training.config import DataConfig
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.data.pool import procedural_pool
from op4ksr_core.training.stopping import SIGNALS, Stopped, deferred_signals
from op4ksr_core.training.trainer import Trainer

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_saves_first(folder: Path, number: int) -> None:  # noqa: F811
    text = config(folder)

    def ask(done: int, total: int, line: str) -> None:
        if done == 4:
            signal.raise_signal(number)

    before = [signal.getsignal(n) for n in SIGNALS]
    with pytest.raises(Stopped) as caught:
        Trainer(parse_config(text), text, False, ask).run()
    assert caught.value.exit_code == 128 + number
    assert (folder / "run" / "checkpoints" / "flux_0000004.safetensors").exists()
    assert [signal.getsignal(n) for n in SIGNALS] == before and signal.set_wakeup_fd(-1) == -1


def test_ctrl_c_in_the_middle_of_a_step_leaves_no_half_of_it(folder: Path) -> None:  # noqa: F811
    """Above all not of the step that bends a linear start: bent twice, the model is nothing."""
    more = {"train": "linear_steps = 3\n"}
    whole = train(config(folder, "autoencoder", "whole", **more))
    text = config(folder, "autoencoder", "broken", **more)
    trainer = Trainer(parse_config(text), text)
    before = trainer.task.before

    def interrupted(step: int) -> bool:
        changed = before(step)
        if step == 3:
            signal.raise_signal(signal.SIGINT)
        return changed

    trainer.task.before = interrupted
    with pytest.raises(Stopped):
        trainer.run()
    assert (folder / "broken" / "checkpoints" / "autoencoder_0000004.safetensors").exists()
    assert same_file(train(text, resume=True), whole)


def test_a_second_ctrl_c_ends_the_step_and_saves_nothing_of_it(folder: Path) -> None:  # noqa: F811
    text = config(folder)
    trainer = Trainer(parse_config(text), text)

    def hangs(step: int) -> bool:
        for _ in range(2 * (step == 4)):
            signal.raise_signal(signal.SIGINT)
        return False

    trainer.task.before = hangs
    with pytest.raises(KeyboardInterrupt) as caught:
        trainer.run()
    assert not isinstance(caught.value, Stopped) and trainer.step == 4
    checkpoints = folder / "run" / "checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["flux_0000003.safetensors", "state.safetensors"]


HUNG = """
import hashlib
from op4ksr_core.training.stopping import deferred_signals
with deferred_signals():
    print("hangs", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000_000)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to one process")
def test_a_second_ctrl_c_ends_a_call_that_never_returns() -> None:
    """As a library's call that hangs: it sees no signal, and Python's handlers wait for it."""
    with subprocess.Popen([sys.executable, "-c", HUNG], cwd=ROOT, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"hangs\n"
            process.send_signal(signal.SIGINT)
            time.sleep(0.2)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()


@pytest.mark.parametrize("number", SIGNALS)
@pytest.mark.slow
def test_processes_that_make_batches_outlive_the_runs_signals(folder: Path, number: int) -> None:  # noqa: F811
    """A terminal, or a service, sends them to all, and the step that is finished first needs its batch."""
    text = config(folder, train="accumulate = 3\n", data="workers = 1\n")

    def interrupt(done: int, total: int, line: str) -> None:
        for child in multiprocessing.active_children() if done == 1 else ():
            os.kill(child.pid, number)

    Trainer(parse_config(text), text, False, interrupt).run()
    assert len(rows(folder / "run")) == 7


def test_the_command_says_what_was_saved_and_how_to_resume(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = folder / "c.toml"
    path.write_text(config(folder))
    for number, code, step in ((signal.SIGINT, 130, 2), (signal.SIGTERM, 143, 4)):

        def asks(done: int, *_: object, number: int = number, step: int = step) -> None:
            if done == step:
                signal.raise_signal(number)

        monkeypatch.setattr(cli_train, "show_steps", lambda asks=asks: asks)
        assert main(["train", str(path), *(["--resume"] if step > 2 else [])]) == code
        assert f"stopped after step {step}, which is saved; resume with --resume" in capsys.readouterr().err
    monkeypatch.undo()
    assert main(["train", str(path), "--resume"]) == 0


MAKES = """
import sys
from pathlib import Path
from op4ksr_core.cli.main import main
sys.exit(main(["train", sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to a group of processes")
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("number", [*SIGNALS, 9])
def test_a_signal_while_pictures_are_made_leaves_nothing_behind(folder: Path, number: int, group: bool) -> None:  # noqa: F811
    """No process, no traceback, and (but for kill -9) no file. A terminal sends Ctrl-C to all processes."""
    path = folder / "c.toml"
    path.write_text(config(folder, data="workers = 2\n").replace("pictures = 2", "pictures = 4000"))
    command = [sys.executable, "-c", MAKES, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            assert process.stderr is not None and "making pictures" in process.stderr.readline()
            (os.killpg if group else os.kill)(process.pid, number)
            _, errors = process.communicate(timeout=30)  # it ends when the last process that holds stderr does
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if number == 9:
        assert process.returncode == -9 and errors == ""
        return
    assert (
        process.returncode == 128 + number
        and errors == f"{ENDINGS[number]}; nothing was written for the current file\n"
    )
    assert not list((folder / "run" / "cache").iterdir())


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to one process")
def test_a_killed_process_that_makes_pictures_is_one_sentence(folder: Path) -> None:  # noqa: F811
    text = config(folder, data="workers = 2\n").replace("pictures = 2", "pictures = 4000")

    def kill(done: int, total: int, line: str) -> None:
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)

    with pytest.raises(Op4ksrError, match="one of the 2 processes that make pictures was killed.*; lower data.workers"):
        Trainer(parse_config(text), text, False, kill)
    assert not list((folder / "run" / "cache").iterdir()) and not multiprocessing.active_children()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to one process")
def test_processes_that_make_pictures_may_be_killed_at_any_moment(tmp_path: Path) -> None:
    """Above all in the middle of a report, which no other process and no run may wait for."""
    data, random = DataConfig(pictures=4000, picture_side=32, workers=3), Random(17)
    for last in (1, 2, 5, 20, *[random.randrange(3, 60) for _ in range(8)]):

        def kill(done: int, total: int, last: int = last) -> None:
            if done >= last and (children := multiprocessing.active_children()):
                os.kill(random.choice(children).pid or 0, signal.SIGKILL)

        with pytest.raises(Op4ksrError, match="one of the 3 processes that make pictures was killed"):
            procedural_pool(data, 0, tmp_path, kill)
        assert not list(tmp_path.iterdir()) and not multiprocessing.active_children()


@pytest.mark.skipif(os.name == "nt", reason="Windows copies no sockets to a new process")
def test_a_process_made_where_signals_are_deferred_is_not_waited_for() -> None:
    with deferred_signals():
        process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(20,), daemon=True)
        process.start()
    assert process.is_alive()
    process.kill()
    process.join()


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows sends no signals to one process")
@pytest.mark.parametrize("workers", [1, 2])
def test_a_killed_process_that_makes_batches_is_one_sentence(folder: Path, workers: int) -> None:  # noqa: F811
    text = config(folder, data=f"workers = {workers}\n").replace("steps = 6", "steps = 400")

    def kill(done: int, total: int, line: str) -> None:
        if done and (children := multiprocessing.active_children()):
            os.kill(children[0].pid or 0, signal.SIGKILL)

    match = f"^data.workers: one of the {workers} processes that make batches was killed.*; lower data.workers, or"
    with pytest.raises(Op4ksrError, match=match):
        Trainer(parse_config(text), text, False, kill).run()


def test_what_a_process_that_makes_batches_refuses_is_one_sentence(folder: Path) -> None:  # noqa: F811
    """PyTorch would put its own words and a traceback around it."""
    (folder / "pictures").mkdir()
    (folder / "pictures" / "broken.png").write_bytes(b"no picture")
    path = (folder / "pictures").as_posix()
    text = config(folder, data=f'workers = 1\nsource = "folder"\npath = "{path}"\n')
    with pytest.raises(Op4ksrError, match="^data.path: none of the 1 pictures in [^\n]* can be read; see the log"):
        Trainer(parse_config(text), text).run()
