"""``pipeline``: one upscale stage by stage, and what strips, no patches and F16 save, as ratios of one run.

Photo and weights are the ones given (the bundled ones), but for F8 against F16: there both autoencoders have
seeded random weights, which show time and memory, never quality.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from op4ksr_core.bundled import SAMPLE_PHOTO
from op4ksr_core.errors import OptionError
from op4ksr_core.images.io import load_image
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.machine import dtype_name
from op4ksr_core.models.flux import Flux
from op4ksr_core.one_step import CoreStages, OneStepOptions
from op4ksr_core.planning.cost import flux_flops
from op4ksr_core.planning.geometries import AUTOENCODERS
from op4ksr_core.planning.plan import Plan
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.vae.estimate import StripPlan

from .ceiling import matmul_ceiling
from .memory import PlainStages, random_autoencoder
from .patches import Cut, PatchStages, difference
from .stage_clock import STAGES, PeakMeter, StageClock, StageNames, TimedStages
from .stage_times import (
    TOGETHER,
    Measured,
    Way,
    core_way,
    estimated_bytes,
    flops_of,
    measure,
    plan_of,
    text_tokens,
    timed,
)
from .tables import Row, Tables, setting_rows

#: What the run as it is can be compared with.
Comparison = Literal["plain", "patches", "f8"]
COMPARISONS: tuple[Comparison, ...] = get_args(Comparison)


@dataclass(frozen=True)
class PipelineSettings:
    """A square picture from ``start`` to ``to`` px a side; patches to compare with; repeats after one warm-up."""

    start: int = 1024
    to: int = 4096
    cut: Cut = field(default_factory=Cut)
    repeats: int = 3
    compare: tuple[Comparison, ...] = COMPARISONS
    #: Sides of the matrices whose product is the ceiling; None: by the device.
    ceiling: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for side in (self.start, self.to):
            if side < 1:
                raise OptionError(f"benchmarks pipeline: expected sides from 1 px up, got {side}; name larger ones")

    @property
    def target(self) -> Target:
        """The size that is asked for."""
        return Target(long_edge=self.to)


#: Too small for figures that mean anything: to see that everything runs.
QUICK = PipelineSettings(32, 128, Cut(96, 32), ceiling=(128,))


def photo(side: int, device: torch.device) -> Tensor:
    """The bundled photo as (1, 3, side, side) in [0, 1]."""
    return resize(load_image(SAMPLE_PHOTO).image, side, side).clamp(0, 1).to(device)


def upscale_tables(
    flux: Flux | None, autoencoder: AutoEncoder, settings: PipelineSettings, strips: StripPlan | None = None
) -> tuple[Tables, list[Row]]:
    """The stages of one upscale, the ceiling, and the comparisons with plain passes and patches; every turn's seconds.

    flux None: the autoencoder alone. strips None: by the free memory.
    """
    core = CoreStages(flux, autoencoder, strips=strips)
    size, options = (settings.start, settings.start), OneStepOptions(settings.target, vae_only=flux is None)
    plan = plan_of(size, settings.target, core)
    core = core.with_strips(plan.strips())
    with tempfile.TemporaryDirectory() as folder:
        ways = {"patch-free": core_way(core, options, plan, Path(folder) / "picture.png")}
        if "plain" in settings.compare:
            plain = PlainStages(flux, autoencoder)
            ways["plain passes"] = Way(lambda clock: timed(plain, clock), options)
        if "patches" in settings.compare:
            ways["patches"] = patches_way(core, plan.output, settings)
        found = measure(ways, photo(settings.start, autoencoder.device), settings.repeats)
    ceiling = matmul_ceiling(autoencoder.device, autoencoder.dtype, settings.ceiling)
    tables = {
        "Settings": settings_table(core, plan, settings.repeats),
        "Stages of one upscale": stage_table(found["patch-free"], plan, ceiling),
        "The ceiling: products of two square matrices in the run's dtype, the best of 5": ceiling,
    }
    if len(found) > 1:
        tables["Settings"] += setting_rows(_COMPARED)
    return tables | _comparisons(found, settings), turns_table(found)


#: What the comparisons mean.
_COMPARED = {
    "patches": "cut from the enlarged picture (the last of a row or column smaller), each with the same strips and a "
    "mirrored margin of its own, faded into each other as ComfyUI's tiles are; colour fix and the rest on the whole",
    "step": "jump of the difference of both pictures from one pixel to the next; seam: where a patch begins or ends",
}


def patches_way(core: CoreStages, size: tuple[int, int], settings: PipelineSettings) -> Way:
    """The same models, patch by patch, over an enlarged picture of ``size`` (height, width); FLOPs of all patches."""

    def stages(clock: StageClock) -> TimedStages:
        patched = PatchStages(timed(core, clock, "blend", "blend"), settings.cut, size, vae_only=core.flux is None)
        return TimedStages(patched, clock, StageNames("blend", "blend", "blend"))

    flops: dict[str, float] = {}
    for patch, count in settings.cut.sizes(size).items():
        plan = plan_of(patch, Target(scale=1), core)
        for stage, work in flops_of(plan).items():
            flops[stage] = flops.get(stage, 0.0) + count * work
    return Way(stages, OneStepOptions(settings.target, vae_only=True), flops)


def _comparisons(found: Mapping[str, Measured], settings: PipelineSettings) -> Tables:
    tables: Tables = {}
    if "plain passes" in found:
        names = {"plain passes": "plain passes", "patch-free": "strips"}
        tables["Strips against plain passes"] = versus(found, names, ("encode", "decode"))
    if "patches" in found:
        cut, image = settings.cut, found["patches"].image
        count = cut.sizes((image.shape[-2], image.shape[-1])).total()
        names = {"patch-free": "patch-free", "patches": f"{count} patches"}
        title = f"Patches of {cut.side} px that overlap by {cut.overlap} px against none"
        tables[title] = versus(found, names, ("encode", "transformer", "decode", "blend", TOGETHER))
    own = found["patch-free"].image
    others = [way for way in found if way != "patch-free"]
    if others:
        title = "How far those pictures are from the patch-free one, in grey levels of 255; steps at the patches' seams"
        tables[title] = [{"way": way, **difference(found[way].image, own, settings.cut)} for way in others]
    return tables


def f8_tables(
    flux: Flux | None, weights: str, device: torch.device, dtype: torch.dtype, settings: PipelineSettings
) -> tuple[Tables, list[Row]]:
    """F16 and F8 autoencoders of one width (weights: "bundled", "full width"), random, on the same picture.

    Colour fix and back-projection are left out; the transformer's work at either's tokens is counted, not run.
    """
    target, size = settings.target, (settings.start, settings.start)
    options = OneStepOptions(target, color="none", fidelity=0.0, vae_only=True)
    ways: dict[str, Way] = {}
    sizes: list[Row] = []
    for name in ("F16", "F8"):
        model = random_autoencoder(AUTOENCODERS[f"{name}, {weights}"]).to(device, dtype)
        core = CoreStages(None, model)
        plan = plan_of(size, target, core)
        ways[name] = core_way(core, options, plan)
        tokens = plan.tokens[0] * plan.tokens[1]
        work = "" if flux is None else flux_flops(flux.params, tokens, text_tokens(flux)) / 1e12
        sizes.append({"VAE": name, "latent": _px(plan.latent), "tokens": tokens, "transformer TFLOP": work})
    found = measure(ways, photo(settings.start, device), settings.repeats)
    rows = versus(found, {"F16": "F16", "F8": "F8"}, ("encode", "decode"))
    tables = {
        f"F8 against F16: random weights (seeded), {weights}": rows,
        "F8 against F16: tokens for the same picture, and the work that the model given would have": sizes,
    }
    return tables, turns_table(found)


# --- tables -----------------------------------------------------------------------------------


def settings_table(core: CoreStages, plan: Plan, repeats: int) -> list[Row]:
    """What was run, how it was timed, and what its figures mean."""
    model, (rows, columns) = core.autoencoder, plan.tokens
    strips = [f"{stage.name}: {stage.path}" for stage in plan.stages if stage.settings is not None]
    values = {
        "picture": f"{_px(plan.input)} -> {_px(plan.output)} px, {_px(plan.framed)} with the VAE's margin",
        "tokens": f"{columns} x {rows} = {rows * columns}",
        "models": f"{model.device}, {dtype_name(model.dtype)}; VAE {model.params.ratio}x",
        "strips": "; ".join(strips),
        **meanings(model.device, repeats),
    }
    if model.device.type == "cuda" and model.dtype == torch.float32:
        values["ceiling"] = "convolutions may use TF32, products of matrices use float32: a share can exceed 1"
    return setting_rows(values)


def meanings(device: torch.device, repeats: int) -> dict[str, str]:
    """What the tables' units stand for."""
    return {
        "s": f"seconds, median of {repeats} after one warm-up, all ways in turn in one process; min and max of them",
        "GB": f"1e9 bytes, highest in the stage, in the warm-up run: {PeakMeter.how(device)}",
        "TFLOP": "1e12 multiplications or additions of convolutions, linear layers and attention, by planning/cost.py",
    }


