"""What the one-step templates need, in small: seeded weights in the names, layouts and folders that users have.

Nobody's files: names, kinds of layers and configs are those of the public ones, sizes are the smallest that ComfyUI
loads, numbers are random and strong enough that each file shows in the picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from seeded_models import seeded
from torch import Tensor

from op4ksr_core.models.flux import Flux, FluxParams
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams
from op4ksr_core.weights.layouts import diffusers_autoencoder_name, diffusers_modules, rows_of_parts

#: Ends of the names of the layers that OMGSR-F's transformer LoRA changes.
OMGSR_TARGETS = (
    *("x_embedder", "attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0"),
    *("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj", "attn.to_add_out"),
    *("ff.net.0.proj", "ff.net.2", "ff_context.net.0.proj", "ff_context.net.2"),
)

RANK = 4
CONTEXT, POOLED = 64, 32


def flux() -> Flux:
    """FLUX.1-dev in small: guidance-distilled, one block of each kind, one head of 128."""
    sizes = {"hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1}
    return seeded(lambda: Flux(FluxParams(**sizes, context_in_dim=CONTEXT, vec_in_dim=POOLED)), 0)


def autoencoder() -> AutoEncoder:
    """Flux's own 8x VAE in small."""
    return seeded(lambda: AutoEncoder(AutoEncoderParams(widths=(32, 64, 64, 64), layers_per_block=1, stride=1)), 1)


def write_flux(path: Path) -> Path:
    """BFL's layout and no metadata, as ``flux1-dev.safetensors``."""
    return _saved(path, flux().state_dict())


def write_autoencoder(path: Path) -> Path:
    """BFL's layout and no metadata, as ``ae.safetensors``."""
    return _saved(path, autoencoder().state_dict())


def write_omgsr(folder: Path, strength: float = 0.5) -> Path:
    """OMGSR-F's folder: two adapters, each as PEFT saves one."""
    _adapter(folder / "flux_adapter", dict(_factors(_transformer_layers("base_model.model."), strength, 2)))
    _adapter(folder / "vae_encoder_adapter", dict(_factors(_encoder_layers("base_model.model."), strength, 3)))
    return folder


def write_fluxsr(folder: Path, strength: float = 0.5) -> Path:
    """FluxSR's folder: a LoRA in diffusers' names, T_L, and the prompt as two .pth files."""
    tensors = dict(_factors(_transformer_layers("transformer."), strength, 4))
    _saved(folder / "pytorch_lora_weights.safetensors", tensors)
    (folder / "training_config.json").write_text(json.dumps({"T_L": 0.25, "rank": RANK}))
    txt, vec = prompt()
    torch.save(txt[None], folder / "t5_embedding.pth")
    torch.save(vec[None], folder / "clip_embedding.pth")
    return folder


def write_prompt(path: Path) -> Path:
    """A prompt embedding as *Save Prompt Embedding* writes it."""
    txt, vec = prompt()
    return _saved(path, {"op4ksr.txt": txt, "op4ksr.vec": vec})


def prompt() -> tuple[Tensor, Tensor]:
    """(6, CONTEXT) and (POOLED,), in place of what text encoders make of an empty text."""
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, CONTEXT, generator=generator), torch.randn(POOLED, generator=generator)


def _saved(path: Path, tensors: dict[str, Tensor]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.detach().contiguous() for name, tensor in tensors.items()}, path)
    return path


def _adapter(folder: Path, tensors: dict[str, Tensor]) -> None:
    _saved(folder / "adapter_model.safetensors", tensors)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": [], "use_rslora": False}
    (folder / "adapter_config.json").write_text(json.dumps(config))


def _transformer_layers(prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(diffusers' name, the weight's shape) of each layer that a LoRA changes."""
    hidden = flux().params.hidden_size
    yield f"{prefix}x_embedder", (hidden, 64)
    for name, tensor in flux().state_dict().items():
        module, _, last = name.rpartition(".")
        if last != "weight" or tensor.ndim != 2 or not module.startswith(("double_blocks.", "single_blocks.")):
            continue
        parts = diffusers_modules(module)
        shape = (tensor.shape[0], tensor.shape[1])
        for part, (start, stop) in zip(parts, rows_of_parts(shape, len(parts), shape[1]), strict=True):
            if part.endswith(OMGSR_TARGETS):
                yield prefix + part, (stop - start, shape[1])


def _encoder_layers(prefix: str) -> Iterator[tuple[str, tuple[int, ...]]]:
    for name, tensor in autoencoder().state_dict().items():
        if name.endswith(".weight") and tensor.ndim == 4 and name.startswith("encoder."):
            theirs = diffusers_autoencoder_name(name, 4).removeprefix("encoder.").removesuffix(".weight")
            shape = tuple(tensor.shape)
            yield prefix + theirs, shape[:2] if ".attentions." in theirs else shape


def _factors(layers: Iterator[tuple[str, tuple[int, ...]]], strength: float, seed: int) -> Iterator[tuple[str, Tensor]]:
    """A and B of each layer, seeded; of a convolution A has its window."""
    generator = torch.Generator().manual_seed(seed)
    for name, (rows, *columns) in layers:
        down = torch.randn(RANK, *columns, generator=generator)
        up = torch.randn(rows, RANK, *(1 for _ in columns[1:]), generator=generator)
        yield f"{name}.lora_A.weight", down / down[0].numel() ** 0.5
        yield f"{name}.lora_B.weight", strength * up / RANK**0.5
