"""Small UltraFlux-shaped weights made from integers, and what the published implementation makes of them.

Run with the path of a checkout of github.com/W2GenAI-Lab/UltraFlux, this writes
tests/data/ultraflux_parity.json (needs diffusers); the tests read that, and where $ULTRAFLUX_SOURCE names a
checkout they also run it anew. Nothing of that code is here: only numbers that it gave.
"""

from __future__ import annotations

import json
import math
import sys
import types
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]

#: 66 x 2 tokens, 2112 x 64 px: one axis beyond UltraFlux's 64 tokens, one within.
ROWS, COLUMNS, TEXT, STEPS, GUIDANCE = 66, 2, 5, 3, 4.0
FLUX: dict[str, Any] = {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1}
FLUX |= {"context_in_dim": 64, "vec_in_dim": 32, "guidance_embed": True}
VAE: dict[str, Any] = {"widths": (32, 32, 64, 64), "layers_per_block": 2, "norm_groups": 32, "stride": 2, "shift": 1}
VAE_CONFIG: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [32, 32, 64, 64],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "latent_channels": 16,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "scaling_factor": 0.3611,
    "shift_factor": 0.1159,
    "stride": 2,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
#: As in the published model's scheduler/scheduler_config.json.
SCHEDULER = {"base_image_seq_len": 256, "base_shift": 0.5, "max_image_seq_len": 4096, "max_shift": 1.15}
SCHEDULER |= {"num_train_timesteps": 1000, "shift": 3.0, "use_dynamic_shifting": True}


