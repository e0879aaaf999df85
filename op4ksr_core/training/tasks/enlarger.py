"""Training the enlarger: what one step computes, and what is saved and shown."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ...base import Learned
from ...bundled import BUNDLED_ENLARGER
from ...errors import OptionError
from ...images.io import to_8_bit
from ...images.resize import resize
from ...models.enlarger import Enlarger, bicubic
from ...periodicity.loss import PeriodicityLoss
from ...plain_text import plain
from ...weights.enlarger import load_enlarger, save_enlarger
from ..config import TrainConfig
from .model_source import file_of
from .task import DTYPES, Judged, Task

#: Periods, px, at which L_AP looks for the pixel shuffle's mesh: multiples of the factors 2, 3 and 4 alike.
MESHES = (12, 24)


class EnlargerTask(Task):
    """Small pictures of every strength, enlarged, against the sharp ones."""

    name = "enlarger"
    pairs = False

    def __init__(self, config: TrainConfig) -> None:
        super().__init__(config)
        self.objective.periodicity = PeriodicityLoss(MESHES, config.loss.periodicity_margin)
        torch.manual_seed(config.seed)
        if config.model.start:
            start = enlarger_of(config, "start")
            self.model = deepened(start, config.enlarger.blocks).train().requires_grad_(True)
        else:
            self.model = Enlarger(config.enlarger.params())
            self.model.begin()
        self.to(memory_format=torch.channels_last)  # pyright: ignore

    def before(self, step: int) -> bool:
        """Heads are evened before each step, and as they are saved."""
        self.model.even()
        return False

    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        """high: (B, 3, h * factor, w * factor); low: (B, 4, h, w), its last plane the strength; both in [0, 1].

        In bfloat16, if at all, is the body alone: the sums of its blocks, both ends and the result stay float32.
        """
        factor = high.shape[-1] // low.shape[-1]
        colours, strength = low[:, :3], low[:, 3:]
        features = self.model.features(self.model.planes(colours, strength))
        with self.autocast(low.device):
            features = self.model.deepened(features)
        output = bicubic(colours, factor) + self.model.detail(features.float(), factor)
        output, target = output * 2 - 1, high * 2 - 1
        return Judged(self.objective.pictures(output, target), output, target)

    def save(self, path: Path, line: str) -> None:
        model = deepcopy(self.model)  # the running mean is not changed by being saved
        model.even()
        save_enlarger(path, model, dtype=DTYPES[self.config.output.dtype], training=line)

    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        factor = self.model.params.factors[-1]
        sharp = whole(high, factor)
        height, width = sharp.shape[-2:]
        low = to_8_bit(resize(sharp, height // factor, width // factor))
        enlarged = Learned(self.model, self.name).enlarge(low, height, width, 0.0, lambda done, total: None)
        return bicubic(low, factor).clamp(0, 1), enlarged, low


def whole(high: Tensor, factor: int) -> Tensor:
    """The part of a picture (1, 3, H, W) whose sides are multiples of the factor, at its top left."""
    return high[..., : high.shape[-2] // factor * factor, : high.shape[-1] // factor * factor]


def enlarger_of(config: TrainConfig, key: Literal["start", "enlarger"]) -> Enlarger:
    """That of ``model``, in float32. Raises OptionError unless it has a head for each factor of the run."""
    path = file_of(getattr(config.model, key), BUNDLED_ENLARGER)
    found = load_enlarger(path, dtype=torch.float32)
    missing = [factor for factor in config.enlarger.factors if factor not in found.params.factors]
    if missing:
        raise OptionError(
            f"enlarger.factors: expected some of {', '.join(map(str, found.params.factors))}, as {plain(path)} "
            f"(model.{key}) has, got {missing[0]}; leave it out, or name another file"
        )
    return found


def deepened(start: Enlarger, blocks: int) -> Enlarger:
    """The same function in a net of ``blocks`` blocks, where that is more: the new ones, at its end, are identities."""
    if blocks <= start.params.blocks:
        return start
    model = Enlarger(replace(start.params, blocks=blocks))
    model.begin()
    model.load_state_dict(model.state_dict() | start.state_dict())
    return model
