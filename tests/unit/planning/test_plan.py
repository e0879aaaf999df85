"""The plan before the run: sizes, the path that will be taken, and whether it fits; held to a real run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from op4ksr_core import BUNDLED_AUTOENCODER, BUNDLED_FLUX, load_autoencoder, load_flux, upscale
from op4ksr_core.errors import OptionError, OutOfMemoryError
from op4ksr_core.images.resize import Target
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models.flux import FluxParams
from op4ksr_core.one_step import OneStepOptions
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine, Plan, Weights
from op4ksr_core.vae.estimate import both
from op4ksr_core.vae.layers import AutoEncoderParams
from op4ksr_core.vae.strips import MEMORY_MODES, StripSettings

WEIGHTS = (Weights("vae", 170_000_000, "cuda"), Weights("flux", 12_000_000_000, "cuda"))
FULL = Models(AutoEncoderParams(), flux=FluxParams(), text_tokens=512, weights=WEIGHTS, train_tokens=128)
FOUR_K = Target(long_edge=4096)


def plan(free: float | None, *, holds: bool = True, models: Models = FULL, target: Target = FOUR_K) -> Plan:
    free_bytes = None if free is None else int(free * 1e9)
    machine = Machine("cuda", torch.bfloat16, free_bytes, holds, holds, cpu_free=int(100e9))
    return make_plan((768, 1024), target, models, machine)


def test_sizes() -> None:
    found = make_plan((301, 200), Target(scale=1.5), FULL, Machine("cpu", torch.float32, None))
    assert (found.output, found.framed, found.latent, found.tokens) == ((452, 300), (544, 384), (34, 24), (15, 10))
    assert [stage.name for stage in found.stages] == ["encode", "transformer", "decode", "finish"]


def test_vae_only_has_no_transformer() -> None:
    found = plan(100, models=replace(FULL, flux=None))
    assert [stage.name for stage in found.stages] == ["encode", "decode", "finish"]


def test_less_memory_is_a_leaner_path_then_a_refusal() -> None:
    needs = [plan(free) for free in (100.0, 15.3, 14.6, 14.3, 12.0)]
    ways = [found.strips()["decode"] for found in needs]
    assert [way.mode for way in ways] == ["fast", "lean", "tiny", "tiny", "tiny"]
    assert [found.fits for found in needs] == [True, True, True, True, False]
    for found in needs[:4]:
        found.refuse_if_hopeless()
        assert found.peak <= found.machine.free and "fits" in found.verdict()  # pyright: ignore
    with pytest.raises(OutOfMemoryError, match="4096x3072 px needs .* this will not fit; .*run on the CPU"):
        needs[4].refuse_if_hopeless()


def test_the_remedy_helps() -> None:
    hopeless = plan(13.5)
    assert hopeless.fits is False
    edge = int(hopeless.verdict().split("at most ")[1].split()[0])
    assert plan(13.5, target=Target(long_edge=edge)).fits is True
    assert plan(13.5, target=Target(long_edge=edge + 32)).fits is False


def test_remedies_are_checked() -> None:
    """bfloat16 halves the weights too; the CPU helps only where it has room; what cannot help is not offered."""
    weights = (Weights("flux", 48_000_000_000, "cpu"),)
    models = replace(FULL, weights=weights)
    fat = make_plan((768, 1024), FOUR_K, models, Machine("cpu", torch.float32, int(40e9)))
    assert fat.remedies == ("use bfloat16",)
    full = make_plan((768, 1024), FOUR_K, FULL, Machine("cuda", torch.bfloat16, int(13e9), cpu_free=int(60e9)))
    assert "run on the CPU" in full.remedies
    tight = make_plan((768, 1024), FOUR_K, FULL, Machine("cuda", torch.bfloat16, int(13e9), cpu_free=int(20e9)))
    assert "run on the CPU" not in tight.remedies
    none = make_plan((768, 1024), FOUR_K, FULL, Machine("cuda", torch.bfloat16, int(1e9)))
    assert "no size fits" in none.verdict()
    host = make_plan((768, 1024), FOUR_K, FULL, Machine("cuda", torch.float32, int(1e8), False, False, host=True))
    assert "bfloat16" not in host.verdict() and host.fits is False


def test_a_smaller_encoder_needs_less() -> None:
    small = AutoEncoderParams(widths=(64, 128, 256, 256))
    encode, whole = (
        next(s.peak for s in plan(100, models=m).stages if s.name == "encode")
        for m in (replace(FULL, encoder=small), FULL)
    )
    assert encode == pytest.approx(whole / 2, rel=0.02)


def test_a_manager_that_moves_weights_needs_room_for_one_stage_only() -> None:
    found = plan(4.0, holds=False)
    assert found.fits and found.peak == max(stage.peak for stage in found.stages) < 3e9
    assert all(stage.name != "finish" for stage in found.stages)


def test_unknown_memory_is_said_and_not_refused() -> None:
    found = plan(None)
    assert found.fits is None and "unknown" in found.verdict()
    found.refuse_if_hopeless()


def test_strips_that_are_asked_for_are_planned_as_they_are() -> None:
    asked = StripSettings(16, "lean")
    found = plan(100, models=replace(FULL, strips={"decode": asked}))
    assert found.strips() == {"encode": StripSettings(), "decode": asked}
    assert asked.mode in found.text()


def test_strips_that_do_not_fit_are_no_refusal_where_leaner_ones_do() -> None:
    found = plan(14.5, models=replace(FULL, strips=both(StripSettings())))
    assert found.fits and found.peak > 14.5e9 > found.least
    assert "strips that need less memory will be tried" in found.verdict()
    found.refuse_if_hopeless()


def test_the_results_of_a_batch_lie_beside_every_stage() -> None:
    machine = Machine("cuda", torch.bfloat16, int(15.4e9))
    one, eight = (make_plan((1024, 1024), FOUR_K, FULL, machine, batch=count) for count in (1, 8))
    results = 8 * 12 * 4096 * 4096
    assert [b.pictures - a.pictures for a, b in zip(one.stages, eight.stages, strict=True)] == [results] * 4
    assert one.fits and not eight.fits
    assert eight.remedies[0] == "upscale fewer than 8 pictures at once" and eight.report()["pictures"] == 8
    assert "enlarged input and 8 results" in eight.text()


def test_every_memory_mode_is_listed() -> None:
    decode = next(stage for stage in plan(100).stages if stage.name == "decode")
    assert decode.by_mode is not None and list(decode.by_mode) == list(MEMORY_MODES)
    assert sorted(decode.by_mode.values(), reverse=True) == list(decode.by_mode.values())
    assert decode.least is not None and decode.least < decode.by_mode["tiny"]


def test_the_ceiling_holds() -> None:
    with pytest.raises(OptionError, match="ceiling"):
        plan(100, target=Target(scale=100))


def test_a_grid_beyond_training_is_warned_of() -> None:
    assert not plan(100).warnings
    assert "128 per side" in plan(100, target=Target(long_edge=4112)).warnings[0]
    assert not plan(100, models=replace(FULL, train_tokens=None), target=Target(long_edge=8192)).warnings


@pytest.mark.parametrize("settings", [StripSettings(), StripSettings(16, "tiny")], ids=str)
@pytest.mark.parametrize("size", [pytest.param((128, 128), marks=pytest.mark.slow), (80, 165)], ids=str)
def test_a_real_run_needs_what_was_planned(size: tuple[int, int], settings: StripSettings) -> None:
    """The bundled weights, x4, live tensors above weights and input: within 10 %."""
    autoencoder, flux = load_autoencoder(BUNDLED_AUTOENCODER), load_flux(BUNDLED_FLUX)
    models = Models(autoencoder.params, flux=flux.params, text_tokens=4, strips=both(settings))
    found = make_plan(size, Target(scale=4), models, Machine("cpu", torch.float32, None))
    low = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with AllocationTracker() as tracker:
        upscale(low, flux, autoencoder, OneStepOptions(), strips=found.strips())
    assert found.peak == pytest.approx(tracker.peak, rel=0.1)
