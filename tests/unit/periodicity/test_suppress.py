"""The suppressor gives back what was injected, and otherwise keeps its hands off."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import op4ksr_core
from op4ksr_core import OptionError, measure_periodicity, suppress_periodicity
from op4ksr_core.images.io import to_8_bit
from op4ksr_core.images.metrics import psnr
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import inject, random_tile, real_texture
from op4ksr_core.periodicity.folding import Folded, fold, phases_of, unfold
from op4ksr_core.periodicity.suppress import (
    Suppression,
    _cleaned,
    _opponent,
    _place,
    find_artifact,
    for_8_bit,
    is_8_bit,
    suppress_with_report,
)
from op4ksr_core.periodicity.thresholds import LEAST_AFTER_ALARM, LEAST_CONFIDENCE


@pytest.fixture(scope="module")
def clean(natural) -> torch.Tensor:
    return to_8_bit(natural(288, 320, 5))


@pytest.fixture(scope="module")
def low(clean) -> torch.Tensor:
    return to_8_bit(resize(clean, 72, 80))


@pytest.fixture(scope="module")
def spoilt(clean) -> torch.Tensor:
    return to_8_bit(inject(clean, "white32", 4.0, seed=1))


@pytest.fixture(scope="module")
def removed(spoilt) -> Suppression:
    return suppress_with_report(spoilt)


@pytest.mark.parametrize(
    ("kind", "with_reference"),
    [("white32", False), ("comb32", False), ("white24", False), ("pink16", True), ("comb32", True), ("mult32", True)],
)
def test_what_was_injected_goes(clean, low, kind: str, with_reference: bool) -> None:
    spoilt = to_8_bit(inject(clean, kind, 4.0, seed=1))
    reference = low if with_reference else None
    result = suppress_with_report(spoilt, reference)
    assert result.acted and psnr(result.image, clean) > psnr(spoilt, clean) + 3
    assert measure_periodicity(result.image, reference).score < 0.5 * result.report.score
    assert result.mask.shape == (1, 1, 288, 320) and float(result.mask.mean()) > 0.2


def test_clean_pictures_come_back_as_they_are(clean, low) -> None:
    assert suppress_periodicity(clean) is clean
    result = suppress_with_report(clean, low)
    assert result.image is clean and not result.acted and not result.mask.any()
    assert "no periodic artifact" in result.note


def test_real_texture_stays_with_its_reference() -> None:
    wall = to_8_bit(real_texture(256, 320, 32, seed=2))
    assert suppress_periodicity(wall, to_8_bit(resize(wall, 64, 80))) is wall


@pytest.mark.parametrize("with_reference", [False, True])
@pytest.mark.parametrize(
    ("kind", "grey_levels"), [("pink32", 0.25), ("pink32", 0.5), ("pink32", 1), ("region32", 1), ("region32", 8)]
)
@pytest.mark.slow
def test_nothing_gets_worse(clean, low, kind: str, grey_levels: float, with_reference: bool) -> None:
    spoilt = to_8_bit(inject(clean, kind, grey_levels, seed=2))
    reference = low if with_reference else None
    result = suppress_with_report(spoilt, reference)
    assert psnr(result.image, clean) >= psnr(spoilt, clean) - 0.1
    assert measure_periodicity(result.image, reference).score <= result.report.score


def test_a_region_goes_and_the_rest_stays(clean, low) -> None:
    spoilt = clean.clone()
    spoilt[..., 160:] = to_8_bit(inject(clean, "white32", 4.0, seed=1))[..., 160:]
    result = suppress_with_report(spoilt, low)
    assert psnr(result.image[..., 160:], clean[..., 160:]) > psnr(spoilt[..., 160:], clean[..., 160:]) + 3
    assert psnr(result.image[..., :128], clean[..., :128]) > 50


@pytest.mark.parametrize("with_reference", [False, True])
def test_forced_on_a_clean_picture_it_does_next_to_nothing(clean, low, with_reference: bool) -> None:
    forced = suppress_with_report(clean, low if with_reference else None, period=(32.0, 32.0))
    assert psnr(forced.image, clean) >= 60


@pytest.mark.parametrize("with_reference", [False, True])
def test_a_straight_edge_is_not_a_tile(clean, with_reference: bool) -> None:
    framed = clean.clone()  # the same in every period along the edge, but in one column of periods only
    framed[..., :, 300:] = 0
    framed[..., :9, :] = 0
    forced = suppress_with_report(
        framed, to_8_bit(resize(framed, 72, 80)) if with_reference else None, period=(32.0, 32.0)
    )
    assert psnr(forced.image, framed) >= 60


def test_a_coloured_mesh_goes_too(clean, low) -> None:
    colour = torch.tensor([1.0, 0.1, -0.3])[None, :, None, None]
    tile = random_tile(16, True, torch.Generator().manual_seed(3)).repeat(18, 20)
    spoilt = to_8_bit(clean + colour * tile * 6 / 255)
    assert psnr(suppress_periodicity(spoilt, low), clean) > psnr(spoilt, clean) + 3


def test_one_channel_and_batches(clean, spoilt) -> None:
    grey = clean.mean(1, keepdim=True)
    one = inject(grey, "white16", 4.0, seed=1)[:, :1]
    assert psnr(suppress_periodicity(one), grey) > psnr(one, grey) + 3
    both = torch.cat([clean, spoilt])
    result = suppress_with_report(both)
    assert torch.equal(result.image[0], both[0]) and not torch.equal(result.image[1], both[1])
    assert not result.mask[0].any() and result.mask[1].any() and result.report.picture == 1


def test_strength_is_a_share(spoilt, removed) -> None:
    whole, half = removed.image - spoilt, suppress_periodicity(spoilt, strength=0.5) - spoilt
    assert float(half.square().mean().sqrt()) == pytest.approx(0.5 * float(whole.square().mean().sqrt()), rel=0.05)
    assert suppress_periodicity(spoilt, strength=0) is spoilt
    with pytest.raises(OptionError, match="strength"):
        suppress_periodicity(spoilt, strength=1.5)


def test_blocks_are_left_and_the_note_says_so(clean) -> None:
    spoilt = to_8_bit(inject(clean, "block32", 10.0, seed=1))
    result = suppress_with_report(spoilt)
    assert result.report.kind == "blocks" and result.image is spoilt and "block" in result.note


def test_it_is_one_import() -> None:
    assert op4ksr_core.suppress_periodicity is suppress_periodicity


@pytest.mark.parametrize("period", [(5.0, 7.0), (12.5, 12.5), (0.0, 9.0)])
def test_folding_and_unfolding_agree(period, generator) -> None:
    phases = phases_of((60, 70), period)
    tile = torch.randn(phases.count, generator=generator)
    count = fold(torch.ones(60, 70), phases)
    assert float(count.sum()) == 60 * 70 and torch.allclose(fold(unfold(tile, phases), phases), tile * count, atol=1e-4)


@pytest.mark.slow
def test_rounded_to_8_bit_it_stays_clean(natural) -> None:
    """Whole numbers less a tile, rounded as usual, hold the tile's rounding: as periodic as the tile."""
    spoilt = to_8_bit(inject(natural(480, 640, 5), "pink32", 4.0, 3))
    cleaned = suppress_periodicity(spoilt)
    kept = for_8_bit(cleaned, spoilt)
    assert is_8_bit(kept) and float((kept - cleaned).abs().max()) < 1.01 / 255
    assert measure_periodicity(kept).score < measure_periodicity(to_8_bit(cleaned)).score / 2
    assert for_8_bit(spoilt, spoilt).equal(spoilt)
    assert for_8_bit(cleaned, spoilt).equal(kept), "another picture each time"
    soft = spoilt * 0.999
    assert for_8_bit(cleaned, soft) is cleaned and not is_8_bit(soft)


