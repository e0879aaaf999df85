"""Models that add detail to an enlarged picture: the sum, its knobs, what runs; and that others are as they were."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, OneStepOptions, OneStepSettings, Op4ksrError, OptionError, Target, upscale
from op4ksr_core.base import Base, Bicubic
from op4ksr_core.images.color import back_project, wavelet_fix
from op4ksr_core.images.metrics import luma
from op4ksr_core.images.resize import mirror_frame, resize
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models.flux import OnProgress, Output, sigma_at
from op4ksr_core.models.latent import process_in, process_out
from op4ksr_core.one_step import CoreStages, followed_fidelity, run
from op4ksr_core.pieces import Pieces
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine
from op4ksr_core.vae import retry
from op4ksr_core.vae.estimate import both
from op4ksr_core.vae.strips import StripSettings
from op4ksr_core.weights.enlarger import choose_base

SETTINGS = OneStepSettings(sigma=0.4, guidance=2.0, output="detail", repair=0.25, sigma_repair=0.8)
PLAIN = OneStepOptions(Target(scale=2), color="none", fidelity=0.0)


@pytest.fixture(scope="module")
def autoencoder(make_autoencoder: Callable[..., AutoEncoder]) -> AutoEncoder:
    return make_autoencoder(loud=True)


@pytest.fixture(scope="module")
def flux(make_flux: Callable[..., Flux]) -> Flux:
    model = make_flux(settings=SETTINGS, guidance_embed=True)
    model.final_layer.linear.weight.mul_(8)
    return model


@pytest.fixture
def whole(flux: Flux) -> Any:
    """The same model as one that makes the picture itself."""
    settings = flux.settings
    flux.settings = replace(settings, output="picture", repair=0.0)
    yield flux
    flux.settings = settings


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))


class Darker(Base):
    """An enlarger that is not bicubic, and knows of repair."""

    name = "darker"

    def enlarge(self, low: Tensor, height: int, width: int, repair: float, tell: OnProgress) -> Tensor:
        return (resize(low, height, width) * (0.8 - 0.2 * repair) + 0.05).clamp(0, 1)


def by_hand(image: Tensor, flux: Flux, autoencoder: AutoEncoder, detail: float, repair: float) -> tuple[Tensor, Tensor]:
    """The base, and base + detail * (decode(z_hr) - decode(z_lr)), at x2, without colour fix and projection."""
    base = (resize(image, 48, 80) * (0.8 - 0.2 * repair) + 0.05).clamp(0, 1)
    low = autoencoder.encode(mirror_frame(base, 32, 32))
    latent, sigma = process_in(low[..., 2:-2, 2:-2]), 0.4 + repair * 0.4
    guidance = torch.tensor([2.0])
    velocity = flux(latent, torch.tensor([sigma]), torch.zeros(1, 1, 24), torch.zeros(1, 12), guidance)
    high = low.clone()
    high[..., 2:-2, 2:-2] = process_out(latent - sigma * velocity)
    before, after = (autoencoder.decode(raw)[..., 32:80, 32:112] for raw in (low, high))
    return base, base + detail * (after - before)


@pytest.mark.parametrize("strips", [None, StripSettings(16, "tiny"), StripSettings(8, "lean")], ids=str)
@pytest.mark.parametrize(("detail", "repair"), [(1.0, 0.0), (0.5, 0.125), (2.0, 1.0), (1e-3, 0.5)])
def test_the_sum_by_hand(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, detail: float, repair: float, strips: StripSettings | None
) -> None:
    options = replace(PLAIN, detail=detail, repair=repair)
    base, expected = by_hand(image, flux, autoencoder, detail, repair)
    given = {"base": Darker(), "strips": None if strips is None else both(strips)}
    found = upscale(image, flux, autoencoder, options, **given)
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=0, atol=2e-5)
    assert (expected - base).abs().mean() > 0.01 * detail
    finished = replace(options, color="wavelet", fidelity=0.75)
    projected = back_project(wavelet_fix(expected, base, 4), image, 0.75 * max(0, 1 - 4 * repair)).clamp(0, 1)
    found = upscale(image, flux, autoencoder, finished, **given)
    torch.testing.assert_close(found, projected, rtol=0, atol=2e-5)


def test_the_file_s_repair_is_the_default_and_a_sigma_asked_for_wins(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder
) -> None:
    given = (image, flux, autoencoder)
    assert torch.equal(upscale(*given, PLAIN), upscale(*given, replace(PLAIN, repair=0.25)))
    assert not torch.equal(upscale(*given, PLAIN), upscale(*given, replace(PLAIN, repair=0.5)))
    bicubic = {"base": Bicubic(), "sigma": 0.3}
    one, other = (upscale(*given, replace(PLAIN, repair=repair), **bicubic) for repair in (0.0, 1.0))
    assert torch.equal(one, other)
    assert sigma_at(SETTINGS, 0.25) == pytest.approx(0.5) and sigma_at(replace(SETTINGS, sigma_repair=None), 1) == 0.4
    assert followed_fidelity(1.0, 0.0) == 1.0 and followed_fidelity(0.8, 1.0) == 0.0


def test_the_enlarger_is_the_bundled_one_unless_another_is_given(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder
) -> None:
    given = (image, flux, autoencoder, replace(PLAIN, detail=0.0))
    own = upscale(*given)
    expected = choose_base("bundled", "detail").enlarge(image, 48, 80, 0.25, lambda done, total: None)
    assert torch.equal(own, expected) and not torch.equal(own, upscale(*given, base=Bicubic()))


class Counting(CoreStages):
    """Says what runs."""

    def __init__(self, *models: Any, **given: Any) -> None:
        super().__init__(*models, **given)
        self.ran: list[str] = []

    def encode(self, *given: Any) -> Tensor:
        self.ran.append("encode")
        return super().encode(*given)

    def transform(self, *given: Any) -> Tensor:
        self.ran.append("transform")
        return super().transform(*given)

    def decode(self, *given: Any) -> Tensor:
        self.ran.append("decode")
        return super().decode(*given)

    def add_decoded(self, *given: Any) -> None:
        self.ran.append("add")
        super().add_decoded(*given)


RUNS = {
    ("detail", 1.0, False): ["encode", "decode", "transform", "add"],
    ("detail", 0.0, False): [],
    ("detail", 1.0, True): ["encode", "decode"],
    ("picture", 1.0, False): ["encode", "transform", "decode"],
    ("picture", 0.5, False): ["encode", "transform", "add"],
    ("picture", 0.0, False): [],
    ("picture", 0.0, True): ["encode", "decode"],
}


@pytest.mark.parametrize(("output", "detail", "vae_only"), RUNS, ids=str)
def test_what_runs_and_how_far_it_is(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, output: Output, detail: float, vae_only: bool
) -> None:
    """Progress starts at nothing, ends at all, and never falls, in a batch too."""
    stages = Counting(flux, autoencoder)
    stages.output = output
    told: list[tuple[int, int]] = []
    options = replace(PLAIN, detail=detail, vae_only=vae_only)
    run(image.expand(2, -1, -1, -1), stages, options, lambda done, total: told.append((done, total)))
    assert stages.ran == 2 * RUNS[output, detail, vae_only]
    done = [value for value, _ in told]
    assert done[0] == 0 and done == sorted(done) and told[-1][0] == told[-1][1] and len({t for _, t in told}) == 1


def test_detail_0_is_the_finished_base(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    options = OneStepOptions(Target(scale=2), detail=0.0, repair=0.0)
    expected = back_project(resize(image, 48, 80).clamp(0, 1), image, 1.0).clamp(0, 1)
    assert torch.equal(upscale(image, flux, autoencoder, options, base=Bicubic()), expected)


def test_vae_only_is_the_base_through_the_vae(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    options = replace(PLAIN, vae_only=True, repair=0.0)
    base, _ = by_hand(image, flux, autoencoder, 1.0, 0.0)
    expected = autoencoder.decode(autoencoder.encode(mirror_frame(base, 32, 32)))[..., 32:80, 32:112]
    for detail in (0.0, 1.0, 2.0):
        found = upscale(image, flux, autoencoder, replace(options, detail=detail), base=Darker())
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_whole_pictures_are_as_they_were_and_may_have_more_or_less(
    image: Tensor, whole: Flux, autoencoder: AutoEncoder
) -> None:
    """enlarged + detail * (decoded - enlarged); at 1 the decoded picture itself."""
    given = (image, whole, autoencoder)
    decoded = upscale(*given, PLAIN)
    enlarged = resize(image, 48, 80).clamp(0, 1)
    for detail in (0.0, 0.5, 2.0):
        expected = (enlarged + detail * (decoded - enlarged)).clamp(0, 1)
        found = upscale(*given, replace(PLAIN, detail=detail))
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("size", [(24, 40), (36, 60), (65, 108), (120, 200), (12, 20), (17, 29), (1, 1)], ids=str)
def test_any_size_grey_and_in_pieces(flux: Flux, autoencoder: AutoEncoder, image: Tensor, size: Any) -> None:
    target = Target(long_edge=max(size))
    options = OneStepOptions(target, pieces=Pieces(64, 32))
    found = upscale(image, flux, autoencoder, options)
    assert found.shape[-1] == max(size) and torch.isfinite(found).all() and 0 <= found.min() <= found.max() <= 1
    grey = upscale(luma(image).expand(-1, 3, -1, -1), flux, autoencoder, options)
    assert torch.equal(grey[:, 0], grey[:, 1]) and torch.equal(grey[:, 0], grey[:, 2])


def test_a_batch_is_its_pictures_and_hidden_colours_are_not_seen(
    flux: Flux, autoencoder: AutoEncoder, image: Tensor
) -> None:
    both_of_them = torch.cat([image, image.flip(-1)])
    options = OneStepOptions(Target(scale=2))
    batch = upscale(both_of_them, flux, autoencoder, options)
    for index in range(2):
        one = upscale(both_of_them[index : index + 1], flux, autoencoder, options)
        torch.testing.assert_close(batch[index : index + 1], one, rtol=0, atol=1e-6)
    alpha = torch.ones(1, 1, 24, 40)
    alpha[..., :20] = 0
    painted = image.clone()
    painted[..., :20] = 1
    found = [upscale(low, flux, autoencoder, options, alpha=alpha) for low in (image, painted)]
    torch.testing.assert_close(*found, rtol=0, atol=1e-6)


def test_strips_that_ran_out_of_memory_are_added_once(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second decoding fails when some rows are added already, and begins again with other strips."""
    options = replace(PLAIN, repair=0.0)
    _, expected = by_hand(image, flux, autoencoder, 1.0, 0.0)
    strips = both(StripSettings(8, "fast"))
    calls = []
    before = retry._try  # pyright: ignore

    def failing(run: Callable[[StripSettings], Any], settings: StripSettings, is_oom: Any) -> Any:
        calls.append(settings)
        if len(calls) != 3:  # encode, decode, and decode again
            return before(run, settings, is_oom)
        before(run, settings, is_oom)
        return None

    monkeypatch.setattr(retry, "_try", failing)
    found = upscale(image, flux, autoencoder, options, base=Darker(), strips=strips)
    assert len(calls) == 4 and calls[3] != calls[2]
    torch.testing.assert_close(found, expected.clamp(0, 1), rtol=0, atol=2e-5)


