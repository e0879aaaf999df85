"""Standard output and standard error as a command needs them: any name can be shown, and none of them need be there."""

from __future__ import annotations

import errno
import io
import json
import math
import os
import re
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from ..errors import Op4ksrError
from ..plain_text import plain, plain_logger, plain_message

log = plain_logger(__name__)

#: Exit status where nobody reads standard output any more, as of a process that SIGPIPE ended.
CLOSED_PIPE = 141


class OutputLostError(Exception):
    """Standard output takes no more. closed: its reader has gone, which is no error."""

    def __init__(self, error: OSError) -> None:
        super().__init__(
            f"standard output: cannot be written ({error.strerror}); free some space, or lead it elsewhere"
        )
        self.closed = error.errno in (errno.EPIPE, errno.EINVAL)  # EINVAL: on Windows


def prepare_streams() -> None:
    """Make both streams usable: closed ones lead nowhere, and what the encoding does not have is shown escaped.

    Lines come out as they are made, also into a pipe.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is not None:
            continue
        try:
            os.fstat(number)
        except OSError:  # closed: or the next file that is opened would be it
            while os.open(os.devnull, os.O_RDWR) < number:
                pass
        setattr(sys, name, open(os.devnull, "r" if number == 0 else "w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace", line_buffering=True)


def say(text: str) -> None:
    """Print lines that are plain already. Raises OutputLostError."""
    try:
        print(text)
    except OSError as error:
        raise OutputLostError(error) from error


def tell(text: object) -> None:
    """Print one line, made plain, on standard error; where that is gone there is nobody to tell."""
    try:
        print(plain_message(text), file=sys.stderr, flush=True)
    except OSError:
        _lead_nowhere(sys.stderr)


def tell_no_transparency(output: Path) -> None:
    """That a picture lost it, by what its name means."""
    tell(f"{plain(output)}: this format holds no transparency; end the name in .png to keep it")


def say_json(report: Any) -> None:
    """Print a report as JSON that every reader takes: no NaN, no half of a UTF-16 pair. Raises OutputLostError."""
    say(json.dumps(_strict(report), indent=2))


def flush() -> None:
    """Bring out what was printed. Raises OutputLostError."""
    try:
        sys.stdout.flush()
    except OSError as error:
        raise OutputLostError(error) from error


def abandon_output() -> None:
    """What is still to be printed on standard output leads nowhere."""
    _lead_nowhere(sys.stdout)


def in_one_line(error: Exception, what: object = "this run") -> str:
    """One sentence for what escaped: our own as it is, memory that ran out, and any other with its class, to report."""
    from ..machine import is_out_of_memory, out_of_memory  # PyTorch, which may be missing

    if isinstance(error, Op4ksrError):
        return str(error)
    if is_out_of_memory(error):
        return str(out_of_memory(str(what)))
    for line in "".join(traceback.format_exception(error)).splitlines():
        log.info("%s", line)
    return (
        f"{plain(what)}: could not be done, for a reason that was not foreseen ({type(error).__name__}: "
        f"{plain(error) or 'no words'}); please report it, with what op4ksr --verbose says"
    )


def _strict(value: Any) -> Any:
    if isinstance(value, dict):
        return {_strict(str(key)): _strict(item) for key, item in value.items()}  # pyright: ignore
    if isinstance(value, (list, tuple)):
        return [_strict(item) for item in value]  # pyright: ignore
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", lambda found: plain(found[0]), value)
    return value


def _lead_nowhere(stream: TextIO) -> None:
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    except (OSError, ValueError):  # no stream of the system
        return
