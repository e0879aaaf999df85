"""The plan before the run: sizes, the path that will be taken, and whether it fits; held to a real run."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace

import pytest
import torch

from op4ksr_core import (
    BUNDLED_AUTOENCODER,
    BUNDLED_FLUX,
    AutoEncoder,
    Flux,
    OneStepSettings,
    load_autoencoder,
    load_flux,
    upscale,
)
from op4ksr_core.errors import OptionError, OutOfMemoryError
from op4ksr_core.images.resize import Target
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models import flux_layers
from op4ksr_core.models.flux import FluxParams, Output
from op4ksr_core.one_step import CoreStages, OneStepOptions
from op4ksr_core.pieces import Pieces, in_pieces
from op4ksr_core.planning.cost import flux_peak_bytes
from op4ksr_core.planning.geometries import AUTOENCODERS
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine, Plan, Weights
from op4ksr_core.vae.estimate import both
from op4ksr_core.vae.layers import AutoEncoderParams
from op4ksr_core.vae.strips import MEMORY_MODES, StripSettings
from op4ksr_core.weights.enlarger import choose_base

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


# --- the transformer in pieces ----------------------------------------------------------------

#: FLUX.1-dev with its own VAE, as public one-step weights run on it, and their windows.
F8 = Models(AutoEncoderParams(stride=1), flux=FluxParams(), text_tokens=512, weights=WEIGHTS, train_tokens=64)
CUT = replace(F8, pieces=Pieces())


def square(models: Models, free: float = 1000, *, host: bool = False, side: int = 4096) -> Plan:
    machine = Machine("cuda", torch.bfloat16, int(free * 1e9), not host, not host, host=host)
    return make_plan((1024, 1024), Target(long_edge=side), models, machine)


def test_4096_px_on_f8_whole_and_in_pieces() -> None:
    """The published counts: 49 windows of 4,096 tokens, 3.6 PFLOP, and 65,536 tokens, 3.9 PFLOP."""
    whole, cut = square(F8), square(CUT)
    work = [next(stage.flops for stage in plan.stages if stage.name == "transformer") for plan in (whole, cut)]
    assert work == [pytest.approx(3.9e15, rel=0.02), pytest.approx(3.6e15, rel=0.02)]
    assert (whole.pieces, whole.window, cut.pieces, cut.window) == (1, (256, 256), 49, (64, 64))
    assert whole.tokens == cut.tokens == (256, 256)
    assert whole.text().splitlines()[0].endswith("256 x 256 = 65,536 tokens")
    assert cut.text().splitlines()[0].endswith("256 x 256 = 65,536 tokens, in 49 pieces of 64 x 64 = 4,096")
    assert "49 forward passes, pieces of 1024 px that share 512 px, blended" in cut.text()
    assert whole.report()["pieces"] is None and cut.report()["pieces"] == {"count": 49, "rows": 64, "columns": 64}


@pytest.mark.parametrize(("stride", "count"), [(1, 49), (2, 49)])
def test_the_peak_is_a_windows(stride: int, count: int) -> None:
    """At F8 and F16 alike, and the sums of the blending lie beside it."""
    models = replace(CUT, autoencoder=AutoEncoderParams(stride=stride))
    plan = square(models)
    peak, beside = next((s.peak, s.pictures) for s in plan.stages if s.name == "transformer")
    tokens = 64 * 64 // stride**2
    assert plan.pieces == count and plan.window == (64 // stride, 64 // stride)
    assert peak == flux_peak_bytes(FluxParams(), tokens, 512, torch.bfloat16)
    whole = next(s.pictures for s in square(replace(models, pieces=None)).stages if s.name == "transformer")
    assert beside - whole == 17 * 4 * (512 // stride) ** 2


def test_a_picture_no_larger_than_a_window_is_planned_whole() -> None:
    plan = square(CUT, side=1024)
    assert (plan.pieces, plan.window) == (1, (64, 64)) and "one forward pass, no tiles" in plan.text()
    assert plan.report() == square(F8, side=1024).report()


def test_without_a_transformer_there_are_no_pieces() -> None:
    plan = square(replace(CUT, flux=None))
    assert "pieces" not in plan.text() and plan.pieces == 0 and not plan.warnings


@pytest.mark.parametrize(
    ("host", "words"),
    [(False, "pieces (--pieces 1024:512)"), (True, "pieces (pieces 1024, pieces_overlap 512)")],
    ids=["command", "node"],
)
def test_pieces_are_a_remedy_where_they_fit(host: bool, words: str) -> None:
    """With a small VAE: of the full-width one the decoder is what needs most, and pieces do not help."""
    models = replace(F8, autoencoder=AUTOENCODERS["F8, bundled"])
    free = 5.0 if host else 12.17 + 6.0
    hopeless = square(models, free, host=host)
    assert hopeless.fits is False and square(replace(models, pieces=Pieces()), free, host=host).fits is True
    assert f"run the transformer in {words}" in hopeless.remedies
    assert (
        f"run the transformer in {words}" in square(replace(models, pieces=Pieces(3840, 0)), free, host=host).remedies
    )
    assert all("pieces" not in way for way in square(models, 0.3, host=host).remedies)  # where they do not
    full = square(F8, free, host=host)
    assert full.fits is False and all("pieces" not in way for way in full.remedies)


def test_what_to_try_beyond_the_trained_side() -> None:
    said = square(F8).warnings[0]
    assert said.startswith("256 x 256 tokens are more than the 64 per side this model was trained on (1024 px): it is")
    assert "; to compare, try --rfr ntk, interpolate or parts, pieces (--pieces 1024:512), or a target of at" in said
    assert said.endswith("at most 1024 px a side")
    node = square(F8, host=True).warnings[0]
    assert "try Apply RFR (policy ntk, interpolate or parts), pieces (pieces 1024, pieces_overlap 512), or a" in node
    known = square(replace(F8, positions="ntk")).warnings[0]
    assert "it is computed, with RFR ntk, but nobody knows" in known and "--rfr" not in known
    assert known.endswith("try pieces (--pieces 1024:512) or a target of at most 1024 px a side")


def test_in_pieces_no_larger_than_the_trained_side_nothing_is_beyond_it() -> None:
    assert not square(CUT).warnings and not square(F8, side=1024).warnings
    beyond = square(replace(F8, pieces=Pieces(2048, 1024))).warnings[0]
    assert beyond.startswith("128 x 128 tokens are more than the 64 per side")


@pytest.mark.slow
@pytest.mark.parametrize("pieces", [None, Pieces()], ids=["whole", "in pieces"])
def test_12_b_at_4096_px_on_f8_needs_what_was_planned(pieces: Pieces | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Live tensors of the transformer, counted on tensors without values: within 10 %."""
    monkeypatch.setattr(flux_layers, "attention", lambda q, k, v: torch.empty_like(q))  # as fused kernels have it
    with torch.device("meta"):
        flux = Flux(FluxParams(), OneStepSettings(txt=torch.empty(512, 4096)), dtype=torch.bfloat16)
        autoencoder, raw = AutoEncoder(AutoEncoderParams(stride=1)), torch.empty(1, 16, 512, 512, dtype=torch.bfloat16)
    stages = CoreStages(flux.requires_grad_(False), autoencoder)

    def tell(done: int, total: int) -> None:
        if (done, total) == (3, 49):
            raise KeyboardInterrupt  # three windows are like all

    with suppress(KeyboardInterrupt), torch.no_grad(), AllocationTracker() as tracker:
        if pieces is None:
            stages.transform(raw, tell)
        else:
            in_pieces(raw, stages.transform, pieces, stages.ratio, tell)
    plan, whole = square(replace(F8, pieces=pieces)), square(F8)
    stage, other = (next(s for s in p.stages if s.name == "transformer") for p in (plan, whole))
    assert stage.peak + stage.pictures - other.pictures == pytest.approx(tracker.peak, rel=0.1)


