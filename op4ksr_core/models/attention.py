"""Scaled dot-product attention that never stores the N x N matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

#: Query rows per chunk where PyTorch has no fused kernel and stores the whole matrix of what it is given.
#: Our choice: 1024 rows against 65,536 keys are 268 MB in fp32.
QUERY_CHUNK = 1024

#: Largest head for which PyTorch's attention stores no matrix on the meta device, which stands for the CPU in
#: measurements. The autoencoder's middle has heads of 512.
_LARGEST_META_HEAD = 256


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    q, k, v: (B, heads, N, d), any float dtype, one device. Returns (B, heads, N, d).
    One kernel where PyTorch has a fused one for such tensors; else in chunks of queries, for it would store the
    whole matrix (8.6 GB at 65,536 tokens). The two are the same but for rounding.
    """
    if q.shape[2] <= QUERY_CHUNK or is_fused(q, k, v):
        return F.scaled_dot_product_attention(q, k, v)
    return in_chunks(q, k, v)


def in_chunks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """``attention``, a chunk of queries at a time."""
    out = torch.empty_like(q)
    for start in range(0, q.shape[2], QUERY_CHUNK):
        rows = slice(start, start + QUERY_CHUNK)
        out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v)
    return out


def is_fused(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether PyTorch's attention of these stores no N x N matrix.

    The CPU's never does where a head's channels lie side by side. On CUDA and ROCm PyTorch is asked whether the flash
    or the memory-efficient kernel takes these tensors: flash does up to heads of 256, in float16 and bfloat16 where the
    card has them; the other works on 32 queries per block, so that a chunk of 1024 would keep 32 of a card's 100 and
    more processors busy, and gets all at once (read in PyTorch's sources, not measured; ``benchmarks/gpu/attention.py``
    times both). Of Apple's GPUs it is known that they store the matrix (26 GB for 24 heads at 16,384 tokens in
    float32), of others nothing is known.
    """
    if q.device.type == "meta":
        return q.shape[-1] <= _LARGEST_META_HEAD
    if q.device.type == "cpu":
        return all(tensor.stride(-1) == 1 for tensor in (q, k, v))
    return q.device.type == "cuda" and _a_cuda_kernel_takes(q, k, v)


def _a_cuda_kernel_takes(q: Tensor, k: Tensor, v: Tensor) -> bool:
    backends: Any = torch.backends.cuda
    given = q, k, v, None, 0.0, False
    try:
        params = backends.SDPAParams(*given, False)
    except TypeError:  # PyTorch 2.4 knows no grouped heads
        params = backends.SDPAParams(*given)
    return bool(backends.can_use_flash_attention(params) or backends.can_use_efficient_attention(params))