def test_half_the_period_is_enough(natural) -> None:
    clean = natural(320, 384, 5)
    spoilt = to_8_bit(inject(clean, "white32", 6.0, 3))
    report = replace(measure_periodicity(spoilt), period=(16.0, 16.0))
    cleaned, note = _cleaned(spoilt, None, (16.0, 16.0), report, False)
    assert note == "" and cleaned is not None
    assert psnr(cleaned, clean) > psnr(spoilt, clean) + 6


def test_strength_0_says_so(spoilt) -> None:
    done = suppress_with_report(spoilt, strength=0.0)
    assert done.image is spoilt and done.note == "Nothing changed: strength is 0."


def test_too_small_to_judge_is_not_called_clean(clean) -> None:
    done = suppress_with_report(clean[..., :40])
    assert done.image.shape[-1] == 40 and done.note == (
        "Nothing changed: too small to judge, at least 64 px on each side are needed."
    )


def test_fewer_than_three_periods_are_left(clean) -> None:
    done = suppress_with_report(clean, period=(0.0, 120.0))
    assert done.image is clean and done.note == "Nothing changed: fewer than 3 periods fit into the picture."
    assert "fewer" not in suppress_with_report(clean, period=(0.0, 100.0)).note


def test_what_the_luma_does_not_show_leaves_the_colours_alone(clean) -> None:
    colour = torch.tensor([1.0, -0.299 / 0.587, 0.0])[None, :, None, None]  # luma 0
    tile = random_tile(16, True, torch.Generator().manual_seed(3)).repeat(18, 20)
    assert not find_artifact(clean + colour * tile * 6 / 255, None, (16.0, 16.0)).any()
    assert find_artifact(clean + tile * 6 / 255, None, (16.0, 16.0)).any()


