"""Where a training run computes: in one process, or in several that ``accelerate launch`` has started."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ..errors import OptionError


class Engine(Protocol):
    """One process of a run, whether it is alone or one of several.

    device: where this process computes. rank: its number, 0 for the one that writes files and reports. world: how many
    processes there are.
    """

    device: torch.device
    rank: int
    world: int

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module as it is to be called, so that its gradients are shared."""
        ...

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, shared among the processes unless ``apart``."""
        ...

    def apart(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Inside, gradients add up in each process by itself: for all batches of a step but its last."""
        ...

    def wait(self) -> None:
        """Return when every process is here."""
        ...


class OneProcess:
    """A run in this process alone; it needs no library. Raises OptionError for a device that cannot be had."""

    rank, world = 0, 1

    def __init__(self, device: str) -> None:
        name = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.device = torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:
            raise OptionError(
                f'train.device: {name!r} cannot be used ({str(error).splitlines()[0]}); try "cpu"'
            ) from error

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module itself: there is nobody to share gradients with."""
        return module

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, a scalar, added to the parameters'."""
        loss.backward()

    def apart(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """A context that changes nothing: one process is always by itself."""
        return contextlib.nullcontext()

    def wait(self) -> None:
        """Return at once: nobody else is there."""


class Accelerated:
    """One of the processes that ``accelerate launch`` has started, each with a GPU. Raises OptionError without it."""

    def __init__(self, device: str) -> None:
        try:
            from accelerate import Accelerator  # pyright: ignore
        except ImportError as error:
            raise OptionError("train.accelerate: needs accelerate: pip install accelerate") from error
        self.inner: Any = Accelerator(cpu=device == "cpu", mixed_precision="no")
        self.device: torch.device = self.inner.device
        self.rank: int = self.inner.process_index
        self.world: int = self.inner.num_processes

    def prepare(self, module: nn.Module) -> nn.Module:
        """The module, wrapped so that its gradients are the mean over the processes."""
        return self.inner.prepare_model(module)

    def backward(self, loss: Tensor) -> None:
        """Gradients of the loss, a scalar, added to the parameters' and shared among the processes unless ``apart``."""
        self.inner.backward(loss)

    def apart(self, module: nn.Module) -> contextlib.AbstractContextManager[Any]:
        """Inside, gradients of a module that ``prepare`` gave add up in this process alone."""
        return self.inner.no_sync(module)

    def wait(self) -> None:
        """Return when every process is here."""
        self.inner.wait_for_everyone()
