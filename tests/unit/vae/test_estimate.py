"""How much memory strips are estimated to need, and which are chosen for it."""

import pytest
import torch

from op4ksr_core.machine import AllocationTracker
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams
from op4ksr_core.vae.estimate import (
    LADDER,
    MARGIN,
    Stage,
    choose_strips,
    leaner,
    peak_bytes,
    peak_elements,
)
from op4ksr_core.vae.strips import MEMORY_MODES, MemoryMode, StripSettings

FULL = AutoEncoderParams()


def measured(params: AutoEncoderParams, stage: Stage, side: int, settings: StripSettings) -> float:
    """Peak of live tensors above the input, in elements, on meta tensors (bf16)."""
    with torch.device("meta"):
        model = AutoEncoder(params, dtype=torch.bfloat16).requires_grad_(False)
        channels, length = (params.latent_channels, side // params.ratio) if stage == "decode" else (3, side)
        given = torch.empty(1, channels, length, length, dtype=torch.bfloat16)
        out = torch.empty(1, 3, side, side)
    with torch.no_grad(), AllocationTracker() as tracker:
        if stage == "decode":
            model.decode_strips(given, out=out, strips=settings)
        else:
            model.encode_strips(given, strips=settings)
    return tracker.peak / 2


@pytest.mark.parametrize("mode", MEMORY_MODES)
@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize("params", [FULL, AutoEncoderParams(stride=1)], ids=["f16", "f8"])
@pytest.mark.slow
def test_the_estimate_is_within_ten_percent(params: AutoEncoderParams, stage: Stage, mode: MemoryMode) -> None:
    side, settings = 512 * params.stride, StripSettings(mode=mode)
    real = measured(params, stage, side, settings)
    assert peak_elements(params, stage, side, side, settings) == pytest.approx(real, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stage", "mode", "gigabytes"),
    [("decode", "fast", 3.5), ("decode", "tiny", 2.0), ("encode", "fast", 2.4), ("encode", "tiny", 1.5)],
)
def test_the_full_width_peaks_at_4096_px(stage: Stage, mode: MemoryMode, gigabytes: float) -> None:
    assert measured(FULL, stage, 4096, StripSettings(mode=mode)) * 2 <= gigabytes * 1e9


def test_the_fastest_that_fits_is_chosen() -> None:
    def chosen(free: int | None) -> MemoryMode:
        return choose_strips(FULL, "decode", 4096, 4096, torch.bfloat16, free).mode

    needs = [peak_bytes(FULL, "decode", 4096, 4096, torch.bfloat16, StripSettings(mode=t)) for t in MEMORY_MODES]
    assert needs == sorted(needs, reverse=True)
    assert chosen(None) == chosen(int(needs[0] * 1.2)) == "fast"
    assert chosen(int(needs[1] * 1.12)) == "lean"
    assert chosen(int(needs[2] * 1.12)) == "tiny"
    assert choose_strips(FULL, "decode", 4096, 4096, torch.bfloat16, 1).rows == 8


def test_what_lies_beside_the_strips_is_taken_off_once() -> None:
    need, beside = peak_bytes(FULL, "decode", 4096, 4096, torch.bfloat16, StripSettings()), 10**9
    just = int(need / (1 - MARGIN)) + 1

    def chosen(free: int, beside: int) -> MemoryMode:
        return choose_strips(FULL, "decode", 4096, 4096, torch.bfloat16, free, beside).mode

    assert chosen(just, 0) == chosen(just + beside, beside) == "fast"
    assert chosen(just - 10**6, 0) == chosen(just + beside - 10**6, beside) == "lean"


def test_encoding_has_no_lean_way_of_its_own() -> None:
    fast, lean = (peak_elements(FULL, "encode", 1024, 1024, StripSettings(mode=t)) for t in ("fast", "lean"))
    assert fast == lean


@pytest.mark.parametrize("stage", ["encode", "decode"])
@pytest.mark.parametrize("params", [FULL, AutoEncoderParams(stride=1)], ids=["f16", "f8"])
def test_each_of_the_ladder_needs_less_than_the_one_before(params: AutoEncoderParams, stage: Stage) -> None:
    needs = [peak_elements(params, stage, 4096, 4096, settings) for settings in LADDER]
    assert needs == sorted(needs, reverse=True)
    assert len(set(needs)) >= len(LADDER) - 1  # encoding has no lean way of its own


def test_what_ran_out_of_memory_goes_down_the_ladder_that_the_choice_is_made_from() -> None:
    seen: list[StripSettings | None] = [LADDER[0]]
    while (settings := seen[-1]) is not None:
        seen.append(leaner(settings))
    assert seen == [*LADDER, None]


@pytest.mark.parametrize(
    ("given", "then"),
    [
        (StripSettings(128, "fast"), StripSettings(64, "fast")),
        (StripSettings(128, "tiny"), StripSettings(64, "tiny")),
        (StripSettings(32, "fast"), StripSettings(32, "tiny")),
        (StripSettings(12, "lean"), StripSettings(8, "tiny")),
        (StripSettings(4, "tiny"), None),
    ],
    ids=str,
)
def test_settings_beside_the_ladder_step_onto_it(given: StripSettings, then: StripSettings | None) -> None:
    assert leaner(given) == then