@pytest.mark.slow
def test_no_third_picture_is_held(flux: Flux, autoencoder: AutoEncoder) -> None:
    """A detail model needs what the plan says, which is no more than one that makes the picture itself."""
    low = torch.rand(1, 3, 96, 96)
    stages, options = CoreStages(flux, autoencoder, strips=both(StripSettings(8, "tiny"))), PLAIN
    peaks = {}
    for output in ("picture", "detail"):
        stages.output = output
        with AllocationTracker() as memory:
            run(low, stages, replace(options, target=Target(scale=4)))
        peaks[output] = memory.peak
    assert peaks["detail"] < 1.05 * peaks["picture"]


def test_the_plan_counts_two_decodings_and_what_enlarges(flux: Flux, autoencoder: AutoEncoder) -> None:
    machine = Machine("cpu", torch.float32, 10**12)
    models = Models(autoencoder.params, flux=flux.params)
    base = choose_base("bundled", "detail")
    plans = {
        output: make_plan((96, 96), Target(scale=4), replace(models, base=used, output=output), machine)
        for output, used in (("picture", Bicubic()), ("detail", base))
    }
    stages = {output: {stage.name: stage for stage in plan.stages} for output, plan in plans.items()}
    assert "enlarge" not in stages["picture"] and stages["detail"]["enlarge"].flops == base.flops((96, 96), (384, 384))
    once, twice = (stages[output]["decode"].flops for output in ("picture", "detail"))
    assert once and twice == 2 * once and "twice" in plans["detail"].text()
    assert plans["detail"].flops == sum(stage.flops or 0 for stage in plans["detail"].stages)
    none = make_plan((96, 96), Target(scale=4), replace(models, base=base, detail=0.0), machine)
    assert [stage.name for stage in none.stages] == ["enlarge", "finish"] and none.strips() == {}


