"""Shapes of models that can be planned, measured or filled with random weights without a file at hand."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..models.flux import FluxParams
from ..vae.autoencoder import AutoEncoderParams


@dataclass(frozen=True)
class Geometry:
    """The shapes of a transformer and of its F16 autoencoder, and the number of tokens of its prompt embedding."""

    flux: FluxParams
    autoencoder: AutoEncoderParams
    text_tokens: int


_BUNDLED = AutoEncoderParams(widths=(16, 32, 64, 128), layers_per_block=1, norm_groups=1, mid_attention=False)

#: Autoencoders by name. "bundled": as the bundled file is.
AUTOENCODERS = {
    "F16, full width": AutoEncoderParams(),
    "F16, full width, shift 1": AutoEncoderParams(shift=1),
    "F8, full width": AutoEncoderParams(stride=1),
    "F16, bundled": _BUNDLED,
    "F8, bundled": replace(_BUNDLED, stride=1),
}

#: The longest prompt embedding that FLUX.1-dev takes, and its usual one, tokens.
LONGEST_PROMPT = 512

#: flux: FLUX.1-dev's 12 B and the full-width F16 autoencoder as it is published. bundled: of the bundled models' kind.
#: small: as small as ComfyUI's own loader takes, every dimension a multiple of 16, as products of fp8 need it.
GEOMETRIES = {
    "flux": Geometry(FluxParams(), AUTOENCODERS["F16, full width, shift 1"], LONGEST_PROMPT),
    "bundled": Geometry(
        FluxParams(
            hidden_size=256,
            num_heads=2,
            depth=1,
            depth_single_blocks=2,
            context_in_dim=64,
            vec_in_dim=32,
            guidance_embed=False,
        ),
        AUTOENCODERS["F16, bundled"],
        4,
    ),
    "small": Geometry(
        FluxParams(hidden_size=128, num_heads=1, depth=1, depth_single_blocks=2, context_in_dim=64, vec_in_dim=32),
        AutoEncoderParams(widths=(16, 16, 32, 32), norm_groups=4),
        16,
    ),
}
