"""The layers of the Flux autoencoder at 16x ("F16") and, as the special case stride 1, at 8x ("F8").

Module names are the BFL / LDM checkpoint's key names. F16 differs from F8 in two places, neither
visible in a tensor's shape (UltraFlux, Diffusion-4K):

- the encoder's ``conv_in`` has stride 2;
- the decoder upsamples 2x (nearest) between the final norm and ``conv_out``. Nearest upsampling
  commutes with SiLU, so SiLU runs first, on a quarter of the pixels.

The published pipelines run that last step in parts whose sum is the plain output moved 1 px down
and right; ``shift=1`` reproduces them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..models.attention import attention


@dataclass(frozen=True)
class AutoEncoderParams:
    """Geometry of one autoencoder. The defaults are the public full-width F16 checkpoints'."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 16
    norm_groups: int = 32
    mid_attention: bool = True
    stride: int = 2
    shift: int = 0

    def __post_init__(self) -> None:
        if self.stride not in (1, 2):
            raise ValueError(f"stride must be 1 (F8) or 2 (F16), got {self.stride}")
        if self.shift not in (0, 1):
            raise ValueError(f"shift must be 0 or 1, got {self.shift}")
        if self.norm_groups < 1:
            raise ValueError(f"norm_groups must be at least 1, got {self.norm_groups}")
        for width in self.widths:
            if width % self.norm_groups:
                raise ValueError(f"width {width} is no multiple of norm_groups {self.norm_groups}")

    @property
    def ratio(self) -> int:
        """Image pixels per latent pixel, per side: 16 for F16, 8 for F8."""
        return self.stride * 2 ** (len(self.widths) - 1)


class ResnetBlock(nn.Module):
    """norm, SiLU, conv, twice, plus the input (through a 1x1 conv where the width changes)."""

    def __init__(self, in_width: int, width: int, groups: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.norm1 = ops.GroupNorm(groups, in_width, eps=1e-6, **kw)
        self.conv1 = ops.Conv2d(in_width, width, 3, padding=1, **kw)
        self.norm2 = ops.GroupNorm(groups, width, eps=1e-6, **kw)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1, **kw)
        if in_width != width:
            self.nin_shortcut = ops.Conv2d(in_width, width, 1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class AttnBlock(nn.Module):
    """Single-head self-attention over all latent pixels, plus the input."""

    def __init__(self, width: int, groups: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.norm = ops.GroupNorm(groups, width, eps=1e-6, **kw)
        self.q = ops.Conv2d(width, width, 1, **kw)
        self.k = ops.Conv2d(width, width, 1, **kw)
        self.v = ops.Conv2d(width, width, 1, **kw)
        self.proj_out = ops.Conv2d(width, width, 1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (conv(h).flatten(2).transpose(1, 2)[:, None].contiguous() for conv in (self.q, self.k, self.v))
        del h
        h = attention(q, k, v)
        return x + self.proj_out(h[:, 0].transpose(1, 2).reshape(x.shape))


class Downsample(nn.Module):
    """(B, width, h, w) -> half of both sides: a 3x3 convolution of stride 2, zeros added at the right and below."""

    def __init__(self, width: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, stride=2, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """(B, width, h, w) -> twice both sides, each pixel repeated, then a 3x3 convolution."""

    def __init__(self, width: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.conv = ops.Conv2d(width, width, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class MidBlock(nn.Module):
    """The blocks at the latent's resolution, with attention between them if the model has it; the shape stays."""

    def __init__(self, width: int, groups: int, with_attention: bool, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.block_1 = ResnetBlock(width, width, groups, ops, **kw)
        if with_attention:
            self.attn_1 = AttnBlock(width, groups, ops, **kw)
        self.block_2 = ResnetBlock(width, width, groups, ops, **kw)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block_1(x)
        if hasattr(self, "attn_1"):
            x = self.attn_1(x)
        return self.block_2(x)


class Level(nn.Module):
    """The blocks of one resolution. ``downsample`` or ``upsample`` is added where another resolution follows."""

    def __init__(self, in_width: int, width: int, depth: int, groups: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        widths = [in_width] + [width] * depth
        self.block = nn.ModuleList(
            ResnetBlock(a, b, groups, ops, **kw) for a, b in zip(widths[:-1], widths[1:], strict=True)
        )


class Encoder(nn.Module):
    """Pixels (B, 3, H, W) in [-1, 1] -> (B, 2 C, H / ratio, W / ratio): the latent's mean, then its log variance."""

    def __init__(self, params: AutoEncoderParams, ops: Any, **kw: Any) -> None:
        super().__init__()
        widths, groups = params.widths, params.norm_groups
        self.conv_in = ops.Conv2d(3, widths[0], 3, stride=params.stride, padding=1, **kw)
        self.down = nn.ModuleList()
        for i, width in enumerate(widths):
            level = Level(widths[max(0, i - 1)], width, params.layers_per_block, groups, ops, **kw)
            if i + 1 < len(widths):
                level.downsample = Downsample(width, ops, **kw)
            self.down.append(level)
        self.mid = MidBlock(widths[-1], groups, params.mid_attention, ops, **kw)
        self.norm_out = ops.GroupNorm(groups, widths[-1], eps=1e-6, **kw)
        self.conv_out = ops.Conv2d(widths[-1], 2 * params.latent_channels, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level in self.down:
            for block in level.block:  # pyright: ignore
                h = block(h)
            if hasattr(level, "downsample"):
                h = level.downsample(h)  # pyright: ignore
        h = self.mid(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """Raw latent (B, C, h, w) -> pixels (B, 3, h * ratio, w * ratio), about [-1, 1]."""

    def __init__(self, params: AutoEncoderParams, ops: Any, **kw: Any) -> None:
        super().__init__()
        widths, groups = params.widths, params.norm_groups
        self.stride, self.shift = params.stride, params.shift
        self.conv_in = ops.Conv2d(params.latent_channels, widths[-1], 3, padding=1, **kw)
        self.mid = MidBlock(widths[-1], groups, params.mid_attention, ops, **kw)
        self.up = nn.ModuleList()  # up[0] is the level nearest the image
        for i, width in enumerate(widths):
            in_width = widths[min(i + 1, len(widths) - 1)]
            level = Level(in_width, width, params.layers_per_block + 1, groups, ops, **kw)
            if i > 0:
                level.upsample = Upsample(width, ops, **kw)
            self.up.append(level)
        self.norm_out = ops.GroupNorm(groups, widths[0], eps=1e-6, **kw)
        self.conv_out = ops.Conv2d(widths[0], 3, 3, padding=1, **kw)

    def forward(self, z: Tensor) -> Tensor:
        h = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            for block in level.block:  # pyright: ignore
                h = block(h)
            if hasattr(level, "upsample"):
                h = level.upsample(h)  # pyright: ignore
        return self.last_step(F.silu(self.norm_out(h)))

    def last_step(self, h: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, 3, h*stride, w*stride), with the published 1 px shift if asked for."""
        if self.stride == 1:
            return self.conv_out(h)
        h = F.interpolate(h, scale_factor=2.0, mode="nearest")
        if not self.shift:
            return self.conv_out(h)
        height, width = h.shape[-2:]
        return self.conv_out(F.pad(h, (1, 0, 1, 0)))[..., :height, :width]
