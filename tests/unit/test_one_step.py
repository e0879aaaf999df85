"""The orchestrator: sizes, batches, progress, overrides, and what it refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core import (
    AutoEncoder,
    Flux,
    ImageError,
    OneStepOptions,
    OneStepSettings,
    Op4ksrError,
    OptionError,
    Rfr,
    Target,
    upscale,
)
from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from op4ksr_core.images.color import COLOR_FIXES, ColorFix, back_project, color_fix, wavelet_fix
from op4ksr_core.images.resize import mirror_frame, resize
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.models.latent import process_in, process_out
from op4ksr_core.one_step import PICTURES_AT_ONCE, CoreStages, Frame, Stages, one_step, run, upscale_alpha
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine
from op4ksr_core.vae import bounded
from op4ksr_core.vae.estimate import LEAST_MEMORY, StripPlan, both
from op4ksr_core.vae.strips import StripSettings
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

PLAIN = OneStepOptions(Target(scale=2), color="none", fidelity=0.0)


@pytest.fixture(scope="module")
def autoencoder(make_autoencoder: Callable[..., AutoEncoder]) -> AutoEncoder:
    return make_autoencoder(loud=True)


@pytest.fixture(scope="module")
def flux(make_flux: Callable[..., Flux]) -> Flux:
    model = make_flux(theta=(46.7, 80.0), settings=OneStepSettings(sigma=0.4, guidance=2.0), guidance_embed=True)
    model.final_layer.linear.weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))


def with_final_layer(flux: Flux, make_flux: Callable[..., Flux], value: float) -> Flux:
    """A copy of ``flux`` whose velocity is ``value`` everywhere."""
    model = make_flux(settings=flux.settings, guidance_embed=True)
    model.final_layer.linear.weight.zero_()
    model.final_layer.linear.bias.fill_(value)
    return model


# --- the steps --------------------------------------------------------------------------------


class Placed(CoreStages):
    """Picture steps done twice, as by a host whose device ran out of memory, and noted."""

    def __init__(self, *models: Any) -> None:
        super().__init__(*models)
        self.done: list[tuple[str, int, tuple[int, ...]]] = []

    def _twice(self, name: str, *given: Any) -> Tensor:
        step = getattr(super(), name)
        step(*given)
        found, (frame,) = step(*given), [value for value in given if isinstance(value, Frame)]
        self.done.append((name, frame.nbytes, tuple(found.shape[-2:])))
        return found

    def enlarge(self, *given: Any) -> Tensor:
        return self._twice("enlarge", *given)

    def fix_colors(self, *given: Any) -> Tensor:
        return self._twice("fix_colors", *given)

    def finish(self, *given: Any) -> Tensor:
        return self._twice("finish", *given)


def test_a_host_may_place_the_picture_steps(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    """Three steps, each with the picture's bytes; the same picture, and a step may be computed twice.

    The mirrored frame is the first one's: on a CPU beside a GPU it takes as long as all that the GPU does.
    """
    options, stages = OneStepOptions(Target(scale=2)), Placed(flux, autoencoder)
    assert torch.equal(run(image, stages, options), upscale(image, flux, autoencoder, options))
    size = 48 * 80 * 12
    assert stages.done == [
        ("enlarge", size, (64 + 64, 96 + 64)),
        ("fix_colors", size, (48, 80)),
        ("finish", size, (48, 80)),
    ]


@pytest.mark.parametrize("kind", COLOR_FIXES)
def test_five_pictures_at_once_are_enough(kind: ColorFix) -> None:
    """Bytes, counted; the fixes alone, whose inputs are copies on another device."""
    small, large = torch.rand(1, 3, 512, 48), torch.rand(1, 3, 2048, 192)
    with AllocationTracker() as tracker:
        output, enlarged = large.clone(), resize(small, 2048, 192).clamp(0, 1)
        fixed = color_fix(output, enlarged, kind, 4)
        del enlarged, output
        back_project(fixed, small.clone(), 1.0).clamp(0, 1)
    assert 3 * large.nbytes < tracker.peak <= PICTURES_AT_ONCE * large.nbytes


def test_the_steps_by_hand(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    """Bicubic, mirror to 32 px and a margin, encode, z - sigma v without it, decode, crop, colours, back-projection."""
    options = OneStepOptions(Target(scale=2))
    enlarged = resize(image, 48, 80).clamp(0, 1)
    raw = autoencoder.encode(mirror_frame(enlarged, 32, 32))
    assert raw.shape == (1, 16, 8, 10)
    latent, sigma = process_in(raw[..., 2:-2, 2:-2]), torch.tensor([0.4])
    velocity = flux(latent, sigma, torch.zeros(1, 1, 24), torch.zeros(1, 12), torch.tensor([2.0]))
    raw[..., 2:-2, 2:-2] = process_out(latent - 0.4 * velocity)
    output = autoencoder.decode(raw)[..., 32:80, 32:112]
    expected = back_project(wavelet_fix(output, enlarged, 4), image, 1.0).clamp(0, 1)
    torch.testing.assert_close(upscale(image, flux, autoencoder, options), expected, rtol=0, atol=1e-6)


def test_one_step_is_a_sigma_per_picture(generator: torch.Generator) -> None:
    latent, velocity = (torch.randn(2, 16, 4, 6, generator=generator) for _ in range(2))
    result = one_step(latent, velocity, torch.tensor([0.25, 1.0]))
    torch.testing.assert_close(result[0], latent[0] - 0.25 * velocity[0])
    torch.testing.assert_close(result[1], latent[1] - velocity[1])


def test_a_velocity_of_zero_is_vae_only(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, make_flux: Callable[..., Flux]
) -> None:
    """Up to the rounding of the two constants: (x - a) b / b + a."""
    vae_only = upscale(image, None, autoencoder, replace(PLAIN, vae_only=True))
    still = upscale(image, with_final_layer(flux, make_flux, 0.0), autoencoder, PLAIN)
    torch.testing.assert_close(still, vae_only, rtol=0, atol=1e-5)
    moved = upscale(image, with_final_layer(flux, make_flux, 1.0), autoencoder, PLAIN)
    assert (moved - vae_only).abs().max() > 1e-2


def test_vae_only_never_runs_the_transformer(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("the transformer ran")

    options = replace(PLAIN, vae_only=True)
    hook = flux.register_forward_pre_hook(fail)
    try:
        result = upscale(image, flux, autoencoder, options)
        with pytest.raises(AssertionError, match="the transformer ran"):
            upscale(image, flux, autoencoder, PLAIN)
    finally:
        hook.remove()
    assert torch.equal(result, upscale(image, None, autoencoder, options))
    assert not torch.equal(result, upscale(image, flux, autoencoder, PLAIN))


@pytest.mark.parametrize("stride", [1, 2])
def test_f8_and_f16_both_work(
    image: Tensor, flux: Flux, make_autoencoder: Callable[..., AutoEncoder], stride: int
) -> None:
    assert upscale(image, flux, make_autoencoder(stride=stride), PLAIN).shape == (1, 3, 48, 80)


# --- size, range, dtype -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "target", "expected"),
    [
        ((13, 17), Target(scale=4), (52, 68)),
        ((13, 17), Target(scale=1.7), (22, 29)),
        ((33, 31), Target(long_edge=101), (101, 95)),
        ((9, 64), Target(short_edge=27), (27, 192)),
        ((50, 70), Target(scale=0.5), (25, 35)),
        ((32, 32), Target(scale=1), (32, 32)),
        ((1, 1), Target(scale=3), (3, 3)),
        ((1, 90), Target(scale=1.1), (1, 99)),
        ((40, 30), Target(megapixels=0.01), (118, 89)),
    ],
    ids=str,
)
@pytest.mark.parametrize("color", ["wavelet", "adain", "lab"])
def test_the_size_is_kept_to_the_pixel(
    flux: Flux,
    autoencoder: AutoEncoder,
    generator: torch.Generator,
    size: tuple[int, int],
    target: Target,
    expected: tuple[int, int],
    color: Any,
) -> None:
    image = torch.rand(1, 3, *size, generator=generator)
    result = upscale(image, flux, autoencoder, OneStepOptions(target, color))
    assert result.shape == (1, 3, *expected)
    assert result.dtype == torch.float32
    assert result.min() >= 0 and result.max() <= 1


class Shuffled(Stages):
    """Stages that lose nothing: 16 x 16 px as channels, and back."""

    ratio = 16

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        self.framed = image
        self.raw = F.pixel_unshuffle(image, 16)
        self.kept = self.raw.clone()
        return self.raw

    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        self.seen.append(tuple(raw.shape))
        return raw + 0.25

    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        return F.pixel_shuffle(raw, 16)


@pytest.mark.parametrize("size", [(24, 40), (5, 33), (1, 1), (32, 64)])
def test_the_margin_is_the_autoencoders_alone_and_cut_off_again(size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(7)) / 2
    stages = Shuffled()
    options = OneStepOptions(Target(scale=1), "none", 0.0)
    assert torch.equal(run(image, stages, options), (image + 0.25))
    tokens = tuple(-(-side // 32) for side in size)
    assert stages.seen == [(1, 768, 2 * tokens[0], 2 * tokens[1])], "the transformer sees whole tokens, no margin"
    assert stages.framed.shape[-2:] == (32 * tokens[0] + 64, 32 * tokens[1] + 64)
    assert torch.equal(stages.framed, mirror_frame(image, 32, 32))
    assert torch.equal(stages.raw, stages.kept), "the stage's own latent was written over"


@pytest.mark.parametrize("grey", [0.2, 0.5, 0.9])
def test_a_flat_picture_stays_flat_up_to_its_border(grey: float) -> None:
    """Of the bundled weights: without the margin the outer 16 px were wrong by up to 31 levels of 255."""
    image = torch.full((1, 3, 48, 48), grey)
    output = upscale(image, load_flux(BUNDLED_FLUX), load_autoencoder(BUNDLED_AUTOENCODER))
    assert (output - grey).abs().max() * 255 < 4


def test_values_beyond_0_to_1_are_clamped_first(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    wild = image * 3 - 1
    assert torch.equal(upscale(wild, flux, autoencoder), upscale(wild.clamp(0, 1), flux, autoencoder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_images_give_float32(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, dtype: torch.dtype
) -> None:
    given = image.to(dtype)
    result = upscale(given, flux, autoencoder, PLAIN)
    assert torch.equal(result, upscale(given.float(), flux, autoencoder, PLAIN))
    assert result.dtype == torch.float32


def test_bf16_models_give_nearly_the_same(
    image: Tensor, make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    exact = upscale(image, make_flux(), make_autoencoder())
    half = upscale(image, make_flux().to(torch.bfloat16), make_autoencoder().to(torch.bfloat16))
    assert half.dtype == torch.float32
    assert 0 < (half - exact).abs().mean() < 1 / 255


def test_the_input_is_left_alone(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    before = image.clone()
    upscale(image, flux, autoencoder)
    assert torch.equal(image, before)


def test_fidelity_brings_the_shrunk_result_to_the_input(
    natural: Callable[..., Tensor], make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    """Even that of random weights, which starts without any detail of the input."""
    low, models = natural(64, 64), (make_flux(), make_autoencoder())

    def error(fidelity: float) -> float:
        result = upscale(low, *models, OneStepOptions(fidelity=fidelity))
        return (resize(result, 64, 64) - low).abs().mean().item()

    assert error(1.0) < 0.1 * error(0.0)
    assert error(1.0) < error(0.5) < 0.5 * error(0.0)


# --- batches ----------------------------------------------------------------------------------


def test_a_batch_is_its_pictures_one_by_one(flux: Flux, autoencoder: AutoEncoder, generator: torch.Generator) -> None:
    images = torch.rand(3, 3, 13, 17, generator=generator)
    batch = upscale(images, flux, autoencoder)
    assert batch.shape == (3, 3, 52, 68)
    assert torch.equal(batch, torch.cat([upscale(image[None], flux, autoencoder) for image in images]))
    assert not torch.equal(batch[0], batch[1])


@pytest.mark.slow
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_batch_holds_its_results_once(flux: Flux, autoencoder: AutoEncoder, layout: torch.memory_format) -> None:
    """Each further picture adds its own result, and no copy of it; a host's layout (B, H, W, 3) is a view."""
    stages, options = CoreStages(flux, autoencoder), OneStepOptions(Target(scale=4))
    peaks: list[int] = []
    for count in range(1, 5):
        images = torch.rand(count, 3, 32, 24, generator=torch.Generator().manual_seed(2))
        with AllocationTracker() as tracker:
            results = run(images, stages, options, memory_format=layout)
            assert results.is_contiguous(memory_format=layout)
            if layout == torch.channels_last:
                assert results.movedim(1, -1).contiguous().data_ptr() == results.data_ptr()
        peaks.append(tracker.peak)
        assert tracker.live == results.nbytes
    one = 3 * 128 * 96 * 4
    assert [peak - peaks[0] for peak in peaks] == [0, 2 * one, 3 * one, 4 * one]


