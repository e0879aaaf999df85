"""Tiny seeded models and pictures. No downloads, no GPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from host_support import find_host, run_cases
from scenes import scene
from seeded_models import seeded
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:  # at the end: our nodes/ must not shadow a host's
    sys.path.append(str(ROOT))

from op4ksr_core import AutoEncoder, AutoEncoderParams, Flux, FluxParams, OneStepSettings  # noqa: E402

torch.set_num_threads(1)  # the tensors are tiny, and spinning threads wait for each other on a busy machine


@pytest.fixture(scope="session")
def stir() -> Callable[[Callable[[], nn.Module], int], Any]:
    return seeded


@pytest.fixture(scope="session")
def make_autoencoder() -> Callable[..., AutoEncoder]:
    """make_autoencoder(seed=0, loud=False, **AutoEncoderParams) -> a tiny F16.

    loud: so that a change of its latent shows in the picture, in 8 bits too.
    """

    def make(seed: int = 0, loud: bool = False, **params: Any) -> AutoEncoder:
        tiny: dict[str, Any] = {"widths": (8, 16, 16, 16), "layers_per_block": 1, "norm_groups": 4}
        model = seeded(lambda: AutoEncoder(AutoEncoderParams(**{**tiny, **params})), seed)
        if loud:
            model.encoder.conv_out.weight.mul_(20)
            model.decoder.conv_out.weight.mul_(4)
        return model

    return make


@pytest.fixture(scope="session")
def make_flux() -> Callable[..., Flux]:
    """make_flux(seed=0, settings=None, **FluxParams) -> a tiny Flux, heads of 32 = 4 + 14 + 14."""

    def make(seed: int = 0, settings: OneStepSettings | None = None, **params: Any) -> Flux:
        tiny: dict[str, Any] = {
            "hidden_size": 64,
            "num_heads": 2,
            "depth": 1,
            "depth_single_blocks": 2,
            "context_in_dim": 24,
            "vec_in_dim": 12,
            "guidance_embed": False,
            "axes_dim": (4, 14, 14),
        }
        return seeded(lambda: Flux(FluxParams(**{**tiny, **params}), settings), seed)

    return make


@pytest.fixture(scope="session")
def make_diffusers_flux() -> Callable[..., nn.Module]:
    """make_diffusers_flux(seed=0, **config) -> diffusers' own class, heads as ``make_flux`` has them; or a skip."""

    def make(seed: int = 0, **config: Any) -> nn.Module:
        tiny: dict[str, Any] = {
            "in_channels": 64,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 32,
            "num_attention_heads": 2,
            "joint_attention_dim": 24,
            "pooled_projection_dim": 12,
            "guidance_embeds": False,
            "axes_dims_rope": (4, 14, 14),
        }
        transformer = pytest.importorskip("diffusers").FluxTransformer2DModel
        return seeded(lambda: transformer(**{**tiny, **config}), seed)

    return make


@pytest.fixture(scope="session")
def make_diffusers_autoencoder() -> Callable[..., nn.Module]:
    """make_diffusers_autoencoder(seed=0, **config) -> diffusers' own class, as Flux uses it; or a skip."""

    def make(seed: int = 0, **config: Any) -> nn.Module:
        tiny: dict[str, Any] = {
            "down_block_types": ("DownEncoderBlock2D",) * 4,
            "up_block_types": ("UpDecoderBlock2D",) * 4,
            "block_out_channels": (32, 32, 64, 64),
            "layers_per_block": 2,
            "latent_channels": 16,
            "norm_num_groups": 8,
            "scaling_factor": 0.3611,
            "shift_factor": 0.1159,
            "use_quant_conv": False,
            "use_post_quant_conv": False,
        }
        kl = pytest.importorskip("diffusers").AutoencoderKL
        return seeded(lambda: kl(**{**tiny, **config}), seed)

    return make


@pytest.fixture(scope="session")
def natural() -> Callable[..., Tensor]:
    """natural(height, width, seed=3) -> (1, 3, height, width) in [0, 1], natural-like."""

    def make(height: int, width: int, seed: int = 3) -> Tensor:
        return torch.from_numpy(scene(seed, height, width).copy()).permute(2, 0, 1)[None].float() / 255

    return make


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def host_info(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Our nodes as a real ComfyUI tells them to the browser, by id; a skip without one."""
    return run_cases(find_host(), "info_cases", tmp_path_factory.mktemp("info"))["object_info"]
