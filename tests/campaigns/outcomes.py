"""What a campaign makes of each run: right, one sentence, or a fault; and how it runs a command thousands of times."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

#: Seconds after which a run counts as one that hangs.
HANG = 60.0


@dataclass(frozen=True)
class Run:
    """One command that has ended. code: its exit status, -N after signal N, None where it was killed for hanging."""

    code: int | None
    out: str
    err: str
    seconds: float

    @property
    def sentences(self) -> list[str]:
        return [line for line in self.err.split("\n") if line.startswith("error: ")]

    def fault(self, codes: Sequence[int] = (0, 1)) -> str | None:
        """What is wrong with how it ended, whatever it was given; None for success or refusals in one sentence.

        codes: the exit statuses that it may have.
        """
        if self.code is None:
            return f"hung for {self.seconds:.0f} s"
        if self.code < 0:
            return f"crashed: {signal.Signals(-self.code).name}"
        text = self.out + self.err
        if "Traceback (most recent call last)" in text or "Exception ignored" in text:
            return "traceback: " + (self.err.strip().rsplit("\n", 1)[-1])
        if hidden := re.search(r"[^\n\r\t -~\u00a0-\ud7ff\ue000-\U0010ffff]", text):
            return f"{hidden[0]!r} reached the terminal"
        if long := next((line for line in text.split("\n") if len(line) > 4000), None):
            return f"a line of {len(long)} characters"
        if self.code == 1 and not self.sentences:
            return "refused without a sentence"
        return None if self.code in codes else f"exit status {self.code}"


@dataclass
class Tally:
    """The figures of a campaign. Faults keep what happened; ``close`` prints the figures and fails on any."""

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def right(self) -> None:
        self.counts["right"] += 1

    def sentence(self) -> None:
        self.counts["one sentence"] += 1

    def fault(self, case: str, what: str) -> None:
        self.counts["fault"] += 1
        self.faults.append(f"{case}: {what}")

    def judge(self, case: str, run: Run, wrong: Callable[[], str | None] = lambda: None) -> None:
        """Count the run; ``wrong`` looks at what one that ended with 0 made, and says what is wrong with it."""
        what = run.fault() or (wrong() if run.code == 0 else None)
        if what:
            self.fault(case, what)
        elif run.code:
            self.sentence()
        else:
            self.right()

    def close(self) -> None:
        total = sum(self.counts.values())
        print(f"{self.name}: {total} runs, " + ", ".join(f"{n} {kind}" for kind, n in sorted(self.counts.items())))
        assert not self.faults, "\n".join([f"{len(self.faults)} faults of {total}", *self.faults[:40]])


def forked(work: Callable[[], int | None], limit: float = HANG) -> Run:
    """Call ``work`` in a forked process with its own output, as a command: quick where imports take seconds.

    Its return value is the exit status (None: 0); an exception that leaves it is shown as Python shows one, with
    status 1. PyTorch must not have computed in threads before (OMP_NUM_THREADS=1 in the campaign's process).
    """
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder) / "out", Path(folder) / "err"
        process = multiprocessing.get_context("fork").Process(target=_child, args=(work, out, err))
        start = time.monotonic()
        process.start()
        process.join(limit)
        hung = process.is_alive()
        if hung:
            process.kill()
            process.join()
        texts = [p.read_bytes().decode("utf-8", "surrogateescape") if p.exists() else "" for p in (out, err)]
        return Run(None if hung else process.exitcode, *texts, time.monotonic() - start)


def command(arguments: Sequence[str | Path], limit: float = HANG) -> Run:
    """``op4ksr`` with these arguments, ``forked``."""
    from op4ksr_core.cli.main import main

    return forked(lambda: main([str(a) for a in arguments]), limit)


def _child(work: Callable[[], int | None], out: Path, err: Path) -> None:
    os.setsid()
    for path, number in ((out, 1), (err, 2)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600), number)
    sys.stdout = open(1, "w", encoding="utf-8", errors="strict", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115
    code: int | None = 1
    try:
        code = work()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else 1
    except BaseException:
        traceback.print_exc()
    with contextlib.suppress(Exception):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code or 0)
