"""Between the autoencoder's raw latents and the transformer's tokens: the one place that knows both."""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor

#: Flux's constants: the transformer sees (raw - LATENT_SHIFT) * LATENT_SCALE.
LATENT_SHIFT = 0.1159
LATENT_SCALE = 0.3611

#: Latent pixels per token, per side.
PATCH = 2

#: Width, in latent pixels, of the frame of mirrored picture that the autoencoder is given all round, and that is cut
#: off its output again. Our choice: outside a picture convolutions see zeros, and norms spread their effect inwards.
#: On flat grey the bundled weights erred by up to 31 grey levels in the outer 16 px without it, by 1.5 with it.
MARGIN = PATCH


def process_in(raw: Tensor) -> Tensor:
    """The autoencoder's raw latent -> the processed one that the transformer works on; any shape."""
    return (raw - LATENT_SHIFT) * LATENT_SCALE


def process_out(latent: Tensor) -> Tensor:
    """The reverse of ``process_in``: processed latent -> raw; any shape."""
    return latent / LATENT_SCALE + LATENT_SHIFT


def pack(latent: Tensor) -> Tensor:
    """(B, C, h, w), h and w even -> tokens (B, h/2 * w/2, 4 C), row by row."""
    return rearrange(latent, "b c (h ph) (w pw) -> b (h w) (c ph pw)", ph=PATCH, pw=PATCH)


def unpack(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Tokens (B, rows * columns, 4 C) -> latent (B, C, 2 rows, 2 columns)."""
    return rearrange(tokens, "b (h w) (c ph pw) -> b c (h ph) (w pw)", h=rows, w=columns, ph=PATCH, pw=PATCH)


def position_ids(text_tokens: int, rows: int, columns: int) -> Tensor:
    """(1, text_tokens + rows * columns, 3) fp32: (0, 0, 0) for text, (0, row, column) for the image, row by row."""
    ids = torch.zeros(text_tokens + rows * columns, 3)
    image = ids[text_tokens:].view(rows, columns, 3)
    image[..., 1] = torch.arange(rows, dtype=torch.float32)[:, None]
    image[..., 2] = torch.arange(columns, dtype=torch.float32)[None]
    return ids[None]
