"""``train``: one training step, timed, beside the device's own matrix products and beside the plan.

The trainer's own task, AdamW and running mean, on seeded noise as pictures: the time that a run's workers take to
read and damage pictures is not in it, nor an adversarial judge. With a named geometry the weights are random: that
shows time and memory, and says nothing of quality.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace

import torch
from torch import Tensor, nn

from op4ksr_core.errors import OptionError
from op4ksr_core.models.flux import Flux, OneStepSettings
from op4ksr_core.planning.plan import GIGABYTE
from op4ksr_core.training.config import TrainConfig
from op4ksr_core.training.optimization import Ema, adamw
from op4ksr_core.training.step_meter import StepMeter, bytes_of
from op4ksr_core.training.step_plan import StepPlan, plan_step
from op4ksr_core.training.tasks.frozen import Base, FrozenLinear, freeze_blocks, quantized
from op4ksr_core.training.tasks.model_source import Files, ModelSource
from op4ksr_core.training.tasks.one_step import LoraTask, OneStepTask
from op4ksr_core.vae.autoencoder import AutoEncoder

from .ceiling import matmul_ceiling
from .memory import random_autoencoder
from .random_models import Geometry
from .stage_clock import PeakMeter, wait_for
from .tables import Row

#: Deviation of random weights; our choice: what a transformer is begun with.
DEVIATION = 0.02


class RandomModels:
    """A ``ModelSource`` of seeded random weights, made on the device one layer after the other.

    So a quantized transformer never needs the memory of a plain one there.
    """

    def __init__(self, config: TrainConfig, geometry: Geometry, device: torch.device) -> None:
        self.config, self.geometry, self.device = config, geometry, device
        self.generator = torch.Generator(device).manual_seed(config.seed)

    def autoencoder(self) -> AutoEncoder:
        return random_autoencoder(self.geometry.autoencoder).to(memory_format=torch.channels_last)  # pyright: ignore

    def flux(self, dtype: torch.dtype | None) -> Flux:
        params = self.geometry.flux
        txt = torch.randn(
            self.geometry.text_tokens, params.context_in_dim, generator=self.generator, device=self.device
        )
        settings = OneStepSettings(txt=txt.cpu(), vec=torch.zeros(params.vec_in_dim))
        flux = Flux(params, settings, dtype=dtype, device="meta").eval().requires_grad_(False)
        freeze_blocks(flux, self.config.train.base, self._quantized)
        for module in flux.modules():
            if any(parameter.is_meta for parameter in module.parameters(recurse=False)):
                self._fill(module)
        return flux

    def _quantized(self, linear: nn.Linear, base: Base) -> FrozenLinear:
        self._fill(linear)
        return quantized(linear, base)

    def _fill(self, module: nn.Module) -> None:
        """Memory and values for a module's own parameters: matrices random, scales of norms 1, biases 0."""
        module.to_empty(device=self.device, recurse=False)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim > 1:
                parameter.normal_(0, DEVIATION, generator=self.generator)
            else:
                parameter.fill_(1.0 if name == "scale" else 0.0)


class Step:
    """One optimizer step of a config's task on pictures of noise. ``run`` does it once."""

    def __init__(self, config: TrainConfig, models: ModelSource, device: torch.device) -> None:
        self.config, self.device = config, device
        config = replace(config, data=replace(config.data, cached=0))
        task = LoraTask(config, models) if config.kind == "lora" else OneStepTask(config, models)
        self.task = task.to(device)
        self.parameters = task.trained()
        self.optimizer = adamw(self.parameters.values(), config.train)
        self.ema = Ema(self.parameters, config.train.ema)
        side, batch = config.data.crop, config.train.batch
        generator = torch.Generator().manual_seed(config.seed)
        self.high, self.low = (torch.rand(batch, 3, side, side, generator=generator).to(device) for _ in range(2))
        if self.config.data.cached:
            latents = task.encode(self.low), task.encode(self.high)
            task.encode = lambda pictures: latents[pictures is self.high]  # pyright: ignore

    @property
    def held(self) -> int:
        """Bytes of weights, running mean, and what AdamW keeps by now."""
        tensors = [*self.task.parameters(), *self.task.buffers(), *self.ema.mean.values()]
        states = (t for state in self.optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
        return bytes_of(*tensors, *states)

    def run(self) -> float:
        """Make one step. Returns the last batch's loss, once the device has done all of it."""
        train, last = self.config.train, torch.zeros(())
        self.optimizer.zero_grad(set_to_none=True)
        for micro in range(train.accumulate):
            judged = self.task(self.high, self.low, max(1, train.latent_steps), (self.config.seed, micro, 0))
            loss = torch.stack(list(judged.terms.values())).sum()
            (loss / train.accumulate).backward()
            last = loss.detach()
            del judged, loss  # pictures that the next batch would find in its way
        nn.utils.clip_grad_norm_(self.parameters.values(), train.clip)
        self.optimizer.step()
        self.ema.update()
        wait_for(self.device)
        return float(last)


def train_rows(
    config: TrainConfig, geometry: Geometry, *, random: bool, device: torch.device, repeats: int = 5
) -> tuple[list[Row], list[Row]]:
    """One row for the step, with the plan beside it; and one for each of ``repeats`` timed steps.

    Four steps come before the clock: one to set up, one each under the counters of memory and of work, one to settle.
    random: weights of ``geometry`` instead of the config's files. Raises OptionError without a transformer.
    """
    if not config.has_transformer:
        raise OptionError('benchmarks train: times runs of kind "one_step" and "lora"; name the config of one')
    config = replace(config, train=replace(config.train, device=str(device), grid_every=0))
    plan = plan_step(config, geometry, device.type)
    step = Step(config, RandomModels(config, geometry, device) if random else Files(config), device)
    step.run()
    held, work, peak = step.held, *_counted(step)
    step.run()
    taken: list[float] = []
    for _ in range(repeats):
        began = time.perf_counter()
        step.run()
        taken.append(time.perf_counter() - began)
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    ceiling = max(row["TFLOP/s"] for row in matmul_ceiling(device, dtype))
    row = _row(config, plan, statistics.median(taken), work, ceiling)
    row |= {"GB held": held / GIGABYTE, "GB at peak": peak / GIGABYTE, "GB planned": plan.peak / GIGABYTE}
    return [row], [{"step": i, "seconds": seconds} for i, seconds in enumerate(taken)]


def _counted(step: Step) -> tuple[float, int]:
    """FLOPs of one step, and the most bytes there were: of the allocator on CUDA, of live tensors elsewhere."""
    held = step.held
    step.optimizer.zero_grad(set_to_none=True)
    with PeakMeter(step.device) as memory:
        memory.restart()
        step.run()
        peak = memory.peak()
    with StepMeter() as meter:
        step.run()
    return meter.flops, held + peak


def _row(config: TrainConfig, plan: StepPlan, seconds: float, work: float, ceiling: float) -> Row:
    train = config.train
    speed = work / seconds / 1e12
    return {
        "kind": config.kind,
        "base": train.base,
        "px": config.data.crop,
        "batch": f"{train.batch} x {train.accumulate}",
        "checkpointing": train.checkpointing,
        "rank": config.model.lora_rank if config.kind == "lora" else "",
        "seconds": seconds,
        "TFLOP": work / 1e12,
        "TFLOP planned": plan.work * train.accumulate / 1e12,
        "TFLOP/s": speed,
        "matmul TFLOP/s": ceiling,
        "share of it": speed / ceiling,
    }
