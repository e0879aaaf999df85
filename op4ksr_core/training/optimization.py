"""How a run's weights move: the optimizer, its learning rate, and the running mean that is saved."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable

import torch
from torch import Tensor, nn

from .config import LoopConfig, TrainConfig

#: How many times as long the warm-up after the linear steps is as the first: all branches begin to learn at once there.
SECOND_WARMUP = 5


def adamw(parameters: Iterable[nn.Parameter], train: LoopConfig) -> torch.optim.Optimizer:
    """The optimizer of a run, over the parameters that are trained."""
    return torch.optim.AdamW(parameters, train.rate, betas=(0.9, 0.99), weight_decay=train.weight_decay)


def rate_at(step: int, config: TrainConfig) -> float:
    """The learning rate of a step: a linear warm-up, then a cosine that falls to ``final`` of the rate.

    With ``decay_steps`` the rate is held until so many steps before the end, and falls there.
    Where there are linear steps, they have such a cycle of their own before it, with their own rate.
    """
    train, first = config.train, config.linear_steps
    if step < first:
        return _cycle(step, first, train.warmup, train.linear_rate, train.final)
    warmup = SECOND_WARMUP * train.warmup if first else train.warmup
    held = train.steps - train.decay_steps
    if train.decay_steps and step >= max(held, first + warmup):
        return _cycle(step - held, train.decay_steps, 0, train.rate, train.final)
    if train.decay_steps:
        return _cycle(step - first, held - first, warmup, train.rate, 1.0)
    return _cycle(step - first, train.steps - first, warmup, train.rate, train.final)


def _cycle(step: int, steps: int, warmup: int, rate: float, final: float) -> float:
    """The rate at one of ``steps`` steps, of which the first ``warmup`` rise to ``rate`` and the rest fall from it."""
    if step < warmup:
        return rate * (step + 1) / warmup
    share = (step - warmup) / max(1, steps - warmup)
    return rate * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * share)))


class Ema:
    """A running mean (exponential moving average) of the trained parameters.

    Its memory is short at the beginning and grows to what ``decay`` (in [0, 1)) means, so that the first weights,
    which are random, are soon forgotten.
    """

    def __init__(self, parameters: dict[str, nn.Parameter], decay: float) -> None:
        self.parameters, self.decay = parameters, decay
        self.mean: dict[str, Tensor] = {}
        self.steps = 0
        self.restart()

    def restart(self) -> None:
        """Forget everything but the present weights."""
        self.mean = {name: p.detach().clone() for name, p in self.parameters.items()}
        self.steps = 0

    @torch.no_grad()
    def update(self) -> None:
        """Take in the present weights, after a step of the optimizer."""
        self.steps += 1
        weight = 1 - min(self.decay, self.steps / (self.steps + 10))
        for name, parameter in self.parameters.items():
            self.mean[name].lerp_(parameter, weight)

    @contextlib.contextmanager
    def applied(self) -> Generator[None]:
        """The mean in the parameters' place, for saving and showing; what is done to it there stays with it."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.mean[name] = self.mean[name], parameter.data
