"""The enlarger's strips: the whole picture, whatever their height, and no row computed twice."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from op4ksr_core import OptionError
from op4ksr_core.models.enlarger import Enlarger, EnlargerParams
from op4ksr_core.models.enlarger_strips import enlarged, least_rows


def enlarger(blocks: int = 2, dtype: torch.dtype = torch.float64) -> Enlarger:
    torch.manual_seed(1)
    return Enlarger(EnlargerParams(width=8, blocks=blocks), dtype=dtype).eval().requires_grad_(False)


def picture(height: int, width: int = 12) -> torch.Tensor:
    return torch.rand(1, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("height", [1, 2, 6, 7, 8, 14, 15, 41])
@pytest.mark.parametrize("rows", [1, 7, 8, 40, 64])
def test_strips_are_the_whole(factor: int, height: int, rows: int) -> None:
    """In float64, in which a row that were missing or seen at a seam would show; 7 rows are the least there are."""
    model, low = enlarger(), picture(height)
    strips = [*enlarged(model, low, factor, 0.3, rows)]
    assert least_rows(model) == 7 and len(strips) == -(-height // max(7, rows))
    torch.testing.assert_close(torch.cat(strips, 2), model(low, factor, 0.3), rtol=0, atol=1e-12)


def test_the_last_strip_may_be_a_single_row() -> None:
    model, low = enlarger(5), picture(27)
    strips = [*enlarged(model, low, 2, 1.0, 13)]
    assert [strip.shape[-2] // 2 for strip in strips] == [1, 13, 13]
    torch.testing.assert_close(torch.cat(strips, 2), model(low, 2, 1.0), rtol=0, atol=1e-12)


def test_hardly_more_is_computed_than_of_the_whole() -> None:
    """Two rows a seam; with a halo on both sides it would be 12 of the 13 rows of a strip."""
    model, low = enlarger(5, torch.float32), picture(130, 40).float()
    with FlopCounterMode(display=False) as whole:
        model(low, 4)
    with FlopCounterMode(display=False) as cut:
        for _ in enlarged(model, low, 4, 0.0, 13):
            pass
    assert whole.get_total_flops() < cut.get_total_flops() <= (1 + 2 * 9 / 130) * whole.get_total_flops()


def test_a_factor_without_a_head_is_refused() -> None:
    with pytest.raises(OptionError, match="expected a factor of 2, 3, 4, got 5; choose one"):
        next(enlarged(enlarger(), picture(8), 5, 0.0, 64))