@pytest.mark.slow
def test_what_a_batch_needs_is_planned(flux: Flux, autoencoder: AutoEncoder) -> None:
    """Live tensors above the input: within 10 %; the results of a batch lie beside every stage."""
    target, strips = Target(scale=2), both(StripSettings())
    models = Models(autoencoder.params, flux=flux.params, strips=strips)
    for count in range(1, 5):
        images = torch.rand(count, 3, 96, 80, generator=torch.Generator().manual_seed(2))
        plan = make_plan((96, 80), target, models, Machine("cpu", torch.float32, None), batch=count)
        with AllocationTracker() as tracker:
            upscale(images, flux, autoencoder, OneStepOptions(target), strips=plan.strips())
        assert plan.peak == pytest.approx(tracker.peak, rel=0.1), count


def test_strips_that_are_passed_are_run(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: dict[str, StripSettings] = {}
    for stage in ("encode", "decode"):
        _record(monkeypatch, stage, ran)
    asked: StripPlan = {"encode": StripSettings(16, "tiny"), "decode": StripSettings(8, "lean")}
    upscale(image, flux, autoencoder, PLAIN, strips=asked)
    assert ran == asked
    monkeypatch.setattr(autoencoder.bounded, "free_memory", lambda device: 1)
    upscale(image, flux, autoencoder, PLAIN, strips={"decode": asked["decode"]})
    assert ran == {"encode": LEAST_MEMORY, "decode": asked["decode"]}


def _record(monkeypatch: pytest.MonkeyPatch, stage: str, ran: dict[str, StripSettings]) -> None:
    works = getattr(bounded, f"{stage}_picture")

    def recorded(*args: Any) -> Any:
        ran[stage] = next(value for value in args if isinstance(value, StripSettings))
        return works(*args)

    monkeypatch.setattr(bounded, f"{stage}_picture", recorded)


# --- progress ---------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize(
    "options",
    [OneStepOptions(), OneStepOptions(fidelity=0.0), OneStepOptions(Target(scale=1)), OneStepOptions(vae_only=True)],
    ids=["all", "no fidelity", "scale 1", "vae only"],
)
def test_progress_rises_to_exactly_the_total(
    flux: Flux, autoencoder: AutoEncoder, image: Tensor, options: OneStepOptions, count: int
) -> None:
    seen: list[tuple[int, int]] = []
    upscale(image.repeat(count, 1, 1, 1), flux, autoencoder, options, on_progress=lambda *step: seen.append(step))
    done = [step[0] for step in seen]
    (total,) = {step[1] for step in seen}
    assert done == sorted(done) and done[0] == 0 and done[-1] == total
    assert len(set(done)) > 10 * count, "one jump is no progress"
    for picture in range(1, count + 1):
        assert total * picture // count in done


