"""Flux's blocks, named as the BFL checkpoints name them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .attention import attention
from .rope import apply_rotation

#: Channels of ``timestep_embedding``, its longest period over 2 pi, and what the time is multiplied by: Flux's own.
TIME_CHANNELS, _LONGEST_PERIOD, _TIME_FACTOR = 256, 10000.0, 1000.0


def timestep_embedding(t: Tensor) -> Tensor:
    """t (B,), 0 to 1 (or a guidance) -> (B, TIME_CHANNELS) cosines, then sines, float32."""
    half = TIME_CHANNELS // 2
    freqs = torch.exp(-math.log(_LONGEST_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = (_TIME_FACTOR * t.float())[:, None] * freqs
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class MLPEmbedder(nn.Module):
    """x (B, in_dim) -> (B, hidden): two linear layers with a SiLU between them."""

    def __init__(self, in_dim: int, hidden: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.in_layer = ops.Linear(in_dim, hidden, **kw)
        self.out_layer = ops.Linear(hidden, hidden, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.out_layer(F.silu(self.in_layer(x)))


class RMSNorm(nn.Module):
    """Root mean square norm over the last axis, in fp32; the key on disk is ``scale``."""

    def __init__(self, dim: int, **kw: Any) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim, **kw))

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, x.shape[-1:], self.scale.to(x.dtype), eps=1e-6)


class QKNorm(nn.Module):
    """The norms of an attention's queries and keys, over a head's channels."""

    def __init__(self, dim: int, **kw: Any) -> None:
        super().__init__()
        self.query_norm = RMSNorm(dim, **kw)
        self.key_norm = RMSNorm(dim, **kw)


class SelfAttention(nn.Module):
    """One stream's projections, before the attention (``project``) and after it (``proj``)."""

    def __init__(self, hidden: int, heads: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = ops.Linear(hidden, 3 * hidden, **kw)
        self.norm = QKNorm(hidden // heads, **kw)
        self.proj = ops.Linear(hidden, hidden, **kw)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B, N, hidden) -> q, k, v (B, heads, N, d), q and k normed."""
        return split_heads(self.qkv(x), self.heads, self.norm)


def split_heads(qkv: Tensor, heads: int, norm: QKNorm) -> tuple[Tensor, Tensor, Tensor]:
    """(B, N, 3 hidden) -> q, k, v (B, heads, N, d), q and k normed."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4)
    return norm.query_norm(q), norm.key_norm(k), v


def attend(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
    """Rotate q and k by ``pe``, attend, join the heads: q, k, v (B, heads, N, d) -> (B, N, heads * d)."""
    h = attention(apply_rotation(q, pe), apply_rotation(k, pe), v.contiguous())
    return h.transpose(1, 2).flatten(2)


class Modulation(nn.Module):
    """vec (B, hidden) -> ``count`` tensors (B, 1, hidden): shift, scale and gate, once or (count 6) twice."""

    def __init__(self, hidden: int, count: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.count = count
        self.lin = ops.Linear(hidden, count * hidden, **kw)

    def forward(self, vec: Tensor) -> tuple[Tensor, ...]:
        return self.lin(F.silu(vec))[:, None, :].chunk(self.count, dim=-1)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """x (B, N, hidden): LayerNorm without weights, then (1 + scale) x + shift, both (B, 1, hidden)."""
    return F.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def finite_in_float16(x: Tensor) -> Tensor:
    """x, in float16 cut to the largest number, which Flux's text stream exceeds; in other dtypes as it is.

    As ComfyUI has it, but for NaN, which stays one: what made it is an error to be told.
    """
    return x.clamp(-65504.0, 65504.0) if x.dtype == torch.float16 else x


def mlp(hidden: int, ratio: float, ops: Any, **kw: Any) -> nn.Sequential:
    """(..., hidden) -> the same: to ``ratio`` times as many channels, GELU, and back."""
    inner = round(hidden * ratio)
    return nn.Sequential(ops.Linear(hidden, inner, **kw), nn.GELU(approximate="tanh"), ops.Linear(inner, hidden, **kw))


class DoubleStreamBlock(nn.Module):
    """Text and image, each with weights of its own, attending to each other.

    img (B, N, hidden), txt (B, T, hidden), vec (B, hidden), pe (B, 1, T + N, d/2, 2, 2) -> (img, txt).
    """

    def __init__(self, hidden: int, heads: int, mlp_ratio: float, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.img_mod = Modulation(hidden, 6, ops, **kw)
        self.img_attn = SelfAttention(hidden, heads, ops, **kw)
        self.img_mlp = mlp(hidden, mlp_ratio, ops, **kw)
        self.txt_mod = Modulation(hidden, 6, ops, **kw)
        self.txt_attn = SelfAttention(hidden, heads, ops, **kw)
        self.txt_mlp = mlp(hidden, mlp_ratio, ops, **kw)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor, pe: Tensor) -> tuple[Tensor, Tensor]:
        img_mod, txt_mod = self.img_mod(vec), self.txt_mod(vec)
        h = self._attend(modulate(img, *img_mod[:2]), modulate(txt, *txt_mod[:2]), pe)
        split = txt.shape[1]
        img = img + img_mod[2] * self.img_attn.proj(h[:, split:])
        txt = finite_in_float16(txt + txt_mod[2] * self.txt_attn.proj(h[:, :split]))
        del h
        img = img + img_mod[5] * self.img_mlp(modulate(img, *img_mod[3:5]))
        txt = finite_in_float16(txt + txt_mod[5] * self.txt_mlp(modulate(txt, *txt_mod[3:5])))
        return img, txt

    def _attend(self, img: Tensor, txt: Tensor, pe: Tensor) -> Tensor:
        """Both streams' tokens, text first, through one attention; what it needed is gone when it returns."""
        pairs = zip(self.txt_attn.project(txt), self.img_attn.project(img), strict=True)
        q, k, v = (torch.cat(pair, dim=2) for pair in pairs)
        return attend(q, k, v, pe)


class SingleStreamBlock(nn.Module):
    """Text and image as one sequence, attention and MLP side by side.

    x (B, T + N, hidden), text first; vec (B, hidden); pe (B, 1, T + N, d/2, 2, 2) -> the shape of x.
    """

    def __init__(self, hidden: int, heads: int, mlp_ratio: float, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.hidden, self.heads = hidden, heads
        inner = round(hidden * mlp_ratio)
        self.linear1 = ops.Linear(hidden, 3 * hidden + inner, **kw)
        self.linear2 = ops.Linear(hidden + inner, hidden, **kw)
        self.norm = QKNorm(hidden // heads, **kw)
        self.modulation = Modulation(hidden, 3, ops, **kw)

    def forward(self, x: Tensor, vec: Tensor, pe: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(vec)
        h = self.linear1(modulate(x, shift, scale))
        attended = attend(*split_heads(h[..., : 3 * self.hidden], self.heads, self.norm), pe)
        h = F.gelu(h[..., 3 * self.hidden :], approximate="tanh")
        h = torch.cat((attended, h), dim=-1)
        del attended
        return finite_in_float16(x + gate * self.linear2(h))


class LastLayer(nn.Module):
    """x (B, N, hidden), vec (B, hidden) -> (B, N, out): a modulated norm and a linear layer."""

    def __init__(self, hidden: int, out: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.linear = ops.Linear(hidden, out, **kw)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), ops.Linear(hidden, 2 * hidden, **kw))

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(vec)[:, None, :].chunk(2, dim=-1)
        return self.linear(modulate(x, shift, scale))
