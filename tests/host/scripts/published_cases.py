"""The public one-step LoRAs in a host, against what the published code makes of the same files.

Files and results are written before, where diffusers and PEFT are: see ``tests/host/test_sr_lora.py``.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import Any

import folder_paths
import harness
from safetensors.torch import load_file
from torch import Tensor

import nodes

GIVEN = harness.FOLDER / "given"
for kind in ("vae", "diffusion_models", "loras", "embeddings"):
    folder_paths.add_model_folder_path(kind, str(GIVEN))

FLUX, SMALL, WIDE = (f"{name}/diffusion_pytorch_model.safetensors" for name in ("transformer", "vae", "wide"))
OMGSR, FLUXSR = "OMGSR/flux_adapter/adapter_model.safetensors", "FluxSR/pytorch_lora_weights.safetensors"


@lru_cache
def reference() -> dict[str, Tensor]:
    return load_file(GIVEN / "published.safetensors")


@lru_cache
def base() -> dict[str, Any]:
    """MODEL, the narrow VAE of our loader, the full-width one of the host's."""
    return {
        "model": harness.load_model(FLUX),
        "small": harness.load_vae(SMALL, compression="8x"),
        "wide": harness.run("VAELoader", WIDE)[0],
    }


def prompt_embedding() -> Any:
    return harness.run("OP4KSR_LoadPromptEmbedding", "empty.safetensors")[0]


def with_lora(name: str, vae: Any, **changes: Any) -> tuple[Any, Any, Any]:
    """MODEL, CONDITIONING and VAE of Load SR LoRA."""
    inputs: dict[str, Any] = {"model": base()["model"], "vae": vae, "conditioning": prompt_embedding(), **changes}
    return harness.run("OP4KSR_LoadSRLoRA", inputs.pop("model"), name, **inputs)


def stages(model: Any, vae: Any, seed: int = 7) -> Any:
    """One-Step Upscale's own, without its resize, frame and colours: those are not the published code's."""
    upscale = nodes.NODE_CLASS_MAPPINGS["OP4KSR_OneStepUpscale"].__module__
    module: Any = sys.modules[upscale.replace("nodes.upscale", "nodes.host.stages")]
    return module.HostStages(model, vae, None, None, None).with_seed(seed)


def steps(model: Any, vae: Any, image: Tensor, seed: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """The raw latent, the sharp one, the picture."""
    ours = stages(model, vae, seed)
    encoded = ours.encode(image, lambda *_: None)
    latent = ours.transform(encoded, lambda *_: None)
    return encoded, latent, ours.decode(latent, lambda *_: None)


def errors(case: str, found: tuple[Tensor, Tensor, Tensor]) -> list[float]:
    wanted = [reference()[f"{case}.{name}"] for name in ("encoded", "latent", "picture")]
    return [float((a.float() - b).abs().max() / b.abs().max()) for a, b in zip(found, wanted, strict=True)]


def one(case: str, lora: str, vae: Any) -> dict[str, Any]:
    """Both adapters on; then either one off, which must show."""
    image = reference()[f"{case}.image"]
    model, _, patched = with_lora(lora, vae)
    plain = base()["model"].clone()
    plain.set_attachments("op4ksr", model.get_attachment("op4ksr"))
    found = {
        "both": errors(case, steps(model, patched, image)),
        "without_transformer": errors(case, steps(plain, patched, image)),
        "same_vae": patched is vae,
    }
    if patched is not vae:
        found["without_encoder"] = errors(case, steps(model, vae, image))
        found["other_seed"] = errors(case, steps(model, patched, image, seed=8))
        found["both_again"] = errors(case, steps(model, patched, image))
    return found


def omgsr() -> dict[str, Any]:
    return one("omgsr", OMGSR, base()["small"])


def omgsr_in_exact_vae() -> dict[str, Any]:
    return one("omgsr", OMGSR, harness.run("OP4KSR_ExactVAE", base()["small"], "tiny")[0])


def omgsr_in_the_hosts_vae() -> dict[str, Any]:
    return one("wide", "OMGSR_wide/vae_encoder_adapter/adapter_config.json", base()["wide"])


def omgsr_in_one_file() -> dict[str, Any]:
    """As ``convert --sr-lora`` makes it, prompt embedding included: no CONDITIONING is connected."""
    image, vae = reference()["omgsr.image"], base()["small"]
    model, _, patched = with_lora("one.safetensors", vae, conditioning=None)
    return {"both": errors("omgsr", steps(model, patched, image)), "patched": patched is not vae}


def fluxsr() -> dict[str, Any]:
    return one("fluxsr", FLUXSR, base()["small"])


def fluxsr_without_prompt() -> dict[str, Any]:
    """Its prompt lies in .pth files, which are never opened here."""
    return harness.refusal(lambda: with_lora(FLUXSR, base()["small"], conditioning=None))


def constants() -> dict[str, Any]:
    """What travels with the MODEL."""
    found: dict[str, Any] = {}
    for name, lora in (("omgsr", OMGSR), ("fluxsr", FLUXSR)):
        settings = with_lora(lora, base()["small"])[0].get_attachment("op4ksr")
        found[name] = [settings.sigma, settings.guidance, settings.encode, settings.txt.shape[0]]
    return found


CASES = (omgsr, omgsr_in_exact_vae, omgsr_in_the_hosts_vae, omgsr_in_one_file, fluxsr, fluxsr_without_prompt, constants)