@pytest.mark.slow
def test_every_strip_and_block_can_be_cancelled(flux: Flux, autoencoder: AutoEncoder, image: Tensor) -> None:
    class CancelError(Exception):
        pass

    calls: list[int] = []
    upscale(image, flux, autoencoder, on_progress=lambda done, total: calls.append(done))
    total, left = len(calls), 0

    def cancel(done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise CancelError

    assert total > 30
    for at in range(1, total + 1):
        left = at
        with pytest.raises(CancelError):
            upscale(image, flux, autoencoder, on_progress=cancel)


# --- overrides --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "own",
    [
        {"sigma": 0.4},
        {"theta": (46.7, 80.0)},
        {"theta": "46.7,80"},
        {"rfr": Rfr()},
        {"rfr": Rfr("theta", theta=(46.7, 80.0))},
        {"sigma": 0.4, "theta": (46.7, 80.0)},
    ],
    ids=str,
)
def test_the_models_own_values_change_nothing(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, own: dict[str, Any]
) -> None:
    assert torch.equal(upscale(image, flux, autoencoder, PLAIN, **own), upscale(image, flux, autoencoder, PLAIN))


@pytest.mark.parametrize(
    "other",
    [{"sigma": 0.9}, {"theta": 10000}, {"theta": "80,46.7"}, {"rfr": Rfr("fit", tokens=(8, 8))}],
    ids=str,
)
def test_other_values_change_the_result_for_this_call_alone(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, other: dict[str, Any]
) -> None:
    own = upscale(image, flux, autoencoder, PLAIN)
    assert (upscale(image, flux, autoencoder, PLAIN, **other) - own).abs().max() > 1e-5
    assert torch.equal(upscale(image, flux, autoencoder, PLAIN), own)


