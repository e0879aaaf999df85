"""The machine: its devices, what they compute in, and the memory to be had and taken."""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import OutOfMemoryError


def default_device() -> torch.device:
    """CUDA (or ROCm), then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device) -> torch.dtype:
    """What models compute in where nobody says otherwise: float32 on the CPU, bfloat16 elsewhere."""
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16``, for people and reports: PyTorch's name without its module."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device; None where unknown (MPS; Windows and macOS for the CPU)."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type != "cpu":
        return None
    try:
        lines = Path("/proc/meminfo").read_text("ascii").splitlines()
    except OSError:
        return None
    available = [int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")]
    return available[0] * 1024 if available else None


def release_memory() -> None:
    """Give freed blocks back to the device, between a failed try and the next."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    elif torch.xpu.is_available():
        torch.xpu.empty_cache()


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given: before a clock is read. Nothing to do on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the device allocator's peak on CUDA, else the process's peak; None where unknown (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")  # Linux; getrusage there counts what the parent held at the start too
    if status.exists():
        held = [line for line in status.read_text("ascii", "replace").splitlines() if line.startswith("VmHWM:")]
        if held:
            return int(held[0].split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def is_out_of_memory(error: BaseException) -> bool:
    """PyTorch's out-of-memory errors of any device, and Python's own."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    texts = ("out of memory", "can't allocate memory", "not enough memory", "_status_alloc_failed")
    return isinstance(error, RuntimeError) and any(text in str(error).lower() for text in texts)


@contextmanager
def explain_out_of_memory(
    what: str, is_oom: Callable[[BaseException], bool] = is_out_of_memory
) -> Generator[None, None, None]:
    """Turn any out-of-memory error inside into ours, with the remedy: one that nobody answers with tiles."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        raise OutOfMemoryError(
            f"{what}: out of memory; ask for a smaller target, use bfloat16 instead of float32, or run on the CPU"
        ) from None


class AllocationTracker(TorchDispatchMode):
    """Peak bytes of live tensors, counted at PyTorch's own dispatch: on any device, on meta tensors too.

    ``with AllocationTracker() as tracker: ...`` then ``tracker.peak``: bytes above what lived before.

    Counts each storage that an operation makes, once, until the last tensor on it is gone. Scratch
    memory inside a kernel (a convolution's workspace, attention's) is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live, self.peak = 0, 0
        self._storages: dict[int, weakref.ref[Any]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {self._key(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor) and self._key(leaf) not in before:
                self._count(leaf)
        return result

    @staticmethod
    def _key(tensor: torch.Tensor) -> int:
        return tensor.untyped_storage()._cdata  # pyright: ignore[reportPrivateUsage]

    def _count(self, tensor: torch.Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = self._key(tensor), storage.nbytes()
        if key in self._storages:
            return

        def freed(_: Any) -> None:
            if self._storages.pop(key, None) is not None:
                self.live -= size

        self._storages[key] = weakref.ref(storage, freed)
        self.live += size
        self.peak = max(self.peak, self.live)
