"""Whether a short period is a mesh, the same everywhere, or the trace of enlarging, whose sign follows the picture.

evidence.py calls ``is_mesh`` for each period that periods.py found, and counts it only where that is true.

Enlarging by n leaves a pattern of n px wherever the picture bends: its autocorrelation has that
period as clearly as a mesh's. But folded block by block over the period, a mesh gives the same
tile each time, and the trace one that turns its sign with the picture.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .folding import phases_of
from .periods import FoundPeriod

#: Periods up to this, px, may be what enlarging leaves.
LONGEST_ENLARGING = 12.5

#: Side of a block in periods, of the part of the picture that is looked at in px, and fewest blocks to say anything.
BLOCK, LARGEST_PART, FEWEST_BLOCKS = 16, 1024, 9

#: Least share of the blocks' energy that must be in phase. Photos enlarged by 4 to 8 (nearest, linear, cubic;
#: 12 photos): up to 0.18, in one direction up to 0.30; a random tile of half a grey level in a photo: from 0.33.
LEAST_COHERENCE = 0.25

#: A period is known to 0.05 px: these shifts are tried.
SHIFTS = (0.0, -0.0125, 0.0125, -0.025, 0.025)


def is_mesh(white: Tensor, found: FoundPeriod) -> bool:
    """Whether what repeats is in phase all over the picture. True also where that cannot be decided.

    white: (H, W), whitened luma. Our choice: only periods up to 12.5 px are asked.
    """
    longest = max(found.rows, found.columns)
    if found.z <= 0 or longest > LONGEST_ENLARGING:
        return True
    part = _middle(white)
    if min(part.shape) < BLOCK * longest * FEWEST_BLOCKS**0.5:
        return True
    tried = [(found.rows + s * (found.rows > 0), found.columns + s * (found.columns > 0)) for s in SHIFTS]
    return any(coherence(part, period) > LEAST_COHERENCE for period in tried)


def coherence(plane: Tensor, period: tuple[float, float]) -> float:
    """Energy of the sum of all blocks' folded tiles over the most that it could be: in phase 1, by chance 1 / blocks.

    plane: (H, W); period: px (rows, columns; 0: nothing varies along it). Blocks are weighed alike,
    so that a contrasty one does not decide.
    """
    tiles = _block_tiles(plane, period)
    energy = tiles.square().sum(-1, keepdim=True)
    tiles = tiles / (energy + 0.1 * energy.mean() + 1e-12).sqrt()
    count = tiles.shape[0] * tiles.shape[1]
    return float(tiles.sum((0, 1)).square().sum() / tiles.square().sum().clamp(min=1e-12)) / count


def _block_tiles(plane: Tensor, period: tuple[float, float]) -> Tensor:
    """(rows of blocks, columns of blocks, p q): each block folded over the period, mean 0."""
    phases = phases_of((plane.shape[0], plane.shape[1]), period)
    side = BLOCK * max(period)
    blocks = [max(1, int(length / side)) for length in plane.shape]
    of_row, of_column = (torch.arange(n) * b // n for n, b in zip(plane.shape, blocks, strict=True))
    (p, q), (br, bc) = phases.count, blocks
    down = plane.new_zeros(br * p, plane.shape[1]).index_add_(0, of_row * p + phases.rows, plane)
    both = plane.new_zeros(br * p, bc * q).index_add_(1, of_column * q + phases.columns, down)
    tiles = both.reshape(br, p, bc, q).permute(0, 2, 1, 3).flatten(2)
    return tiles - tiles.mean(-1, keepdim=True)


def _middle(plane: Tensor) -> Tensor:
    """Up to 1024 x 1024 px from the middle."""
    for axis in (0, 1):
        length = min(plane.shape[axis], LARGEST_PART)
        plane = plane.narrow(axis, (plane.shape[axis] - length) // 2, length)
    return plane
