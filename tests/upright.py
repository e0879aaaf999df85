"""What each EXIF orientation asks for, written apart from the library: the tests' expectation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Orientation 1 to 8 -> a stored array (height, width, ...) turned upright.
UPRIGHT: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
    8: lambda a: np.rot90(a, 1),
}
