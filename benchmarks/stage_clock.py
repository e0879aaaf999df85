"""A clock and a memory meter for the stages of the one pipeline there is, ``one_step.run``.

Nothing of the pipeline is repeated here: ``run`` calls its ``Stages``, and where it does, one stage ends and the
next begins. What lies between two stages (a slice, a copy) is in the earlier one.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor

from op4ksr_core.images.color import ColorFix
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.one_step import Frame, Stages

#: What ``StageClock`` calls the parts of a run, in order. "blend" is there where patches are.
STAGES = ("enlarge", "encode", "transformer", "decode", "blend", "colour fix", "back-projection", "save")


def wait_for(device: torch.device) -> None:
    """Return when the device has done what it was given: before a clock is read. Nothing to do on the CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
    elif device.type == "xpu":
        torch.xpu.synchronize(device)


class PeakMeter:
    """``with PeakMeter(device) as meter: ...``: peak bytes above what lived before, since the last ``restart``.

    On CUDA (or ROCm) PyTorch's allocator is asked, which sees kernels' scratch memory too. Elsewhere live
    tensors are counted (``AllocationTracker``): a process's own peak never falls, and so would tell one stage
    only. ``HOW`` says so in a table.
    """

    HOW = {
        "cuda": "peak of PyTorch's allocator above what it held before the run (weights, input)",
        "cpu": "live tensors above what lived before the run (weights, input), counted at each allocation; scratch "
        "memory of kernels, and Pillow's when saving, are not seen",
    }

    def __init__(self, device: torch.device) -> None:
        self.device, self._before = device, 0
        self._tracker = None if device.type == "cuda" else AllocationTracker()

    def __enter__(self) -> PeakMeter:
        if self._tracker is not None:
            self._tracker.__enter__()
        else:
            self._before = torch.cuda.memory_allocated(self.device)
        return self

    def __exit__(self, *error: object) -> None:
        if self._tracker is not None:
            self._tracker.__exit__(*error)

    def restart(self) -> None:
        """Begin a new peak, at what lives now."""
        if self._tracker is not None:
            self._tracker.peak = self._tracker.live
        else:
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Bytes."""
        if self._tracker is not None:
            return self._tracker.peak
        return max(0, torch.cuda.max_memory_allocated(self.device) - self._before)

    @classmethod
    def how(cls, device: torch.device) -> str:
        """How peaks are measured on that device, in words."""
        return cls.HOW["cuda" if device.type == "cuda" else "cpu"]


class StageClock:
    """Seconds, and with a meter peak bytes, by stage; a stage lasts from its ``begin`` to the next one's.

    A stage that is begun again (a patch's) is added to; of its peaks the highest counts. The device is
    waited for whenever a stage ends.
    """

    def __init__(self, device: torch.device, meter: PeakMeter | None = None) -> None:
        self.device, self.meter = device, meter
        self.seconds: dict[str, float] = {}
        self.peaks: dict[str, int] = {}
        self._stage, self._since = "", 0.0

    def begin(self, stage: str) -> None:
        """End the stage that runs, if one does, and begin this one."""
        self.end()
        if self.meter is not None:
            self.meter.restart()
        self._stage, self._since = stage, time.perf_counter()

    def end(self) -> None:
        """End the stage that runs, once the device has done its work, and add it to what was measured."""
        wait_for(self.device)
        now, stage = time.perf_counter(), self._stage
        if not stage:
            return
        self.seconds[stage] = self.seconds.get(stage, 0.0) + now - self._since
        if self.meter is not None:
            self.peaks[stage] = max(self.peaks.get(stage, 0), self.meter.peak())
        self._stage = ""


@dataclass(frozen=True)
class StageNames:
    """What the clock calls the time of each model, the time after the last of them, and that of the last step."""

    encode: str = "encode"
    transform: str = "transformer"
    decode: str = "decode"
    after: str = "colour fix"
    finish: str = "back-projection"


class TimedStages(Stages):
    """Any ``Stages``, timed: they tell a clock when a stage begins. The results are the same."""

    def __init__(self, stages: Stages, clock: StageClock, names: StageNames | None = None) -> None:
        self.stages, self.clock, self.names = stages, clock, names or StageNames()
        self.ratio, self.base, self.output, self.repair = stages.ratio, stages.base, stages.output, stages.repair

    def with_seed(self, seed: int) -> TimedStages:
        return TimedStages(self.stages.with_seed(seed), self.clock, self.names)

    def with_repair(self, repair: float) -> TimedStages:
        return TimedStages(self.stages.with_repair(repair), self.clock, self.names)

    def enlarge(self, low: Tensor, frame: Frame, tell: OnProgress) -> Tensor:
        return self.stages.enlarge(low, frame, tell)

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        self.clock.begin(self.names.encode)
        raw = self.stages.encode(image, tell)
        self.clock.begin(self.names.transform)
        return raw

    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        self.clock.begin(self.names.transform)
        return self.stages.transform(raw, tell)

    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        self.clock.begin(self.names.decode)
        image = self.stages.decode(raw, tell)
        self.clock.begin(self.names.after)
        return image

    def add_decoded(self, raw: Tensor, onto: Tensor, weight: float, tell: OnProgress) -> None:
        self.clock.begin(self.names.decode)
        self.stages.add_decoded(raw, onto, weight, tell)
        self.clock.begin(self.names.after)

    def fix_colors(self, decoded: Tensor, enlarged: Tensor, frame: Frame, kind: ColorFix, factor: float) -> Tensor:
        return self.stages.fix_colors(decoded, enlarged, frame, kind, factor)

    def finish(self, output: Tensor, low: Tensor, frame: Frame, fidelity: float, tell: OnProgress) -> Tensor:
        self.clock.begin(self.names.finish)
        return self.stages.finish(output, low, frame, fidelity, tell)
