"""Procedural pictures that are made beforehand: one .npy file, filled by one process or by several.

Several processes share nothing but the file, in which each writes its own pictures, and a pipe each to the run, which
carries a few bytes per picture. So none can make the run or another one wait for ever, wherever it is killed.
"""

from __future__ import annotations

import contextlib
import errno
import multiprocessing
import os
import sys
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from tokenize import TokenError
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...errors import OptionError, OutputError
from ...files import regular_file, remove_stale, written_whole
from ...models.flux import OnProgress
from ...plain_text import plain
from ..config_sections import DataConfig
from ..room import check_room
from ..stopping import deferred_signals, killed_worker, leave_signals_to_the_run, signals_blocked, stop_if
from . import leaves

#: Seconds after which a run that waits for a picture looks whether it was asked to stop.
WAKE = 0.5

#: What reading an array's header raises, which is Python's words, and broken in as many ways.
_HEADER_ERRORS = (
    *(OSError, EOFError, ValueError, TypeError, KeyError, OverflowError),
    *(SyntaxError, TokenError, RecursionError, MemoryError),
)

#: The end of each process's pipe that is read (which has another type on Windows), and the process.
Processes = dict[Any, BaseProcess]


@dataclass(frozen=True)
class Share:
    """The pictures with these numbers, ``side`` px square, in the file at ``path`` from byte ``start`` on."""

    path: Path
    start: int
    seed: int
    side: int
    numbers: range

    def make(self) -> Iterator[None]:
        """Write one picture after the other. Raises OSError."""
        size = self.side * self.side * 3
        with self.path.open("r+b") as file:
            for number in self.numbers:
                picture = leaves.picture(number, self.side, self.side, stock_seed=self.seed)
                file.seek(self.start + number * size)
                file.write(picture.tobytes())
                file.flush()
                yield


def procedural_pool(data: DataConfig, seed: int, cache: Path, on_progress: OnProgress | None = None) -> Path:
    """The file in ``cache`` with (pictures, side, side, 3) uint8; it is made if it is missing. Raises OutputError.

    Runs that make it at the same time each write a file of their own, of the same contents; the last one stays.
    Raises Op4ksrError where a process that makes pictures was killed.
    """
    path = cache / f"leaves{leaves.VERSION}_{seed}_{data.pictures}x{data.picture_side}.npy"
    if not os.path.lexists(path):
        try:
            cache.mkdir(parents=True, exist_ok=True)
            remove_stale(cache)  # which may be several runs', and is no run's to clear of what is younger
            check_room(path, data.pictures * data.picture_side**2 * 3, "data.pictures")
            with written_whole(path, ".part.npy") as part:
                _make_pool(part, data, seed, on_progress)
        except OSError as error:
            if not os.path.lexists(path):  # else another run has just made it, and Windows keeps what is mapped
                raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another run folder") from error
    return path


def open_pool(path: Path, data: DataConfig) -> NDArray[np.uint8]:
    """What ``procedural_pool`` made, mapped: (pictures, side, side, 3). Raises OptionError for a damaged file."""
    if (other := regular_file(path)) is not None:
        raise _damaged(path, other)
    try:
        pool: NDArray[np.uint8] = np.lib.format.open_memmap(path, mode="r")  # never unpickles
    except _HEADER_ERRORS as error:
        raise _damaged(path, str(error)) from error
    expected = (data.pictures, data.picture_side, data.picture_side, 3)
    if (pool.shape, pool.dtype, pool.flags.c_contiguous) != (expected, np.uint8, True):
        raise _damaged(path, f"{pool.shape} {pool.dtype}, expected {expected} uint8")
    return pool


def _damaged(path: Path, reason: str) -> OptionError:
    return OptionError(f"{path}: is no file of pictures made beforehand ({plain(reason)}); delete it to have it made")


def _make_pool(path: Path, data: DataConfig, seed: int, on_progress: OnProgress | None) -> None:
    count, side = data.pictures, data.picture_side
    header: dict[str, Any] = {"descr": "|u1", "fortran_order": False, "shape": (count, side, side, 3)}
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        start = file.tell()
    workers = min(max(1, data.workers), count)
    shares = [Share(path, start, seed, side, range(k, count, workers)) for k in range(workers)]
    with deferred_signals() as asked_to_stop, _makers(shares) as made:
        done = 0
        for new in made:
            done += new
            if on_progress and new:
                on_progress(done, count)
            stop_if(asked_to_stop())


@contextlib.contextmanager
def _makers(shares: list[Share]) -> Generator[Iterator[int], None, None]:
    """Gives an iterator of how many pictures were made since the last one: here, or in a process for each share."""
    if len(shares) == 1:
        yield (1 for _ in shares[0].make())
        return
    working: Processes = {}
    try:
        with signals_blocked():  # until the new processes ignore them
            for share in shares:
                _start(share, working)
        yield _reports(working)
    finally:
        processes = list(working.values())
        for process in processes:
            process.kill()
        for process in processes:
            process.join()


def _start(share: Share, working: Processes) -> None:
    reader, writer = multiprocessing.Pipe(duplex=False)
    process = multiprocessing.Process(target=_work, args=(share, writer), daemon=True)
    process.start()
    working[reader] = process
    writer.close()  # before the next process inherits it, so that the end of this one ends its pipe


def _work(share: Share, report: Any) -> None:
    """In a process: report a 0 for each picture, or the number of an error. It ends with the run."""
    leave_signals_to_the_run()
    parent = multiprocessing.parent_process()
    try:
        for _ in share.make():
            report.send(0)
            if parent is None or not parent.is_alive():
                return
    except OSError as error:
        report.send(error.errno or errno.EIO)
    except MemoryError:
        sys.exit(1)


def _reports(working: Processes) -> Iterator[int]:
    """1 for each picture, and now and then a 0. Raises the workers' OSError, and Op4ksrError for one that was killed.

    A message is written at once or not at all, being shorter than any system's PIPE_BUF.
    """
    open_ones = dict(working)
    while open_ones:
        yield 0
        for reader in list[Any](wait(list(open_ones), WAKE)):
            try:
                number: int = reader.recv()
            except (EOFError, ConnectionResetError):
                process = open_ones.pop(reader)
                process.join()
                if process.exitcode:
                    yield 0  # a signal to all processes is a wish to stop
                    raise killed_worker(len(working), "make pictures") from None
                continue
            if number:
                raise OSError(number, os.strerror(number))
            yield 1
