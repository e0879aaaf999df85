"""Batches by PyTorch's ``DataLoader``: in this process, or made ahead by others, whose end is one sentence."""

from __future__ import annotations

import contextlib
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
        except MemoryError:
            return _Refused(str(killed_worker(self.workers, "make batches")))


def load_batches(batches: Batches, order: Sequence[int], workers: int, pinned: bool) -> Iterator[Batch]:
    """The batches of these numbers, in this order. pinned: in memory that a GPU copies from.

    Raises what ``Batches`` raises, from another process as Op4ksrError; see ``explained_workers`` for the rest.
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
    with signals_blocked():  # until the new processes ignore them
        loaded = iter(loader)
    return _checked(loaded) if workers else loaded


def _checked(loaded: Iterator[Any]) -> Iterator[Batch]:
    for batch in loaded:
        if isinstance(batch, _Refused):
            raise Op4ksrError(batch.sentence)
        yield batch


@contextlib.contextmanager
def explained_workers(workers: int) -> Generator[None]:
    """Inside, a process of ``load_batches`` that was killed is an Op4ksrError.

    PyTorch tells it by a RuntimeError, at any place: as the signal of its end comes, or when its batch is wanted.
    """
    try:
        yield
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise killed_worker(workers, "make batches") from error
