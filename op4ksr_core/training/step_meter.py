"""Counts one training step: bytes that live at once and FLOPs, by stage, by CUDA's rules of mixed precision too."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count, shape_wrapper

from ..machine import AllocationTracker
from .tasks.one_step import OneStepTask


def bytes_of(*tensors: Tensor) -> int:
    """Bytes of the tensors' storages, each counted once."""
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in tensors}  # pyright: ignore
    return sum(storages.values())


class StepMeter(AllocationTracker):
    """Bytes as ``AllocationTracker`` counts them, and FLOPs of products, convolutions and attention.

    By the formulas of PyTorch's ``FlopCounterMode``, which itself keeps alive what a checkpointed block recomputes
    (seen on 2.13: the peak grew with every block).
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        formula = _FLASH_ON_CPU.get(func.overloadpacket) or flop_registry.get(func.overloadpacket)
        if formula is not None:
            self.flops += formula(*args, **(kwargs or {}), out_val=result)
        return result


class StepStages:
    """Runs one step of a task under the counters: peak bytes (above what lived before) and FLOPs, by stage."""

    def __init__(self, task: OneStepTask, device: str) -> None:
        self.task, self.device = task, device
        self.peaks: dict[str, int] = {}
        self.flops: dict[str, float] = {}
        self._stage, self._done = "", 0.0
        self.meter = StepMeter()

    def begin(self, stage: str) -> None:
        """End the stage before, and count for this one."""
        meter = self.meter
        if self._stage:
            self.peaks[self._stage] = meter.peak
            self.flops[self._stage] = meter.flops - self._done
        self._stage, self._done = stage, meter.flops
        meter.peak = meter.live

    def run(self, high: Tensor, low: Tensor, accumulated: bool) -> None:
        """Forward and backward on pictures (B, 3, H, W). accumulated: gradients are there from the batch before."""
        for parameter in self.task.trained().values():
            parameter.grad = torch.empty_like(parameter) if accumulated else None
        rules = CudaRules() if self.device == "cuda" else nullcontext()
        with rules, self._staged(), self.meter:
            self.begin("encode")
            judged = self.task(high, low, 0, (0, 0, 0))
            loss = torch.stack(list(judged.terms.values())).sum()
            self.begin("backward")
            loss.backward()
            self.begin("")

    @contextmanager
    def _staged(self) -> Generator[None, None, None]:
        """Inside, the transformer and the decoder each begin a stage when they are called."""

        def before(stage: str) -> Callable[..., None]:
            return lambda *_: self.begin(stage)

        hooks = [
            self.task.flux.register_forward_pre_hook(before("transformer")),
            self.task.autoencoder.decoder.register_forward_pre_hook(before("decode and losses")),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()


class CudaRules(TorchFunctionMode):
    """Under autocast on the CPU, what CUDA's autocast does in addition: these in float32, whatever comes in.

    The products are cast to half precision alike on both. Source: PyTorch 2.13, ATen/autocast_mode.h,
    AT_FORALL_FP32, of which these are in our networks.
    """

    IN_FLOAT32: frozenset[Any] = frozenset({F.layer_norm, F.group_norm, F.rms_norm, F.interpolate})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in self.IN_FLOAT32 and torch.is_autocast_enabled("cpu"):
            args = tuple(_in_float32(value) for value in args)
            kwargs = {name: _in_float32(value) for name, value in (kwargs or {}).items()}
        return func(*args, **(kwargs or {}))


def _in_float32(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) else value


def by_cuda_rules(run: Callable[..., Any], *args: Any) -> Any:
    """``run(*args)`` under ``CudaRules``."""
    with CudaRules():
        return run(*args)


@shape_wrapper
def _flash(query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return sdpa_flop_count(query, key, value)


@shape_wrapper
def _flash_backward(grad: Any, query: Any, key: Any, value: Any, *args: Any, out_shape: Any = None, **kw: Any) -> int:
    return sdpa_backward_flop_count(grad, query, key, value)


#: PyTorch has formulas for the GPU's attention alone.
_FLASH_ON_CPU: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _flash,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _flash_backward,
}
