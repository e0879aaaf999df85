"""What the trainer knows of whatever it trains, and what the kinds of training share.

A task is the module whose ``forward`` gives the loss's terms, so that several GPUs can share it. Only
``trained`` parameters change; everything random in a step comes from the seed it is given.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch import autocast as mixed_precision
from torch.utils.checkpoint import checkpoint

from ...images.color import back_project
from ...images.resize import resize
from ...models.flux_layers import DoubleStreamBlock, SingleStreamBlock
from ...vae.layers import ResnetBlock
from ..config import TrainConfig
from ..data.degradation import degrade
from ..data.sources import Source
from .objectives import Objective

#: What a random number is for is a part of its seed, so that no two uses draw the same numbers.
CROPS, DAMAGE, NOISE, GRID, UNIT, SAMPLES = range(1, 7)

#: The config's words for what weights are saved in.
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Judged:
    """What a step gave: the loss's terms, weighted, and the pictures in [-1, 1] that a judge may look at, if any."""

    terms: dict[str, Tensor]
    output: Tensor | None = None
    target: Tensor | None = None


class Task(nn.Module, ABC):
    """Something that can be trained, as the trainer knows it."""

    #: File name of the weights it makes.
    name = "weights"
    #: File names of the others that are saved beside it.
    also: tuple[str, ...] = ()
    #: Whether batches hold degraded pictures beside the sharp ones.
    pairs = True
    #: Whether ``train.grid_every`` means anything to it.
    grid_steps = False

    def __init__(self, config: TrainConfig) -> None:
        super().__init__()
        self.config = config
        self.objective = Objective(config.loss)

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that change, by name."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def loss_names(self) -> list[str]:
        """The terms that have a weight in the config's ``loss``, which is their name there."""
        return self.objective.names(self.pairs)

    def term_names(self) -> list[str]:
        """The names of all terms that any step may have: the log's columns."""
        return self.loss_names() + (["grid"] if self.grid_steps and self.config.train.grid_every else [])

    def autocast(self, device: torch.device) -> mixed_precision:
        """bfloat16 inside, where the config wants it."""
        return autocast(self.config, device)

    def prepare(self, source: Source) -> None:
        """Once, before the first step."""

    def before(self, step: int) -> bool:
        """Before each step; True if the weights were changed, so that running means and the optimizer start again."""
        return False

    @abstractmethod
    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        """One step on pictures (B, 3, H, W) in [0, 1]: sharp ones and, if ``pairs``, degraded and enlarged ones."""

    def pictures(self, output: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The terms on pictures (B, 3, H, W) in [-1, 1].

        Where the config says so, a share of each is taken of the output after back-projection.
        """
        share, terms = self.config.loss.projected, self.objective.pictures(output, target)
        if not share:
            return terms
        after = self.objective.pictures(projected(output, target), target)
        return {name: torch.lerp(term, after[name], share) for name, term in terms.items()}

    def finish(self) -> None:
        """Once, with the running mean's weights in place, before they are saved for the last time."""

    @abstractmethod
    def save(self, path: Path, line: str) -> None:
        """Write the weights as a user loads them."""

    @abstractmethod
    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """A sharp picture (1, 3, H, W) in [0, 1] -> (input enlarged, output, input as it is)."""


def autocast(config: TrainConfig, device: torch.device) -> mixed_precision:
    """bfloat16 inside, where the config wants it."""
    return mixed_precision(device.type, torch.bfloat16, enabled=config.train.precision == "bf16")


def generator_of(seed: tuple[int, ...]) -> torch.Generator:
    """A CPU generator for a tuple of whole numbers."""
    value = 0
    for number in seed:
        value = (value * 1_000_003 + number + 0x9E3779B9) % (2**63 - 25)
    return torch.Generator().manual_seed(value)


#: The modules whose activations are recomputed where ``train.checkpointing`` is set.
BLOCKS = (DoubleStreamBlock, SingleStreamBlock, ResnetBlock)


def checkpoint_blocks(model: nn.Module) -> None:
    """Recompute each block's activations in the backward pass instead of keeping them."""
    for module in model.modules():
        if isinstance(module, BLOCKS):
            module.forward = partial(checkpoint, module.forward, use_reentrant=False)  # pyright: ignore


def degraded(high: Tensor, config: TrainConfig, seed: tuple[int, ...]) -> Tensor:
    """Sharp pictures (B, 3, H, W) -> degraded ones, enlarged bicubically to that size: what the encoder will see."""
    lows = [degrade(one, config.degradation, (*seed, DAMAGE, i)).low for i, one in enumerate(high.split(1))]
    return torch.cat([resize(low, *high.shape[-2:]) for low in lows]).clamp(0, 1)


#: The factor by which ``projected`` shrinks for its back-projection. Our choice: 4, whatever the run's degradation has.
PROJECTED_FACTOR = 4


def projected(output: Tensor, target: Tensor) -> Tensor:
    """What fidelity 1 makes of the output if the input is the target, shrunk and nothing else.

    Both (B, 3, H, W), any range, sides from PROJECTED_FACTOR up. Back-projection is linear, and takes the same
    from the output whatever the input: other damage moves the result by what no model could change.
    """
    error = output - target
    height, width = (side // PROJECTED_FACTOR for side in error.shape[-2:])
    return target + back_project(error, error.new_zeros(*error.shape[:2], height, width), 1.0)
