"""Random numbers and curves that come out the same, to the last bit, on every machine.

Only what IEEE 754 defines exactly is used on the way to a pixel: + - * / sqrt, floor, comparisons. No
libm (its last bit differs between systems), no sums whose order the hardware chooses. PCG64's raw
stream is NumPy's promise; ``Generator``'s own methods are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Item = TypeVar("Item")
#: Float32 in fact; NumPy's types lose that on the way.
FloatArray = NDArray[np.floating[Any]]


class Dice:
    """A seeded stream; ``seed`` is any tuple of whole numbers from 0 up."""

    def __init__(self, *seed: int) -> None:
        self.bits = np.random.PCG64(np.random.SeedSequence(seed))
        self._uniforms: list[float] = []
        self._normals: list[float] = []

    def uniform(self, low: float = 0.0, high: float = 1.0) -> float:
        """A number in [low, high)."""
        if not self._uniforms:
            raw: Any = self.bits.random_raw(256)
            self._uniforms = ((raw >> np.uint64(11)).astype(np.float64) * 2.0**-53).tolist()
        return low + (high - low) * self._uniforms.pop()

    def whole(self, low: int, high: int) -> int:
        """A whole number from low to high - 1."""
        return low + int(self.uniform() * (high - low))

    def choose(self, items: Sequence[Item]) -> Item:
        """One of them, each as likely as another."""
        return items[self.whole(0, len(items))]

    def chance(self, share: float) -> bool:
        """True in that share of the calls."""
        return self.uniform() < share

    def normal(self, mean: float = 0.0, deviation: float = 1.0) -> float:
        """About normal: as ``normals``, at most 3.5 deviations off."""
        if not self._normals:
            self._normals = self.normals(256).tolist()
        return mean + deviation * self._normals.pop()

    def log_uniform(self, low: float, high: float) -> float:
        """Uniform in the logarithm, in [low, high]."""
        return steady(low * (high / low) ** self.uniform())

    def log_normal(self, median: float, deviation: float) -> float:
        """About log-normal; ``deviation`` in powers of e."""
        return steady(median * 2.718281828459045 ** self.normal(0, deviation))

    def turn(self) -> tuple[float, float]:
        """(cosine, sine) of a random angle, of exact arithmetic alone (the half-angle formula)."""
        t = self.uniform(-1, 1)
        c, s = (1 - t * t) / (1 + t * t), 2 * t / (1 + t * t)
        return (c, s) if self.chance(0.5) else (-s, c)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """(count,) uint8, uniform."""
        raw: Any = self.bits.random_raw(-(-count // 8))
        return raw.astype("<u8").view(np.uint8)[:count]

    def normals(self, *shape: int) -> FloatArray:
        """About standard normal (four bytes' sum), float32."""
        count = int(np.prod(shape))
        quarters = self.bytes(4 * count).reshape(4, count).astype(np.float32)
        total = quarters[0] + quarters[1] + quarters[2] + quarters[3]
        return ((total - np.float32(510)) * np.float32(1 / 147.8)).reshape(shape)  # 2 * sqrt((256^2 - 1) / 12)


def steady(value: float) -> float:
    """Rounded to a multiple of 2^-20 of its own size or finer, so that libm's last bit is gone."""
    return float(np.float32(value))


def sine(turns: FloatArray) -> FloatArray:
    """sin(2 pi turns) to 0.0011, by a corrected parabola: exact arithmetic only."""
    u = turns - np.floor(turns + np.float32(0.5))  # -0.5 .. 0.5
    wave = u * (np.float32(8) - np.float32(16) * np.abs(u))
    return wave * (np.float32(0.775) + np.float32(0.225) * np.abs(wave))
