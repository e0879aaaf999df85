"""What one training step needs, before it begins: bytes by part, work, and which cards it fits.

The step that is counted is the trainer's own (``one_step_task``), forward and backward, on tensors that have shapes
and no values (PyTorch's fake tensors, on the meta device underneath): FLUX.1-dev's 12 B parameters take no memory
here. Counted are live tensors, as by ``machine.AllocationTracker``; what kernels and the allocator take on top is
covered by ``WORKSPACE``. On a CPU the count is held to a real step's by a test; for CUDA its rules of mixed precision,
which differ, are followed, and nothing was measured.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ..errors import OptionError, OutOfMemoryError
from ..models.flux import Flux, FluxParams, OneStepSettings
from ..planning.geometries import GEOMETRIES, Geometry
from ..planning.plan import GIGABYTE
from ..vae.autoencoder import AutoEncoder, AutoEncoderParams
from ..vae.estimate import WORKSPACE
from ..weights.header import PROMPT_KEYS
from .config import TrainConfig
from .step_meter import StepStages, by_cuda_rules, bytes_of
from .tasks.frozen import freeze_blocks, shapes_of
from .tasks.model_source import Files, describe_start
from .tasks.one_step import LoraTask, OneStepTask
from .tasks.task import BLOCKS

#: Memory of the cards that a plan names, GB; a card of 24 "GB" has 25.8e9 bytes, of which its driver takes some.
CARDS = (24, 48, 80)


def geometry_of(config: TrainConfig, name: str | None = None) -> Geometry:
    """The named one, or that of the config's files, of which only the headers are read."""
    if name is not None:
        return GEOMETRIES[name]
    files = Files(config)
    autoencoder = describe_start(config, files.autoencoder_file).params
    assert isinstance(autoencoder, AutoEncoderParams)
    if not config.model.start:
        return Geometry(FluxParams(), autoencoder, config.model.prompt_tokens)
    found = files.described_flux()
    assert isinstance(found.params, FluxParams)
    return Geometry(found.params, autoencoder, found.header.shapes.get(PROMPT_KEYS[0], (1,))[0])


class Shapes:
    """A ``ModelSource`` with no weights in it, computing by the device's rules; for use under ``FakeTensorMode``."""

    def __init__(self, config: TrainConfig, geometry: Geometry) -> None:
        self.config, self.geometry = config, geometry

    def _ruled(self, model: nn.Module) -> None:
        """Let blocks bring CUDA's rules along: in the backward pass they are computed again, outside ``CudaRules``."""
        for module in model.modules() if self.config.train.device == "cuda" else ():
            if isinstance(module, BLOCKS):
                module.forward = partial(by_cuda_rules, module.forward)  # pyright: ignore

    def autoencoder(self) -> AutoEncoder:
        model = AutoEncoder(self.geometry.autoencoder).eval()
        for module in model.modules():
            if isinstance(module, nn.Conv2d):  # Module.to cannot swap fake tensors
                module.weight = nn.Parameter(module.weight.detach().contiguous(memory_format=torch.channels_last))
        self._ruled(model)
        return model.requires_grad_(False)

    def flux(self, dtype: torch.dtype | None) -> Flux:
        params = self.geometry.flux
        txt = torch.empty(self.geometry.text_tokens, params.context_in_dim)
        settings = OneStepSettings(txt=txt, vec=torch.empty(params.vec_in_dim))
        flux = Flux(params, settings, dtype=dtype).eval().requires_grad_(False)
        freeze_blocks(flux, self.config.train.base, shapes_of)
        self._ruled(flux)
        return flux


@dataclass(frozen=True)
class StepPlan:
    """What one step needs. held: bytes that stay between steps, by part. peaks: bytes on top of them, by stage.

    flops: of the batch, by stage.
    """

    held: dict[str, int]
    peaks: dict[str, int]
    flops: dict[str, float]
    #: Terms that were left out of the count.
    uncounted: tuple[str, ...] = ()

    @property
    def peak(self) -> int:
        """Bytes of live tensors at the worst moment."""
        return sum(self.held.values()) + max(self.peaks.values())

    @property
    def need(self) -> int:
        """``peak`` and, of what does not stay, the share that kernels and the allocator may take on top."""
        return sum(self.held.values()) + int(max(self.peaks.values()) * (1 + WORKSPACE))

    @property
    def work(self) -> float:
        """FLOPs of the step, recomputed ones included."""
        return sum(self.flops.values())

    def fits(self, free: float) -> bool:
        """Whether so many bytes are enough."""
        return self.need <= free

    def text(self) -> str:
        """For people: a line per part and stage, and the cards."""
        lines = [f"{name:<28} {size / GIGABYTE:8.3f} GB  stays" for name, size in self.held.items()]
        for name, size in self.peaks.items():
            work = f"{self.flops.get(name, 0.0) / 1e12:10.2f} TFLOP"
            lines.append(f"{name:<28} {size / GIGABYTE:8.3f} GB  at its worst {work}")
        lines.append(f"{'peak of live tensors':<28} {self.peak / GIGABYTE:8.3f} GB")
        lines.append(f"{'with kernels and allocator':<28} {self.need / GIGABYTE:8.3f} GB")
        lines.append(f"{'work of one batch':<28} {self.work / 1e12:8.1f} TFLOP")
        lines += [f"{card} GB card: {'fits' if self.fits(card * GIGABYTE) else 'does not fit'}" for card in CARDS]
        if self.uncounted:
            lines.append(f"not counted: loss.{', loss.'.join(self.uncounted)}")
        return "\n".join(lines + ["Counted on tensors without values, not measured on a GPU."])

    def report(self) -> dict[str, Any]:
        """The plan as plain values, for JSON."""
        return {
            "held_bytes": self.held,
            "peak_bytes_by_stage": self.peaks,
            "flops_by_stage": self.flops,
            "peak_bytes": self.peak,
            "need_bytes": self.need,
            "flops": self.work,
            "fits": {f"{card} GB": self.fits(card * GIGABYTE) for card in CARDS},
            "not_counted": list(self.uncounted),
        }


