"""How much work a run is, and how much memory the transformer needs: closed forms, held to counters by tests.

A FLOP is a multiplication or an addition of a convolution, a linear layer or an attention; the rest
(norms, activations, rotation) is below 1 % and left out, as PyTorch's own counter does.
"""

from __future__ import annotations

import torch

from ..models.flux import FluxParams
from ..models.flux_layers import TIME_CHANNELS
from ..models.latent import PATCH
from ..vae.estimate import Stage
from ..vae.layers import AutoEncoderParams
from ..vae.strips import MemoryMode, StripSettings

#: How often ``strips`` computes an upsampled map, and a block's inner convolution, by mode.
_UPSAMPLED: dict[MemoryMode, int] = {"fast": 1, "lean": 2, "tiny": 3}
_INNER: dict[MemoryMode, int] = {"fast": 1, "lean": 1, "tiny": 2}


def autoencoder_flops(
    params: AutoEncoderParams, stage: Stage, height: int, width: int, settings: StripSettings
) -> float:
    """FLOPs of encoding or decoding one picture of height x width px in strips, their halos included."""
    mode = settings.mode
    area = height * width / params.stride**2
    top = len(params.widths) - 1
    low = area / 4**top
    work = _middle_flops(params, low, mode)
    if stage == "encode":
        work += _conv(3, params.widths[0], area) + _conv(params.widths[-1], 2 * params.latent_channels, low)
    else:
        work += _conv(params.latent_channels, params.widths[-1], low)
        work += _conv(params.widths[0], 3, height * width, 9 if params.stride == 1 else 4)
    for i, out in enumerate(params.widths):
        here = area / 4**i
        entering = params.widths[max(0, i - 1) if stage == "encode" else min(i + 1, top)]
        blocks = params.layers_per_block + (stage == "decode")
        work += _block(entering, out, here, mode) + (blocks - 1) * _block(out, out, here, mode)
        if stage == "encode" and i < top:
            work += _conv(out, out, here / 4)
        if stage == "decode" and i < top:  # folded: 2x2 taps instead of 3x3
            work += _conv(entering, entering, here, 4) * _UPSAMPLED[mode]
    return work * (1 + 2 / settings.rows)  # every convolution computes a row too many on either side


def _conv(inputs: int, outputs: int, positions: float, taps: int = 9) -> float:
    return 2.0 * inputs * outputs * taps * positions


def _block(inputs: int, outputs: int, positions: float, mode: MemoryMode) -> float:
    shortcut = _conv(inputs, outputs, positions, 1) if inputs != outputs else 0.0
    inner = _conv(inputs, outputs, positions) * _INNER[mode]
    return inner + _conv(outputs, outputs, positions) + shortcut


def _middle_flops(params: AutoEncoderParams, positions: float, mode: MemoryMode) -> float:
    width = params.widths[-1]
    work = 2 * _block(width, width, positions, mode)
    if params.mid_attention:
        work += 4 * _conv(width, width, positions, 1) + 4.0 * positions**2 * width
    return work


def image_tokens(params: AutoEncoderParams, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the transformer's tokens for a padded picture."""
    side = params.ratio * PATCH
    return height // side, width // side


def flux_flops(params: FluxParams, tokens: int, text_tokens: int) -> float:
    """FLOPs of one forward pass over ``tokens`` image and ``text_tokens`` text tokens, batch 1."""
    hidden, total = params.hidden_size, tokens + text_tokens
    inner = round(hidden * params.mlp_ratio)
    patch = params.in_channels * PATCH * PATCH
    block = 2.0 * total * (4 * hidden * hidden + 2 * hidden * inner) + 4.0 * total**2 * hidden  # of either kind
    ends = 2.0 * (tokens * 2 * patch * hidden + text_tokens * params.context_in_dim * hidden)
    modulation = 2.0 * hidden * hidden * (12 * params.depth + 3 * params.depth_single_blocks + 2)
    vectors = 2.0 * hidden * (params.vec_in_dim + TIME_CHANNELS * (1 + params.guidance_embed))
    vectors += 2.0 * hidden * hidden * (2 + params.guidance_embed)
    return params.depth * block + params.depth_single_blocks * block + ends + modulation + vectors


def flux_peak_bytes(params: FluxParams, tokens: int, text_tokens: int, dtype: torch.dtype) -> int:
    """Largest number of bytes live in the core's transformer, above its weights, batch 1, fused attention.

    In units of (tokens x hidden): at the rotation, in fp32, and at the MLP; plus the table of positions.
    """
    ratio = params.mlp_ratio
    part = 1 / min(4, params.num_heads)  # of the heads, rotated at a time
    rotation = 10 + 8 * part if dtype.itemsize < 4 else max(11.0, 9 + 4 * part)
    double = max(rotation, 3 + 2 * ratio) if params.depth else 0.0
    single = max(rotation + ratio, 6 + 2 * ratio) if params.depth_single_blocks else 0.0
    total = tokens + text_tokens
    positions = 8 * sum(params.axes_dim) * total
    return int(max(double, single) * total * params.hidden_size * dtype.itemsize) + positions