def _px(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def stage_table(found: Measured, plan: Plan, ceiling: Sequence[Row]) -> list[Row]:
    """A row per stage and one for all but saving: seconds, memory beside its estimate, work, share of the ceiling."""
    top = max(row["TFLOP/s"] for row in ceiling)
    rows: list[Row] = []
    for stage in (*STAGES[:-1], TOGETHER, STAGES[-1]):
        if not found.has(stage):
            continue
        seconds, work, estimated = found.median(stage), found.work(stage), estimated_bytes(plan, stage)
        rate = None if work is None else work / 1e12 / seconds
        rows.append({"stage": stage, **spread(found, stage)})
        rows[-1] |= {
            "of all": "" if stage == "save" else seconds / found.median(TOGETHER),
            "GB": found.peak(stage) / 1e9,
            "estimated GB": "" if estimated is None else estimated / 1e9,
            "TFLOP": "" if work is None else work / 1e12,
            "TFLOP/s": "" if rate is None else rate,
            "of the ceiling": "" if rate is None else rate / top,
        }
    return rows


def versus(found: Mapping[str, Measured], names: Mapping[str, str], stages: Sequence[str]) -> list[Row]:
    """The ways named, stage by stage, under their names; the first is what the others are divided by.

    Work is left out unless all of them have closed forms.
    """
    base, label = found[next(iter(names))], next(iter(names.values()))
    counted = all(found[way].flops for way in names)
    rows: list[Row] = []
    for stage in stages:
        for way, name in names.items():
            own = found[way]
            if not own.has(stage):
                continue
            work, first, both = own.work(stage), base.work(stage), base.has(stage)
            row = {"stage": stage, "way": name, **spread(own, stage), "GB": own.peak(stage) / 1e9}
            row |= {"TFLOP": "" if work is None else work / 1e12} if counted else {}
            row[f"s / {label}"] = own.median(stage) / base.median(stage) if both else ""
            row[f"GB / {label}"] = own.peak(stage) / base.peak(stage) if both else ""
            row |= {f"TFLOP / {label}": work / first if work and first else ""} if counted else {}
            rows.append(row)
    return rows


def spread(found: Measured, stage: str) -> Row:
    """Median, min and max of a stage's seconds."""
    seconds = found.seconds(stage)
    return {"s": found.median(stage), "min": min(seconds), "max": max(seconds)}


def turns_table(found: Mapping[str, Measured]) -> list[Row]:
    """Every turn's seconds by stage, for the JSON."""
    return [{"way": way, "turn": i, **turn} for way, own in found.items() for i, turn in enumerate(own.turns)]
