"""The 12 B transformer's live tensors on F8 and F16, whole and in pieces, counted on tensors without values."""

from __future__ import annotations

import logging
from collections.abc import Generator
from contextlib import contextmanager, suppress
from unittest import mock

import torch
from torch import Tensor

from op4ksr_core.images.resize import Target
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.models import flux_layers
from op4ksr_core.models.flux import Flux, FluxParams, OneStepSettings
from op4ksr_core.models.latent import PATCH
from op4ksr_core.one_step import CoreStages
from op4ksr_core.pieces import Pieces, in_pieces, windows
from op4ksr_core.planning.geometries import LONGEST_PROMPT
from op4ksr_core.planning.make import Models, make_plan
from op4ksr_core.planning.plan import Machine
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams

from .tables import FACTOR, Row

log = logging.getLogger(__name__)

#: Windows that are run and counted; all others are like them.
_COUNTED = 3


def transformer_peaks(side: int = 4096, params: FluxParams | None = None) -> list[Row]:
    """One row each for F8 and F16, whole and in pieces of 1024 px: counted, planned, and the ratio of the two.

    bfloat16, a prompt embedding of the longest kind, attention as fused kernels have it: its output and nothing else.
    """
    rows: list[Row] = []
    for name, stride in (("F8", 1), ("F16", 2)):
        models = Models(AutoEncoderParams(stride=stride), flux=params or FluxParams(), text_tokens=LONGEST_PROMPT)
        rows += [_row(name, side, models, pieces) for pieces in (None, Pieces())]
    return rows


def _row(name: str, side: int, models: Models, pieces: Pieces | None) -> Row:
    log.info("the transformer's peak: %s, %d px, %s", name, side, pieces or "whole")
    plans = [
        make_plan(
            (side // FACTOR,) * 2,
            Target(scale=FACTOR),
            Models(models.autoencoder, flux=models.flux, text_tokens=models.text_tokens, pieces=cut),
            Machine("meta", torch.bfloat16, None),
        )
        for cut in (None, pieces)
    ]
    whole, planned = (next(stage for stage in plan.stages if stage.name == "transformer") for plan in plans)
    predicted = planned.peak + planned.pictures - whole.pictures  # with the sums that are blended
    counted = counted_peak(models, side, pieces)
    tokens = plans[1].window[0] * plans[1].window[1]
    return {
        "VAE": name,
        "px": side,
        "way": "whole" if pieces is None else f"pieces {pieces.size_px}:{pieces.overlap_px}",
        "passes": plans[1].pieces,
        "tokens each": tokens,
        "PFLOP": (planned.flops or 0) / 1e15,
        "GB": counted / 1e9,
        "predicted GB": predicted / 1e9,
        "predicted / counted": predicted / counted,
    }


def counted_peak(models: Models, side: int, pieces: Pieces | None) -> int:
    """Bytes live at most above weights and latent."""
    assert models.flux is not None
    with torch.device("meta"):
        txt = torch.empty(models.text_tokens, models.flux.context_in_dim)
        flux = Flux(models.flux, OneStepSettings(txt=txt), dtype=torch.bfloat16).requires_grad_(False)
        autoencoder = AutoEncoder(models.autoencoder)
        latent_side = side // autoencoder.params.ratio // PATCH * PATCH
        raw = torch.empty(1, autoencoder.params.latent_channels, latent_side, latent_side, dtype=torch.bfloat16)
    stages = CoreStages(flux, autoencoder)
    grid = latent_side // PATCH, latent_side // PATCH
    passes = 0 if pieces is None else len(windows(grid, pieces, stages.ratio))

    def tell(done: int, total: int) -> None:
        if (done, total) == (_COUNTED, passes):
            raise _EnoughError

    with _fused_attention(), suppress(_EnoughError), torch.no_grad(), AllocationTracker() as tracker:
        if pieces is None:
            stages.transform(raw, tell)
        else:
            in_pieces(raw, stages.transform, pieces, stages.ratio, tell)
    return tracker.peak


class _EnoughError(Exception):
    pass


@contextmanager
def _fused_attention() -> Generator[None, None, None]:
    def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return torch.empty_like(q)

    with mock.patch.object(flux_layers, "attention", attention):
        yield