@pytest.mark.parametrize(
    ("given", "match"),
    [({"detail": 2.1}, "detail: expected 0 to 2, got 2.1"), ({"detail": float("nan")}, "detail: expected"),
     ({"repair": -0.1}, "repair: expected 0 to 1, got -0.1"), ({"repair": 1.5}, "repair: expected 0 to 1")],
)  # fmt: skip
def test_what_options_refuse(given: dict[str, float], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        OneStepOptions(**given)  # pyright: ignore


@pytest.mark.parametrize(
    ("given", "match"),
    [({"output": "both"}, "output: expected picture or detail, got both"),
     ({"repair": 2.0}, "repair: expected 0 to 1"), ({"sigma_repair": 0.0}, "sigma_repair: expected above 0")],
)  # fmt: skip
def test_what_settings_refuse(given: dict[str, Any], match: str) -> None:
    with pytest.raises(OptionError, match=match):
        OneStepSettings(**given)


def test_a_base_that_is_not_finite_is_told(flux: Flux, autoencoder: AutoEncoder, image: Tensor) -> None:
    class Broken(Bicubic):
        def enlarge(self, *given: Any) -> Tensor:
            return super().enlarge(*given) * float("nan")

    with pytest.raises(Op4ksrError, match="the enlarger's output is not finite"):
        upscale(image, flux, autoencoder, PLAIN, base=Broken())
