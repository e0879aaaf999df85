"""What a device can do at best: its own matrix products, as a measure for everything else that it computes."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from op4ksr_core.machine import wait_for

from .full.fp8 import scaled_mm, scaled_to_fp8
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
    for side in _sides(device, sides):
        a = _values(side, device).to(dtype)
        out = torch.empty_like(a)
        rows.append(_row(side, device, partial(torch.matmul, a, a, out=out), repeats))
    return rows


def fp8_ceiling(device: torch.device, sides: tuple[int, ...] | None = None, repeats: int = 5) -> list[Row]:
    """The same of ``torch._scaled_mm``: squares in fp8 (e4m3), one scale each, the product in bfloat16."""
    rows: list[Row] = []
    for side in _sides(device, sides):
        a, scale = scaled_to_fp8(_values(side, device))
        rows.append(_row(side, device, partial(scaled_mm, a, a.t(), scale, scale, torch.bfloat16), repeats))
    return rows


def _sides(device: torch.device, sides: tuple[int, ...] | None) -> tuple[int, ...]:
    return sides or SIDES["cpu" if device.type == "cpu" else "other"]


def _values(side: int, device: torch.device) -> torch.Tensor:
    return torch.randn(side, side, generator=torch.Generator(device).manual_seed(0), device=device)


def _row(side: int, device: torch.device, product: Callable[[], object], repeats: int) -> Row:
    taken: list[float] = []
    for _ in range(repeats + 1):
        wait_for(device)
        began = time.perf_counter()
        product()
        wait_for(device)
        taken.append(time.perf_counter() - began)
    return {"px": side, "TFLOP/s": 2 * side**3 / min(taken[1:]) / 1e12}
