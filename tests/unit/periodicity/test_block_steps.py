"""Steps at block borders: found where they are, by period; slopes, noise and tiles are none."""

from __future__ import annotations

import pytest
import torch

from op4ksr_core.periodicity.block_steps import (
    SHORTEST_BORDER,
    _best_phase,
    block_map,
    block_steps,
    step_profile,
    step_shares,
)


def blocky(side: int, period: int, strength: float, generator: torch.Generator) -> torch.Tensor:
    count = side // period + 1
    offsets = torch.randn(count, count, generator=generator) * strength
    index = (torch.arange(side) + 5) // period
    return offsets[index][:, index] + torch.randn(side, side, generator=generator)


@pytest.mark.parametrize("period", [64, 32, 16])
def test_blocks_are_found_at_their_period(period: int, generator) -> None:
    steps = block_steps(blocky(320, period, 3.0, generator))
    assert steps.exclusive[period] > 6
    assert steps.exclusive[period] == max(steps.exclusive.values())


def test_noise_and_slopes_have_no_steps(generator) -> None:
    noise = torch.randn(320, 320, generator=generator)
    slope = torch.arange(320.0)[None] * 3 + noise
    for plane in (noise, slope):
        assert max(block_steps(plane).exclusive.values()) < 5 and block_steps(plane).full[8] < 4


def test_the_profile_marks_the_border_columns(generator) -> None:
    profile = step_profile(blocky(256, 32, 3.0, generator))
    assert profile.shape == (255,)
    borders = [26 + 32 * k for k in range(1, 6)]
    assert min(float(profile[b]) for b in borders) > 2 * float(profile.abs().median())


@pytest.mark.parametrize("size", [(16, 16), (64, 20), (30, 300), (64, 64)])
def test_small_planes_give_zeros_not_errors(size, generator) -> None:
    steps = block_steps(torch.randn(*size, generator=generator))
    assert all(z == z and z < 6 for z in steps.full.values())


def test_the_map_says_where_the_blocks_are(generator) -> None:
    plane = torch.randn(320, 384, generator=generator)
    plane[:, 192:] = blocky(320, 32, 3.0, generator)[:, :192]
    heat = block_map(plane, 32, (10, 12))
    assert heat.shape == (10, 12)
    assert float(heat[:, 7:].mean()) > 5 and float(heat[:, :5].mean()) < 2
    assert not block_map(torch.zeros(64, 64), 32, (2, 2)).any()


def test_one_axis_alone_is_enough(generator) -> None:
    """Blocks as high as the picture: what is found across is not halved by what is missing down."""
    plane = torch.randn(320, 320, generator=generator)
    plane += (3 * torch.randn(11, generator=generator))[(torch.arange(320) + 5) // 32]
    across, down = (_best_phase(step_profile(part), 32, True) for part in (plane, plane.T))
    assert across > 6 > 3 > down and block_steps(plane).exclusive[32] == across


def test_narrow_pictures_have_no_blocks_of_their_own(generator) -> None:
    plane = blocky(320, 32, 3.0, generator)
    assert block_steps(plane[:SHORTEST_BORDER]).exclusive[32] > 6
    narrow = block_steps(plane[: SHORTEST_BORDER - 1])
    assert not any(narrow.exclusive.values()) and narrow.full[32] > 6


def test_a_step_like_its_neighbours_has_a_share_of_half(generator) -> None:
    shares = step_shares(torch.randn(320, 2000, generator=generator))
    assert shares.shape == (19, 1999) and float(shares.mean()) == pytest.approx(0.36, abs=0.05)
    even = step_shares((torch.arange(64) % 2 * 100.0).expand(64, 64))
    assert torch.allclose(even[:, 10:-10], torch.tensor(0.5), atol=1e-3)
