"""Scaled dot-product attention that never stores the N x N matrix."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Query rows per chunk where PyTorch's fused kernels may fall back to the full matrix.
#: Our choice: 1024 rows against 65,536 keys are 268 MB in fp32.
QUERY_CHUNK = 1024

#: Largest head that flash attention takes on CUDA; larger heads (the autoencoder's 512) are chunked.
LARGEST_FUSED_HEAD = 256


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v.

    q, k, v: (B, heads, N, d), any float dtype, one device. Returns (B, heads, N, d).
    Heads wider than 256 run in chunks of queries off the CPU, where the fused kernels may not
    apply and the whole matrix (8.6 GB at 65,536 tokens) would be stored. The CPU's is always fused.
    """
    if q.device.type == "cpu" or q.shape[-1] <= LARGEST_FUSED_HEAD or q.shape[2] <= QUERY_CHUNK:
        return F.scaled_dot_product_attention(q, k, v)
    out = torch.empty_like(q)
    for start in range(0, q.shape[2], QUERY_CHUNK):
        rows = slice(start, start + QUERY_CHUNK)
        out[:, :, rows] = F.scaled_dot_product_attention(q[:, :, rows], k, v)
    return out
