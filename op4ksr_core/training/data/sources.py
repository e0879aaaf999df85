"""Where training pictures come from: a folder, tar shards, or nothing at all (procedural).

A source answers ``crops(seed, count, side)``: the same for the same seed, so that a resumed run gives the same bits
as an uninterrupted one. Shards are a stream, which a resumed run reads up to where it was.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ...errors import ImageError, OptionError
from ...images.formats import IMAGE_SUFFIXES
from ...images.io import from_array, load_image
from ...images.resize import resize
from ...models.flux import OnProgress
from ...plain_text import plain_logger
from ..config import DataConfig
from . import leaves
from .pool import open_pool, procedural_pool
from .shards import Pixels, pixels_of, shard_files, shard_pictures

log = plain_logger(__name__)

#: Seeds of the procedural pictures that runs show as samples and measure; never trained on.
HELD_OUT = 1_000_000_000

#: How many pictures of a stream of shards are held, of which one is chosen at random.
SHUFFLE = 64


class Source(Protocol):
    """Gives crops of pictures to train on."""

    def crops(self, seed: tuple[int, ...], count: int, side: int) -> Tensor:
        """(count, 3, side, side) in [0, 1], sharp; the same for the same seed (run, step, process).

        A stream of shards: also only where as many were read before.
        """
        ...


def open_source(
    data: DataConfig,
    seed: int,
    cache: Path,
    on_progress: OnProgress | None = None,
    share: tuple[int, int] = (0, 1),
) -> Source:
    """The source that the config names. ``cache``: folder for procedural pictures made beforehand.

    share: this process's number and how many there are, which a stream of shards is dealt out to.

    Raises OptionError: no such folder, no pictures in it, shards that are no local files or not there.
    """
    if data.source == "folder":
        return FolderSource(Path(data.path), data.shrunk)
    if data.source == "shards":
        return ShardSource(data.path, data.shrunk, share)
    return ProceduralSource(data, seed, cache, on_progress)


def cut(picture: Pixels, rng: np.random.Generator, side: int, shrunk: float) -> Tensor:
    """(H, W, 3) uint8 -> (1, 3, side, side) in [0, 1]: a random crop, turned and mirrored.

    A share ``shrunk`` is cut at twice the side, where there is as much, and shrunk. Smaller pictures
    are enlarged first, which a training set should not need.
    """
    reach = side * 2 if rng.random() < shrunk and min(picture.shape[:2]) >= 2 * side else side
    if min(picture.shape[:2]) < side:
        scale = side / min(picture.shape[:2])
        size = max(side, round(picture.shape[1] * scale)), max(side, round(picture.shape[0] * scale))
        picture = np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BICUBIC))
    top, left = (int(rng.integers(0, length - reach + 1)) for length in picture.shape[:2])
    crop = np.rot90(picture[top : top + reach, left : left + reach], int(rng.integers(4)))
    if rng.random() < 0.5:
        crop = crop[:, ::-1]
    image = from_array(crop)
    return resize(image, side, side).clamp(0, 1)


# --- procedural -------------------------------------------------------------------------------


class ProceduralSource:
    """Pictures by ``leaves.picture``: made beforehand, kept in one file and cut from, or a new one for each crop."""

    def __init__(self, data: DataConfig, seed: int, cache: Path, on_progress: OnProgress | None = None) -> None:
        self.data, self.seed = data, seed
        self.pool: Pixels | None = None
        self.path = procedural_pool(data, seed, cache, on_progress) if data.pictures else None
        if self.path is not None:
            self.pool = open_pool(self.path, data)

    def __getstate__(self) -> dict[str, Any]:
        """Another process maps the file itself, instead of being sent what is in it."""
        return {**self.__dict__, "pool": None}

    def crops(self, seed: tuple[int, ...], count: int, side: int) -> Tensor:
        if self.pool is None and self.path is not None:
            self.pool = open_pool(self.path, self.data)
        found: list[Tensor] = []
        for i in range(count):
            rng = np.random.default_rng((*seed, i))
            if self.pool is None:
                picture = leaves.picture(int(rng.integers(HELD_OUT)), side, side, stock_seed=self.seed)
            else:
                picture = self.pool[int(rng.integers(len(self.pool)))]
            found.append(cut(picture, rng, side, self.data.shrunk))
        return torch.cat(found)


# --- a folder ---------------------------------------------------------------------------------


def pictures_in(folder: Path) -> list[Path]:
    """The pictures in the folder and the folders in it, in order, save hidden ones (as macOS's ``._photo.jpg``)."""
    found = (path for path in folder.rglob("[!.]*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted(found)


class FolderSource:
    """The pictures in a folder and the folders in it. A broken one is left out, with one warning.

    Raises OptionError for no folder, one without pictures, and (when crops are asked for) one with broken ones only.
    """

    def __init__(self, folder: Path, shrunk: float) -> None:
        if not folder.is_dir():
            raise OptionError(f"data.path: {folder} is no folder; name one that holds pictures")
        self.paths = pictures_in(folder)
        if not self.paths:
            raise OptionError(f"data.path: {folder} holds no pictures (looked for {', '.join(IMAGE_SUFFIXES)})")
        self.folder, self.shrunk = folder, shrunk
        self.broken: set[Path] = set()

    def crops(self, seed: tuple[int, ...], count: int, side: int) -> Tensor:
        return torch.cat([self._one(np.random.default_rng((*seed, i)), side) for i in range(count)])

    def _one(self, rng: np.random.Generator, side: int) -> Tensor:
        start = int(rng.integers(len(self.paths)))
        for offset in range(len(self.paths)):  # a broken picture's place is taken by the next good one
            path = self.paths[(start + offset) % len(self.paths)]
            if path in self.broken:
                continue
            try:
                picture = load_image(path)
            except ImageError as error:
                self.broken.add(path)
                log.warning("left out: %s", error)
                continue
            return cut(pixels_of(picture), rng, side, self.shrunk)
        raise OptionError(
            f"data.path: none of the {len(self.paths)} pictures in {self.folder} can be read; see the log for each"
        )


# --- shards -----------------------------------------------------------------------------------


class ShardSource:
    """Tar shards (``shards``): a stream, shuffled in a small window, read again from the start when it ends.

    A resumed run reads past what it has seen, which takes a while but gives the same pictures. Raises OptionError
    for anything but local files that are there, and (when crops are asked for) for shards without pictures.
    """

    def __init__(self, path: str, shrunk: float, share: tuple[int, int] = (0, 1)) -> None:
        self.files, self.shrunk, self.share = shard_files(path), shrunk, share
        self.stream: Iterator[Pixels] | None = None

    def crops(self, seed: tuple[int, ...], count: int, side: int) -> Tensor:
        found: list[Tensor] = []
        for i in range(count):
            if self.stream is None:
                self.stream = self._pictures()
            found.append(cut(next(self.stream), np.random.default_rng((*seed, i)), side, self.shrunk))
        return torch.cat(found)

    def skip(self, pictures: int) -> None:
        """Read past so many pictures: those that a run had before it was interrupted."""
        self.stream = self.stream or self._pictures()
        for _ in range(pictures):
            next(self.stream)

    def _pictures(self) -> Iterator[Pixels]:
        rng = np.random.default_rng(0)
        window: list[Pixels] = []
        seen = 0
        while True:
            before = seen
            for picture in shard_pictures(self.files):
                seen += 1
                if seen % self.share[1] == self.share[0]:
                    window.append(picture)
                if len(window) > SHUFFLE:
                    yield window.pop(int(rng.integers(len(window))))
            if seen == before:
                names = ", ".join(map(str, self.files))
                raise OptionError(f"data.path: no pictures in the shards {names}; name others")
            while window:
                yield window.pop(int(rng.integers(len(window))))
