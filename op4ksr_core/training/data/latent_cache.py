"""Batches that were encoded once: sharp picture, and the latents of the damaged and of the sharp one, on disk.

Batch k of the cache is batch k of the run without one, so that the first pass through it is that run, bit for bit
where pictures have 8 bits; later passes see the same batches in another order each.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ...errors import UnsupportedCheckpointError
from ...files import make_folder, regular_file
from ...plain_text import plain
from ...weights.checkpoint import save_tensors
from ..checksums import CHECKSUMS, checksums, damaged
from ..config import TrainConfig
from ..config_sections import DataConfig
from ..room import check_room
from .shards import shard_files
from .sources import pictures_in

#: Batches in one file.
PER_FILE = 32

#: Changes whenever the same config would make other batches.
VERSION = 2


@dataclass(frozen=True)
class EncodedBatch:
    """low, high: processed latents (B, 16, h, w) float32; picture: the sharp one (B, 3, H, W) uint8."""

    low: Tensor
    high: Tensor
    picture: Tensor


def rounded(picture: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> uint8, which is what is kept."""
    return (picture * 255).round().to(torch.uint8)


class LatentCache:
    """The encoded batches of one config, in ``config.cache_folder``.

    Their files' names depend on all that the batches depend on, so that several configs may share a folder, at the
    same time too: each file is whole or not there.
    autoencoder: the file of the encoder; if it is changed, the batches are made again.
    """

    def __init__(self, config: TrainConfig, autoencoder: Path) -> None:
        self.seed, self.folder = config.seed, config.cache_folder
        self.batches = -(-config.data.cached // config.train.batch)
        self.batch, self.crop = config.train.batch, config.data.crop
        stat, stride = autoencoder.stat(), [config.model.stride] if config.model.stride else []
        facts = {
            "version": VERSION,
            "seed": config.seed,
            "batch": config.train.batch,
            "precision": config.train.precision,
            "data": {k: v for k, v in asdict(config.data).items() if k not in ("cache", "cached", "workers")},
            "degradation": asdict(config.degradation),
            "autoencoder": [str(autoencoder), stat.st_size, stat.st_mtime_ns, *stride],
            "pictures": _state_of(config.data),
        }
        self.name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]
        self.facts = facts

    def path(self, batch: int) -> Path:
        """The file that holds a batch. Its name has its number of batches: no cache replaces another's longer file."""
        file = self._file(batch // PER_FILE * PER_FILE)
        return self.folder / f"pairs_{self.name}_{file.start:06d}_{len(file)}.safetensors"

    def _file(self, first: int) -> range:
        """The batches of the file that begins with batch ``first``."""
        return range(first, min(first + PER_FILE, self.batches))

    def missing(self) -> Iterator[range]:
        """The batches that are not there yet, file by file, each looked for when it is asked for."""
        files = map(self._file, range(0, self.batches, PER_FILE))
        return (file for file in files if not os.path.lexists(self.path(file.start)))

    def write(self, first: int, batches: Sequence[EncodedBatch]) -> None:
        """The file that begins with batch ``first``; whole or not at all. Raises OutputError."""
        make_folder(self.folder)
        one = sum(t.numel() * t.element_size() for t in vars(batches[0]).values())
        check_room(self.path(first), one * (self.batches - first), "data.cached")
        tensors = {f"{k}.{first + i}": t for i, batch in enumerate(batches) for k, t in vars(batch).items()}
        metadata = {"op4ksr.kind": "pairs", "op4ksr.pairs": json.dumps(self.facts), CHECKSUMS: checksums(tensors)}
        save_tensors(self.path(first), tensors, metadata)

    def read(self, index: int) -> EncodedBatch:
        """Batch number ``index`` of a run. Raises UnsupportedCheckpointError for a damaged file."""
        turn, place = divmod(index, self.batches)
        order = np.random.default_rng((self.seed, turn)).permutation(self.batches) if turn else range(self.batches)
        return self._of(int(order[place]))

    def _of(self, batch: int) -> EncodedBatch:
        path = self.path(batch)
        with opened(path) as stored:
            tensors = {f"{k}.{batch}": stored.get_tensor(f"{k}.{batch}") for k in ("low", "high", "picture")}
            if (name := damaged(tensors, stored.metadata() or {})) is not None:
                raise ValueError(f"the bytes of {name} are not those that were saved")
        found = EncodedBatch(*tensors.values())
        if (reason := self._fault(found)) is not None:
            raise _damaged(path, f"batch {batch}: {reason}")
        return found

    def _fault(self, batch: EncodedBatch) -> str | None:
        """What is wrong with what a file holds."""
        count, side = len(batch.picture) if batch.picture.dim() else 0, self.crop
        low, high = (tuple(t.shape) for t in (batch.low, batch.high))
        dtypes = (batch.low.dtype, batch.high.dtype, batch.picture.dtype)
        if dtypes != (torch.float32, torch.float32, torch.uint8):
            return f"expected float32, float32 and uint8, got {', '.join(map(str, dtypes))}"
        if tuple(batch.picture.shape) != (self.batch, 3, side, side) or low != high or low[:1] != (count,):
            return f"expected {self.batch} pictures of {side} px, got {tuple(batch.picture.shape)}, {low} and {high}"
        if not all(bool(torch.isfinite(latent).all()) for latent in (batch.low, batch.high)):
            return "its numbers are not finite"
        return None


def _state_of(data: DataConfig) -> str:
    """Of the files that a source reads: changes with a name, a size or a time."""
    if data.source == "procedural":
        return ""
    files = shard_files(data.path) if data.source == "shards" else pictures_in(Path(data.path))
    facts = [[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in sorted(files)]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


@contextmanager
def opened(path: Path) -> Generator[Any, None, None]:
    """A file of the cache. Raises UnsupportedCheckpointError where it is none, or lacks what is read from it."""
    if (other := regular_file(path)) is not None:
        raise _damaged(path, other)
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError, ValueError, RuntimeError, RecursionError) as error:
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> UnsupportedCheckpointError:
    return UnsupportedCheckpointError(
        path, f"is no file of encoded pictures ({plain(reason)}); delete it, and it is made again"
    )
