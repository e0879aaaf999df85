"""Scenes of this room are made once: most of its tests look at the same few."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
from torch import Tensor


@pytest.fixture(scope="session")
def natural(natural: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """As the one above, each scene a copy of one that is kept."""
    kept = lru_cache(maxsize=64)(natural)

    def make(height: int, width: int, seed: int = 3) -> Tensor:
        return kept(height, width, seed).clone()

    return make
