"""The public one-step LoRAs in small: seeded models of diffusers', adapters as their trainers make and save them, and
the published inference in words of ours. For tests of parity here and with the host; it needs diffusers and PEFT.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from seeded_models import seeded
from torch import Tensor

#: What OMGSR-F's trainer names to PEFT, by the ends of the modules' names.
OMGSR_TRANSFORMER = [
    "x_embedder",
    *(f"attn.{name}" for name in ("to_k", "to_q", "to_v", "to_out.0")),
    *(f"attn.{name}" for name in ("add_k_proj", "add_q_proj", "add_v_proj", "to_add_out")),
    *(f"{name}.net.{layer}" for name in ("ff", "ff_context") for layer in ("0.proj", "2")),
]
OMGSR_ENCODER = ["conv1", "conv2", "conv_in", "conv_shortcut", "conv", "conv_out", "to_k", "to_q", "to_v", "to_out.0"]

#: A usual choice for Flux in diffusers' scripts; FluxSR's own is not public.
FLUXSR_TARGETS = ["x_embedder", "to_k", "to_q", "to_v", "to_out.0", "proj_mlp", "proj_out", "ff.net.0.proj", "ff.net.2"]

#: Flux's constants between the VAE's latents and the transformer's.
SHIFT, SCALE = 0.1159, 0.3611

#: Channels of a token of the small prompt, and of the pooled one.
CONTEXT, POOLED = 24, 12


def small_flux(seed: int = 0, **config: Any) -> Any:
    """diffusers' transformer, guidance-distilled, with heads of 32 = 4 + 14 + 14."""
    from diffusers import FluxTransformer2DModel

    small: dict[str, Any] = {
        "in_channels": 64,
        "num_layers": 2,
        "num_single_layers": 2,
        "attention_head_dim": 32,
        "num_attention_heads": 2,
        "joint_attention_dim": CONTEXT,
        "pooled_projection_dim": POOLED,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 14, 14),
    }
    return seeded(lambda: FluxTransformer2DModel(**{**small, **config}), seed)


def small_vae(seed: int = 1, **config: Any) -> Any:
    """diffusers' autoencoder as FLUX.1 has it (F8), narrow; every kind of layer that OMGSR's encoder LoRA changes."""
    from diffusers import AutoencoderKL

    small: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (8, 16, 16, 16),
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_num_groups": 4,
        "scaling_factor": SCALE,
        "shift_factor": SHIFT,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    }
    return seeded(lambda: AutoencoderKL(**{**small, **config}), seed)


@dataclass(frozen=True)
class Base:
    """Where the base models lie, as diffusers saves them: loadable by ``load_flux`` and ``load_autoencoder``."""

    transformer: Path
    vae: Path


def save_base(folder: Path) -> Base:
    """``small_flux`` and ``small_vae``, saved."""
    small_flux().save_pretrained(folder / "transformer")
    small_vae().save_pretrained(folder / "vae")
    return Base(folder / "transformer", folder / "vae")


def _stir(model: Any, strength: float, seed: int) -> None:
    """Fill B, which PEFT starts at 0, as training would; A is PEFT's own, drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_" in name:
                size = parameter[0].numel() if "lora_A" in name else len(parameter[0])
                factor = strength if "lora_B" in name else 1.0
                parameter.copy_(factor * torch.randn(parameter.shape, generator=generator) / size**0.5)


def omgsr_adapters(rank: int = 8, strength: float = 0.3, alpha: float | None = None) -> tuple[Any, Any, Any]:
    """(transformer with its adapter, VAE, the VAE's encoder with its adapter), as PEFT makes them; alpha = rank."""
    from peft import LoraConfig, PeftModel

    def config(targets: list[str]) -> Any:
        return LoraConfig(r=rank, lora_alpha=alpha or rank, target_modules=targets, init_lora_weights="gaussian")

    vae = small_vae()
    flux = PeftModel(small_flux(), config(OMGSR_TRANSFORMER), adapter_name="flux_adapter").eval()
    encoder = PeftModel(vae.encoder, config(OMGSR_ENCODER), adapter_name="vae_encoder_adapter").eval()
    _stir(flux, strength, 2)
    _stir(encoder, strength, 3)
    return flux, vae, encoder


def save_omgsr(folder: Path, rank: int = 8, strength: float = 0.3, alpha: float | None = None) -> Path:
    """The folder that users download: ``flux_adapter`` and ``vae_encoder_adapter`` in it."""
    flux, _, encoder = omgsr_adapters(rank, strength, alpha)
    folder.mkdir(parents=True, exist_ok=True)
    flux.save_pretrained(folder)
    encoder.save_pretrained(folder)
    return folder


def small_prompt(tokens: int = 5, seed: int = 4) -> tuple[Tensor, Tensor]:
    """(tokens, CONTEXT) and (POOLED,): a prompt embedding, for the models here."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, CONTEXT, generator=generator), torch.randn(POOLED, generator=generator)


def save_prompt(path: Path, tokens: int = 5, seed: int = 4) -> Path:
    """``small_prompt`` as the safetensors that ``convert --prompt-embedding`` takes."""
    from safetensors.torch import save_file

    txt, vec = small_prompt(tokens, seed)
    save_file({"op4ksr.txt": txt, "op4ksr.vec": vec}, path)
    return path


def fluxsr_transformer(rank: int = 64, strength: float = 0.3) -> Any:
    """The transformer with an adapter as diffusers' own scripts put it on."""
    from peft import LoraConfig

    flux = small_flux()
    flux.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=FLUXSR_TARGETS, init_lora_weights="gaussian"))
    _stir(flux, strength, 5)
    return flux.eval()


