"""The shift of a rectified flow's time steps: how much of the run is spent at high noise.

sigma = s t / (1 + (s - 1) t) for t from 1 to 0, with a shift s; FLUX.1 writes s = e^mu (Esser et al.,
"Scaling Rectified Flow Transformers", equation 23, and BFL's ``time_shift``). Both are the same family.
"""

from __future__ import annotations

import math

from ..errors import OptionError

#: What UltraFlux's published script really runs with: see docs/ultraflux.md.
ULTRAFLUX_SHIFT = 3.0

#: FLUX.1-dev: mu 0.5 at 256 tokens and 1.15 at 4096, and on along that line.
BASE_SHIFT, MAX_SHIFT = 0.5, 1.15
_BASE_TOKENS, _MAX_TOKENS = 256, 4096

#: Steps of the schedule in whose t, up to 999 (noise alone), OMGSR names its sigma; it is shifted by ``MAX_SHIFT``,
#: FLUX.1-dev's mu for 1024 px at 8x. t = 244 is OMGSR-F-1024's 0.5051, t = 295 its older 0.5696.
FLUX_STEPS = 999


def mu_of_tokens(tokens: int, base_shift: float = BASE_SHIFT, max_shift: float = MAX_SHIFT) -> float:
    """FLUX.1's mu for a picture of so many tokens (at 16x one token is 32 x 32 px)."""
    if tokens < 1:
        raise OptionError(f"tokens: expected at least 1, got {tokens}")
    slope = (max_shift - base_shift) / (_MAX_TOKENS - _BASE_TOKENS)
    return base_shift + slope * (tokens - _BASE_TOKENS)


def mu_of_shift(shift: float) -> float:
    """ln s: the mu that ComfyUI's Flux sampling takes for a shift s above 0."""
    if not shift > 0:
        raise OptionError(f"shift: expected above 0, got {shift}")
    return math.log(shift)


def sigma_of_time(time: float, mu: float) -> float:
    """sigma = e^mu / (e^mu + 1/t - 1) of a time t in (0, 1], shifted by ``mu``: 1 at t = 1, near 0 where t is."""
    if not 0 < time <= 1:
        raise OptionError(f"time: expected above 0 and at most 1, got {time}")
    return math.exp(mu) / (math.exp(mu) + 1 / time - 1)


def nearest_step(sigma: float, steps: int = FLUX_STEPS, mu: float = MAX_SHIFT) -> int:
    """The step t, 1 to ``steps``, whose ``sigma_of_time(t / steps, mu)`` is nearest to sigma."""
    return min(range(1, steps + 1), key=lambda step: abs(sigma_of_time(step / steps, mu) - sigma))
