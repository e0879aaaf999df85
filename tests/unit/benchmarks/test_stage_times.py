"""The clock around the one pipeline: it changes nothing, knows the stages, and counts bytes as the plan foretells."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import stage_clock, stage_times
from benchmarks.stage_clock import STAGES, PeakMeter, StageClock, wait_for
from benchmarks.stage_times import TOGETHER, core_way, estimated_bytes, flops_of, measure, plan_of, text_tokens
from op4ksr_core import AutoEncoder, Flux, OneStepOptions, OneStepSettings, OutOfMemoryError, Target, upscale
from op4ksr_core.images.io import load_image
from op4ksr_core.one_step import CoreStages

TARGET = Target(scale=2)


@pytest.fixture(scope="module", params=["picture", "detail"])
def core(
    make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder], request: pytest.FixtureRequest
) -> CoreStages:
    return CoreStages(make_flux(settings=OneStepSettings(output=request.param)), make_autoencoder())


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 128, 144, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_timing_changes_nothing_and_tells_every_stage(core: CoreStages, image: Tensor, tmp_path: Path) -> None:
    options, path = OneStepOptions(TARGET), tmp_path / "picture.png"
    own = measure({"": core_way(core, options, plan_of((128, 144), TARGET, core), path)}, image, 2)[""]
    assert torch.equal(own.image, upscale(image, core.flux, core.autoencoder, options))
    assert load_image(path).size == (256, 288)
    assert len(own.turns) == 2
    assert [list(turn) for turn in own.turns] == [[stage for stage in STAGES if stage != "blend"]] * 2
    assert own.seconds(TOGETHER)[0] == pytest.approx(sum(own.turns[0].values()) - own.turns[0]["save"])
    assert own.work(TOGETHER) == pytest.approx(sum(own.flops.values()))
    assert (own.work("enlarge") is None) == (core.output == "picture")
    decoding = next(stage for stage in plan_of((128, 144), TARGET, core).stages if stage.name == "decode")
    assert own.work("decode") == decoding.flops


def test_bytes_are_near_the_plans(core: CoreStages, image: Tensor) -> None:
    plan = plan_of((128, 144), TARGET, core)
    own = measure({"": core_way(core, OneStepOptions(TARGET), plan)}, image, 0)[""]
    for stage in ("encode", "transformer", "decode", TOGETHER):
        assert 0.7 < (estimated_bytes(plan, stage) or 0) / own.peak(stage) < 1.4, stage
    assert estimated_bytes(plan, "colour fix") == estimated_bytes(plan, "back-projection")
    assert (estimated_bytes(plan, "enlarge") is None) == (core.output == "picture")


def test_without_a_transformer_no_stage_is_called_so(core: CoreStages, image: Tensor) -> None:
    alone = CoreStages(None, core.autoencoder)
    plan = plan_of((128, 144), TARGET, alone)
    assert "transformer" not in flops_of(plan)
    own = measure({"": core_way(alone, OneStepOptions(TARGET, vae_only=True), plan)}, image, 1)[""]
    assert not own.has("transformer") and own.has("decode") and own.has(TOGETHER)


def test_the_plan_knows_the_models_own_prompt(core: CoreStages, make_flux: Callable[..., Flux]) -> None:
    long = make_flux(settings=OneStepSettings(txt=torch.zeros(200, 24)))
    assert text_tokens(long) == 200 and core.flux is not None and text_tokens(core.flux) == 1
    more = flops_of(plan_of((64, 64), TARGET, CoreStages(long, core.autoencoder)))["transformer"]
    assert more > 5 * flops_of(plan_of((64, 64), TARGET, core))["transformer"]


def test_what_cannot_fit_is_refused(core: CoreStages, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stage_times, "free_memory", lambda device: 1000)
    with pytest.raises(OutOfMemoryError, match="will not fit"):
        plan_of((512, 512), TARGET, core)


def test_a_stage_that_comes_again_is_added_to(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[torch.device] = []
    times = iter([0.0, 0.0, 2.0, 2.0, 3.0, 3.0, 10.0])  # a stage's end, the next one's begin
    monkeypatch.setattr(stage_clock, "wait_for", waited.append)
    monkeypatch.setattr(stage_clock.time, "perf_counter", lambda: next(times))
    clock = StageClock(torch.device("cpu"))
    for stage in ("a", "b", "a"):
        clock.begin(stage)
    clock.end()
    assert clock.seconds == {"a": 2.0 + 7.0, "b": 1.0} and len(waited) == 4


def test_the_meter_forgets_what_is_gone() -> None:
    with PeakMeter(torch.device("cpu")) as meter:
        kept = torch.zeros(1000)
        gone = torch.zeros(5000)
        assert meter.peak() == 24000
        del gone
        meter.restart()
        assert meter.peak() == kept.nbytes


def test_on_cuda_its_allocator_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    calls: list[tuple[str, torch.device]] = []

    def pretend(name: str, value: int) -> None:
        def answer(where: torch.device) -> int:
            calls.append((name, where))
            return value

        monkeypatch.setattr(torch.cuda, name, answer)

    pretend("memory_allocated", 70)
    pretend("max_memory_allocated", 100)
    pretend("reset_peak_memory_stats", 0)
    with PeakMeter(device) as meter:
        meter.restart()
        assert meter.peak() == 30
    assert calls == [(name, device) for name in ("memory_allocated", "reset_peak_memory_stats", "max_memory_allocated")]
    assert "allocator" in PeakMeter.how(device) and "counted" in PeakMeter.how(torch.device("cpu"))


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_a_clock_waits_for_the_device_that_works(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    waited: list[str] = []
    for name, module in (("cuda", torch.cuda), ("mps", torch.mps), ("xpu", torch.xpu)):
        monkeypatch.setattr(module, "synchronize", lambda *_, name=name: waited.append(name))
    wait_for(torch.device(kind))
    wait_for(torch.device("cpu"))
    assert waited == [kind]