def test_sigma_reaches_both_the_model_and_the_step(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, make_flux: Callable[..., Flux]
) -> None:
    """With a constant velocity only the step depends on sigma: z - sigma * 1."""
    constant = with_final_layer(flux, make_flux, 1.0)
    raw = autoencoder.encode(mirror_frame(resize(image, 48, 80).clamp(0, 1), 32, 32))
    for sigma in (0.4, 1.0):
        moved = raw.clone()
        moved[..., 2:-2, 2:-2] = process_out(process_in(raw[..., 2:-2, 2:-2]) - sigma)
        expected = autoencoder.decode(moved)[..., 32:80, 32:112]
        torch.testing.assert_close(
            upscale(image, constant, autoencoder, PLAIN, sigma=sigma), expected, rtol=0, atol=1e-5
        )


def test_the_prompt_of_the_settings_is_used(
    image: Tensor, autoencoder: AutoEncoder, make_flux: Callable[..., Flux], generator: torch.Generator
) -> None:
    settings = OneStepSettings(txt=torch.randn(4, 24, generator=generator), vec=torch.randn(12, generator=generator))
    results = [
        upscale(image, make_flux(settings=s), autoencoder, PLAIN)
        for s in (settings, replace(settings, txt=None), replace(settings, vec=None), OneStepSettings())
    ]
    for i, first in enumerate(results):
        assert all(not torch.equal(first, second) for second in results[i + 1 :])


