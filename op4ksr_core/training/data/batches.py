"""The batches of a run, numbered: what is in one depends on its number alone, so that a run can be resumed."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..config import SMALL_PICTURES, TrainConfig
from ..tasks.task import CROPS, degraded
from .enlarger_pairs import enlarger_pairs
from .sources import ShardSource, Source

#: How many times as many crops a latent step has as another: they cost no encoding.
LATENT_BATCH = 4


class Batches(Dataset[tuple[Tensor, Tensor]]):
    """Batch number i of a run: (sharp pictures, degraded and enlarged ones), the same whoever asks for it, and when.

    rank: the process that it is for. pairs: whether the task wants degraded pictures; without, half of the sharp ones
    are replaced by theirs. fresh: the batches that ``data.cached`` is filled from, not those of the run.
    """

    def __init__(self, config: TrainConfig, source: Source, rank: int, pairs: bool, fresh: bool = False) -> None:
        self.config, self.source, self.rank, self.pairs = config, source, rank, pairs
        self.started, self.fresh = False, fresh

    def shape(self, step: int) -> tuple[int, int]:
        """(pictures, side) of a batch of that step; side 0 where the task has its latents already."""
        data, train = self.config.data, self.config.train
        if self.fresh:
            return train.batch, data.crop
        if step < self.config.latent_steps:
            return LATENT_BATCH * train.batch, 0
        if data.cached:
            return train.batch, 0
        late = step >= data.late_from * train.steps
        return (data.late_batch, data.late_crop) if late else (train.batch, data.crop)

    def __len__(self) -> int:
        return self.config.train.steps * self.config.train.accumulate

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Both (B, 3, side, side) in [0, 1]; the second empty without pairs, both where the task has its latents.

        Of kinds with small pictures: what ``enlarger_pairs`` gives.
        """
        if not self.started and isinstance(self.source, ShardSource):
            shapes = (self.shape(i // self.config.train.accumulate) for i in range(index))
            self.source.skip(sum(count for count, side in shapes if side))
        self.started = True
        count, side = self.shape(index // self.config.train.accumulate)
        if not side:
            return torch.empty(count, 3, 0, 0), torch.empty(0)
        seed = (self.config.seed, CROPS, index, self.rank)
        high = self.source.crops(seed, count, side)
        if self.config.kind in SMALL_PICTURES:
            return enlarger_pairs(high, self.config.enlarger, self.config.degradation, seed)
        if self.pairs:
            return high, degraded(high, self.config, seed)
        half = count // 2
        if half:
            high = torch.cat([degraded(high[:half], self.config, seed), high[half:]])
        return high, high[:0]
