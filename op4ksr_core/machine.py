"""What a run took from the machine."""

from __future__ import annotations

import sys

import torch


def default_device() -> torch.device:
    """CUDA (or ROCm), then Apple's MPS, then the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def peak_memory(device: torch.device) -> int | None:
    """Bytes: the device allocator's peak on CUDA, else the process's peak; None where unknown (Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
