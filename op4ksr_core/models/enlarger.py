"""The learned enlarger: a small residual CNN at the input's own resolution, on top of bicubic.

Our choice throughout (the paper has nothing of the kind): plain 3x3 convolutions without norms, so that a picture
can be computed in strips (``enlarger_strips``) and comes out as it would whole; one head per whole factor, which
starts from zeros, so that the network begins as bicubic, and whose pixel shuffle is kept ``even``, so that it draws no
mesh; and a constant input plane, ``strength``, that states how much damage to undo (0: the input is clean and is only
enlarged; 1: blur, noise and JPEG as bad as the training had them), so that one network serves both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from ..images.resize import resize

#: Colours, and the plane of the strength.
IN_CHANNELS = 4


@dataclass(frozen=True)
class EnlargerParams:
    """Geometry: features per pixel, residual blocks of two convolutions each, and the factors that have a head.

    Raises ValueError for sizes below 1, and for factors that are not ascending whole numbers from 2 up.
    """

    width: int = 48
    blocks: int = 8
    factors: tuple[int, ...] = (2, 3, 4)

    def __post_init__(self) -> None:
        if self.width < 1 or self.blocks < 1:
            raise ValueError(f"width and blocks must be at least 1, got {self.width} and {self.blocks}")
        if not self.factors or self.factors[0] < 2 or list(self.factors) != sorted(set(self.factors)):
            raise ValueError(f"factors must be ascending whole numbers from 2 up, got {self.factors}")

    @property
    def reach(self) -> int:
        """How far an output pixel looks, input px to each side: one per 3x3 convolution. Bicubic's 2 are within."""
        return 2 * self.blocks + 2


class ResidualBlock(nn.Module):
    """conv, ReLU, conv, plus the input. ReLU as it bends at every scale: SiLU is nearly linear on small features, and a
    network that began with it stayed a linear filter (0.6 dB lost after 400 steps, on photos)."""

    def __init__(self, width: int, ops: Any, **kw: Any) -> None:
        super().__init__()
        self.conv1 = ops.Conv2d(width, width, 3, padding=1, **kw)
        self.conv2 = ops.Conv2d(width, width, 3, padding=1, **kw)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.relu_(self.conv1(x))).add_(x)  # in place: new memory is slow to touch


class Enlarger(nn.Module):
    """Picture (B, 3, h, w) -> (B, 3, h * factor, w * factor). ``operations`` supplies Conv2d (torch.nn, or the host's).

    A new one is bicubic, exactly: ``begin`` says how weights start.
    """

    def __init__(
        self,
        params: EnlargerParams,
        *,
        operations: Any = nn,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.params = params
        kw: dict[str, Any] = {"device": device, "dtype": dtype}
        width = params.width
        self.conv_in = operations.Conv2d(IN_CHANNELS, width, 3, padding=1, **kw)
        self.body = nn.ModuleList(ResidualBlock(width, operations, **kw) for _ in range(params.blocks))
        self.heads = nn.ModuleDict(
            {str(factor): operations.Conv2d(width, 3 * factor**2, 3, padding=1, **kw) for factor in params.factors}
        )

    @property
    def reach(self) -> int:
        """Input px that a strip needs on each side to come out as the whole picture does."""
        return self.params.reach

    @property
    def device(self) -> torch.device:
        """The weights'."""
        return self.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """The weights'."""
        return self.conv_in.weight.dtype

    def begin(self) -> None:
        """Draw a new model's weights (He et al. 2015): its blocks begin as identities, its heads silent.

        So the output begins as bicubic. Without it weights are as torch draws them.
        """
        for name, layer in self.named_modules():
            if not isinstance(layer, nn.Conv2d):
                continue
            nn.init.zeros_(layer.bias)  # pyright: ignore
            if name.endswith("conv2") or name.startswith("heads"):
                nn.init.zeros_(layer.weight)
            else:
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")

    @torch.no_grad()
    def even(self) -> None:
        """Make the sum of each head's kernel, and its bias, the same for all output pixels of one input pixel.

        Where features are constant all these pixels are then equal: no mesh of the factor's period on smooth ground,
        whatever the weights. What differs within a kernel, which is what draws edges, stays. After 1,500
        steps the mesh on smooth pictures was 0.1 to 0.6 grey levels without, at most 0.003 with, and eight photos
        were enlarged x4 0.4 dB better with than without, on the same batches.
        """
        for head in self.heads.values():
            weight, bias = head.weight, head.bias
            mean = weight.mean((2, 3), keepdim=True).unflatten(0, (3, -1))  # pyright: ignore
            weight.sub_((mean - mean.mean(1, keepdim=True)).flatten(0, 1))  # pyright: ignore
            phases = bias.unflatten(0, (3, -1))  # pyright: ignore
            bias.copy_(phases.mean(1, keepdim=True).expand_as(phases).flatten())  # pyright: ignore

    def planes(self, low: Tensor, strength: Tensor | float) -> Tensor:
        """(B, 3, h, w) in [0, 1] and a number or (B, 1, h, w) in [0, 1] -> (B, 4, h, w), what the network looks at.

        Channels last, which halves the body's time on a CPU.
        """
        plane = strength if isinstance(strength, Tensor) else low.new_full((1, 1, 1, 1), strength)
        plane = plane.to(low).expand(len(low), 1, *low.shape[-2:])
        return torch.cat([low - 0.5, plane], 1).contiguous(memory_format=torch.channels_last)

    def features(self, planes: Tensor) -> Tensor:
        """(B, 4, h, w) -> (B, width, h, w), before the body."""
        return self.conv_in(planes).contiguous(memory_format=torch.channels_last)

    def deepened(self, features: Tensor) -> Tensor:
        """Features through the residual blocks, and themselves again."""
        x = features
        for block in self.body:
            x = block(x)
        return x

    def head(self, factor: int) -> Any:
        """The convolution before the pixel shuffle. Raises OptionError where there is none for the factor."""
        if str(factor) not in self.heads:
            known = ", ".join(map(str, self.params.factors))
            raise OptionError(f"enlarger: expected a factor of {known}, got {factor}; choose one, and resize the rest")
        return self.heads[str(factor)]

    def detail(self, features: Tensor, factor: int) -> Tensor:
        """Features -> what is added to bicubic, (B, 3, h * factor, w * factor). Raises OptionError without a head."""
        return F.pixel_shuffle(self.head(factor)(features), factor)

    def forward(self, low: Tensor, factor: int, strength: Tensor | float = 0.0) -> Tensor:
        """(B, 3, h, w) in [0, 1], factor, strength in [0, 1] (a number, or (B, 1, h, w)) -> the enlarged, not clamped.

        In the weights' dtype and on their device, whole; ``enlarger_strips.enlarged`` is the same in bounded memory.
        """
        low = low.to(self.device, self.dtype)
        detail = self.detail(self.deepened(self.features(self.planes(low, strength))), factor)
        return bicubic(low, factor) + detail


def bicubic(low: Tensor, factor: int) -> Tensor:
    """(B, C, h, w) enlarged by a whole factor, not clamped."""
    return resize(low, low.shape[-2] * factor, low.shape[-1] * factor)
