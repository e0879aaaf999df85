"""What the pack relies on, on a CUDA device; the same on the CPU, so that it is asked rightly.

``benchmarks/gpu/run.sh`` makes tables of the same, and needs no pytest.
"""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu.attention import ATTENTIONS, attention_rows
from benchmarks.gpu.checks import CHECKS, YES, limited
from benchmarks.gpu.fp8 import has_scaled_mm
from benchmarks.gpu.upscale import measure_upscale

on_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = [
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(torch.device("cuda"), id="cuda", marks=[pytest.mark.gpu, on_cuda]),
]
each_device = pytest.mark.parametrize("device", DEVICES)


@each_device
@pytest.mark.parametrize("name", CHECKS)
def test_check(name: str, device: torch.device) -> None:
    if name == "fp8" and not has_scaled_mm(device):
        pytest.skip("this device has no products of 8-bit floats")
    rows = [check.row() for check in CHECKS[name](device)]
    assert rows and not [row for row in rows if row["holds"] != YES]


@each_device
def test_attention_with_heads_of_512_never_stores_the_matrix(device: torch.device) -> None:
    """As the pack calls it, above its output: 264 x 264 tokens on CUDA, where the matrix would be 9.7 GB."""
    middle = ATTENTIONS["small" if device.type == "cpu" else "flux"][0]
    rows = {row["kernel"]: row for row in attention_rows(middle, device)}
    assert rows.keys() >= {"the pack's", "flash", "cudnn", "efficient", "plain"}
    assert all(row["error"] < 0.02 for row in rows.values() if row["outcome"] == "done")
    assert rows["products in chunks"]["error"] < rows["products in chunks, bf16 scores"]["error"]
    own = rows["the pack's"]
    assert own["outcome"] == "done" and own["GB"] < (0.01 if device.type == "cpu" else 1.0)


@pytest.mark.gpu
@on_cuda
@pytest.mark.parametrize("weights", ["bf16", "fp8"])
def test_an_upscale_is_measured(weights: str) -> None:
    device = torch.device("cuda")
    if weights == "fp8" and not has_scaled_mm(device):
        pytest.skip("this device has no products of 8-bit floats")
    _, tables = measure_upscale("small", 256, weights, device, repeats=1)  # pyright: ignore[reportArgumentType]
    assert all(row["GB"] > 0 for row in tables["Stages of one upscale"])


@pytest.mark.gpu
@on_cuda
def test_a_process_is_really_kept_from_memory() -> None:
    device = torch.device("cuda")
    with pytest.raises(torch.OutOfMemoryError), limited(device, 2**26):
        torch.zeros(2**28, dtype=torch.uint8, device=device)
    torch.zeros(2**28, dtype=torch.uint8, device=device)
