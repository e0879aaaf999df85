"""Ctrl-C, SIGTERM and SIGHUP during a run: the step is finished and saved; a second one ends the process at once."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator

from ..errors import Op4ksrError
from ..signals import ENDINGS, Interrupted

#: What asks a run to stop.
SIGNALS = tuple(ENDINGS)

#: Seconds that a run has for its own end after a second signal. A step that hangs in a library uses none of them.
GRACE = 1.0


class Stopped(KeyboardInterrupt):
    """A run that was asked to stop, after its state was saved. number: of the signal; exit_code: 128 more."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.exit_code = number, 128 + number


@contextlib.contextmanager
def deferred_signals() -> Generator[Callable[[], int]]:
    """Inside, a first signal does nothing but make the given function answer its number, which is 0 before.

    So no step is cut in two. A second one raises KeyboardInterrupt; where the interpreter cannot, as in a library's
    call that never returns, the process ends after ``GRACE`` seconds, with exit code 130. Only the main thread gets
    signals; in any other nothing is deferred. SIGHUP that is ignored, as under nohup, stays so; Ctrl-C is the way to
    stop such a run, which shells start with SIGINT ignored.
    """
    seen: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: 0
        return

    def on_signal(number: int, frame: object) -> None:
        seen.append(number)
        if len(seen) > 1:
            raise KeyboardInterrupt

    kept = [n for n in SIGNALS if n in (signal.SIGINT, signal.SIGTERM) or signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, on_signal) for number in kept}
    try:
        with _ended_where_hung():
            yield lambda: seen[0] if seen else 0
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: not set from Python


@contextlib.contextmanager
def signals_blocked() -> Generator[None]:
    """Inside, signals to this thread wait; those to processes made inside until they ``leave_signals_to_the_run``."""
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def stop_if(number: int) -> None:
    """Raise ``Interrupted`` for a signal that came; nothing for 0."""
    if number:
        raise Interrupted(number)


def leave_signals_to_the_run(worker: int = 0) -> None:
    """For a process that makes batches or pictures: what the run decides, it follows.

    Ctrl-C on a terminal, and SIGTERM to all processes of a service, come to it too, while the step still needs its
    batches; the run ends its processes by itself.
    """
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def killed_worker(workers: int, work: str) -> Op4ksrError:
    """What is said where one of ``workers`` processes, which ``work``, is gone."""
    return Op4ksrError(
        f"data.workers: one of the {workers} processes that {work} was killed, perhaps for want of memory; "
        "lower data.workers, or free memory"
    )


@contextlib.contextmanager
def _ended_where_hung() -> Generator[None]:
    """Inside, a thread counts signals as they come: Python's handlers wait for the main thread's call to return."""
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(reader, over), daemon=True)
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    watcher.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        over.set()
        writer.shutdown(socket.SHUT_RDWR)  # closing is not enough: a process made inside has a copy of it
        watcher.join()
        writer.close()
        reader.close()


def _watch(reader: socket.socket, over: threading.Event) -> None:
    """End the process at the second signal, unless the run ends by itself. The numbers of signals come as bytes."""
    count = 0
    while received := reader.recv(64):
        count += sum(number in SIGNALS for number in received)
        if count > 1 and not over.wait(GRACE):
            os._exit(128 + signal.SIGINT)
