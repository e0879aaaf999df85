"""Every term's gradient against finite differences, and what each term is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from op4ksr_core import OptionError
from op4ksr_core.periodicity.local_mean import box_mean, high_pass
from op4ksr_core.periodicity.loss import PeriodicityLoss, lattice_correlation, periods_nearby, shared_tile_energy
from op4ksr_core.training.config import LossConfig
from op4ksr_core.training.tasks import perceptual
from op4ksr_core.training.tasks.objectives import (
    Objective,
    PatchDiscriminator,
    distance,
    fool,
    frequency_distance,
    gradient_distance,
    inner,
    judge_loss,
)
from op4ksr_core.training.tasks.perceptual import perceptual_loss


@pytest.fixture
def pair(generator) -> tuple[Tensor, Tensor]:
    target = torch.rand(2, 3, 10, 14, dtype=torch.float64, generator=generator) * 2 - 1
    output = target + 0.3 * torch.randn(target.shape, dtype=torch.float64, generator=generator)
    return output.requires_grad_(), target


@pytest.mark.parametrize("kind", ["l1", "l2", "charbonnier"])
def test_distances_have_the_gradients_of_finite_differences(pair, kind: str) -> None:
    output, target = pair
    assert torch.autograd.gradcheck(lambda x: distance(x, target, kind), output)
    assert torch.autograd.gradcheck(lambda x: gradient_distance(x, target, kind), output)


def test_frequency_distance_has_the_gradient_of_finite_differences(pair) -> None:
    output, target = pair
    assert torch.autograd.gradcheck(lambda x: frequency_distance(x, target), output)


def test_the_judges_terms_have_the_gradients_of_finite_differences(pair) -> None:
    output, target = pair
    torch.manual_seed(0)
    judge = PatchDiscriminator(4).double().eval()  # eval: the spectral norm's power iteration stands still
    assert torch.autograd.gradcheck(lambda x: fool(judge, x), output)
    weight = judge.body[-1].weight

    def own(value: Tensor) -> Tensor:
        return torch.func.functional_call(_Judging(judge), {"judge.body.6.weight": value}, (output, target))

    assert torch.autograd.gradcheck(own, weight.detach().clone().requires_grad_())


class _Judging(torch.nn.Module):
    def __init__(self, judge: torch.nn.Module) -> None:
        super().__init__()
        self.judge = judge

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        return judge_loss(self.judge, output, target)


def test_l_ap_has_the_gradient_of_finite_differences_with_its_weights_held(generator) -> None:
    """Only the shared tile has a gradient; local strength, weights and energy are constants by design."""
    target = torch.rand(2, 3, 96, 96, dtype=torch.float64, generator=generator)
    tile = 0.05 * torch.randn(1, 3, 16, 16, dtype=torch.float64, generator=generator)
    noise = 0.01 * torch.randn(target.shape, dtype=torch.float64, generator=generator)
    start = target + tile.repeat(1, 1, 6, 6) + noise
    error = high_pass(start - target)
    local = (box_mean(error.square().mean(1, keepdim=True)).clamp(min=0) + (1 / 255) ** 2).sqrt()
    evened = error / local
    energy = evened.square().mean((1, 2, 3)) + 1e-12
    weights = {}
    for period in (8, 16, 32):
        chance = torch.stack([lattice_correlation(evened, p) for p in periods_nearby(period)])  # type: ignore[misc]
        level = chance.mean(0) + 3.0 * chance.std(0, correction=0)
        weights[period] = (lattice_correlation(evened, period) - level).relu() / shared_tile_energy(evened, period)  # type: ignore[operator]

    def held(x: Tensor) -> Tensor:
        e = high_pass(x - target) / local
        parts = [weight * shared_tile_energy(e, p) / energy for p, weight in weights.items()]
        return torch.stack(parts).mean()

    output = start.clone().requires_grad_()
    loss = PeriodicityLoss()(output, target)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(float(held(start)), rel=1e-4) and float(loss.detach()) > 0.1
    for seed in range(4):
        way = torch.randn(start.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        way = tile.repeat(1, 1, 6, 6) + 0.1 * way
        slope = (held(start + 1e-5 * way) - held(start - 1e-5 * way)) / 2e-5
        assert float((output.grad * way).sum()) == pytest.approx(float(slope), rel=1e-3)


@pytest.mark.parametrize("kind", ["gmsd", "haarpsi", "ssim"])
def test_perceptual_terms_fall_towards_the_target(natural, kind: str) -> None:
    try:
        loss = perceptual_loss(kind)
    except OptionError as error:
        pytest.skip(str(error))
    target = natural(96, 96) * 2 - 1
    worse = torch.nn.functional.avg_pool2d(target, 5, 1, 2).requires_grad_()
    cost = loss(worse, target)
    cost.backward()
    assert float(cost.detach()) > float(loss(target, target)) and float(worse.grad.abs().sum()) > 0


@pytest.mark.parametrize("kind", ["gmsd", "haarpsi", "ssim"])
def test_perceptual_terms_have_the_gradients_of_finite_differences(generator, kind: str) -> None:
    try:
        loss = perceptual_loss(kind)
    except OptionError as error:
        pytest.skip(str(error))
    target = 1.4 * torch.rand(1, 3, 20, 20, dtype=torch.float64, generator=generator) - 0.7
    output = target + 0.05 * torch.randn(target.shape, dtype=torch.float64, generator=generator)
    assert torch.autograd.gradcheck(lambda x: loss(x, target), output.requires_grad_())


def test_a_perceptual_term_that_is_not_known_is_refused_with_those_that_are() -> None:
    with pytest.raises(
        OptionError, match="^perceptual loss: expected one of gmsd, .*lpips, dists, efficientnet; got 'vgg'$"
    ):
        perceptual_loss("vgg")


def test_frequency_distance_sees_every_scale() -> None:
    x = torch.linspace(0, 1, 64)
    fine = ((torch.arange(64) % 2).float() - 0.5).expand(1, 3, 64, 64)
    coarse = (torch.sin(6.28 * x) / 2).expand(1, 3, 64, 64)
    zero = torch.zeros(1, 3, 64, 64)
    assert float(frequency_distance(fine, zero)) > 0 and float(frequency_distance(coarse, zero)) > 0
    assert float(frequency_distance(coarse, zero, 3)) > float(frequency_distance(coarse, zero, 1))
    assert float(frequency_distance(fine, fine)) == 0


def test_inner_cuts_the_border_where_enough_is_left() -> None:
    assert inner(torch.zeros(1, 3, 128, 160), 32).shape == (1, 3, 64, 96)
    assert inner(torch.zeros(1, 3, 96, 160), 32).shape == (1, 3, 96, 160)
    assert inner(torch.zeros(1, 3, 128, 128), 0).shape == (1, 3, 128, 128)


# --- each term by hand --------------------------------------------------------------------------


def test_distances_by_hand() -> None:
    a, b = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.0, 0.0, 1.0])
    assert float(distance(a, b)) == pytest.approx(4 / 3) and float(distance(a, b, "l2")) == pytest.approx(10 / 3)
    charbonnier = ((1 + 1e-6) ** 0.5 + 1e-3 + (9 + 1e-6) ** 0.5) / 3 - 1e-3
    assert float(distance(a, b, "charbonnier")) == pytest.approx(charbonnier, rel=1e-6)
    assert float(distance(a, a, "charbonnier")) == pytest.approx(0, abs=1e-8)


def test_differences_down_and_across_count_alike() -> None:
    zero = torch.zeros(1, 3, 8, 8)
    down = torch.arange(8.0)[:, None].expand(1, 3, 8, 8)
    both = down + 3 * torch.arange(8.0).expand(1, 3, 8, 8)
    assert float(gradient_distance(down, zero)) == 0.5 and float(gradient_distance(down.mT, zero)) == 0.5
    assert float(gradient_distance(both, zero)) == 2.0 and float(gradient_distance(both, zero, "l2")) == 5.0


def test_scales_of_less_than_8_px_are_left_out(generator) -> None:
    a, b = (torch.rand(1, 3, 12, 20, generator=generator) for _ in range(2))
    assert torch.equal(frequency_distance(a, b, 3), frequency_distance(a, b, 1))
    wide = [torch.rand(1, 3, 16, 20, generator=generator) for _ in range(2)]
    assert not torch.equal(frequency_distance(wide[0], wide[1], 2), frequency_distance(wide[0], wide[1], 1))


def test_every_weight_and_kind_reaches_its_term(natural) -> None:
    target = natural(160, 192) * 2 - 1
    output = target + 0.1 * torch.randn(16, 16, generator=torch.Generator().manual_seed(1)).repeat(10, 12)
    config = LossConfig(
        pixel=2.0,
        pixel_kind="l2",
        gradient=3.0,
        frequency=5.0,
        latent=7.0,
        latent_kind="charbonnier",
        periodicity=11.0,
        periodicity_margin=2.0,
        periodicity_border=32,
        perceptual=0.0,
    )
    objective = Objective(config)
    objective.config = replace(config, perceptual=13.0)
    objective.perceptual = distance
    small = [(picture[..., 32:-32, 32:-32] + 1) / 2 for picture in (output, target)]
    expected = {
        "pixel": 2 * distance(output, target, "l2"),
        "gradient": 3 * gradient_distance(output, target, "l2"),
        "frequency": 5 * frequency_distance(output, target),
        "periodicity": 11 * PeriodicityLoss(margin=2.0)(small[0], small[1]),
        "perceptual": 13 * distance(output, target),
    }
    found = objective.pictures(output, target)
    assert list(found) == list(expected) and all(torch.equal(found[name], expected[name]) for name in found)
    assert min(map(float, found.values())) > 0
    assert len({float(PeriodicityLoss(margin=m)(*small)) for m in (0.0, 2.0, 3.0)}) == 3, (
        "the margin makes no difference"
    )
    latent = objective.latents(output, target)
    assert torch.equal(latent["latent"], 7 * distance(output, target, "charbonnier"))


def test_the_perceptual_measure_sees_pictures_in_0_to_1(monkeypatch) -> None:
    class Measure(torch.nn.Module):
        def forward(self, output: Tensor, target: Tensor) -> Tensor:
            return torch.stack([output, target])

    monkeypatch.setattr(perceptual, "load_piq", lambda: SimpleNamespace(GMSDLoss=lambda data_range: Measure()))
    output, target = (torch.tensor(values).view(1, 1, 1, 3) for values in ([-1.0, 0.0, 1.5], [-2.0, 0.5, 1.0]))
    assert perceptual_loss("gmsd")(output, target).flatten().tolist() == [0, 0.5, 1, 0, 0.75, 1]


@pytest.mark.parametrize("kind", ["lpips", "dists"])
def test_networks_weights_are_looked_for_and_never_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    made: list[str] = []

    class Network(torch.nn.Module):
        _weights_url = f"https://example.org/releases/{kind}_weights.pt"

        def __init__(self) -> None:
            super().__init__()
            made.append(kind)

    monkeypatch.setattr(perceptual, "load_piq", lambda: SimpleNamespace(LPIPS=Network, DISTS=Network))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    for name in (f"{kind}_weights.pt", "vgg16-397923af.pth"):
        path = tmp_path / "checkpoints" / name
        with pytest.raises(OptionError) as caught:
            Objective(LossConfig(perceptual=1.0, perceptual_kind=kind))
        told = str(caught.value)
        assert told.startswith(f"loss.perceptual_kind: '{kind}' needs {path}, which is not there, and nothing is fetch")
        assert f"/{name} there, or choose gmsd" in told and not made
        path.touch()
    perceptual_loss(kind)
    assert made == [kind]


def test_the_judge_wants_the_target_above_1_and_the_output_below_minus_1() -> None:
    judge = torch.nn.Identity()
    output, target = torch.tensor([-1.5, 0.5], requires_grad=True), torch.tensor([1.5, 0.0])
    loss = judge_loss(judge, output, target)
    assert float(loss) == pytest.approx((0.5 + 0.75) / 2) and not loss.requires_grad
    assert float(fool(judge, output).detach()) == 0.5


def test_only_terms_with_a_weight_are_there(generator) -> None:
    a, b = (torch.rand(1, 3, 96, 96, generator=generator) for _ in range(2))
    objective = Objective(LossConfig(pixel=2.0, gradient=0.0, frequency=0.5, periodicity=0.3, latent=0.0))
    terms = objective.pictures(a, b)
    assert list(terms) == ["pixel", "frequency", "periodicity"] == objective.names(latent=True)
    assert float(terms["pixel"]) == pytest.approx(2 * float((a - b).abs().mean()))
    assert objective.latents(a, b) == {} and Objective(LossConfig()).names(latent=False) == ["pixel", "gradient"]
