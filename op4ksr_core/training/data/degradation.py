"""Photos made worse as the world does it: a seeded second-order degradation, HR -> LR.

The scheme is Real-ESRGAN's (Wang et al. 2021, section 3): blur, resize, noise, JPEG, and all of it
once more, with a sinc filter (ringing) somewhere. The JPEG is Pillow's. One seed, one result, on one
version of Pillow; every number drawn is in ``Degraded.steps``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ...errors import OptionError
from ...images.io import jpeg_round_trip, to_8_bit
from ...images.resize import resize
from ..config_limits import Share, Within

Range = tuple[float, float]
#: One range per round of the degradation.
Ranges = tuple[Range, ...]
Shares = tuple[Share, ...]


@dataclass(frozen=True)
class Degradation:
    """What may happen to a picture. Ranges have one entry per round.

    Probabilities are shares in [0, 1]; blur deviations and kernels are in px, noise in grey levels of
    255. The defaults are Real-ESRGAN's, somewhat milder in noise, our choice.
    """

    #: Shrinking that the model is to undo: LR side = HR side / factor, drawn log-uniformly.
    factor: Range = (4.0, 4.0)
    #: Share of the pictures that are only shrunk (bicubic): the clean case.
    clean: Share = 0.0
    #: Rounds of blur, resize, noise, JPEG.
    order: Literal[1, 2] = 2
    blur: Shares = (1.0, 0.8)
    blur_deviation: Ranges = ((0.2, 3.0), (0.2, 1.5))
    #: Share of anisotropic kernels among the Gaussian ones, and the largest kernel side (odd).
    anisotropic: Share = 0.4
    kernel: Annotated[int, Within(ge=3, le=201)] = 21
    #: Share of sinc kernels among the blurs; their cut-off in radians per px.
    sinc: Share = 0.1
    sinc_cutoff: Range = (math.pi / 3, math.pi)
    #: Shares of (enlarged, shrunk, kept) and how far, against the picture's size.
    resize: tuple[float, float, float] = (0.2, 0.7, 0.1)
    resize_range: Ranges = ((0.3, 1.5), (0.4, 1.2))
    noise: Shares = (0.8, 0.8)
    noise_level: Ranges = ((1.0, 20.0), (1.0, 15.0))
    #: Shares among the noises: shot noise rather than Gaussian; the same in all channels.
    shot: Share = 0.5
    grey: Share = 0.4
    #: Share, and libjpeg's quality, which is rounded to a whole number; chroma is always at half resolution (4:2:0).
    jpeg: Shares = (1.0, 1.0)
    jpeg_quality: Ranges = ((40.0, 95.0), (40.0, 95.0))
    #: Share of pictures that get a sinc filter at the very end, before or after the last JPEG.
    final_sinc: Share = 0.5

    def __post_init__(self) -> None:
        if not 1 <= self.factor[0] <= self.factor[1] <= 16:
            raise OptionError(
                f"degradation.factor: expected two numbers from 1 to 16, in order, got {self.factor}; change them"
            )
        if self.kernel % 2 == 0:
            raise OptionError(f"degradation.kernel: expected an odd number, got {self.kernel}; change it")
        if abs(sum(self.resize) - 1) > 1e-6 or min(self.resize) < 0:
            raise OptionError(
                f"degradation.resize: expected three shares that sum to 1, got {self.resize}; change them"
            )
        for name in ("blur", "noise", "jpeg"):
            self._check_rounds(name)
        for name, low, high, ranges in (
            ("blur_deviation", 0.01, 50, self._check_rounds("blur_deviation")),
            ("resize_range", 0.05, 4, self._check_rounds("resize_range")),
            ("noise_level", 0, 255, self._check_rounds("noise_level")),
            ("jpeg_quality", 1, 100, self._check_rounds("jpeg_quality")),
            ("sinc_cutoff", 0.01, 3.15, (self.sinc_cutoff,)),
        ):
            for r in ranges:
                if len(r) != 2 or not low <= r[0] <= r[1] <= high:
                    raise OptionError(
                        f"degradation.{name}: expected low <= high within {low} to {high}, got {r}; change them"
                    )

    def _check_rounds(self, name: str) -> tuple[Any, ...]:
        """The option's values, of which there must be one for each round."""
        values = getattr(self, name)
        if len(values) < self.order:
            raise OptionError(
                f"degradation.{name}: expected one entry per round ({self.order}), got {values}; add some"
            )
        return values


