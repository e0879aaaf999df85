"""Photos by methods: each shrunk, enlarged by every method and scored, and the scores kept on the disk.

A run takes hours on one core. What is scored is written after every photo and found again by the contents of photo
and files, so that a run may be stopped and begun again, and methods added later.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from op4ksr_core.cli.failures import Failures
from op4ksr_core.errors import ImageError
from op4ksr_core.files import make_folder, write_whole
from op4ksr_core.images.io import load_image, to_8_bit
from op4ksr_core.plain_text import plain_logger

from .damages import damaged, set_of
from .methods import Method, code_key
from .picture_sets import OnPicture
from .scores import photo_scores
from .tables import Row

log = plain_logger(__name__)

#: Output (1, 3, H, W) in [0, 1] and of 8 bit, low, high -> further scores.
More = Callable[[Tensor, Tensor, Tensor], dict[str, float | None]]

#: Changes with what a score means; scores kept under another are measured anew.
_VERSION = 1

#: Side in px of the corner of its first picture that every method is given before a clock runs.
WARM_UP = 16

#: Side in px of the smallest photo that is scored: the meter's and the scores' limit.
SMALLEST = 64


@dataclass(frozen=True)
class Photos:
    """What is measured: photos, shrunk by ``factor``, each by every damage of ``damages``."""

    paths: Sequence[Path]
    damages: Sequence[str] = ("clean",)
    factor: int = 4


class Cache:
    """Scores by photo, damage and method: a JSON file per photo and damage. folder None: nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        if folder is not None:
            make_folder(folder)

    def read(self, name: str) -> dict[str, Row]:
        """What is kept of one photo and damage by methods' keys; what cannot be read counts as nothing."""
        if self.folder is None:
            return {}
        try:
            kept = json.loads((self.folder / f"{name}.json").read_text("utf-8"))
        except (OSError, ValueError):
            return {}
        return kept if isinstance(kept, dict) else {}

    def write(self, name: str, rows: dict[str, Row]) -> None:
        """Keep them; whole or not at all. Raises OutputError."""
        if self.folder is not None:
            write_whole(self.folder / f"{name}.json", json.dumps(rows, indent=1) + "\n")


def measure(
    photos: Photos,
    methods: Sequence[Method],
    cache: Cache,
    more: dict[str, More] | None = None,
    on_photo: OnPicture | None = None,
) -> tuple[list[Row], int]:
    """A row per photo, damage and method: ``photo_scores``, those of ``more``, and core_s_per_mp; and the exit status.

    core_s_per_mp: seconds of the process on all its threads, per 1e6 px of output. Sides are cut to multiples of the
    factor. A photo that fails costs no other: it is told on stderr, has no row, and the status is 1.
    """
    failures, rows = Failures(len(photos.paths)), list[Row]()
    run = _Run(photos, methods, cache, more or {})
    for index, path in enumerate(photos.paths):
        if on_photo is not None:
            on_photo(f"{set_of(path)}: {path.name} ({index + 1} of {len(photos.paths)})")
        with failures.costing_no_other(path):
            rows += run.rows_of(path)
    return rows, failures.close()


class _Run:
    """The methods and what they are given; those that have run once are not warmed up again."""

    def __init__(self, photos: Photos, methods: Sequence[Method], cache: Cache, more: dict[str, More]) -> None:
        self.photos, self.methods, self.cache, self.more = photos, methods, cache, more
        self.warm = set[str]()

    def rows_of(self, path: Path) -> list[Row]:
        """A row per damage and method; what is kept already is not computed."""
        factor = self.photos.factor
        high = _cut(load_image(path).image, factor, path)
        rows: list[Row] = []
        for damage in self.photos.damages:
            low = damaged(high, factor, damage, path)
            name = _digest(high.numpy().tobytes(), low.numpy().tobytes())
            kept = self.cache.read(name)
            for method in self.methods:
                key = _digest(method.key.encode(), code_key().encode(), repr((_VERSION, sorted(self.more))).encode())
                if key not in kept:
                    kept[key] = self.scores(method, low, high)
                    self.cache.write(name, kept)
                head = {"photo": path.stem, "set": set_of(path), "degradation": damage, "method": method.name}
                rows.append(head | dict(method.columns) | kept[key])
        return rows

    @torch.no_grad()
    def scores(self, method: Method, low: Tensor, high: Tensor) -> Row:
        """Of one output. A method that runs for the first time, and so reads its files, is given a corner before."""
        factor = self.photos.factor
        if method.name not in self.warm:
            method.enlarge(low[..., :WARM_UP, :WARM_UP], factor)
            self.warm.add(method.name)
        before = time.process_time()
        output = method.enlarge(low, factor)
        seconds = time.process_time() - before
        output = to_8_bit(output.float())
        if output.shape != high.shape:
            raise ImageError(f"{method.name}: made {_size(output)}, expected {_size(high)}; leave the method out")
        scores: dict[str, Any] = photo_scores(output, low, high)
        for measured in self.more.values():
            scores |= measured(output, low, high)
        return scores | {"core_s_per_mp": seconds / (high.shape[-2] * high.shape[-1] / 1e6)}


def _cut(high: Tensor, factor: int, path: Path) -> Tensor:
    height, width = (length // factor * factor for length in high.shape[-2:])
    if min(height, width) < SMALLEST:
        raise ImageError(f"{path}: is under {SMALLEST} px a side, too small to score; take it out")
    return high[..., :height, :width].contiguous()


def _digest(*parts: bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()[:32]


def _size(picture: Tensor) -> str:
    return f"{picture.shape[-1]}x{picture.shape[-2]} px"