def plan_step(config: TrainConfig, geometry: Geometry, device: str = "cuda") -> StepPlan:
    """Count one step of the config with models of that geometry. device: "cuda" or "cpu", whose rules are followed.

    Raises OptionError for a run without a transformer, which is not counted.
    """
    if not config.has_transformer:
        raise OptionError('--plan: counts runs of kind "one_step" and "lora"; start this one with a small train.batch')
    uncounted = tuple(name for name in ("perceptual", "adversarial") if getattr(config.loss, name))
    loss = replace(config.loss, **dict.fromkeys(uncounted, 0.0))
    counted = replace(
        config,
        loss=replace(loss, pixel=loss.pixel or 1.0) if uncounted else loss,  # they look at pictures, so decode
        train=replace(config.train, device=device, latent_steps=0, grid_every=0),
        data=replace(config.data, cached=0),
    )
    accumulated = config.train.accumulate > 1
    with FakeTensorMode(), torch.random.fork_rng(devices=()):
        task = (LoraTask if config.kind == "lora" else OneStepTask)(counted, Shapes(counted, geometry))
        held = held_bytes(task, config)
        shape = largest_batch(config)
        if config.data.cached:
            latents = _latents(task, shape)
            task.encode = lambda pictures: latents  # pyright: ignore
        stages = StepStages(task, device)
        stages.run(torch.empty(shape), torch.empty(shape), accumulated)
        stages.peaks["optimizer"] = _at_work(task, device)
    if not accumulated:  # they come while activations go: the stages have them
        stages.peaks["optimizer"] += held.pop("gradients")
    return StepPlan(held, stages.peaks, stages.flops, uncounted)


def largest_batch(config: TrainConfig) -> tuple[int, int, int, int]:
    """(B, 3, side, side) of the run's largest batch on pictures."""
    data, shapes = config.data, [(config.train.batch, config.data.crop)]
    if data.late_from < 1:
        shapes.append((data.late_batch, data.late_crop))
    batch, side = max(shapes, key=lambda shape: shape[0] * shape[1] ** 2)
    return batch, 3, side, side


def _at_work(task: OneStepTask, device: str) -> int:
    """Bytes that AdamW takes during its step: on CUDA a root of every moment, on the CPU two copies of one."""
    sizes = [bytes_of(parameter) for parameter in task.trained().values()]
    return sum(sizes) if device == "cuda" else 2 * max(sizes)


def _latents(task: OneStepTask, shape: tuple[int, ...]) -> Tensor:
    ratio = task.autoencoder.params.ratio
    return torch.empty(shape[0], task.autoencoder.params.latent_channels, shape[2] // ratio, shape[3] // ratio)


def held_bytes(task: OneStepTask, config: TrainConfig) -> dict[str, int]:
    """What stays from step to step: weights, what is trained, its gradients, AdamW's two moments, the running mean."""
    trained = list(task.trained().values())
    ids = {id(parameter) for parameter in trained}
    frozen = [t for t in (*task.flux.parameters(), *task.flux.buffers()) if id(t) not in ids]
    size = bytes_of(*trained)
    still = {"transformer, frozen": bytes_of(*frozen)} if frozen else {}
    return {
        **still,
        "VAE, frozen": bytes_of(*task.autoencoder.parameters()),
        "adapters" if config.kind == "lora" else "transformer, trained": size,
        "gradients": size,
        "optimizer (two moments)": 2 * size,
        "running mean": size,
    }


def refuse_if_hopeless(plan: StepPlan, free: int | None, device: str) -> None:
    """Raise OutOfMemoryError where the counted tensors alone do not fit into the free bytes (None: unknown)."""
    if free is None or plan.peak <= free:
        return
    raise OutOfMemoryError(
        f"one step needs {plan.peak / GIGABYTE:.1f} GB, but there are {free / GIGABYTE:.1f} GB on {device}; set "
        "train.checkpointing, a smaller train.batch or data.crop, or for a LoRA train.base to int8 or fp8 and a "
        "smaller model.lora_rank (--plan shows each part, --anyway tries)"
    )
