"""The injected artifacts are what their names say."""

from __future__ import annotations

import pytest
import torch

from op4ksr_core.errors import OptionError
from op4ksr_core.images.io import jpeg_round_trip, to_8_bit
from op4ksr_core.periodicity.artifacts import KINDS, _contrast, inject, pattern, real_texture
from op4ksr_core.periodicity.local_mean import local_contrast


@pytest.mark.parametrize("kind", [k for k in KINDS if k != "region32"])
def test_rms_is_1(kind: str, natural) -> None:
    field = pattern(kind, natural(128, 192), seed=1)
    assert field.shape == (1, 1, 128, 192)
    assert float(field.square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


def test_region_is_a_quarter_and_1_inside(natural) -> None:
    field = pattern("region32", natural(128, 192), seed=1)
    inside = field != 0
    assert float(inside.float().mean()) == pytest.approx(0.25, abs=0.01)
    assert float(field[inside].square().mean().sqrt()) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("kind", ["white32", "pink16", "white24", "comb32"])
def test_tiles_repeat_exactly(kind: str, natural) -> None:
    field = pattern(kind, natural(128, 192), seed=2)
    period = int(KINDS[kind][1])
    assert torch.allclose(field[..., period:], field[..., :-period], atol=1e-5)
    assert torch.allclose(field[..., period:, :], field[..., :-period, :], atol=1e-5)
    assert float((field[..., 5:] - field[..., :-5]).abs().max()) > 0.1 or kind == "comb32"


def test_inject_is_in_grey_levels_and_seeded() -> None:
    grey = torch.full((1, 3, 64, 64), 0.5)
    spoilt = inject(grey, "white32", 2.0, seed=3)
    assert float((spoilt - grey).square().mean().sqrt() * 255) == pytest.approx(2, abs=1e-3)
    assert torch.equal(spoilt, inject(grey, "white32", 2.0, seed=3))
    assert not torch.equal(spoilt, inject(grey, "white32", 2.0, seed=4))


def test_the_contrast_is_the_remover_s(natural) -> None:
    picture = natural(128, 192)
    assert torch.allclose(_contrast(picture)[0, 0], local_contrast(picture.mean(1)[0] * 255), atol=0.02)


def test_unknown_kind_names_those_there_are() -> None:
    with pytest.raises(OptionError, match="white32"):
        inject(torch.zeros(1, 3, 64, 64), "white33", 1.0)


def test_8_bit_and_jpeg(natural) -> None:
    picture = natural(64, 64)
    assert torch.equal(to_8_bit(picture), to_8_bit(to_8_bit(picture)))
    assert 0 < float((jpeg_round_trip(picture, 50) - picture).abs().mean()) < 0.1


def test_real_texture_repeats_but_not_exactly() -> None:
    wall = real_texture(128, 128, 32, seed=1)
    own, other = ((wall[..., p:] - wall[..., :-p]).abs().mean() for p in (32, 13))
    assert 0 < float(own) < 0.6 * float(other)