def save_fluxsr(folder: Path, rank: int = 64, strength: float = 0.3, **config: Any) -> Path:
    """FluxSR's folder: the LoRA in diffusers' names, the config with T_L (0.25) and the prompt's two .pth files."""
    from diffusers import FluxPipeline
    from peft.utils import get_peft_model_state_dict

    layers = get_peft_model_state_dict(fluxsr_transformer(rank, strength))
    FluxPipeline.save_lora_weights(folder, transformer_lora_layers=layers)
    (folder / "training_config.json").write_text(json.dumps({"T_L": 0.25, "rank": rank, **config}))
    txt, vec = small_prompt()
    torch.save(txt[None], folder / "t5_embedding.pth")
    torch.save(vec[None], folder / "clip_embedding.pth")
    return folder


@dataclass(frozen=True)
class Published:
    """What the published inference makes: the VAE's latent and the sharp one, both raw, and the picture in [0, 1]."""

    encoded: Tensor
    latent: Tensor
    picture: Tensor


@torch.no_grad()
def published(
    flux: Any,
    vae: Any,
    image: Tensor,
    sigma: float,
    prompt: tuple[Tensor, Tensor],
    seed: int | None = None,
    guidance: float = 1.0,
) -> Published:
    """One step as OMGSR-F's inference and FluxSR's formula have it. image (1, 3, H, W) in [0, 1], the enlarged one.

    flux and vae: diffusers' own, their adapters on. seed: of the posterior's sample; None: its mean.
    """
    posterior = vae.encode(image * 2 - 1).latent_dist
    encoded = posterior.mode() if seed is None else posterior.sample(torch.Generator().manual_seed(seed))
    latent = (encoded - SHIFT) * SCALE
    latent = latent - sigma * velocity(flux, latent, sigma, prompt, guidance)
    raw = latent / SCALE + SHIFT
    return Published(encoded, raw, (vae.decode(raw).sample / 2 + 0.5).clamp(0, 1))


@torch.no_grad()
def velocity(flux: Any, latent: Tensor, sigma: float, prompt: tuple[Tensor, Tensor], guidance: float = 1.0) -> Tensor:
    """diffusers' transformer on a processed latent (B, 16, h, w), positions from 0. prompt: (T, context), (pooled,)."""
    batch, channels, height, width = latent.shape
    rows, columns = height // 2, width // 2
    tokens = latent.reshape(batch, channels, rows, 2, columns, 2).permute(0, 2, 4, 1, 3, 5)
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)[None]
    txt, vec = prompt
    out = flux(
        hidden_states=tokens.reshape(batch, rows * columns, channels * 4),
        timestep=torch.full((batch,), sigma),
        guidance=torch.full((batch,), guidance),
        pooled_projections=vec[None].expand(batch, -1),
        encoder_hidden_states=txt[None].expand(batch, -1, -1),
        txt_ids=torch.zeros(len(txt), 3),
        img_ids=ids.reshape(-1, 3),
        return_dict=False,
    )[0]
    spread = out.reshape(batch, rows, columns, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return spread.reshape(latent.shape)
