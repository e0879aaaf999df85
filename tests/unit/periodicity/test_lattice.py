"""Line statistics: chance gives 0, a lattice much, on the tile's own classes and axes."""

from __future__ import annotations

import pytest
import torch

from op4ksr_core.periodicity.autocorrelation import folded_spectra
from op4ksr_core.periodicity.lattice import axis_lines, coherent, excess, incoherent, interior_lines, neighbourhoods


@pytest.fixture(scope="module")
def noise() -> torch.Tensor:
    return torch.randn(512, 512, generator=torch.Generator().manual_seed(5))


def tile_z(plane: torch.Tensor, period: int) -> float:
    lines = interior_lines(folded_spectra(plane))
    return float(excess(coherent(lines), lines.own(period), lines.controls()))


def test_white_noise_is_chance(noise) -> None:
    lines = interior_lines(folded_spectra(noise))
    for power in (coherent(lines), incoherent(lines)):
        for period in (64, 32, 16, 8):
            assert abs(float(excess(power, lines.own(period), lines.controls()))) < 4


@pytest.mark.parametrize("period", [64, 32, 16, 8])
def test_a_tile_shows_in_its_own_class_and_those_of_its_parts(noise, period: int) -> None:
    tile = torch.randn(period, period, generator=torch.Generator().manual_seed(1))
    plane = noise + 0.3 * tile.repeat(512 // period, 512 // period)
    assert tile_z(plane, period) > 8
    assert all(tile_z(plane, longer) < 0.5 * tile_z(plane, period) for longer in (64, 32, 16) if longer > period)


def test_lines_show_on_their_axis_alone(noise) -> None:
    line = torch.randn(32, generator=torch.Generator().manual_seed(1)).repeat(16)
    for axis, plane in ((0, noise + 0.3 * line[:, None]), (1, noise + 0.3 * line)):
        spectra = folded_spectra(plane)
        z = []
        for along in (0, 1):
            lines = axis_lines(spectra, along)
            z.append(float(excess(coherent(lines), lines.on_lattice(32), lines.controls(), log=True)))
        assert z[axis] > 5 and abs(z[1 - axis]) < 4 and abs(tile_z(plane, 32)) < 4


def test_small_windows_have_no_long_periods(noise) -> None:
    lines = interior_lines(folded_spectra(noise[:64, :64]))
    assert not lines.on_lattice(32).any() and lines.on_lattice(16).any()
    assert float(excess(coherent(lines), lines.on_lattice(32), lines.controls())) == 0


def test_windows_left_out_do_not_count(noise) -> None:
    tile = torch.randn(32, 32, generator=torch.Generator().manual_seed(1))
    plane = noise.clone()
    plane[:, :256] += 0.5 * tile.repeat(16, 8)
    lines = interior_lines(folded_spectra(plane))
    keep = torch.tensor([[False, False, True]]).expand(3, 3)
    kept = lines.kept(keep)
    z = [float(excess(coherent(x), x.own(32), x.controls())) for x in (lines, kept)]
    assert z[0] > 8 and abs(z[1]) < 4
    nothing = lines.kept(torch.zeros(3, 3, dtype=torch.bool))
    assert float(excess(coherent(nothing), nothing.own(32), nothing.controls())) == 0


def test_neighbourhoods_are_sums_of_windows(noise) -> None:
    lines = interior_lines(folded_spectra(noise))
    found = dict(neighbourhoods(lines, (1, 2, 4)))
    assert {side: tuple(power.shape[:2]) for side, power in found.items()} == {1: (3, 3), 2: (2, 2)}
    signal, weight = lines.signal[1:, 1:].sum((0, 1)), lines.weight[1:, 1:].sum((0, 1))
    assert torch.allclose(found[2][1, 1], signal.abs().square() / weight, rtol=1e-3)