# --- transparency -----------------------------------------------------------------------------


def test_alpha_is_bicubic_within_0_to_1() -> None:
    alpha = torch.zeros(1, 1, 8, 8)
    alpha[..., 4:] = 1
    large = upscale_alpha(alpha, 31, 33)
    assert large.shape == (1, 1, 31, 33)
    assert large.min() == 0 and large.max() == 1
    assert torch.equal(large, resize(alpha, 31, 33).clamp(0, 1))


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (torch.full((1, 3, 8, 8), math.nan), "NaN"),
        (torch.full((1, 3, 8, 8), math.inf), "NaN or infinite"),
        (torch.zeros(1, 3, 0, 8), "empty"),
        (torch.zeros(0, 3, 8, 8), "empty"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), "divide 8-bit values by 255"),
        (torch.zeros(1, 1, 8, 8), r"expected \(B, 3, H, W\)"),
        (torch.zeros(1, 4, 8, 8), r"expected \(B, 3, H, W\)"),
        (torch.zeros(1, 8, 8, 3), r"expected \(B, 3, H, W\)"),
        (torch.zeros(3, 8, 8), r"expected \(B, 3, H, W\)"),
    ],
    ids=lambda value: value if isinstance(value, str) else str(tuple(value.shape)),
)
def test_a_wrong_image_is_refused(wrong: Tensor, words: str, flux: Flux, autoencoder: AutoEncoder) -> None:
    with pytest.raises(ImageError, match=words):
        upscale(wrong, flux, autoencoder)


