"""The machine: devices, dtypes, free and peak memory, out of memory."""

from __future__ import annotations

import ctypes
import errno
import re
import sys
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .errors import OutOfMemoryError
from .plain_text import plain

#: Longest number that the kernel writes, in digits: below 2^64.
_DIGITS = 20

#: The classes that errors of memory come in; most of such errors mean something else.
MEMORY_ERRORS = (RuntimeError, MemoryError, OSError, SafetensorError)

#: What the libraries say when memory has run out, in lower case. "could not create a primitive descriptor" is another
#: matter: a kernel that oneDNN does not have.
_OUT_OF_MEMORY = re.compile(
    r"out of memory|(can't|cannot|could not|unable to|failed to) allocate|not enough memory|_status_alloc_failed"
    r"|you tried to allocate|bad_alloc|bad allocation|could not create a (primitive(?! desc)|memory)"
    r"|os error 12\b|paging file is too small"
)


def default_device() -> torch.device:
    """CUDA (or ROCm), then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def default_dtype(device: torch.device, wide_range: bool = False) -> torch.dtype:
    """The dtype that models compute in by default: float32 on the CPU, bfloat16 elsewhere.

    CUDA cards before compute capability 8.0 (Turing and older) only emulate bfloat16, and no fused kernel takes it.
    There (our choice) it is float16, or float32 for a model with ``wide_range``: the VAE, whose maps exceed float16.
    """
    if device.type == "cpu":
        return torch.float32
    if computes_in_bfloat16(device):
        return torch.bfloat16
    return torch.float32 if wide_range else torch.float16


def computes_in_bfloat16(device: torch.device) -> bool:
    """Whether a GPU has bfloat16 in hardware; of other devices than NVIDIA's it is taken for granted."""
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def dtype_name(dtype: torch.dtype) -> str:
    """``bfloat16``, for people and reports: PyTorch's name without its module."""
    return str(dtype).removeprefix("torch.")


def free_memory(device: torch.device) -> int | None:
    """Bytes that can still be taken on the device; None where unknown (Intel's GPUs; macOS without psutil).

    Apple's GPUs share the system memory; blocks that their allocator keeps in reserve are added.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu":
        return system_memory()
    if device.type == "mps" and (free := system_memory()) is not None:
        return free + torch.mps.driver_allocated_memory() - torch.mps.current_allocated_memory()
    return None


def system_memory(root: Path = Path("/")) -> int | None:
    """Bytes of system memory (RAM) that this process can still take; None where unknown.

    On Linux what the kernel calls available, or less where a container's limit, or the process's own (``ulimit -v``),
    leaves less. ``root``: where /proc and /sys are, for tests.
    """
    available = _meminfo_available(root)
    if available is None:
        return _psutil_available() or _windows_available()
    return min([available, *_left_by_cgroups(root), *_left_by_ulimit(root)])


def _meminfo_available(root: Path) -> int | None:
    for line in _lines(root / "proc/meminfo"):
        if line.startswith("MemAvailable:"):
            available = _number(line.removeprefix("MemAvailable:").removesuffix("kB"))
            return None if available is None else available * 1024
    return None


def _left_by_ulimit(root: Path) -> Iterator[int]:
    """What the limit on the process's addresses leaves, where there is one."""
    if sys.platform == "win32":
        return
    import resource

    limit = resource.getrlimit(resource.RLIMIT_AS)[0]
    if limit == resource.RLIM_INFINITY:
        return
    for line in _lines(root / "proc/self/status"):
        if line.startswith("VmSize:"):
            taken = _number(line.removeprefix("VmSize:").removesuffix("kB"))
            yield max(0, limit - (taken or 0) * 1024)


