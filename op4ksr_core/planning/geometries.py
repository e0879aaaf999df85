"""Shapes of models that can be planned, measured or filled with random weights without a file at hand."""

from __future__ import annotations

from dataclasses import dataclass

from ..models.flux import FluxParams
from ..vae.autoencoder import AutoEncoderParams


@dataclass(frozen=True)
class Geometry:
    """The shapes of a transformer and of its F16 autoencoder, and the number of tokens of its prompt embedding."""

    flux: FluxParams
    autoencoder: AutoEncoderParams
    text_tokens: int


#: The longest prompt embedding that FLUX.1-dev takes, and its usual one, tokens.
LONGEST_PROMPT = 512
