"""How much memory the autoencoder will need, which mode fits, and what to do when it did not.

Predictions count live tensors, as ``machine.AllocationTracker`` measures them (a test holds the two together);
scratch memory inside kernels comes on top and is covered by ``WORKSPACE``.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal, TypeVar

import torch

from ..errors import OutOfMemoryError
from ..machine import is_out_of_memory
from .layers import AutoEncoderParams
from .strips import MEMORY_MODES, MemoryMode, StripSettings

log = logging.getLogger(__name__)

Stage = Literal["encode", "decode"]
Result = TypeVar("Result")

#: Shares, our choice: of the prediction, what kernels may take on top; of the free memory, what is left free.
WORKSPACE, MARGIN = 0.10, 0.10

#: Strips of the entering width that live at once while a level is entered, as counted; and the rows of
#: halo that they come with.
_AT_WORK: dict[MemoryMode, float] = {"fast": 2.0, "lean": 2.3, "tiny": 2.25}
_HALO: dict[MemoryMode, int] = {"fast": 0, "lean": 2, "tiny": 4}

#: Elements at work, per square of the width, while an upsampling convolution is folded: float32 copies, so
#: many in half precision, half as many in float32. Only small pictures notice.
_FOLDING = 90.0

#: Strips are not made lower than this: the halo would cost more than the strip.
LOWEST_STRIP = 8

#: Where ``leaner`` ends.
LEAST_MEMORY = StripSettings(LOWEST_STRIP, MEMORY_MODES[-1])


def both(settings: StripSettings) -> dict[Stage, StripSettings]:
    """The same settings for either stage, as an autoencoder's ``wish``."""
    return {"encode": settings, "decode": settings}


def peak_elements(params: AutoEncoderParams, stage: Stage, height: int, width: int, settings: StripSettings) -> int:
    """Largest number of live tensor elements above the input, for one picture of height x width px.

    Walks the levels as ``strips`` does: what is stored when each map is made, plus the strips at work.
    """
    walk = _decode_peaks if stage == "decode" else _encode_peaks
    return int(max(walk(params, height, width, settings)))


def _decode_peaks(params: AutoEncoderParams, height: int, width: int, settings: StripSettings) -> Iterator[float]:
    widths, mode = params.widths, settings.mode
    top = len(widths) - 1
    area = height * width / params.stride**2
    yield from _middle_peaks(params, area / 4**top)
    storage = widths[top] * area / 4**top
    for i in range(top, -1, -1):
        here, out = area / 4**i, widths[i]
        entering = widths[min(i + 1, top)]
        strip = _strip_area(params, height, width, i, settings)
        work = strip * (_AT_WORK[mode] * entering + out)
        if i < top:
            yield storage + _FOLDING * entering**2
        if i == top:
            stored = storage
        elif mode == "fast":
            yield storage + entering * here + work
            stored = storage = entering * here
        else:
            stored = storage  # of the level before; the upsampled map is never stored
        inner = 0 if mode == "tiny" else out * here
        result = 0 if stored == entering * here and (entering == out or mode != "tiny") else out * here
        yield stored + inner + result + work
        if result:
            storage = result
        yield storage + inner + strip * out * (4.2 if mode == "tiny" else 3)
    yield storage + min(settings.rows, height) * width * 3 * 4


def _encode_peaks(params: AutoEncoderParams, height: int, width: int, settings: StripSettings) -> Iterator[float]:
    if settings.mode == "lean":  # the same as fast: nothing is upsampled
        settings = replace(settings, mode="fast")
    widths, mode = params.widths, settings.mode
    area = height * width / params.stride**2
    storage = widths[0] * area
    for i, out in enumerate(widths):
        here, entering = area / 4**i, widths[max(0, i - 1)]
        strip = _strip_area(params, height, width, i, settings)
        inner = 0 if mode == "tiny" else out * here
        result = 0 if entering == out else out * here
        yield storage + inner + result + strip * (entering + out)
        storage = result or storage
        strips = max(1.0, height / params.stride / 2**i / settings.rows)
        yield storage + inner + strip * out * (min(4.2, 2 + 0.75 * math.log2(strips)) if mode == "tiny" else 2)
        if i + 1 < len(widths):
            yield storage + out * here / 4 + strip * out * 2
            storage = out * here / 4
    yield from _middle_peaks(params, area / 4 ** (len(widths) - 1))


