"""Ctrl-C, SIGTERM and SIGHUP in commands: one exception that cleans up, and one line."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from _thread import start_new_thread
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

#: What ends a command, and how that is told. Windows has no SIGHUP.
ENDINGS: dict[int, str] = {signal.SIGINT: "cancelled", signal.SIGTERM: "terminated"}
if sys.platform != "win32":
    ENDINGS[signal.SIGHUP] = "terminated, for its terminal is gone"

#: Seconds that a command has for its own end; a signal after that ends the process at once. Our choice.
GRACE = 1.0

#: Seconds until an exception that was swallowed is raised again.
_AGAIN = 0.005

#: What is done before the process ends at once.
_last: list[Callable[[], None]] = []

Handler = Callable[[int, FrameType | None], Any]


class Interrupted(KeyboardInterrupt):
    """A signal that ends the command. number: the signal's; exit_code: 128 more."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number, self.exit_code = number, 128 + number

    def __str__(self) -> str:
        return f"{ENDINGS[self.number]}; nothing was written for the current file"


@contextmanager
def interruptible() -> Generator[None]:
    """Inside, the first signal raises ``Interrupted``, so that what is half done is cleaned up; others wait for that.

    A later one than ``GRACE`` seconds ends the process. Where a destructor or a callback of a library swallows the
    exception it is raised once more. Only in the main thread, and not for signals that are ignored, as under nohup;
    in any other thread nothing is changed.
    """
    first: list[float] = []
    swallowed: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        if first and not swallowed:
            if time.monotonic() - first[0] > GRACE:
                leave_at_once(number, frame)
            return
        first.append(time.monotonic())
        swallowed.clear()
        raise Interrupted(number)

    def on_unraisable(found: Any) -> None:
        if isinstance(found.exc_value, Interrupted):
            swallowed.append(found.exc_value.number)
            start_new_thread(again, ())  # not here: it would be lost too
        else:
            hook(found)

    def again() -> None:
        time.sleep(_AGAIN)
        for number in swallowed[:1]:
            os.kill(os.getpid(), number)

    hook = sys.unraisablehook
    before = handle(on_signal)
    sys.unraisablehook = on_unraisable
    try:
        yield
    finally:
        swallowed.clear()
        sys.unraisablehook = hook
        for number, handler in before.items():
            signal.signal(number, handler)


def handle(handler: Handler | signal.Handlers) -> dict[int, Any]:
    """Have the signals handled so, save those that are ignored; gives the handlers before. In the main thread alone."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    before = {number: signal.getsignal(number) for number in ENDINGS}
    changed = {number: old for number, old in before.items() if old not in (signal.SIG_IGN, None)}
    for number in changed:
        signal.signal(number, handler)
    return changed


def before_leaving(action: Callable[[], None]) -> None:
    """Have ``leave_at_once`` do this first. It may not raise, and may come in the middle of anything.

    Its module imports this one and not the reverse: what is imported here is imported before signals are handled.
    """
    _last.append(action)


def leave_at_once(number: int, frame: FrameType | None) -> NoReturn:
    """A handler for when there is nothing to clean up, as while modules are imported: one line, and the end."""
    for action in _last:
        action()
    with suppress(OSError):
        os.write(2, f"{Interrupted(number)}\n".encode())
    os._exit(128 + number)