def test_an_estimate_that_would_add_detail_is_not_believed(clean, monkeypatch) -> None:
    def believed(sign: float) -> bool:
        def estimate(detail: torch.Tensor, *_: object) -> Folded:
            return Folded(sign * detail, explained=1.0, confidence=9.0)

        monkeypatch.setattr("op4ksr_core.periodicity.suppress.estimate_artifact", estimate)
        return bool(find_artifact(clean, None, (16.0, 16.0)).any())

    assert believed(1.0) and not believed(-1.0)


def test_each_picture_has_its_own_reference_and_least_confidence(clean, low, spoilt, monkeypatch) -> None:
    asked: list[tuple[bool, float, float | None]] = []

    def nothing(image: torch.Tensor, reference: torch.Tensor | None, *rest: Any) -> torch.Tensor:
        asked.append((rest[1] is None, rest[2], None if reference is None else float(reference.mean())))
        return torch.zeros_like(image)

    monkeypatch.setattr("op4ksr_core.periodicity.suppress.find_artifact", nothing)
    both, lows = torch.cat([spoilt, spoilt]), torch.cat([low, low * 0.9])
    means = [pytest.approx(float(x.mean())) for x in lows]
    for references, expected in ((None, [None, None]), (low, [means[0]] * 2), (lows, means)):
        asked.clear()
        done = suppress_with_report(both, references)
        least = LEAST_CONFIDENCE if references is None else LEAST_AFTER_ALARM
        assert not done.acted and asked == [(False, least, mean) for mean in expected for _ in (1, 2)]
    asked.clear()
    suppress_with_report(clean, low, period=(32.0, 32.0))
    assert asked == [(True, LEAST_CONFIDENCE, means[0])] and LEAST_CONFIDENCE > LEAST_AFTER_ALARM >= 2


def test_it_is_looked_for_where_the_heat_is(clean) -> None:
    spoilt = clean.clone()
    spoilt[..., 160:] = to_8_bit(inject(clean, "white32", 4.0, seed=1))[..., 160:]
    place = _place(measure_periodicity(spoilt))
    assert place is not None and place.shape == (288, 320)
    assert float(place[:, 200:].mean()) > 0.8 and float(place[:, :96].mean()) < 0.3 and float(place.min()) > 0
    assert _place(measure_periodicity(clean)) is None


def test_planes_that_are_not_sure_are_left(clean, monkeypatch) -> None:
    sure = iter((5.0, 3.9, 4.1))

    def estimate(detail: torch.Tensor, *_: object) -> Folded:
        return Folded(torch.ones_like(detail), explained=1.0, confidence=next(sure))

    monkeypatch.setattr("op4ksr_core.periodicity.suppress._best_estimate", estimate)
    planes = _opponent(find_artifact(clean, None, (16.0, 16.0)))
    assert [round(float(plane.mean()), 2) for plane in planes] == [1.0, 0.0, 1.0]