def numbers(name: str, *shape: int) -> Tensor:
    """Uniform in [-1, 1), from the name and the index alone (splitmix64), so that no library version matters."""
    with np.errstate(over="ignore"):
        z = np.arange(math.prod(shape), dtype=np.uint64) + np.uint64(zlib.crc32(name.encode())) * np.uint64(2**32 + 1)
        z = (z + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
    return torch.from_numpy((z >> np.uint64(11)).astype(np.float64) / 2**52 - 1).float().reshape(shape)


def weights(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """Matrices of unit gain; norms near 1 (queries' at 3, so that positions matter); small biases."""
    made: Tensors = {}
    for name, shape in shapes.items():
        values = numbers(name, *shape)
        if len(shape) > 1:
            made[name] = values * math.sqrt(3 / math.prod(shape[1:]))
        elif name.endswith("weight"):
            made[name] = 1 + 0.1 * values + (2 if "norm_q" in name or "norm_added_q" in name else 0)
        else:
            made[name] = 0.1 * values
    return made


def inputs() -> dict[str, Tensor]:
    """noise (1, 16, 2 rows, 2 columns), prompt, pooled, and a picture (1, 3, 64, 96) in [-1, 1]."""
    return {
        "noise": numbers("noise", 1, 16, 2 * ROWS, 2 * COLUMNS) * math.sqrt(3),
        "txt": numbers("txt", 1, TEXT, FLUX["context_in_dim"]),
        "vec": numbers("vec", 1, FLUX["vec_in_dim"]),
        "pixels": numbers("pixels", 1, 3, 64, 96),
        "raw": numbers("raw", 1, 16, 6, 8) * 2,
    }


def sampled(tensor: Tensor) -> list[float]:
    """About 300 of the numbers, evenly spread, and the mean of all squares."""
    flat = tensor.detach().double().flatten()
    step = max(1, len(flat) // 300) | 1
    return [float(f"{value:.7g}") for value in (*flat[::step].tolist(), float(flat.square().mean()))]


def shifted_sigmas(steps: int, shift: float) -> list[float]:
    """The sigmas of ``steps`` steps: t = 1, 1 - 1/steps, ... 1/steps, shifted, and the final 0."""
    times = [1 - i / steps for i in range(steps)]
    return [shift * t / (1 + (shift - 1) * t) for t in times] + [0.0]


def published(source: Path, flux_tensors: Tensors, vae_tensors: Tensors) -> dict[str, Any]:
    """The published transformer, VAE, scheduler and pipeline on these weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    for name in ("sqlalchemy", "sqlalchemy.sql", "sqlalchemy.sql.functions"):  # imported there, never used
        sys.modules.setdefault(name, types.ModuleType(name))
    sys.modules["sqlalchemy.sql.functions"].current_timestamp = None  # pyright: ignore
    sys.path.insert(0, str(source))
    from ultraflux.autoencoder_kl import AutoencoderKL
    from ultraflux.pipeline_flux import FluxPipeline
    from ultraflux.transformer_flux import FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        num_layers=FLUX["depth"],
        num_single_layers=FLUX["depth_single_blocks"],
        num_attention_heads=FLUX["num_heads"],
        joint_attention_dim=FLUX["context_in_dim"],
        pooled_projection_dim=FLUX["vec_in_dim"],
        guidance_embeds=True,
    ).eval()
    transformer.load_state_dict(flux_tensors, strict=True)
    vae = AutoencoderKL(**{key: value for key, value in VAE_CONFIG.items() if key != "_class_name"}).eval()
    vae.load_state_dict(vae_tensors, strict=True)
    given = inputs()
    pipe = FluxPipeline(FlowMatchEulerDiscreteScheduler(**SCHEDULER), vae, None, None, None, None, transformer)
    pipe.scheduler.config.use_dynamic_shifting = False  # these two lines: as in the published script
    pipe.scheduler.config.time_shift = 4
    pipe.set_progress_bar_config(disable=True)
    noise = given["noise"]
    packed = pipe._pack_latents(noise, *noise.shape)
    ids = pipe._prepare_latent_image_ids(1, *noise.shape[2:], "cpu", torch.float32)[0]
    with torch.no_grad():
        velocity = transformer(
            packed,
            given["txt"],
            given["vec"],
            torch.tensor([0.6]),
            ids,
            torch.zeros(TEXT, 3),
            torch.tensor([GUIDANCE]),
            return_dict=False,
        )[0]
        image = pipe(
            height=32 * ROWS,
            width=32 * COLUMNS,
            num_inference_steps=STEPS,
            guidance_scale=GUIDANCE,
            latents=packed,
            prompt_embeds=given["txt"],
            pooled_prompt_embeds=given["vec"],
            output_type="pt",
        ).images
        sigmas = pipe.scheduler.sigmas.tolist()
        pipe.scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / 50, 50), mu=3.2)
        return {
            "velocity": sampled(pipe._unpack_latents(velocity, 32 * ROWS, 32 * COLUMNS, 32)),
            "encoded": sampled(vae.encode(given["pixels"]).latent_dist.mean),
            "decoded": sampled(vae.decode(given["raw"], return_dict=False)[0]),
            "sigmas": sigmas,
            "sigmas_of_50": pipe.scheduler.sigmas.tolist(),
            "image": sampled(image),
        }


def tensors() -> tuple[Tensors, Tensors]:
    """(transformer, VAE) in diffusers' layout."""
    from op4ksr_core import AutoEncoder, AutoEncoderParams, Flux, FluxParams
    from op4ksr_core.weights.layouts import export_autoencoder, export_flux

    made: list[Tensors] = []
    for model, export in (
        (Flux(FluxParams(**FLUX), device="meta"), export_flux),
        (AutoEncoder(AutoEncoderParams(**VAE), device="meta"), export_autoencoder),
    ):
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        made.append(weights({n: piece.shape(shapes[piece.source]) for n, piece in export(shapes).items()}))
    return made[0], made[1]


if __name__ == "__main__":
    root = Path(__file__).resolve().parents[3]
    sys.path.append(str(root.parent))
    found = published(Path(sys.argv[1]), *tensors())
    (root / "data" / "ultraflux_parity.json").write_text(json.dumps(found) + "\n", "utf-8")
