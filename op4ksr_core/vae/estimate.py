"""How much memory the autoencoder will need, and which strips fit.

Estimates count live tensors, as ``machine.AllocationTracker`` measures them (a test compares the two);
scratch memory inside kernels comes on top and is covered by ``WORKSPACE``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Literal

import torch

from .layers import AutoEncoderParams
from .strips import MEMORY_MODES, MemoryMode, StripSettings

Stage = Literal["encode", "decode"]

#: The strips of each stage; a stage that is not named is decided by the free memory when it runs.
StripPlan = Mapping[Stage, StripSettings]

#: Shares, our choice: of the estimate, what kernels may take on top; of the free memory, what is left free.
WORKSPACE, MARGIN = 0.10, 0.10

#: Strips of the entering width that live at once while a level is entered, as counted; and the rows of
#: halo that they come with.
_AT_WORK: dict[MemoryMode, float] = {"fast": 2.0, "lean": 2.3, "tiny": 2.25}
_HALO: dict[MemoryMode, int] = {"fast": 0, "lean": 2, "tiny": 4}

#: Elements at work, per square of the width, while an upsampling convolution is folded: float32 copies, so
#: many in half precision, half as many in float32. Only small pictures notice.
_FOLDING = 90.0

#: The settings that are chosen from, fastest first, each needing no more than the one before: a higher mode before
#: lower strips, and none below 8 rows, where the halo would cost more than the strip. Our choice.
LADDER = (
    *(StripSettings(mode=mode) for mode in MEMORY_MODES),
    *(StripSettings(rows, MEMORY_MODES[-1]) for rows in (32, 16, 8)),
)

#: The settings that need least.
LEAST_MEMORY = LADDER[-1]


def both(settings: StripSettings) -> StripPlan:
    """The same settings for either stage."""
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
    params: AutoEncoderParams,
    stage: Stage,
    height: int,
    width: int,
    dtype: torch.dtype,
    free: int | None,
    beside: int = 0,
) -> StripSettings:
    """The first of ``LADDER`` that fits; else the last. The one rule: for the plan, the log and the run.

    free: bytes to be had on the device (None: unknown, then the fastest). beside: bytes of them that the run itself
    takes for other things than strips: pictures and weights that are not there yet when ``free`` is read.
    """
    if free is None:
        return LADDER[0]
    for settings in LADDER:
        if peak_bytes(params, stage, height, width, dtype, settings) <= (free - beside) * (1 - MARGIN):
            return settings
    return LEAST_MEMORY


def leaner(settings: StripSettings) -> StripSettings | None:
    """The first of ``LADDER`` that needs less: no higher strips, no faster mode, and not the same. None: there is none.

    For settings of ``LADDER`` itself that is the next one.
    """
    mode = MEMORY_MODES.index(settings.mode)
    for other in LADDER:
        if other != settings and other.rows <= settings.rows and MEMORY_MODES.index(other.mode) >= mode:
            return other
    return None