def _left_by_cgroups(root: Path) -> Iterator[int]:
    """What each memory limit that the process is under leaves, of cgroups v2 and v1.

    A limit counts for all groups below the one that has it. Inside a container the path that /proc/self/cgroup names
    may not be there, while the folder's top is the container's own group: levels that are missing are passed over.
    """
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if not controllers:
            top, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            top = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        parts = [part for part in path.split("/") if part]
        if ".." in parts:  # of a process that was moved here from outside: only the top is ours to see
            parts = []
        for depth in range(len(parts), -1, -1):
            left = _left_by_cgroup(top.joinpath(*parts[:depth]), *names)
            if left is not None:
                yield left


def _left_by_cgroup(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    """Bytes that one group leaves; None where it has no limit.

    Pages of files that were not lately used count as free, for the kernel gives them up first (our choice).
    """
    most, used = (_number("".join(_lines(folder / name))) for name in (limit, usage))
    if most is None or used is None:
        return None
    fields = (line.split() for line in _lines(folder / "memory.stat"))
    cached = sum(_number(field[1]) or 0 for field in fields if len(field) == 2 and field[0] == reclaimable)
    return max(0, most - max(0, used - cached))


def _number(text: str) -> int | None:
    """The number that a text of the kernel's is; None where it is a word ("max") or nothing."""
    text = text.strip()
    return int(text) if text.isdecimal() and len(text) <= _DIGITS else None


def _lines(path: Path) -> list[str]:
    """A file's lines; none where it cannot be read."""
    try:
        return path.read_text("utf-8", "replace").splitlines()
    except (OSError, ValueError):  # ValueError: a NUL in the name
        return []


def _psutil_available() -> int | None:
    """Available bytes by psutil, which ComfyUI installs; None without it."""
    try:
        import psutil  # pyright: ignore
    except ImportError:
        return None
    return int(psutil.virtual_memory().available)  # pyright: ignore


def _windows_available() -> int | None:
    """Available bytes of physical memory by Windows' own API; None on other systems."""
    windows: Any = getattr(ctypes, "windll", None)
    if windows is None:
        return None
    status = (ctypes.c_uint64 * 8)(64)  # MEMORYSTATUSEX: its own size first; the third number is ullAvailPhys
    return int(status[2]) if windows.kernel32.GlobalMemoryStatusEx(ctypes.byref(status)) else None


def release_memory() -> None:
    """Give freed blocks back to the device, between a failed try and the next."""
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    elif torch.backends.mps.is_available():
        torch.mps.empty_cache()
    elif torch.xpu.is_available():
        torch.xpu.empty_cache()


def give_back_memory() -> None:
    """Give back to the system what the C library keeps of freed blocks, where it can be asked to (glibc, on Linux).

    After the VAE's strips and the transformer it keeps 0.1 to 0.2 GB at 4096 px, in holes that the next stage does not
    use (measured).
    """
    if sys.platform != "linux":
        return
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


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
    """Whether memory has run out: PyTorch's errors of any device, its libraries', the system's, and Python's own.

    On a CPU it has many faces: oneDNN cannot create a primitive, a file cannot be mapped, an allocator says so.
    """
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    if isinstance(error, OSError):  # not by its text, which has a file's name in it
        return error.errno == errno.ENOMEM
    if not isinstance(error, MEMORY_ERRORS):
        return False
    return _OUT_OF_MEMORY.search(str(error).lower()) is not None


@contextmanager
def explain_out_of_memory(
    what: str, is_oom: Callable[[BaseException], bool] = is_out_of_memory
) -> Generator[None, None, None]:
    """Turn any out-of-memory error inside into ours, with the remedy. ComfyUI does not answer ours with tiles."""
    try:
        yield
    except MEMORY_ERRORS as error:
        if not is_oom(error):
            raise
        raise out_of_memory(what) from None


def out_of_memory(what: str) -> OutOfMemoryError:
    """The one sentence for it."""
    return OutOfMemoryError(
        f"{plain(what)}: out of memory; ask for a smaller target, use bfloat16 instead of float32, close what else "
        "uses the memory, or run on another device"
    )


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
