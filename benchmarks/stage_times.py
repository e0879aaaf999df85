"""Several ways to upscale one picture, timed in turn in one process, beside what they should take."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.images.resize import Target
from op4ksr_core.machine import free_memory
from op4ksr_core.models.flux import Flux
from op4ksr_core.one_step import CoreStages, OneStepOptions, Stages, run
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine, Plan

from .stage_clock import PeakMeter, StageClock, StageNames, TimedStages

#: All stages but saving: until the picture is there.
TOGETHER = "together"


@dataclass(frozen=True)
class Way:
    """One way to upscale: what makes its models around a clock, its options, and its FLOPs by stage where known."""

    stages: Callable[[StageClock], Stages]
    options: OneStepOptions
    flops: Mapping[str, float] = field(default_factory=dict[str, float])
    #: Where to save the picture, if that shall be timed as well.
    save: Path | None = None


@dataclass
class Measured:
    """What one way gave: its picture, on the CPU; peak bytes by stage; FLOPs; and seconds by stage for every turn."""

    image: Tensor
    peaks: dict[str, int]
    flops: Mapping[str, float]
    turns: list[dict[str, float]] = field(default_factory=list[dict[str, float]])

    def seconds(self, stage: str) -> list[float]:
        """Of a stage, or of all but saving (``TOGETHER``), one number for each turn."""
        if stage == TOGETHER:
            return [sum(value for name, value in turn.items() if name != "save") for turn in self.turns]
        return [turn[stage] for turn in self.turns]

    def median(self, stage: str) -> float:
        """Of the stage's seconds."""
        return statistics.median(self.seconds(stage))

    def peak(self, stage: str) -> int:
        """Bytes of a stage, or (``TOGETHER``) of the highest but saving."""
        if stage == TOGETHER:
            return max(value for name, value in self.peaks.items() if name != "save")
        return self.peaks[stage]

    def work(self, stage: str) -> float | None:
        """FLOPs of a stage, or of all; None where there is no closed form."""
        if stage == TOGETHER:
            return sum(self.flops.values()) if self.flops else None
        return self.flops.get(stage)

    def has(self, stage: str) -> bool:
        """Whether the way has such a stage."""
        return stage == TOGETHER or stage in self.turns[0]


def measure(ways: Mapping[str, Way], image: Tensor, repeats: int) -> dict[str, Measured]:
    """Run every way once, to warm up and for its memory; then all in turn, ``repeats`` times, for their seconds.

    image (1, 3, H, W) in [0, 1] on the models' device.
    """
    found: dict[str, Measured] = {}
    for name, way in ways.items():
        with PeakMeter(image.device) as meter:
            clock = StageClock(image.device, meter)
            result = _run(way, image, clock)
        found[name] = Measured(result.cpu(), clock.peaks, way.flops)
    for _ in range(repeats):
        for name, way in ways.items():
            clock = StageClock(image.device)
            _run(way, image, clock)
            found[name].turns.append(clock.seconds)
    return found


def _run(way: Way, image: Tensor, clock: StageClock) -> Tensor:
    clock.begin("enlarge")
    result = run(image, way.stages(clock), way.options)
    if way.save is not None:
        clock.begin("save")
        save_image(way.save, Picture(result))
    clock.end()
    return result


def core_way(core: CoreStages, options: OneStepOptions, plan: Plan, save: Path | None = None) -> Way:
    """The way that the core goes, with the plan's strips and FLOPs. save: the file to write, if that is timed too."""
    return Way(lambda clock: timed(core.with_strips(plan.strips()), clock), options, flops_of(plan), save)


def timed(
    core: CoreStages, clock: StageClock, after: str = StageNames.after, finish: str = StageNames.finish
) -> TimedStages:
    """The core's models around a clock. Without a transformer, the time after encoding belongs to decoding."""
    names = StageNames(transform="transformer" if core.flux else "decode", after=after, finish=finish)
    return TimedStages(core, clock, names)


# --- what it should take ----------------------------------------------------------------------


def plan_of(size: tuple[int, int], target: Target, core: CoreStages) -> Plan:
    """The plan for a picture of ``size`` (height, width) with loaded models; their strips, else by the free memory.

    Raises OutOfMemoryError where it cannot fit.
    """
    vae, flux = core.autoencoder, core.flux
    models = Models(vae.params, strips=core.strips, base=core.base, output=core.output)
    if flux is not None:
        models = replace(models, flux=flux.params, text_tokens=text_tokens(flux), transformer_dtype=flux.dtype)
    plan = make_plan(size, target, models, Machine(str(vae.device), vae.dtype, free_memory(vae.device)))
    plan.refuse_if_hopeless()
    return plan


def text_tokens(flux: Flux) -> int:
    """How many tokens the model's prompt embedding has."""
    return flux.prompt(1)[0].shape[1]


def flops_of(plan: Plan) -> dict[str, float]:
    """FLOPs by stage, as ``cost`` has them."""
    return {stage.name: stage.flops for stage in plan.stages if stage.flops}


#: Which stage of a plan estimates the memory of which of ours.
_PLANNED = {"colour fix": "finish", "back-projection": "finish"}


def estimated_bytes(plan: Plan, stage: str) -> int | None:
    """The plan's peak of a stage, pictures beside it included, weights not; None where it has none."""
    if stage == TOGETHER:
        return max(planned.peak + planned.pictures for planned in plan.stages)
    name = _PLANNED.get(stage, stage)
    for planned in plan.stages:
        if planned.name == name:
            return planned.peak + planned.pictures
    return None
