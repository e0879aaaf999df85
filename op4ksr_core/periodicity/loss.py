"""L_AP: the part of an error that repeats from token to token, as a training loss.

The name and the idea (an autocorrelation-based periodicity loss) are the OP4KSR paper's; its
formula is not public. This one is ours: the unbiased mean of all lattice-lag autocorrelations of
the high-passed error, over what the same sum gives at periods nearby. The error is divided by its
own local strength first: a mesh is seen where the picture is quiet, and edges hide it.

Its gradient is that of the tile which all places share, and not the formula's own: that falls as well when
tiles move apart, so that models trained on it learned to draw an anti-mesh, a pattern whose tiles cancel,
wherever they knew their place (seen: stripes and chequers of about 16 px on smooth slopes).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, autocast, nn

from ..errors import ImageError, OptionError
from .local_mean import high_pass, local_power

#: Standard errors, estimated from the periods nearby, that a repetition must exceed to count.
MARGIN = 3.0


def lattice_correlation(error: Tensor, period: int) -> Tensor | None:
    """(B, C, H, W) -> (B,): mean product of all pairs of pixels that lie whole periods apart, unbiased.

    With n tiles: (|sum of tiles|^2 - sum of |tile|^2) / (n (n - 1)), mean over the tile's pixels.
    None where fewer than two whole tiles fit.
    """
    cut = _tiles(error, period)
    if cut is None:
        return None
    tiles, n = cut
    total = tiles.sum((2, 4)).square().mean((1, 2, 3))
    alone = tiles.square().mean((1, 2, 3, 4, 5)) * n
    return (total - alone) / (n * (n - 1))


def shared_tile_energy(error: Tensor, period: int) -> Tensor | None:
    """(B, C, H, W) -> (B,): mean square of the mean tile; None where fewer than two whole tiles fit."""
    cut = _tiles(error, period)
    return None if cut is None else cut[0].mean((2, 4)).square().mean((1, 2, 3))


def _tiles(error: Tensor, period: int) -> tuple[Tensor, int] | None:
    """(B, C, rows, period, columns, period) and rows * columns; None for fewer than two."""
    rows, columns = error.shape[-2] // period, error.shape[-1] // period
    if rows * columns < 2:
        return None
    error = error[..., : rows * period, : columns * period]
    return error.reshape(*error.shape[:2], rows, period, columns, period), rows * columns


def periods_nearby(period: int) -> tuple[int, ...]:
    """Up to ten odd lengths around an even period, which share no short multiple with it: what chance gives."""
    odd = [p for p in range(max(3, period // 2), 2 * period) if p % 2 and p != period]
    return tuple(sorted(odd, key=lambda p: (abs(p - period), p))[:10])


def _evened(error: Tensor) -> Tensor:
    """The error over its local strength, of about 1 everywhere; 0 stays 0."""
    local = local_power(error.detach().square().mean(1, keepdim=True))
    return error / (local + (1 / 255) ** 2).sqrt()


class PeriodicityLoss(nn.Module):
    """forward(prediction, target) -> scalar >= 0, for pictures (B, C, H, W) of any size and float type.

    Per picture and period P: relu(U(P) - mean U(nearby) - margin * sd U(nearby)) / mean e^2, where e
    is the high-passed error over the root of its local energy (17 px; at least 1/255) and U is
    ``lattice_correlation``; mean over both. The gradient is of |mean tile|^2 in U's place, weighted so that
    the value is the same; all else is constant.
    It is the share of the error that repeats: 0 for an error that does not, 1 at most. Computed in
    float32 whatever the inputs. Periods that do not fit twice are skipped.

    Raises OptionError for periods under 4 px, ImageError where the shapes differ or are not 4-D.
    """

    def __init__(self, periods: Sequence[int] = (8, 16, 32), margin: float = MARGIN) -> None:
        super().__init__()
        if not periods or min(periods) < 4 or any(p != int(p) for p in periods):
            raise OptionError(f"periods: expected whole numbers of px from 4 up, got {tuple(periods)}")
        if not margin >= 0:
            raise OptionError(f"margin: expected a number from 0 up, got {margin}")
        self.periods = tuple(int(p) for p in periods)
        self.margin = float(margin)

    def extra_repr(self) -> str:
        return f"periods={self.periods}, margin={self.margin:g}"

    def forward(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Two pictures (B, C, H, W) of one shape, any float dtype -> scalar float32 in [0, 1]; 0 where no period fits.

        Raises ImageError where the shapes differ or are not 4-D.
        """
        if prediction.shape != target.shape or prediction.ndim != 4:
            raise ImageError(
                "periodicity loss: expected two pictures (B, C, H, W) of one shape, "
                f"got {tuple(prediction.shape)} and {tuple(target.shape)}"
            )
        with autocast(prediction.device.type, enabled=False):
            error = _evened(high_pass(prediction.float() - target.float()))
            energy = error.detach().square().mean((1, 2, 3)) + 1e-12
            parts = [self._repeated(error, period) for period in self.periods]
            shares = [part / energy for part in parts if part is not None]
            if not shares:
                return error.sum() * 0
            return torch.stack(shares).mean()

    def _repeated(self, error: Tensor, period: int) -> Tensor | None:
        """(B,): error energy that repeats with that period and not merely by chance; None where it does not fit."""
        shared = shared_tile_energy(error, period)
        if shared is None:
            return None
        with torch.no_grad():
            own = lattice_correlation(error, period)
            assert own is not None
            found = [lattice_correlation(error, p) for p in periods_nearby(period)]
            chance = torch.stack([u for u in found if u is not None] or [torch.zeros_like(own)])
            level = chance.mean(0) + self.margin * chance.std(0, correction=0)
            weight = (own - level).relu() / shared.clamp(min=1e-12)
        return weight * shared
