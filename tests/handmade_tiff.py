"""TIFF files of every kind of sample, and EXIF with odd tags, written in plain Python from the specifications."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

#: TIFF's types -> struct's letters.
LETTERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 16: "Q"}

Entry = tuple[int, int, Any]


def value_bytes(order: str, kind: int, values: Any) -> tuple[int, bytes]:
    """Count and bytes of an entry's values: text or bytes as they are, ratios as pairs."""
    if isinstance(values, bytes):
        return len(values), values
    if kind in (5, 10):
        return len(values), b"".join(struct.pack(order + ("II" if kind == 5 else "ii"), *pair) for pair in values)
    return len(values), struct.pack(f"{order}{len(values)}{LETTERS[kind]}", *values)


def directory(entries: Sequence[Entry], at: int, order: str = "<", big: bool = False, following: int = 0) -> bytes:
    """A directory to stand at ``at``, with its longer values after it."""
    size, inside, letter = (20, 8, "Q") if big else (12, 4, "I")
    head = struct.pack(order + ("Q" if big else "H"), len(entries))
    end = at + len(head) + size * len(entries) + (8 if big else 4)
    lines, tail = [], b""
    for tag, kind, values in sorted(entries, key=lambda entry: entry[0]):
        count, content = value_bytes(order, kind, values)
        if len(content) > inside:
            place = struct.pack(order + letter, end + len(tail))
            tail += content + bytes(len(content) % 2)
        else:
            place = content.ljust(inside, b"\0")
        lines.append(struct.pack(order + "HH" + letter, tag, kind, count) + place)
    return head + b"".join(lines) + struct.pack(order + letter, following) + tail


def start(order: str, big: bool, first: int) -> bytes:
    mark = b"II" if order == "<" else b"MM"
    return mark + (struct.pack(order + "HHHQ", 43, 8, 0, first) if big else struct.pack(order + "HI", 42, first))


def exif(entries: Sequence[Entry], order: str = "<") -> bytes:
    """An EXIF block, with its head."""
    return b"Exif\0\0" + start(order, False, 8) + directory(entries, 8, order)


@dataclass(frozen=True)
class Tiff:
    """How the samples are stored. kind: u, i or f. extra: ExtraSamples. more: further entries."""

    order: str = "<"
    big: bool = False
    photometric: int = 1
    planar: int = 1
    predictor: int = 1
    compression: int = 1
    rows: int = 5
    tile: tuple[int, int] | None = None
    extra: tuple[int, ...] = ()
    more: tuple[Entry, ...] = field(default=())

    def encoded(self, pixels: np.ndarray) -> bytes:
        """(H, W, samples) of any dtype -> the file."""
        height, width, samples = pixels.shape
        stored = pixels.astype(pixels.dtype.newbyteorder(self.order))
        parts = [stored[..., i : i + 1] for i in range(samples)] if self.planar == 2 else [stored]
        blocks = [self._packed(block) for part in parts for block in self._blocks(part)]
        body, places = b"", []
        for block in blocks:
            places.append((16 if self.big else 8) + len(body))
            body += block + bytes(len(block) % 2)
        sizes = [len(block) for block in blocks]
        bits = pixels.dtype.itemsize * 8
        entries: list[Entry] = [
            (256, 3, [width]),
            (257, 3, [height]),
            (258, 3, [bits] * samples),
            (259, 3, [self.compression]),
            (262, 3, [self.photometric]),
            (277, 3, [samples]),
            (284, 3, [self.planar]),
            (339, 3, [{"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]] * samples),
            *self.more,
        ]
        if self.predictor != 1:
            entries.append((317, 3, [self.predictor]))
        if self.extra:
            entries.append((338, 3, list(self.extra)))
        if self.tile:
            entries += [(322, 3, [self.tile[1]]), (323, 3, [self.tile[0]]), (324, 4, places), (325, 4, sizes)]
        else:
            entries += [(273, 4, places), (278, 3, [self.rows]), (279, 4, sizes)]
        at = (16 if self.big else 8) + len(body)
        return start(self.order, self.big, at) + body + directory(entries, at, self.order, self.big)

    def _blocks(self, part: np.ndarray) -> list[np.ndarray]:
        if self.tile is None:
            return [part[top : top + self.rows] for top in range(0, len(part), self.rows)]
        high, wide = self.tile
        pad = [(0, -len(part) % high), (0, -part.shape[1] % wide), (0, 0)]
        full = np.pad(part, pad, mode="edge")
        tops, lefts = range(0, len(full), high), range(0, full.shape[1], wide)
        return [full[y : y + high, x : x + wide] for y in tops for x in lefts]

    def _packed(self, block: np.ndarray) -> bytes:
        return self._compressed(self._predicted(np.ascontiguousarray(block)).tobytes())

    def _predicted(self, block: np.ndarray) -> np.ndarray:
        if self.predictor == 2:
            unsigned = block.view(np.dtype(f"{self.order}u{block.itemsize}"))
            out = unsigned.copy()
            out[:, 1:] = unsigned[:, 1:] - unsigned[:, :-1]
            return out
        if self.predictor == 3:
            height, width, own = block.shape
            size = block.itemsize
            highest_first = (
                block.astype(block.dtype.newbyteorder(">")).view(np.uint8).reshape(height, width * own, size)
            )
            row = highest_first.swapaxes(1, 2).reshape(height, -1)
            out = row.copy()
            out[:, own:] = row[:, own:] - row[:, :-own]
            return out
        return block

    def _compressed(self, content: bytes) -> bytes:
        if self.compression in (8, 32946):
            return zlib.compress(content)
        if self.compression == 32773:  # PackBits, all of it literally
            runs = [content[i : i + 128] for i in range(0, len(content), 128)]
            return b"".join(bytes([len(run) - 1]) + run for run in runs)
        return content
