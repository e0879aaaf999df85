"""Folding: a tile comes back from under noise, chance and edges do not, and gains are what the places hold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from op4ksr_core.periodicity.folding import (
    LARGEST_GAIN,
    PLAIN,
    WIDE_BOX,
    Folded,
    alternated,
    estimate_artifact,
    fit_gains,
    phases_of,
    quietness,
    shrunk_tile,
    unfold,
)
from op4ksr_core.periodicity.local_mean import box_mean

SIZE = (320, 320)
PHASES = phases_of(SIZE, (16.0, 16.0))
ONE = torch.ones(SIZE)


@pytest.fixture
def noise(generator) -> Tensor:
    return torch.randn(SIZE, generator=generator)


@pytest.fixture
def tile(generator) -> Tensor:
    tile = torch.randn(16, 16, generator=torch.Generator().manual_seed(1))
    return tile - tile.mean()


def estimate(plane: Tensor, place: Tensor | None = None, contrast: Tensor | None = None, side: int = 17) -> Folded:
    detail = plane - box_mean(plane, side)
    return estimate_artifact(
        detail, plane - box_mean(plane, WIDE_BOX), quietness(detail), place, contrast, PHASES, side
    )


def rms(plane: Tensor) -> float:
    return float(plane.square().mean().sqrt())


def test_places_in_the_tile_are_those_of_the_rounded_period() -> None:
    phases = phases_of((60, 70), (5.6, 12.4))
    assert phases.count == (6, 12)
    assert phases.rows[:13].tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 5, 0]
    assert phases.signs[0][:12].tolist() == [1] * 6 + [-1] * 6


def test_a_tile_comes_back_from_under_noise_without_its_mean(noise, tile) -> None:
    spectrum = shrunk_tile(3 * noise + unfold(tile, PHASES) + 5, ONE, ONE, PHASES)
    assert spectrum[0, 0] == 0
    assert rms(torch.fft.ifft2(spectrum).real - tile) < 0.25 * rms(tile)


def test_noise_is_no_tile(noise) -> None:
    assert not shrunk_tile(noise, ONE, ONE, PHASES).any()
    assert estimate(noise).confidence < 2 and rms(estimate(noise).artifact) < 0.02


def test_chance_is_taken_off_what_exceeds_it(noise, tile) -> None:
    """Beneath loud noise what is found of a weak tile is less than the tile, and not nothing."""
    shares: list[float] = []
    for seed in range(10):
        fresh = torch.randn(SIZE, generator=torch.Generator().manual_seed(seed))
        found = torch.fft.ifft2(shrunk_tile(8 * fresh + unfold(tile, PHASES), ONE, ONE, PHASES)).real
        shares.append(float((found * tile).sum() / tile.square().sum()))
    assert 0.2 < sum(shares) / len(shares) < 0.8


@pytest.mark.parametrize("axis", [0, 1])
def test_an_edge_is_no_tile(noise, axis: int) -> None:
    """The same in every period along it, but in one of them across."""
    edge = torch.zeros(SIZE)
    edge.select(axis, 165).fill_(60.0)
    spectrum = shrunk_tile(edge + noise, ONE, ONE, PHASES)
    assert rms(torch.fft.ifft2(spectrum).real) < 0.05 * rms(edge)
    assert [plane.shape for plane in alternated(edge, PHASES)] == [SIZE] * 3


def test_gains_are_what_each_place_holds(noise, tile) -> None:
    left = ONE.clone()
    left[:, 160:] = 0
    field = unfold(tile, PHASES)
    gains = fit_gains(2 * field * left + noise, ONE, field, PHASES)
    assert float(gains[:, :130].mean()) == pytest.approx(2, abs=0.1) and float(gains[:, 190:].mean()) < 0.05
    assert float(fit_gains(20 * field, ONE, field, PHASES).max()) == LARGEST_GAIN
    nothing = fit_gains(20 * noise, ONE, field, PHASES)
    assert float(nothing.std()) < 0.1, "where it is not certain, as much as around it"


def test_half_a_picture_is_cleaned_and_the_other_left(noise, tile) -> None:
    truth = 2 * unfold(tile, PHASES)
    truth[:, 160:] = 0
    found = estimate(3 * noise + truth)
    assert found.confidence > 10 and found.explained > 0
    assert rms(found.artifact - truth) < 0.3 * rms(truth)
    assert float(found.artifact[:, 200:].abs().mean()) < 0.02 < 1.3 < float(found.artifact[:, :120].abs().mean())


def test_it_is_looked_for_in_its_place(noise, tile) -> None:
    """Another tile of the same period fills the other four fifths."""
    truth = unfold(tile.flip(0, 1), PHASES)
    truth[:, :64] = unfold(tile, PHASES)[:, :64]
    place = torch.full(SIZE, 0.02)
    place[:, :64] = 1
    found = {at: estimate(truth + noise, at).artifact[:, :64] for at in (place, None)}
    errors = [rms(artifact - truth[:, :64]) for artifact in found.values()]
    assert errors[0] < 0.4 * rms(tile) and errors[0] < 0.6 * errors[1]


def test_quiet_pixels_tell_more(noise, tile) -> None:
    truth = unfold(tile, PHASES)
    loud = noise.clone()
    loud[:, 64:] *= 30
    assert rms((estimate(truth + loud).artifact - truth)[:, :64]) < 0.5 * rms(tile)


def test_it_is_no_surer_than_every_pixel_alike_makes_it(noise, tile, monkeypatch) -> None:
    picture = 3 * noise + unfold(tile, PHASES)
    assert estimate(picture).confidence > 10
    monkeypatch.setattr("op4ksr_core.periodicity.folding._plainly", lambda *_: 0.5)
    assert estimate(picture).confidence == PLAIN * 0.5


def test_what_goes_with_the_contrast_is_found_with_it(noise, tile) -> None:
    contrast = torch.linspace(0.2, 1.8, 320).expand(SIZE)
    truth = 2 * unfold(tile, PHASES) * contrast
    with_it, without = estimate(noise + truth, contrast=contrast), estimate(noise + truth)
    assert with_it.explained >= without.explained
    assert rms(with_it.artifact - truth) < 0.25 * rms(truth)


def test_what_the_box_took_is_put_back_where_it_holds(noise) -> None:
    """A slow tile of 32 px, of which a box of 17 px takes a good part."""
    phases = phases_of(SIZE, (32.0, 32.0))
    wave = torch.sin(torch.arange(32) * (2 * torch.pi / 32))
    truth = 3 * unfold(wave[:, None] + wave[None], phases)
    picture = truth + noise
    detail = picture - box_mean(picture, 17)
    assert rms(truth - box_mean(truth, 17)) < 0.8 * rms(truth), "nothing was taken: the test shows nothing"
    wide = picture - box_mean(picture, WIDE_BOX)
    found = estimate_artifact(detail, wide, quietness(detail), None, None, phases, 17)
    kept = estimate_artifact(detail, noise, quietness(detail), None, None, phases, 17)
    assert rms(found.artifact - truth) < 0.15 * rms(truth) < rms(kept.artifact - truth)
