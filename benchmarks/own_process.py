"""A run in a process of its own, so that its peak memory is its own too."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from typing import Any

from op4ksr_core.errors import Op4ksrError


def in_own_process(target: Callable[..., None], args: tuple[Any, ...], what: str, remedy: str) -> Any:
    """What ``target(*args, queue)`` puts into the queue, in a new process. Both must be picklable.

    what, remedy: for the error. Raises Op4ksrError for a process that ends before it has put anything.
    """
    context = multiprocessing.get_context("spawn")
    results: Any = context.Queue()
    process = context.Process(target=target, args=(*args, results))
    process.start()
    while process.is_alive() and results.empty():
        process.join(0.1)
    if results.empty() and process.exitcode:
        raise Op4ksrError(f"{what} ended with code {process.exitcode} (killed for memory, or what is above); {remedy}")
    found = results.get(timeout=60)
    process.join()
    return found