def _strip_area(params: AutoEncoderParams, height: int, width: int, level: int, settings: StripSettings) -> float:
    """Positions in one strip, halo included, of a map of this level."""
    scale = params.stride * 2**level
    return min(settings.rows + _HALO[settings.mode], height / scale) * width / scale


def _middle_peaks(params: AutoEncoderParams, area: float) -> Iterator[float]:
    """Attention over the whole latent: input, normed, q, k, v and one more."""
    yield params.widths[-1] * area * (6 if params.mid_attention else 3)


def peak_bytes(
    params: AutoEncoderParams,
    stage: Stage,
    height: int,
    width: int,
    dtype: torch.dtype,
    settings: StripSettings,
) -> int:
    """``peak_elements`` in bytes, kernels' workspace included."""
    return int(peak_elements(params, stage, height, width, settings) * dtype.itemsize * (1 + WORKSPACE))


def choose_strips(
    params: AutoEncoderParams, stage: Stage, height: int, width: int, dtype: torch.dtype, free: int | None
) -> StripSettings:
    """The fastest settings that fit into ``free`` bytes (None: unknown, then the fastest); else the leanest."""
    candidates = [StripSettings(mode=mode) for mode in MEMORY_MODES]
    candidates += [StripSettings(rows, "tiny") for rows in (32, 16, LOWEST_STRIP)]
    if free is None:
        return candidates[0]
    for settings in candidates:
        if peak_bytes(params, stage, height, width, dtype, settings) <= free * (1 - MARGIN):
            return settings
    return candidates[-1]


def leaner(settings: StripSettings) -> StripSettings | None:
    """What to try after these ran out of memory: half the strip, then the next mode, then lower strips."""
    level = MEMORY_MODES.index(settings.mode)
    if settings.rows > 32:
        return replace(settings, rows=settings.rows // 2)
    if level + 1 < len(MEMORY_MODES):
        return replace(settings, mode=MEMORY_MODES[level + 1])
    if settings.rows > LOWEST_STRIP:
        return replace(settings, rows=max(LOWEST_STRIP, settings.rows // 2))
    return None


def recovering(
    run: Callable[[StripSettings], Result],
    settings: StripSettings,
    what: str,
    release: Callable[[], None] = lambda: None,
    is_oom: Callable[[BaseException], bool] = is_out_of_memory,
) -> Result:
    """``run(settings)``; on out of memory again with leaner ones, the result being the same picture.

    ``release`` runs between the tries, when nothing holds on to the failed one any more. Raises our
    OutOfMemoryError, with what was tried and the remedy, when those that need least fail as well.
    """
    attempt: StripSettings | None = settings
    tried: list[str] = []
    while attempt is not None:
        result = _try(run, attempt, is_oom)
        if result is not None:
            if tried:
                log.warning("%s: out of memory with %s; done with %s", what, ", ".join(tried), _name(attempt))
            return result[0]
        tried.append(_name(attempt))
        attempt = leaner(attempt)
        release()
    raise OutOfMemoryError(
        f"{what}: out of memory even with the settings that need least (tried {', '.join(tried)}); "
        "ask for a smaller target, close what else uses the memory, or run on the CPU"
    )


def _try(
    run: Callable[[StripSettings], Result], settings: StripSettings, is_oom: Callable[[BaseException], bool]
) -> tuple[Result] | None:
    """The result in a tuple, or None if out of memory. The error does not leave: it would keep every tensor alive."""
    try:
        return (run(settings),)
    except (RuntimeError, MemoryError) as error:
        if not is_oom(error):
            raise
        return None


def _name(settings: StripSettings) -> str:
    return f"{settings.mode}, strips of {settings.rows} rows"
