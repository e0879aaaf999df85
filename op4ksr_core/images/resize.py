"""Sizes: which one the user asked for, padding to it, and the one resampling filter used everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import OptionError
from ..plain_text import plain

#: Largest output that is computed unless the caller raises it: our choice, 8192 x 8192.
DEFAULT_CEILING_MEGAPIXELS = 64.0

#: Of a factor, a side in px and megapixels alike: more than any picture, and little enough to count with. Our choice.
LARGEST = 10**9

#: Image pixels in 1 megapixel: the host's ResizeImageMaskNode counts 1 MP = 1024^2, and so do we.
MEGAPIXEL = 1024 * 1024

#: Larger shrinks are computed on the CPU: from 47 on, CUDA's antialiasing filter does not fit into a block's 48 KiB of
#: shared memory, and PyTorch refuses. Read in its sources, not tried.
_LARGEST_CUDA_SHRINK = 40


def resize(image: Tensor, height: int, width: int) -> Tensor:
    """Bicubic (a = -0.5), antialiased when shrinking, like Pillow's BICUBIC.

    image: (B, C, H, W) float, any range. Returns (B, C, height, width), not clamped; the input
    itself where the size is the same.
    """
    if image.shape[-2:] == (height, width):
        return image
    home = image.device
    if home.type == "cuda" and max(image.shape[-2] / height, image.shape[-1] / width) > _LARGEST_CUDA_SHRINK:
        return _bicubic(image.cpu(), height, width).to(home)
    try:
        return _bicubic(image, height, width)
    except NotImplementedError:  # by PyTorch before 2.7 on Apple's GPUs: then on the CPU
        return _bicubic(image.cpu(), height, width).to(home)


def _bicubic(image: Tensor, height: int, width: int) -> Tensor:
    if width == 1 and height != image.shape[-2]:
        # PyTorch reads wrong pixels where the output is 1 px wide (seen in 2.13): there along one axis after the other.
        rows = _bicubic(image, image.shape[-2], 1).transpose(-1, -2)
        return _bicubic(rows, 1, height).transpose(-1, -2).contiguous()
    return F.interpolate(image, (height, width), mode="bicubic", antialias=True, align_corners=False)


def picture_bytes(height: int, width: int, count: int = 1) -> int:
    """Of ``count`` pictures of that size in px, as every step passes them on: 3 channels, float32."""
    return count * 3 * height * width * 4


@dataclass(frozen=True)
class Target:
    """How large the output is to be: exactly one of the four, in px, or a factor, or megapixels."""

    scale: float | None = None
    long_edge: int | None = None
    short_edge: int | None = None
    megapixels: float | None = None
    ceiling_megapixels: float = DEFAULT_CEILING_MEGAPIXELS

    def __post_init__(self) -> None:
        ways = {
            "scale": self.scale,
            "long_edge": self.long_edge,
            "short_edge": self.short_edge,
            "megapixels": self.megapixels,
        }
        given = {name: value for name, value in ways.items() if value is not None}
        if len(given) != 1:
            raise OptionError(f"target: give exactly one of {', '.join(ways)}; got {given or 'none'}")
        ((name, value),) = given.items()
        if not 0 < value <= LARGEST:
            raise OptionError(f"{name}: expected a number above 0, at most {LARGEST:,}, got {plain(value)}")
        if not self.ceiling_megapixels > 0:
            raise OptionError(f"ceiling: expected a number of megapixels above 0, got {self.ceiling_megapixels}")

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Output (height, width) in px for an input of that size; the aspect ratio is kept to the pixel.

        Raises OptionError if it would exceed the ceiling.
        """
        if self.scale is not None:
            factor = self.scale
        elif self.long_edge is not None:
            factor = self.long_edge / max(height, width)
        elif self.short_edge is not None:
            factor = self.short_edge / min(height, width)
        else:
            assert self.megapixels is not None
            factor = math.sqrt(self.megapixels * MEGAPIXEL / (height * width))
        out = max(1, round(height * factor)), max(1, round(width * factor))
        megapixels = out[0] * out[1] / MEGAPIXEL
        if megapixels > self.ceiling_megapixels:
            raise OptionError(
                f"target: {width}x{height} px x {factor:.4g} is {out[1]}x{out[0]} px = {megapixels:.1f} MP, "
                f"above the ceiling of {self.ceiling_megapixels:g} MP; ask for less, or raise the ceiling"
            )
        return out


def middle(image: Tensor, height: int, width: int) -> Tensor:
    """(..., H, W) -> a view of its middle, (..., height, width); neither may exceed the image's own."""
    top, left = (image.shape[-2] - height) // 2, (image.shape[-1] - width) // 2
    return image[..., top : top + height, left : left + width]


def framed_size(height: int, width: int, multiple: int, margin: int = 0) -> tuple[int, int]:
    """Sides as ``mirror_frame`` makes them: rounded up to multiples, and the margin twice."""
    return -(-height // multiple) * multiple + 2 * margin, -(-width // multiple) * multiple + 2 * margin


def mirror_frame(image: Tensor, multiple: int, margin: int = 0) -> Tensor:
    """Extend (B, C, H, W) by mirroring: right and below to sides that are multiples, then by ``margin`` all round.

    The picture begins at (margin, margin). Mirroring repeats as often as it must, so that any size can
    be extended to any other; the edge itself is not doubled.
    """
    height, width = image.shape[-2:]
    size = framed_size(height, width, multiple, margin)
    if size == (height, width):
        return image
    out = image.new_empty((*image.shape[:-2], *size))
    rows = out.narrow(-2, margin, height)
    rows.narrow(-1, margin, width).copy_(image)  # once, and only the frame by index: that is slow on a CPU
    _frame(rows, image, -1, margin)
    _frame(out, rows, -2, margin)
    return out


def _frame(out: Tensor, inner: Tensor, axis: int, margin: int) -> None:
    """Fill in what lies before and after ``inner``, which begins at ``margin``, on one axis of ``out``."""
    length, side = inner.shape[axis], out.shape[axis]
    for start, stop in ((0, margin), (margin + length, side)):
        if stop > start:
            index = _mirrored_index(length, start - margin, stop - margin, out.device)
            out.narrow(axis, start, stop - start).copy_(inner.index_select(axis, index))


def _mirrored_index(length: int, start: int, stop: int, device: torch.device) -> Tensor:
    """Of ..., 2, 1, 0, 1, 2, ..., length-1, length-2, ..., where 0 stands at place 0, the places start to stop."""
    period = max(1, 2 * (length - 1))
    index = torch.arange(start, stop, device=device) % period
    return torch.where(index < length, index, period - index)
