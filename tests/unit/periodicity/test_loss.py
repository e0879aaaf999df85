"""L_AP: nothing on errors that do not repeat, more for more, and its descent takes the mesh away."""

from __future__ import annotations

import pytest
import torch
from torch import autocast

import op4ksr_core
from benchmarks.periodicity import descent
from op4ksr_core import ImageError, OptionError, PeriodicityLoss
from op4ksr_core.images.resize import resize
from op4ksr_core.periodicity.artifacts import inject
from op4ksr_core.periodicity.loss import lattice_correlation, periods_nearby, shared_tile_energy


@pytest.fixture(scope="module")
def clean(natural) -> torch.Tensor:
    return natural(192, 192)


@pytest.fixture(scope="module")
def blurred(clean) -> torch.Tensor:
    return resize(resize(clean, 48, 48), 192, 192)


def test_lattice_correlation_is_the_mean_over_all_pairs(generator) -> None:
    error = torch.randn(2, 1, 9, 6, generator=generator)
    tiles = error.unfold(2, 3, 3).unfold(3, 3, 3).flatten(2, 3)  # 2, 1, 6, 3, 3
    pairs = [(tiles[:, 0, i] * tiles[:, 0, j]).mean((1, 2)) for i in range(6) for j in range(6) if i != j]
    found = lattice_correlation(error, 3)
    assert found is not None and torch.allclose(found, torch.stack(pairs).mean(0), atol=1e-6)
    assert lattice_correlation(error, 7) is None


def test_no_error_costs_nothing(clean) -> None:
    assert float(PeriodicityLoss()(clean, clean)) == 0


def test_errors_that_do_not_repeat_cost_nothing(clean, blurred) -> None:
    loss = PeriodicityLoss()
    assert float(loss(blurred, clean)) < 1e-4
    noise = [torch.randn(clean.shape, generator=torch.Generator().manual_seed(s)) * 0.02 for s in range(10)]
    costs = [float(loss(clean + n, clean)) for n in noise]
    assert sum(cost > 0 for cost in costs) <= 1 and max(costs) < 1e-3


@pytest.mark.parametrize("kind", ["pink8", "pink16", "pink32"])
def test_more_costs_more_from_half_a_grey_level_on(clean, kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    error = torch.randn(clean.shape, generator=generator) * (2 / 255)
    grey = torch.full_like(clean, 0.5)
    tile = inject(grey, kind, 1.0, seed=1) - grey
    costs = [float(PeriodicityLoss()(clean + error + a * tile, clean)) for a in (0.5, 1, 2, 4, 8)]
    assert costs[0] > 0 and all(a < b for a, b in zip(costs, costs[1:], strict=False)) and costs[-1] > 0.1


def test_other_periods_cost_far_less(generator) -> None:
    tiles = [torch.randn(p, p, generator=generator) for p in (32, 27)]
    errors = [tile.repeat(8, 8)[None, None, :192, :192] * 0.02 for tile in tiles]
    at_32, at_27 = (float(PeriodicityLoss()(error, torch.zeros_like(error))) for error in errors)
    assert at_27 < 0.01 * at_32


def test_descent_takes_the_mesh_away(clean) -> None:
    assert descent(clean, seed=2) > 4


def test_a_pattern_whose_tiles_cancel_does_not_pay() -> None:
    """What a model draws at places that it knows must not grow under errors that repeat by chance.

    With the gradient of U itself it grew to 4 times its size in these steps.
    """
    generator = torch.Generator().manual_seed(4)
    tile = torch.randn(1, 1, 16, 16, generator=generator)
    start = torch.cat([torch.cat([tile, -tile], 3), torch.cat([-tile, tile], 3)], 2).repeat(1, 1, 2, 2) * 0.004
    pattern = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([pattern], 3.0)
    loss, moved = PeriodicityLoss(periods=(16,), margin=0.0), 0.0
    for _ in range(60):
        noise = 0.02 * torch.randn(8, 1, 64, 64, generator=generator)
        optimizer.zero_grad()
        loss(noise + pattern, torch.zeros_like(noise)).backward()
        moved += float(pattern.grad.norm())  # pyright: ignore
        optimizer.step()
    assert moved > 0.01, "no error repeated by chance: the test shows nothing"
    assert float((pattern.detach() * start).sum() / start.square().sum()) < 1.05


def test_the_shared_tile_is_the_mean_of_all(generator) -> None:
    error = torch.randn(2, 3, 13, 9, generator=generator)
    tiles = [error[:, :, y : y + 4, x : x + 4] for y in (0, 4, 8) for x in (0, 4)]
    expected = torch.stack(tiles).mean(0).square().mean((1, 2, 3))
    found = shared_tile_energy(error, 4)
    assert found is not None and torch.allclose(found, expected, atol=1e-6)
    assert shared_tile_energy(error, 8) is None


def test_the_batch_is_the_mean_of_its_pictures(clean, blurred) -> None:
    loss = PeriodicityLoss()
    spoilt = inject(clean, "white16", 3.0)
    both = loss(torch.cat([spoilt, blurred]), torch.cat([clean, clean]))
    assert float(both) == pytest.approx((float(loss(spoilt, clean)) + float(loss(blurred, clean))) / 2, rel=1e-4)


@pytest.mark.parametrize("size", [(64, 64), (70, 333), (16, 16), (9, 40)])
def test_any_size_has_finite_gradients(size, generator) -> None:
    target = torch.rand(1, 3, *size, generator=generator)
    prediction = (target + 0.05 * torch.rand(1, 3, *size, generator=generator)).requires_grad_()
    loss = PeriodicityLoss()(prediction, target)
    loss.backward()
    assert loss.ndim == 0 and bool(torch.isfinite(loss)) and bool(torch.isfinite(prediction.grad).all())


def test_half_precision_is_computed_in_float32(clean) -> None:
    spoilt = inject(clean, "white16", 4.0)
    exact = float(PeriodicityLoss()(spoilt.bfloat16().float(), clean.bfloat16().float()))
    with autocast("cpu", torch.bfloat16):
        cost = PeriodicityLoss()(spoilt.bfloat16(), clean.bfloat16())
    assert cost.dtype == torch.float32 and float(cost) == pytest.approx(exact, rel=1e-5)


def test_periods_nearby_are_odd_and_different() -> None:
    for period in (8, 16, 32):
        near = periods_nearby(period)
        assert len(near) >= 5 and period not in near and all(p % 2 for p in near)


def test_what_cannot_be_meant_is_said() -> None:
    with pytest.raises(OptionError, match="periods"):
        PeriodicityLoss(periods=(2,))
    with pytest.raises(OptionError, match="margin"):
        PeriodicityLoss(margin=-1)
    with pytest.raises(ImageError, match="one shape"):
        PeriodicityLoss()(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 9))


def test_it_is_one_import() -> None:
    assert op4ksr_core.PeriodicityLoss is PeriodicityLoss and "margin=3" in repr(PeriodicityLoss())
