"""Small seeded weights, LoRAs and pictures, made with the core's own classes (a copy of the pack's)."""

from __future__ import annotations

import json
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
from op4ksr_core.weights.layouts import export_autoencoder, export_flux

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


#: Modules that OMGSR-F's two adapters change, in diffusers' names: one of each kind.
_OMGSR: dict[str, tuple[str, ...]] = {
    "flux_adapter": (
        "x_embedder",
        *(f"transformer_blocks.0.{name}" for name in ("attn.to_q", "attn.to_out.0", "ff.net.2", "attn.add_k_proj")),
        "single_transformer_blocks.0.attn.to_v",
    ),
    "vae_encoder_adapter": (
        "conv_in",
        "down_blocks.0.resnets.0.conv1",
        "down_blocks.0.downsamplers.0.conv",
        "down_blocks.1.resnets.0.conv_shortcut",
        "mid_block.attentions.0.to_q",
        "mid_block.attentions.0.to_out.0",
        "conv_out",
    ),
}


def write_omgsr(name: str, flux_params: dict[str, Any] | None = None, **vae_params: Any) -> str:
    """A folder of OMGSR-F's for ``flux`` and ``autoencoder``, as PEFT writes it; the transformer's file in it."""
    models = {"flux_adapter": flux(**(flux_params or {})), "vae_encoder_adapter": autoencoder(**vae_params)}
    for adapter, model in models.items():
        state = model.state_dict()
        shapes = {key: tuple(tensor.shape) for key, tensor in state.items()}
        is_flux = adapter == "flux_adapter"
        pieces = (export_flux if is_flux else export_autoencoder)(shapes)
        tensors: dict[str, Tensor] = {}
        for i, module in enumerate(_OMGSR[adapter]):
            piece = pieces[f"{'' if is_flux else 'encoder.'}{module}.weight"]
            rows, *columns = piece.shape(shapes[piece.source])
            ones = [1] * (len(columns) - 1)
            strength = float(state[piece.source].std()) / 2
            base = f"base_model.model.{module}"
            tensors[f"{base}.lora_A.weight"] = noise(4, *columns, seed=i)
            tensors[f"{base}.lora_B.weight"] = strength * noise(rows, 4, *ones, seed=i + 50)
        folder = FOLDER / "loras" / name / adapter
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 4}))
    return f"{name}/flux_adapter/adapter_model.safetensors"


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
