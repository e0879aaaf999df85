"""Free periods from the autocorrelation alone."""

from __future__ import annotations

import pytest
import torch

from op4ksr_core.periodicity.autocorrelation import from_power, mean_power
from op4ksr_core.periodicity.periods import comb_period, tile_period


@pytest.mark.parametrize("period", [(4, 4), (7, 7), (32, 32), (61, 61), (80, 80), (12, 30)])
def test_tiles_in_noise(period, generator) -> None:
    tile = torch.randn(*period, generator=generator)
    plane = tile.repeat(400 // period[0] + 1, 400 // period[1] + 1)[:400, :400]
    found = tile_period(from_power(mean_power(plane + 0.7 * torch.randn(400, 400, generator=generator))))
    assert (found.rows, found.columns) == pytest.approx(period, rel=0.03) and found.z > 7


def test_noise_has_no_period(generator) -> None:
    found = tile_period(from_power(mean_power(torch.randn(400, 400, generator=generator))))
    assert found.z < 5


@pytest.mark.parametrize("period", [9, 20, 37])
def test_combs_have_one_axis(period: int, generator) -> None:
    line = torch.randn(period, generator=generator).repeat(400 // period + 1)[:400]
    noise = torch.randn(400, 400, generator=generator)
    standing, lying = (comb_period(mean_power(noise + x)) for x in (line, line[:, None]))
    assert (standing.rows, standing.columns) == (0, pytest.approx(period, rel=0.03)) and standing.z > 5
    assert (lying.rows, lying.columns) == (pytest.approx(period, rel=0.03), 0) and lying.z > 5


def test_small_planes_still_answer(generator) -> None:
    found = tile_period(from_power(mean_power(torch.randn(64, 70, generator=generator))))
    assert 4 <= found.rows <= 80 and found.z < 7
