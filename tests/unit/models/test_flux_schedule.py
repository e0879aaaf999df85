"""FLUX.1's schedule of time steps, at one of them."""

from __future__ import annotations

import math

import pytest
import torch

from op4ksr_core import OptionError
from op4ksr_core.models.flux_schedule import mu_of_tokens, sigma_of_time
from op4ksr_core.weights.sr_lora import OMGSR_SIGMA


def published(steps: int, tokens: int) -> list[float]:
    """BFL's schedule in torch's float32: evenly spaced times, shifted by mu on the line through 256 and 4096 tokens."""
    mu = 0.5 + (1.15 - 0.5) / (4096 - 256) * (tokens - 256)
    return (math.exp(mu) / (math.exp(mu) + (1 / torch.linspace(1, 0, steps + 1) - 1))).tolist()


@pytest.mark.parametrize("step", [1, 244, 295, 998, 999])
def test_a_step_of_the_schedule(step: int) -> None:
    assert sigma_of_time(step / 999, mu_of_tokens(4096)) == pytest.approx(published(999, 4096)[-(step + 1)], abs=1e-6)


def test_omgsrs_sigma() -> None:
    assert pytest.approx(published(999, (1024 // 8) ** 2 // 4)[-245], abs=1e-6) == OMGSR_SIGMA
    assert pytest.approx(0.5051, abs=5e-5) == OMGSR_SIGMA


@pytest.mark.parametrize("time", [0.0, -0.1, 1.1, math.nan])
def test_a_time_that_is_none_is_refused(time: float) -> None:
    with pytest.raises(OptionError, match="expected above 0 and at most 1"):
        sigma_of_time(time, 1.15)
