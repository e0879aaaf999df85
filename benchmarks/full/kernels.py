"""Which of PyTorch's attention kernels runs: a preference for a benchmark, never for the pack itself."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, get_args

from torch.nn.attention import SDPBackend, sdpa_kernel

#: auto: PyTorch's own choice. plain: matrix products and a softmax, the whole matrix stored.
Kernel = Literal["auto", "flash", "cudnn", "efficient", "plain"]
KERNELS: tuple[Kernel, ...] = get_args(Kernel)

_BACKENDS: dict[Kernel, SDPBackend] = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}


@contextmanager
def preferring(kernel: Kernel) -> Generator[None, None, None]:
    """Inside, attention tries this kernel first, and the others where it does not apply (PyTorch 2.6 or newer)."""
    if kernel == "auto":
        yield
        return
    first, options = _BACKENDS[kernel], {"set_priority": True}
    order: Any = [first, *(backend for backend in _BACKENDS.values() if backend != first)]
    with sdpa_kernel(order, **options):
        yield


@contextmanager
def only(kernel: Kernel) -> Generator[None, None, None]:
    """Inside, attention has this kernel alone, and raises RuntimeError where it does not apply."""
    if kernel == "auto":
        yield
        return
    with sdpa_kernel(_BACKENDS[kernel]):
        yield