#: Pictures that are shrunk, by 4, and not damaged.
CLEAN = Degradation(clean=1.0)


@dataclass(frozen=True)
class Degraded:
    """``low`` (1, 3, h, w) in [0, 1]; the factor; and what was done, in order, as (name, numbers)."""

    low: Tensor
    factor: float
    steps: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])


def degrade(image: Tensor, params: Degradation, seed: tuple[int, ...]) -> Degraded:
    """HR (1, 3, H, W) float in [0, 1] -> LR of round(H / factor) x round(W / factor) px, 8-bit levels.

    The same for the same picture, parameters and seed (whole numbers from 0 up).
    """
    return _Run(params, np.random.default_rng(seed)).degrade(image)


def gaussian_kernel(side: int, wide: float, narrow: float, angle: float) -> Tensor:
    """(side, side), sum 1: deviations ``wide`` and ``narrow`` px along and across ``angle`` (radians)."""
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    u = x * math.cos(angle) + y * math.sin(angle)
    v = y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((u / wide) ** 2 + (v / narrow) ** 2))
    return (kernel / kernel.sum()).float()


def sinc_kernel(side: int, cutoff: float) -> Tensor:
    """(side, side), sum 1: the ideal circular low-pass filter (jinc) up to ``cutoff`` radians per px."""
    axis = torch.arange(side, dtype=torch.float64) - side // 2
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    r = (x**2 + y**2).sqrt()
    r[side // 2, side // 2] = 1.0
    kernel = cutoff * torch.special.bessel_j1(cutoff * r) / (2 * math.pi * r)
    kernel[side // 2, side // 2] = cutoff**2 / (4 * math.pi)
    return (kernel / kernel.sum()).float()


def filtered(image: Tensor, kernel: Tensor) -> Tensor:
    """(1, C, H, W) convolved with one symmetric kernel, its border mirrored (repeated where it is too small).

    By FFT: the whole degradation takes a third of the time that a plain convolution takes on a CPU.
    """
    pad = kernel.shape[-1] // 2
    mode = "reflect" if min(image.shape[-2:]) > pad else "replicate"
    padded = F.pad(image, (pad,) * 4, mode=mode)
    size = padded.shape[-2:]
    spectrum = torch.fft.rfft2(padded) * torch.fft.rfft2(kernel.to(image), s=size)
    return torch.fft.irfft2(spectrum, s=size)[..., 2 * pad :, 2 * pad :]


class _Run:
    """One picture's way through the degradation."""

    def __init__(self, params: Degradation, rng: np.random.Generator) -> None:
        self.params, self.rng = params, rng
        self.steps: list[tuple[str, dict[str, Any]]] = []

    def degrade(self, image: Tensor) -> Degraded:
        params, rng = self.params, self.rng
        low, high = params.factor
        factor = float(low * (high / low) ** rng.random())
        height, width = (max(1, round(side / factor)) for side in image.shape[-2:])
        if rng.random() < params.clean:
            return Degraded(to_8_bit(resize(image, height, width)), factor, [("shrink", {"factor": factor})])
        x = image
        for turn in range(params.order):
            last = turn == params.order - 1
            x = self.blurred(x, turn)
            x = self.resized(x, turn, (height, width) if last and turn else None)
            x = self.noisy(x, turn)
            if not last:
                x = self.compressed(x, turn)
        x = self.ended(x, params.order - 1, height, width)
        return Degraded(to_8_bit(x), factor, self.steps)

    def note(self, name: str, **numbers: Any) -> None:
        """Note a step and the numbers that were drawn for it."""
        self.steps.append((name, numbers))

    def blurred(self, x: Tensor, turn: int) -> Tensor:
        """Blurred by a random Gaussian or sinc kernel, or as it is."""
        params, rng = self.params, self.rng
        if rng.random() >= params.blur[turn]:
            return x
        if rng.random() < params.sinc:
            return self.rung(x, "sinc")
        wide = narrow = float(rng.uniform(*params.blur_deviation[turn]))
        angle = 0.0
        if rng.random() < params.anisotropic:
            narrow, angle = float(rng.uniform(*params.blur_deviation[turn])), float(rng.uniform(0, math.pi))
        self.note("blur", wide=wide, narrow=narrow, angle=angle)
        return filtered(x, gaussian_kernel(params.kernel, wide, narrow, angle))

    def rung(self, x: Tensor, name: str) -> Tensor:
        """Rung by a sinc filter of random cut-off; name: what the step is called."""
        cutoff = float(self.rng.uniform(*self.params.sinc_cutoff))
        self.note(name, cutoff=cutoff)
        return filtered(x, sinc_kernel(self.params.kernel, cutoff))

    def resized(self, x: Tensor, turn: int, towards: tuple[int, int] | None) -> Tensor:
        """To a random size; in the second round relative to the LR's, as Real-ESRGAN has it."""
        params, rng = self.params, self.rng
        low, high = params.resize_range[turn]
        kind = int(rng.choice(3, p=params.resize))
        scale = 1.0
        if kind == 0 and high > 1:
            scale = float(rng.uniform(max(1.0, low), high))
        elif kind == 1 and low < 1:
            scale = float(rng.uniform(low, min(1.0, high)))
        height, width = towards or (x.shape[-2], x.shape[-1])
        mode = str(rng.choice(["area", "bilinear", "bicubic"]))
        size = max(8, round(height * scale)), max(8, round(width * scale))
        self.note("resize", scale=scale, mode=mode, size=size)
        return _resampled(x, *size, mode)

    def noisy(self, x: Tensor, turn: int) -> Tensor:
        """With Gaussian or shot noise added, grey or in colour, or as it is."""
        params, rng = self.params, self.rng
        if rng.random() >= params.noise[turn]:
            return x
        level = float(rng.uniform(*params.noise_level[turn])) / 255
        shot, grey = bool(rng.random() < params.shot), bool(rng.random() < params.grey)
        generator = torch.Generator().manual_seed(int(rng.integers(2**62)))
        shape = (1, 1 if grey else x.shape[1], *x.shape[-2:])
        noise = torch.randn(shape, generator=generator).to(x)
        strength = level
        if shot:  # deviation as the root of the brightness, ``level`` at mid-grey
            bright = x.mean(1, keepdim=True) if grey else x
            strength = level * (bright.clamp(0, 1) * 2).sqrt()
        self.note("noise", level=level * 255, shot=shot, grey=grey)
        return (x + strength * noise).clamp(0, 1)

    def compressed(self, x: Tensor, turn: int) -> Tensor:
        """Through JPEG of random quality, or as it is."""
        params, rng = self.params, self.rng
        if rng.random() >= params.jpeg[turn]:
            return x
        quality = round(rng.uniform(*params.jpeg_quality[turn]))
        self.note("jpeg", quality=quality)
        return jpeg_round_trip(x, quality)

    def ended(self, x: Tensor, turn: int, height: int, width: int) -> Tensor:
        """To the LR's size, JPEG, and a sinc filter before or after it."""
        ring, first = self.rng.random() < self.params.final_sinc, self.rng.random() < 0.5
        x = _resampled(x, height, width, "bicubic")
        if ring and first:
            x = self.rung(x, "final_sinc")
        x = self.compressed(x, turn)
        return self.rung(x, "final_sinc") if ring and not first else x


def _resampled(x: Tensor, height: int, width: int, mode: str) -> Tensor:
    if mode == "bicubic":
        return resize(x, height, width)
    if mode == "area":
        return F.interpolate(x, (height, width), mode="area")
    return F.interpolate(x, (height, width), mode="bilinear", antialias=True, align_corners=False)
