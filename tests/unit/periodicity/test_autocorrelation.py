"""Folded windows and the autocorrelation, against their definitions."""

from __future__ import annotations

import pytest
import torch

from op4ksr_core.periodicity.autocorrelation import (
    folded_spectra,
    from_power,
    hann,
    mean_power,
    sample,
    window_side,
    window_starts,
)


@pytest.mark.parametrize(("length", "side"), [(4096, 256), (256, 256), (255, 128), (64, 64), (10, 64)])
def test_window_side(length: int, side: int) -> None:
    assert window_side(length) == side


@pytest.mark.parametrize("length", [256, 257, 300, 511, 1000])
def test_windows_reach_from_border_to_border(length: int) -> None:
    starts = window_starts(length, 256)
    assert starts[-1] + 256 <= length and starts[-1] + 256 >= length - 1
    assert all(0 < b - a <= 128 for a, b in zip(starts, starts[1:], strict=False))


def test_folding_gives_the_even_bins_of_the_window(generator) -> None:
    plane = torch.randn(256, 256, generator=generator)
    taper = hann(256, plane.device)
    whole = torch.fft.rfft2(plane * taper[:, None] * taper)
    assert torch.allclose(folded_spectra(plane)[0, 0], whole[::2, ::2], atol=1e-2)


def test_a_lattice_keeps_its_phase_in_every_window(generator) -> None:
    tile = torch.randn(32, 32, generator=generator)
    spectra = folded_spectra(tile.repeat(14, 11))  # 448 x 352: windows do not start at multiples of 32
    assert spectra.shape[:2] == (3, 2)
    lattice = spectra[:, :, 4::4, 4:-1:4].flatten(0, 1)
    assert float((lattice - lattice[0]).abs().max()) < 1e-3 * float(lattice.abs().max())
    assert float(spectra[:, :, 1::2, 1::2].abs().max()) < 1e-3 * float(lattice.abs().max())


def test_autocorrelation_peaks_at_the_period(generator) -> None:
    tile = torch.randn(24, 24, generator=generator)
    found = from_power(mean_power(tile.repeat(12, 14) + torch.randn(288, 336, generator=generator)))
    ly, lx = found.reach
    assert float(found.values[ly + 24, lx + 24]) > 6 * found.sd
    assert abs(float(found.values[ly + 20, lx + 24])) < 6 * found.sd
    assert float(found.values[ly, lx]) == 0


def test_sample_is_bilinear() -> None:
    values = torch.arange(12.0).view(3, 4)
    rows, columns = torch.tensor([0.5, 2.0]), torch.tensor([1.25, 3.0])
    assert sample(values, rows, columns).tolist() == pytest.approx([3.25, 11.0])
