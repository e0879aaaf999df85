"""The report picture: one size, for any picture; hot where it should be; nothing drawn outside."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import ImageDraw
from torch import Tensor

from op4ksr_core.images.io import to_8_bit
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import inject
from op4ksr_core.periodicity.drawing import PANEL, colours
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.periodicity.report import PeriodicityReport
from op4ksr_core.periodicity.report_picture import (
    GAP,
    HEIGHT,
    MARGIN,
    WIDTH,
    _best_seen,
    _marks,
    _what_repeats,
    draw_report,
)


@pytest.fixture(scope="module")
def clean(natural) -> Tensor:
    return to_8_bit(natural(256, 320, 5))


@pytest.fixture(scope="module")
def spoilt(clean) -> Tensor:
    return to_8_bit(inject(clean, "white32", 4.0, seed=1))


@pytest.fixture(scope="module")
def alarm(spoilt) -> PeriodicityReport:
    return measure_periodicity(spoilt)


@pytest.fixture(scope="module")
def blocky(clean) -> tuple[Tensor, PeriodicityReport]:
    picture = to_8_bit(inject(clean, "block32", 8.0, seed=1))
    return picture, measure_periodicity(picture, token=32)


def test_colours_rise_in_lightness() -> None:
    ramp = np.asarray(colours(torch.linspace(0, 1, 64)[None]).convert("L"))[0].astype(int)
    assert (np.diff(ramp) >= 0).all() and ramp[-1] - ramp[0] > 150


@pytest.mark.parametrize("size", [(16, 16), (64, 700), (700, 64), (200, 300)])
def test_any_size_with_and_without_reference(size, generator) -> None:
    image = torch.rand(2, 3, *size, generator=generator)
    low = image[..., ::4, ::4]
    for reference in (None, low):
        drawn = draw_report(image, measure_periodicity(image, reference), reference)
        assert drawn.size == (WIDTH, HEIGHT) and drawn.mode == "RGB"


def test_one_channel_and_flat_pictures() -> None:
    flat = torch.full((1, 1, 80, 80), 0.5)
    assert draw_report(flat, measure_periodicity(flat)).size == (WIDTH, HEIGHT)


def test_alarm_and_clear_differ_and_are_the_same_each_time(clean, spoilt, alarm) -> None:
    reports = ((clean, measure_periodicity(clean)), (spoilt, alarm), (spoilt, measure_periodicity(spoilt)))
    drawn = [np.asarray(draw_report(picture, report)) for picture, report in reports]
    assert (drawn[1] == drawn[2]).all()
    assert (drawn[0][4, 4] != drawn[1][4, 4]).any()  # the band on top


def test_the_other_kinds_draw_too(clean, blocky) -> None:
    lines = to_8_bit(inject(clean, "comb32", 8.0, seed=1))
    for (picture, report), kind in (((lines, measure_periodicity(lines, token=32)), "comb"), (blocky, "blocks")):
        assert report.kind == kind and draw_report(picture, report).size == (WIDTH, HEIGHT)


# --- what is on it ----------------------------------------------------------------------------

#: y of the upper row of panels, and their x.
TOP, LEFTS = 184, [MARGIN + i * (PANEL + GAP) for i in range(3)]


def pixels(image: Tensor, report: PeriodicityReport, reference: Tensor | None = None) -> np.ndarray:
    return np.asarray(draw_report(image, report, reference)).astype(int)


@pytest.fixture
def words(monkeypatch) -> Callable[..., str]:
    """words(image, report, reference=None) -> all that is written on the report."""
    found: list[str] = []
    write = ImageDraw.ImageDraw.text

    def recorded(self: ImageDraw.ImageDraw, at: tuple[float, float], text: str, *rest: object, **how: object) -> None:
        found.append(text)
        write(self, at, text, *rest, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(ImageDraw.ImageDraw, "text", recorded)

    def written(image: Tensor, report: PeriodicityReport, reference: Tensor | None = None) -> str:
        found.clear()
        draw_report(image, report, reference)
        return " ".join(found)

    return written


@pytest.fixture
def rings(monkeypatch) -> list[tuple[float, float]]:
    found: list[tuple[float, float]] = []
    monkeypatch.setattr(
        "op4ksr_core.periodicity.report_picture.draw_ring", lambda draw, x, y, radius: found.append((x, y))
    )
    return found


def test_the_report_is_on_the_picture_that_it_names(natural, spoilt) -> None:
    both = torch.cat([to_8_bit(natural(256, 320, 4)), spoilt])
    report = measure_periodicity(both)
    assert report.picture == 1
    assert (pixels(both, report) == pixels(spoilt, replace(report, picture=0))).all()


def test_the_heat_glows_where_it_is(spoilt, alarm) -> None:
    report = alarm
    heat = torch.zeros_like(report.heatmap)
    cold = pixels(spoilt, replace(report, heatmap=heat.clone()))
    heat[..., 6:] = 1
    hot = pixels(spoilt, replace(report, heatmap=heat))
    change = np.abs(hot - cold)[TOP + 2 : TOP + 310, LEFTS[0] : LEFTS[0] + PANEL].mean((0, 2))
    assert change[: PANEL // 2].max() == 0 and change[270:385].min() > 10


def test_the_close_up_is_where_it_is_hot_and_little_else(generator) -> None:
    picture = torch.full((3, 320, 320), 0.5) + 0.02 * torch.randn(1, 320, 320, generator=generator)
    report = measure_periodicity(picture[None])
    heat = torch.zeros(1, 1, 10, 10)
    assert _best_seen(replace(report, heatmap=heat), picture) == (0.5, 0.5)
    heat[..., 1:4, 1:4] = heat[..., 6:9, 6:9] = 1
    busy, white = picture.clone(), picture.clone()
    busy[:, 160:, 160:] += 0.2 * torch.randn(160, 160, generator=generator)
    white[:, :160, :160] = 1.0
    for spoilt, first in ((busy, True), (white, False)):
        y, x = _best_seen(replace(report, heatmap=heat), spoilt)
        low, high = (0.1, 0.4) if first else (0.6, 0.9)
        assert low < y < high and low < x < high


def test_the_band_and_the_bar_show_the_score(spoilt, alarm, generator) -> None:
    small = torch.rand(1, 3, 40, 200, generator=generator)
    clear = measure_periodicity(to_8_bit(torch.rand(1, 3, 256, 256, generator=generator)))
    bands = [tuple(pixels(x, r)[4, 4]) for x, r in ((small, measure_periodicity(small)), (spoilt, alarm))]
    assert len({*bands, (0, 92, 150)}) == 3 and not clear.alarm
    for score, share in ((0.0, 0), (3.0, 0.5), (60.0, 1)):
        row = pixels(spoilt, replace(alarm, score=score))[66, 881:1247]
        assert (row == bands[1]).all(-1).mean() == pytest.approx(share, abs=0.02)


def test_a_reference_shows_the_detail_before_and_after(clean, spoilt) -> None:
    low = resize(clean, 64, 80).clamp(0, 1)
    drawn = pixels(spoilt, measure_periodicity(spoilt, low), low)[TOP : TOP + PANEL]
    before, after = (drawn[:, left : left + PANEL] for left in LEFTS[1:])
    assert after.std() > 1.1 * before.std()


def test_marks_lie_within_reach() -> None:
    assert _marks(8.0, 30.0) == [-24, -16, -8, 0, 8, 16, 24] and _marks(None, 30.0) == [0.0]
    assert _marks(32.0, 96.0) == [-64, -32, 0, 32, 64], "a ring on the border would be cut off"


def test_rings_are_where_the_period_repeats(clean, spoilt, alarm, blocky, rings) -> None:
    draw_report(spoilt, alarm)
    assert len(rings) == (5 * 5 - 1) + (7 * 7 - 1), "up to 96 px, and up to 0.13 cycles per px"
    for picture, report in (blocky, (clean, measure_periodicity(clean))):
        rings.clear()
        draw_report(picture, report)
        assert rings == []


def test_what_is_said(clean, spoilt, alarm, words) -> None:
    said = words(spoilt, measure_periodicity(spoilt, token=16))
    assert "strength, there about 4" in said or "strength, there about 3" in said
    assert "Take it out of this picture" in said and "moved by: px, under it tokens" in said
    assert "none given" in said and "bricks" not in said
    assert "tokens" not in words(spoilt, alarm)
    assert "Nothing to do." in words(clean, measure_periodicity(clean))
    low = resize(clean, 64, 80)
    assert "reference used" in words(spoilt, measure_periodicity(spoilt, low), low)
    loud = to_8_bit(inject(clean, "white32", 24.0, seed=1))
    assert "bricks" in words(loud, measure_periodicity(loud))
    assert "bricks" not in words(loud, measure_periodicity(loud, low), low)


def test_blocks_do_not_repeat(blocky) -> None:
    picture, report = blocky
    assert _what_repeats(picture[0], None, report, (0.5, 0.5)) is None
