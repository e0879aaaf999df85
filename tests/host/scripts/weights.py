"""Small seeded weights, LoRAs and pictures, made with the core's own classes (a copy of the pack's)."""

from __future__ import annotations

from typing import Any

import comfy.model_patcher
import comfy.supported_models
import torch
from harness import FOLDER
from safetensors.torch import save_file
from scenes import scene
from seeded_models import seeded
from torch import Tensor

from op4ksr_core import AutoEncoder, AutoEncoderParams, Flux, FluxParams, OneStepSettings, save_autoencoder, save_flux

SMALL: dict[str, Any] = {"widths": (8, 16, 16, 16), "layers_per_block": 1, "norm_groups": 4}

#: Heads of 128, which every host's detection assumes.
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "num_heads": 1,
    "depth": 1,
    "depth_single_blocks": 1,
    "context_in_dim": 64,
    "vec_in_dim": 32,
    "guidance_embed": False,
}


def autoencoder(seed: int = 0, **params: Any) -> AutoEncoder:
    """Small; its decoder's contrast raised, so that differences in the latent show in the picture."""
    model = seeded(lambda: AutoEncoder(AutoEncoderParams(**{**SMALL, **params})), seed)
    model.decoder.conv_out.weight.mul_(3)
    return model


def flux(seed: int = 0, settings: OneStepSettings | None = None, **params: Any) -> Flux:
    """Tiny; positions and velocity made strong enough to show in the picture."""
    model = seeded(lambda: Flux(FluxParams(**{**TINY, **params}), settings), seed)
    for block in (*model.double_blocks, *model.single_blocks):
        for norm in (getattr(block, name).norm for name in ("img_attn", "txt_attn") if hasattr(block, name)):
            norm.query_norm.scale.mul_(3)
        if hasattr(block, "norm"):
            block.norm.query_norm.scale.mul_(3)
    model.final_layer.linear.weight.mul_(2)
    return model


def prompt(**settings: Any) -> OneStepSettings:
    """Settings with a prompt embedding for ``TINY``."""
    generator = torch.Generator().manual_seed(11)
    txt = torch.randn(3, TINY["context_in_dim"], generator=generator)
    vec = torch.randn(TINY["vec_in_dim"], generator=generator)
    return OneStepSettings(txt=txt, vec=vec, **settings)


def unet_model() -> Any:
    """A MODEL of Stable Diffusion's kind, as small as the host builds one."""
    config: dict[str, Any] = {"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 32}
    config |= {"num_res_blocks": [1], "channel_mult": [1], "context_dim": 8, "use_spatial_transformer": True}
    config |= {"transformer_depth": [0], "transformer_depth_output": [0, 0], "transformer_depth_middle": -1}
    family = comfy.supported_models.SD15({**config, "adm_in_channels": None, "legacy": False})
    family.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(family.get_model({}), load_device=cpu, offload_device=cpu)


def write_vae(name: str, **params: Any) -> str:
    save_autoencoder(FOLDER / "vae" / name, autoencoder(**params))
    return name


def write_flux(name: str, **params: Any) -> str:
    save_flux(FOLDER / "diffusion_models" / name, flux(**params))
    return name


def write_lora(name: str, tensors: dict[str, Tensor]) -> str:
    save_file(tensors, FOLDER / "loras" / name)
    return name


def picture(height: int, width: int, seed: int = 3) -> Tensor:
    """ComfyUI IMAGE (1, height, width, 3): a procedural scene."""
    return torch.from_numpy(scene(seed, height, width).copy())[None].float() / 255


def noise(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def relative_error(ours: Tensor, reference: Tensor) -> dict[str, float]:
    """Largest difference over the reference's largest magnitude; ``spread`` shows that it is no constant."""
    assert ours.shape == reference.shape, (ours.shape, reference.shape)
    scale = reference.abs().max()
    return {"error": float((ours - reference).abs().max() / scale), "spread": float(reference.std() / scale)}


def difference(a: Tensor, b: Tensor) -> float:
    assert a.shape == b.shape, (a.shape, b.shape)
    return float((a - b).abs().max())