def bundled(output: Output) -> tuple[AutoEncoder, Flux, Models]:
    """The bundled weights, whose latents are for that, and what the plan knows of them."""
    autoencoder, flux = load_autoencoder(BUNDLED_AUTOENCODER), load_flux(BUNDLED_FLUX)
    flux.settings = replace(flux.settings, output=output)
    base = choose_base("auto", output)
    return autoencoder, flux, Models(autoencoder.params, flux=flux.params, text_tokens=4, output=output, base=base)


@pytest.mark.parametrize("output", ["picture", "detail"])
@pytest.mark.parametrize("settings", [StripSettings(), StripSettings(16, "tiny")], ids=str)
@pytest.mark.parametrize("size", [pytest.param((128, 128), marks=pytest.mark.slow), (80, 165)], ids=str)
def test_a_real_run_needs_what_was_planned(size: tuple[int, int], settings: StripSettings, output: Output) -> None:
    """The bundled weights, x4, live tensors above weights (the base's too) and input: within 10 %.

    Of the enlarger, which needs most where pictures are small, the plan promises up to a half too much.
    """
    autoencoder, flux, models = bundled(output)
    models = replace(models, strips=both(settings))
    found = make_plan(size, Target(scale=4), models, Machine("cpu", torch.float32, None))
    low = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))
    with AllocationTracker() as tracker:
        upscale(low, flux, autoencoder, OneStepOptions(), strips=found.strips(), base=models.base)
    enlarging = max(found.stages, key=lambda stage: stage.peak + stage.pictures).name == "enlarge"
    assert 0.9 * tracker.peak <= found.peak <= (1.5 if enlarging else 1.1) * tracker.peak


@pytest.mark.slow
@pytest.mark.parametrize("output", ["picture", "detail"])
def test_a_real_run_in_pieces_needs_what_was_planned(output: Output) -> None:
    """The bundled weights, x4, live tensors above weights (the base's too) and input: within 10 %."""
    autoencoder, flux, models = bundled(output)
    pieces, strips = Pieces(256, 128), both(StripSettings(16, "tiny"))
    models = replace(models, strips=strips, pieces=pieces)
    found = make_plan((80, 165), Target(scale=4), models, Machine("cpu", torch.float32, None))
    low = torch.rand(1, 3, 80, 165, generator=torch.Generator().manual_seed(0))
    with AllocationTracker() as tracker:
        upscale(low, flux, autoencoder, OneStepOptions(pieces=pieces), strips=found.strips(), base=models.base)
    assert found.peak == pytest.approx(tracker.peak, rel=0.1)
