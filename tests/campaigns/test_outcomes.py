"""The judge of the campaigns sees each kind of fault when it is there."""

from __future__ import annotations

import os
import signal
import sys
import time

import pytest
from campaigns.outcomes import Run, Tally, forked

pytestmark = pytest.mark.skipif(os.name == "nt", reason="no fork")


def ended(err: str = "", code: int = 1) -> str | None:
    return Run(code, "", err, 0.0).fault()


def test_a_success_and_a_sentence_are_no_faults() -> None:
    assert ended(code=0) is None and ended("error: a.png: damaged; save it again\n") is None


@pytest.mark.parametrize(
    ("err", "code", "fault"),
    [
        ("Traceback (most recent call last):\n  ...\nValueError: x\n", 1, "traceback: ValueError: x"),
        ("error: a\x1b[2J\n", 1, "reached the terminal"),
        ("error: " + "a" * 5000, 1, "a line of"),
        ("", 1, "without a sentence"),
        ("", -11, "crashed: SIGSEGV"),
        ("", 2, "exit status 2"),
    ],
)
def test_a_fault_is_seen(err: str, code: int, fault: str) -> None:
    assert fault in str(ended(err, code))


def test_a_forked_run_gives_its_output_and_how_it_ended() -> None:
    def speaks() -> int:
        print("made")
        print("error: no", file=sys.stderr)
        return 1

    run = forked(speaks)
    assert (run.code, run.out, run.sentences) == (1, "made\n", ["error: no"])
    assert "ZeroDivisionError" in str(forked(lambda: 1 // 0).fault())
    assert "SIGKILL" in str(forked(lambda: os.kill(os.getpid(), signal.SIGKILL)).fault())
    assert "hung" in str(forked(lambda: time.sleep(60), limit=0.5).fault())


def test_a_tally_fails_on_any_fault(capsys: pytest.CaptureFixture[str]) -> None:
    tally = Tally("pictures")
    tally.judge("good", Run(0, "", "", 0.0))
    tally.judge("odd", Run(1, "", "error: odd\n", 0.0))
    tally.close()
    assert "2 runs, 1 one sentence, 1 right" in capsys.readouterr().out
    tally.judge("half", Run(0, "", "", 0.0), lambda: "half a file")
    with pytest.raises(AssertionError, match="half: half a file"):
        tally.close()
