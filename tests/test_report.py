"""The report picture: one size, for any picture; hot where it should be; nothing drawn outside."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from op4ksr_core.artifacts import inject, to_8_bit
from op4ksr_core.periodicity import measure_periodicity
from op4ksr_core.report import HEIGHT, WIDTH, colours, draw_report


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


def test_alarm_and_clear_differ_and_are_the_same_each_time(natural) -> None:
    clean = to_8_bit(natural(256, 320, 5))
    spoilt = to_8_bit(inject(clean, "white32", 4.0))
    drawn = [np.asarray(draw_report(x, measure_periodicity(x, token=32))) for x in (clean, spoilt, spoilt)]
    assert (drawn[1] == drawn[2]).all()
    assert (drawn[0][4, 4] != drawn[1][4, 4]).any()  # the band on top


@pytest.mark.parametrize(("kind", "told"), [("comb32", "comb"), ("block32", "blocks")])
def test_the_other_kinds_draw_too(natural, kind: str, told: str) -> None:
    spoilt = to_8_bit(inject(natural(256, 320, 5), kind, 8.0, seed=1))
    report = measure_periodicity(spoilt, token=32)
    assert report.kind == told and draw_report(spoilt, report).size == (WIDTH, HEIGHT)
