"""Models with seeded random weights, for the tests here and for the cases that run in the host."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def seeded(build: Callable[[], nn.Module], seed: int) -> Any:
    """The module with default weights, norms and biases stirred, so that none of them is neutral."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = build().eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model
