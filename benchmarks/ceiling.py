"""What a device can do at best: its own matrix products, as a measure for everything else that it computes."""

from __future__ import annotations

import time

import torch

from .stage_clock import wait_for
from .tables import Row

#: Sides of the squares that are multiplied: large enough to hide the launch, small enough for the device.
SIDES = {"cpu": (1024, 2048, 4096), "other": (4096, 8192, 16384)}


def matmul_ceiling(
    device: torch.device, dtype: torch.dtype, sides: tuple[int, ...] | None = None, repeats: int = 5
) -> list[Row]:
    """A row per side: TFLOP/s (2 side^3 / seconds) of ``torch.matmul`` of two squares, the best of ``repeats``.

    Seeded normal values; one product before the clock starts.
    """
    rows: list[Row] = []
    for side in sides or SIDES["cpu" if device.type == "cpu" else "other"]:
        a = torch.randn(side, side, generator=torch.Generator(device).manual_seed(0), device=device).to(dtype)
        out, taken = torch.empty_like(a), list[float]()
        for _ in range(repeats + 1):
            wait_for(device)
            began = time.perf_counter()
            torch.matmul(a, a, out=out)
            wait_for(device)
            taken.append(time.perf_counter() - began)
        rows.append({"px": side, "TFLOP/s": 2 * side**3 / min(taken[1:]) / 1e12})
    return rows
