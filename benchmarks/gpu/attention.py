"""Attention as a 4096 px run has it, by kernel: seconds, bytes, and how far from float64. Random input.

The VAE's middle has heads of 512, which flash attention does not take: which kernel is the fastest there, and how
exact, decides how the pack calls it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from op4ksr_core.cli.options import parse_device
from op4ksr_core.machine import release_memory
from op4ksr_core.models.attention import attention, in_chunks

from ..stage_clock import PeakMeter, wait_for
from ..tables import Row
from .step import StepReport, first_line, step_parser

#: PyTorch's kernels by name. "plain" stores the whole matrix.
KERNELS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "plain": SDPBackend.MATH,
}

#: Bytes of a matrix that the plain kernel may store.
LARGEST_MATRIX = 2**32

#: Queries whose results are compared with float64's.
COMPARED = 64

#: A kernel whose error is at most this many times the pack's counts as one that could replace it; our choice.
AS_EXACT = 1.5


@dataclass(frozen=True)
class Attention:
    """One attention: heads, channels of each, tokens."""

    what: str
    heads: int
    dim: int
    tokens: int


#: Of 4096 px: the VAE's middle with its margin (264 x 264), and the transformer with 512 text tokens; and small ones.
ATTENTIONS = {
    "flux": (Attention("VAE's middle", 1, 512, 264 * 264), Attention("transformer", 24, 128, 16896)),
    "small": (Attention("VAE's middle", 1, 512, 1040), Attention("transformer", 2, 128, 512)),
}

#: The columns of the table.
_COLUMNS: Row = dict.fromkeys(("attention", "kernel", "s", "TFLOP/s", "GB", "error", "outcome"))


def attention_rows(case: Attention, device: torch.device) -> Iterator[Row]:
    """The attention as the pack calls it, by each kernel alone, and in chunks of products.

    GB: above the inputs. error: from float64's result, relative, root mean square over ``COMPARED`` queries.
    """
    shape = 1, case.heads, case.tokens, case.dim
    generator = torch.Generator(device).manual_seed(0)
    q, k, v = (torch.randn(shape, device=device, generator=generator).bfloat16() for _ in range(3))
    chosen = slice(None, None, max(1, case.tokens // COMPARED))
    truth = float64_rows(q[:, :, chosen], k, v)
    for name, run in _ways(q, k, v).items():
        row = {**_COLUMNS, "attention": case.what, "kernel": name, "outcome": "done"}
        if name == "plain" and 2 * case.heads * case.tokens**2 > LARGEST_MATRIX:
            yield {**row, "outcome": "left out: it stores the whole matrix"}
            continue
        try:
            seconds, peak = _best(run, device)
            error = ((run()[:, :, chosen].double() - truth).norm() / truth.norm()).item()
        except (RuntimeError, TypeError, ValueError) as failure:  # TypeError: an older PyTorch without an option
            release_memory()
            yield {**row, "outcome": f"not here: {first_line(failure)[:80]}"}
            continue
        rate = 4.0 * case.heads * case.tokens**2 * case.dim / 1e12 / seconds
        yield {**row, "s": seconds, "TFLOP/s": rate, "GB": peak / 1e9, "error": error}


def _ways(q: Tensor, k: Tensor, v: Tensor) -> dict[str, Callable[[], Tensor]]:
    def by(kernel: SDPBackend) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v)

    return {
        "the pack's": partial(attention, q, k, v),
        **{name: partial(by, kernel) for name, kernel in KERNELS.items()},
        "in chunks of queries": partial(in_chunks, q, k, v),
        "products in chunks": partial(chunked_products, q, k, v),
        "products in chunks, bf16 scores": partial(chunked_products, q, k, v, exact=False),
    }


def float64_rows(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of a few queries in float64, by its definition."""
    scores = (q.double() * q.shape[-1] ** -0.5) @ k.double().mT
    return scores.softmax(-1) @ v.double()


def chunked_products(q: Tensor, k: Tensor, v: Tensor, rows: int = 1024, exact: bool = True) -> Tensor:
    """Attention by two matrix products and a softmax per ``rows`` queries: for heads that no fused kernel likes.

    exact: scores in float32, as fused kernels keep them; else in q's dtype, for half of the bytes.
    """
    out, scale = torch.empty_like(q), q.shape[-1] ** -0.5
    for top in range(0, q.shape[2], rows):
        scores = _scores(q[:, :, top : top + rows] * scale, k, exact)
        out[:, :, top : top + rows] = scores.softmax(-1).to(v.dtype) @ v
    return out


def _scores(q: Tensor, k: Tensor, exact: bool) -> Tensor:
    if not exact:
        return q @ k.mT
    if q.device.type != "cuda":
        return q.float() @ k.mT.float()
    product: Any = torch.bmm  # out_dtype: PyTorch 2.8 and newer, on CUDA only
    return product(q.flatten(0, 1), k.mT.flatten(0, 1), out_dtype=torch.float32).unflatten(0, q.shape[:2])


def _best(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """The least seconds of a few runs (of one on a CPU, where they mean nothing), and the bytes of the first."""
    with PeakMeter(device) as meter:
        meter.restart()
        run()
        wait_for(device)
        peak = meter.peak()
    taken: list[float] = []
    for _ in range(1 if device.type == "cpu" else 3):
        began = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - began)
    return min(taken), peak


def fastest(rows: list[Row]) -> str:
    """The pack's kernel beside the fastest of those that are as exact, in words."""
    done = [row for row in rows if row["outcome"] == "done"]
    own = next((row for row in done if row["kernel"] == "the pack's"), None)
    if own is None:
        return "the pack's attention does not run here"
    best = min((row for row in done if row["error"] <= AS_EXACT * own["error"]), key=lambda row: row["s"])
    return f"the pack's {_in_words(own)}, fastest of the exact ones: {best['kernel']} {_in_words(best)}"


def _in_words(row: Row) -> str:
    return f"{1e3 * row['s']:.3g} ms (error {row['error']:.1e})"


def main() -> int:
    """The step's command line."""
    options = step_parser("attention by kernel").parse_args()
    device, report = parse_device(options.device), StepReport(options.output)
    answers: list[str] = []
    for case in ATTENTIONS[options.geometry]:
        for row in attention_rows(case, device):
            report.add("attention by kernel, bf16", row)
        own = [row for row in report.tables["attention by kernel, bf16"] if row["attention"] == case.what]
        answers.append(f"{case.what}: {fastest(own)}")
        report.conclude("; ".join(answers))
    return 0


if __name__ == "__main__":
    sys.exit(main())
