"""Batches by PyTorch's ``DataLoader``: in this process, or made ahead by others, whose end is one sentence."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ...errors import Op4ksrError
from ..stopping import killed_worker, leave_signals_to_the_run, signals_blocked
from .batches import Batches

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Refused:
    """The sentence of an error in another process, in a batch's place: PyTorch adds a traceback to what is raised."""

    sentence: str


class _InAProcess(Dataset[Any]):
    def __init__(self, batches: Batches, workers: int) -> None:
        self.batches, self.workers = batches, workers

    def __getitem__(self, index: int) -> Batch | _Refused:
        try:
            return self.batches[index]
        except Op4ksrError as error:
            return _Refused(str(error))
        except OSError as error:
            return _Refused(f"data.path: pictures cannot be read ({error}); check the disk")
        except MemoryError:
            return _Refused(str(killed_worker(self.workers, "make batches")))


def load_batches(batches: Batches, order: Sequence[int], workers: int, pinned: bool) -> Iterator[Batch]:
    """The batches of these numbers, in this order. pinned: in memory that a GPU copies from.

    Raises what ``Batches`` raises; from another process as Op4ksrError, and for one that was killed too.
    """
    loader: DataLoader[Any] = DataLoader(
        _InAProcess(batches, workers) if workers else batches,
        batch_size=None,
        sampler=order,
        num_workers=workers,
        pin_memory=pinned,
        prefetch_factor=4 if workers else None,
        worker_init_fn=leave_signals_to_the_run,
    )
    if not workers:
        return iter(loader)
    with signals_blocked(), _no_errors_at_any_place():  # until the new processes ignore them
        loaded = iter(loader)
    return _checked(loaded, workers)


@contextlib.contextmanager
def _no_errors_at_any_place() -> Generator[None]:
    """PyTorch sets a handler that raises as soon as a process ends, in the middle of a file or of a destructor.

    Without it the end is noticed when a batch is wanted, within 5 seconds.
    """
    if sys.platform == "win32" or threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGCHLD)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if before is None else before)


def _checked(loaded: Iterator[Any], workers: int) -> Iterator[Batch]:
    try:
        for batch in loaded:
            if isinstance(batch, _Refused):
                raise Op4ksrError(batch.sentence)
            yield batch
    except (OSError, EOFError) as error:  # a batch is lost with the process that was to hand it over
        raise killed_worker(workers, "make batches") from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise killed_worker(workers, "make batches") from error