def test_one_nan_in_a_batch_is_refused_before_anything_is_computed(flux: Flux, autoencoder: AutoEncoder) -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[1, 2, 7, 7] = math.nan
    steps: list[int] = []
    with pytest.raises(ImageError, match="NaN"):
        upscale(images, flux, autoencoder, on_progress=lambda done, total: steps.append(done))
    assert not steps


def test_beyond_the_ceiling_is_refused(image: Tensor, flux: Flux, autoencoder: AutoEncoder) -> None:
    with pytest.raises(OptionError, match="ceiling"):
        upscale(image, flux, autoencoder, OneStepOptions(Target(scale=1000)))


def test_a_missing_model_is_refused(image: Tensor, autoencoder: AutoEncoder) -> None:
    with pytest.raises(OptionError, match="vae_only"):
        upscale(image, None, autoencoder)


def test_models_that_do_not_belong_together_are_refused(
    image: Tensor, flux: Flux, make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    with pytest.raises(OptionError, match="takes 16 latent channels, but the VAE makes 4"):
        upscale(image, flux, make_autoencoder(latent_channels=4))


@pytest.mark.parametrize("sigma", [0.0, -1.0, 1.5, math.nan])
def test_an_impossible_sigma_is_refused(image: Tensor, flux: Flux, autoencoder: AutoEncoder, sigma: float) -> None:
    with pytest.raises(OptionError, match="sigma"):
        upscale(image, flux, autoencoder, sigma=sigma)


@pytest.mark.parametrize("theta", ["ten", 0.5, (1, 2, 3)], ids=str)
def test_an_impossible_theta_is_refused(image: Tensor, flux: Flux, autoencoder: AutoEncoder, theta: Any) -> None:
    with pytest.raises(OptionError, match="theta"):
        upscale(image, flux, autoencoder, theta=theta)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"color": "sepia"}, "color"), ({"fidelity": 1.1}, "fidelity"), ({"fidelity": math.nan}, "fidelity")],
    ids=str,
)
def test_impossible_options_are_refused(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        OneStepOptions(**wrong)


def test_nan_from_the_model_is_an_error_and_no_black_picture(
    image: Tensor, flux: Flux, autoencoder: AutoEncoder, make_flux: Callable[..., Flux]
) -> None:
    broken = with_final_layer(flux, make_flux, math.nan)
    with pytest.raises(Op4ksrError, match="the model's output is not finite.*float32"):
        upscale(image, broken, autoencoder)
    with pytest.raises(Op4ksrError, match="not finite"):
        upscale(image, broken, autoencoder, PLAIN)


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("vae_only", [False, True])
def test_nan_from_the_vae_is_blamed_on_the_vae(
    image: Tensor, flux: Flux, make_autoencoder: Callable[..., AutoEncoder], half: str, vae_only: bool
) -> None:
    broken = make_autoencoder()
    with torch.no_grad():
        getattr(broken, half).conv_out.bias.fill_(math.nan)
    with pytest.raises(Op4ksrError, match="the VAE's output is not finite.*float32"):
        upscale(image, flux, broken, OneStepOptions(Target(scale=2), vae_only=vae_only))


@pytest.mark.parametrize(("factor", "words"), [(255.0, "values up to 2"), (1.5, "")])
def test_8_bit_values_are_told(
    image: Tensor, autoencoder: AutoEncoder, caplog: pytest.LogCaptureFixture, factor: float, words: str
) -> None:
    """They come out white; a picture that rings above 1 a little is nobody's fault."""
    upscale(image / image.max() * factor, None, autoencoder, replace(PLAIN, vae_only=True))
    assert (words in caplog.text) if words else not caplog.text


# --- transparency and grey ----------------------------------------------------------------------


class Recolouring(CoreStages):
    """As the autoencoder's own, with a colour cast over what is decoded."""

    def decode(self, raw: Tensor, tell: Any) -> Tensor:
        return (super().decode(raw, tell) + torch.tensor([0.1, -0.05, 0.02]).view(1, 3, 1, 1)).clamp(0, 1)


@pytest.mark.parametrize("color", ["wavelet", "adain", "none", "lab"])
@pytest.mark.parametrize("scale", [0.3, 0.5, 1, 1.5, 2, 4])
def test_hidden_colours_are_not_seen_at_any_factor(autoencoder: AutoEncoder, scale: float, color: Any) -> None:
    """Whatever is hidden, the result is the same: nothing of it has reached a visible pixel."""
    y, x = torch.meshgrid(torch.arange(40), torch.arange(48), indexing="ij")
    alpha = ((14 - ((y - 20) ** 2 + (x - 22) ** 2).sqrt()) + 0.5).clamp(0, 1)[None, None]
    shown = torch.full((1, 3, 40, 48), 0.9)
    options = OneStepOptions(target=Target(scale=scale), vae_only=True, color=color)
    results = []
    for hidden in (torch.zeros(1, 3, 40, 48), torch.rand(1, 3, 40, 48)):
        image = torch.where(alpha > 0, shown, hidden)
        results.append(upscale(image, None, autoencoder, options, alpha=alpha))
    assert torch.equal(*results)
    opaque = upscale(shown, None, autoencoder, options)
    weight = upscale_alpha(alpha, *results[0].shape[-2:])
    assert ((results[0] - opaque).abs() * weight).max() < 2 / 255


def test_an_opaque_alpha_changes_no_bit(autoencoder: AutoEncoder) -> None:
    image, options = torch.rand(1, 3, 24, 32), OneStepOptions(target=Target(scale=2), vae_only=True)
    alpha = torch.ones(1, 1, 64, 64)  # as ComfyUI's LoadImage gives it for pictures without
    assert torch.equal(
        upscale(image, None, autoencoder, options), upscale(image, None, autoencoder, options, alpha=alpha)
    )


def test_fewer_alphas_than_pictures_count_for_the_rest(autoencoder: AutoEncoder) -> None:
    image, options = torch.rand(2, 3, 24, 32), OneStepOptions(target=Target(scale=1), vae_only=True)
    alpha = torch.ones(1, 1, 24, 32)
    alpha[..., :8] = 0
    both = upscale(image, None, autoencoder, options, alpha=alpha)
    assert torch.equal(both[1:], upscale(image[1:], None, autoencoder, options, alpha=alpha))


@pytest.mark.parametrize("alpha", [torch.full((1, 1, 8, 8), math.nan), torch.ones(1, 3, 8, 8), torch.ones(0, 1, 8, 8)])
def test_an_alpha_that_is_none_is_refused(autoencoder: AutoEncoder, alpha: Tensor) -> None:
    with pytest.raises(ImageError, match="mask: (holds NaN|expected one plane)"):
        upscale(torch.rand(1, 3, 8, 8), None, autoencoder, OneStepOptions(vae_only=True), alpha=alpha)


@pytest.mark.parametrize("color", ["wavelet", "adain", "none", "lab"])
@pytest.mark.parametrize("fidelity", [0.0, 0.5, 1.0])
def test_a_grey_picture_comes_out_grey(autoencoder: AutoEncoder, color: Any, fidelity: float) -> None:
    grey = torch.rand(1, 1, 24, 32).expand(-1, 3, -1, -1).contiguous()
    options = OneStepOptions(target=Target(scale=2), vae_only=True, color=color, fidelity=fidelity)
    result = run(grey, Recolouring(None, autoencoder), options)
    assert torch.equal(result[:, 0], result[:, 1]) and torch.equal(result[:, 0], result[:, 2])
    grey[0, 1, 3, 4] += 2 / 65535
    coloured = run(grey, Recolouring(None, autoencoder), options)
    assert not torch.equal(coloured[:, 0], coloured[:, 1])
