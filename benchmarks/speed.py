"""``benchmark speed``: seconds of the autoencoder in strips over those of the plain pass, taken in one run."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from op4ksr_core.machine import dtype_name, wait_for
from op4ksr_core.planning.geometries import AUTOENCODERS
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.vae.strips import MEMORY_MODES, StripSettings

from .memory import random_autoencoder, uneven
from .tables import Row

#: (geometry, side in px, dtype).
CASES = (
    ("F16, full width", 1024, torch.bfloat16),
    ("F16, full width", 512, torch.float32),
    ("F8, full width", 512, torch.bfloat16),
    ("F16, bundled", 2048, torch.float32),
)
QUICK_CASES = (("F16, bundled", 256, torch.float32),)


def speed(cases: tuple[tuple[str, int, torch.dtype], ...] = CASES, device: str = "cpu", repeats: int = 3) -> list[Row]:
    """Plain and each mode in turn, ``repeats`` times after one warm-up; the fastest of each counts."""
    rows: list[Row] = []
    for name, side, dtype in cases:
        params = AUTOENCODERS[name]
        model = random_autoencoder(params).to(device, dtype)
        latent = uneven(1, params.latent_channels, side // params.ratio, side // params.ratio).to(device, dtype)
        pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        for stage, given in (("encode", pixels), ("decode", latent)):
            seconds: dict[str, list[float]] = {way: [] for way in ("plain", *MEMORY_MODES)}
            for turn in range(repeats + 1):
                for way, taken in seconds.items():
                    spent = _seconds(model, stage, given, way)
                    if turn:
                        taken.append(spent)
            plain = min(seconds["plain"])
            for way, taken in seconds.items():
                rows.append(
                    {
                        "weights": name,
                        "px": side,
                        "dtype": dtype_name(dtype),
                        "stage": stage,
                        "way": way,
                        "seconds": min(taken),
                        "slowest": max(taken),
                        "of plain": min(taken) / plain,
                    }
                )
    return rows


def _seconds(model: AutoEncoder, stage: str, given: Tensor, way: str) -> float:
    settings = next((StripSettings(mode=mode) for mode in MEMORY_MODES if mode == way), None)
    plain, strips = {
        "encode": (model.encode_pixels, model.encode_strips),
        "decode": (model.decode_pixels, model.decode_strips),
    }[stage]
    wait_for(given.device)
    began = time.perf_counter()
    with torch.no_grad():
        _ = plain(given) if settings is None else strips(given, strips=settings)
    wait_for(given.device)
    return time.perf_counter() - began
