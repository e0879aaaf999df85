"""Short periods: a mesh is in phase everywhere, what enlarging leaves is not."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core import measure_periodicity
from op4ksr_core.images.io import to_8_bit
from op4ksr_core.periodicity.artifacts import random_tile, tiled
from op4ksr_core.periodicity.autocorrelation import from_power, mean_power
from op4ksr_core.periodicity.coherence import coherence, is_mesh
from op4ksr_core.periodicity.evidence import gather_evidence
from op4ksr_core.periodicity.local_mean import high_pass, local_energy
from op4ksr_core.periodicity.meter import grey_plane
from op4ksr_core.periodicity.periods import FoundPeriod, comb_period, tile_period


def whitened(picture: Tensor) -> Tensor:
    detail = high_pass(grey_plane(picture[0]))
    return detail / local_energy(detail).sqrt()


@pytest.mark.parametrize("mode", ["nearest", "bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [4, 8])
def test_what_enlarging_leaves_is_no_mesh(natural, mode: str, factor: int) -> None:
    small = natural(1024 // factor, 1024 // factor, 5)
    white = whitened(to_8_bit(F.interpolate(small, scale_factor=factor, mode=mode)))
    assert tile_period(from_power(mean_power(white))).z > 7  # the autocorrelation alone is deceived
    assert not is_mesh(white, FoundPeriod(factor, factor, 50.0))


@pytest.mark.parametrize("factor", [3, 4, 4.3, 6])
def test_an_enlarged_picture_raises_no_alarm(natural, factor: float) -> None:
    small = natural(200, 240, 4)
    enlarged = to_8_bit(F.interpolate(small, scale_factor=factor, mode="bicubic"))
    assert not measure_periodicity(enlarged).alarm
    assert not measure_periodicity(enlarged, small).alarm


@pytest.mark.parametrize("period", [4.0, 4.33, 5.5, 8.0, 12.0])
def test_a_tile_is_a_mesh(natural, period: float) -> None:
    generator = torch.Generator().manual_seed(1)
    rows, columns = torch.meshgrid(torch.arange(640.0), torch.arange(640.0), indexing="ij")
    scale = round(period) / period
    tile = tiled(random_tile(round(period), False, generator), rows * scale, columns * scale)
    white = whitened(to_8_bit(natural(640, 640, 3) + 1.5 * tile / 255))
    assert is_mesh(white, tile_period(from_power(mean_power(white))))


def test_lines_are_a_mesh(natural) -> None:
    wave = torch.sin(torch.arange(640) * (2 * torch.pi / 8))[:, None]
    white = whitened(to_8_bit(natural(640, 640, 3) + wave * 1.5 / 255))
    lines = comb_period(mean_power(white))
    assert lines.columns == 0 and is_mesh(white, lines)


def test_coherence_of_noise_and_of_a_tile(generator) -> None:
    noise = torch.randn(512, 512, generator=generator)
    assert coherence(noise, (8.0, 8.0)) < 0.15
    assert coherence(noise[:8, :8].repeat(64, 64), (8.0, 8.0)) > 0.99


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("factor", [4, 8])
@pytest.mark.slow
def test_enlarging_in_one_direction_leaves_no_lines(natural, mode: str, factor: int) -> None:
    small = natural(1024 // factor, 1024, 5)
    evidence = gather_evidence(grey_plane(to_8_bit(F.interpolate(small, (1024, 1024), mode=mode))[0]))
    assert evidence.lines.z > 5 and evidence.lines.rows == factor and evidence.lines.columns == 0
    assert [s.z for s in evidence.statistics if s.family == "free_lines"] == [0]


def test_a_weak_tile_is_enough(natural) -> None:
    """A quarter of a grey level, less than the picture's own detail: not all of it is in phase."""
    tile = random_tile(8, False, torch.Generator().manual_seed(1)).repeat(80, 80)
    white = whitened(to_8_bit(natural(640, 640, 3) + 0.25 * tile / 255))
    assert coherence(white, (8.0, 8.0)) < 0.6 and is_mesh(white, FoundPeriod(8.0, 8.0, 9.0))


def test_a_period_known_to_a_twentieth_of_a_px_is_enough(generator) -> None:
    tile = torch.randn(8, 8, generator=generator).repeat(128, 128)
    for off in (-0.025, 0.02):
        assert coherence(tile, (8 + off, 8 + off)) < 0.25, "nothing to mend: the test shows nothing"
        assert is_mesh(tile, FoundPeriod(8 + off, 8 + off, 9.0))


def test_neither_one_loud_block_nor_the_brightness_decides(generator) -> None:
    noise = torch.randn(512, 512, generator=generator)
    tile = torch.randn(8, 8, generator=generator).repeat(64, 64)
    loud = tile.clone()
    loud[:128, :128] += 100 * noise[:128, :128]
    assert coherence(loud, (8.0, 8.0)) > 0.8 and coherence(noise + 5, (8.0, 8.0)) < 0.15


def test_long_periods_and_small_pictures_are_not_asked() -> None:
    noise = torch.randn(1024, 1024, generator=torch.Generator().manual_seed(1))
    assert is_mesh(noise, FoundPeriod(13.0, 13.0, 9.0)) and not is_mesh(noise, FoundPeriod(12.0, 12.0, 9.0))
    for seed in range(8):  # 4 blocks are in phase by chance as often as not
        small = torch.randn(380, 380, generator=torch.Generator().manual_seed(seed))
        assert is_mesh(small, FoundPeriod(8.0, 8.0, 9.0))


def test_where_it_cannot_be_decided_the_period_stands(generator) -> None:
    noise = torch.randn(100, 512, generator=generator)
    assert is_mesh(noise, FoundPeriod(8.0, 8.0, 9.0))  # too few blocks
    assert is_mesh(noise, FoundPeriod(32.0, 32.0, 9.0)) and is_mesh(noise, FoundPeriod(0.0, 0.0, 0.0))
