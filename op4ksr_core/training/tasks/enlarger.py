"""Training the enlarger: what one step computes, and what is saved and shown."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ...images.io import to_8_bit
from ...images.resize import resize
from ...models.enlarger import Enlarger, bicubic
from ...periodicity.loss import PeriodicityLoss
from ...weights.enlarger import load_enlarger, save_enlarger
from ..config import TrainConfig
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
        if config.model.start:
            self.model = load_enlarger(config.model.start).train().requires_grad_(True)
        else:
            torch.manual_seed(config.seed)
            self.model = Enlarger(config.enlarger.params())
            self.model.begin()
        self.to(memory_format=torch.channels_last)  # pyright: ignore

    def before(self, step: int) -> bool:
        """Heads are evened before each step, and before they are saved."""
        self.model.even()
        return False

    def forward(self, high: Tensor, low: Tensor, step: int, seed: tuple[int, ...]) -> Judged:
        """high: (B, 3, h * factor, w * factor); low: (B, 4, h, w), its last plane the strength; both in [0, 1].

        In bfloat16, if at all, is the body alone: the sums of its blocks, both ends and the result stay float32.
        """
        factor = high.shape[-1] // low.shape[-1]
        colours, strength = low[:, :3], low[:, 3:]
        features = self.model.features(colours, strength).contiguous(memory_format=torch.channels_last)
        with self.autocast(low.device):
            features = self.model.deepened(features)
        output = bicubic(colours, factor) + self.model.detail(features.float(), factor)
        output, target = output * 2 - 1, high * 2 - 1
        return Judged(self.objective.pictures(output, target), output, target)

    def save(self, path: Path, line: str) -> None:
        self.model.even()
        save_enlarger(path, self.model, dtype=DTYPES[self.config.output.dtype], training=line)

    def show(self, high: Tensor, index: int) -> tuple[Tensor, Tensor, Tensor]:
        factor = self.model.params.factors[-1]
        high = high[..., : high.shape[-2] // factor * factor, : high.shape[-1] // factor * factor]
        low = to_8_bit(resize(high, high.shape[-2] // factor, high.shape[-1] // factor))
        return bicubic(low, factor).clamp(0, 1), self.model.enlarge(low, factor), low
