"""UltraFlux by our nodes in the host's graph: its positions, its shift, its VAE, against the published numbers."""

from __future__ import annotations

import json
from functools import lru_cache
from typing import Any

import harness
import torch
import ultraflux_reference as reference
from safetensors.torch import save_file
from torch import Tensor

from op4ksr_core.models.flux_schedule import ULTRAFLUX_SHIFT


@lru_cache
def models() -> tuple[Any, Any]:
    """MODEL under the policy ultraflux with the shift node's defaults, and VAE; files as published."""
    flux, vae = reference.tensors()
    save_file(flux, harness.FOLDER / "diffusion_models" / "ultraflux.safetensors")
    (harness.FOLDER / "vae" / "ultraflux").mkdir()
    save_file(vae, harness.FOLDER / "vae" / "ultraflux" / "diffusion_pytorch_model.safetensors")
    (harness.FOLDER / "vae" / "ultraflux" / "config.json").write_text(json.dumps(reference.VAE_CONFIG))
    model = harness.apply_rfr(harness.load_model("ultraflux.safetensors"), "ultraflux")
    shifted, _ = harness.run("OP4KSR_FluxShift16x", model, "fixed", 3.0, 4096, 4096)
    return shifted, harness.load_vae("ultraflux/diffusion_pytorch_model.safetensors", shift="1")


def sigmas(model: Any, steps: int) -> list[float]:
    return harness.run("BasicScheduler", model, "simple", steps, 1.0)[0].tolist()


def image() -> dict[str, Any]:
    """The published pipeline's run, by SamplerCustomAdvanced, Euler, and VAEDecode: its exact sigmas, and simple's."""
    model, vae = models()
    given = reference.inputs()

    class Given:
        seed = 0

        def generate_noise(self, latent: dict[str, Any]) -> Tensor:
            return given["noise"]

    text = [[given["txt"], {"pooled_output": given["vec"], "guidance": reference.GUIDANCE}]]
    (latent,) = harness.run("OP4KSR_EmptyLatent16x", 32 * reference.COLUMNS, 32 * reference.ROWS)
    (guider,) = harness.run("BasicGuider", model, text)
    (euler,) = harness.run("KSamplerSelect", "euler")
    (steps,) = harness.run("BasicScheduler", model, "simple", reference.STEPS, 1.0)
    exact = torch.tensor(reference.shifted_sigmas(reference.STEPS, ULTRAFLUX_SHIFT))
    out, _ = harness.run("SamplerCustomAdvanced", Given(), guider, euler, exact, latent)
    (picture,) = harness.run("VAEDecode", vae, out)
    tabled, _ = harness.run("SamplerCustomAdvanced", Given(), guider, euler, steps, latent)
    plain, _ = harness.run(
        "SamplerCustomAdvanced", Given(), harness.run("BasicGuider", without_rfr(), text)[0], euler, steps, latent
    )
    return {
        "shape": list(picture.shape),
        "sampled": reference.sampled(picture.movedim(-1, 1).contiguous()),
        "simple": reference.sampled(harness.run("VAEDecode", vae, tabled)[0].movedim(-1, 1).contiguous()),
        "simple_sigmas": steps.tolist(),
        "without_rfr": reference.sampled(harness.run("VAEDecode", vae, plain)[0].movedim(-1, 1).contiguous()),
    }


def without_rfr() -> Any:
    return harness.apply_rfr(models()[0], "checkpoint")


def encoded() -> list[float]:
    pixels = reference.inputs()["pixels"]
    return reference.sampled(models()[1].encode((pixels / 2 + 0.5).movedim(1, -1)))


def schedules() -> dict[str, Any]:
    """Sigmas of the shift node, of the host's own with both shifts at ln 3, and of the host's own as it comes."""
    model, _ = models()
    (own,) = harness.run("ModelSamplingFlux", model, 1.0986, 1.0986, 4096, 4096)
    (as_it_comes,) = harness.run("ModelSamplingFlux", model, 1.15, 0.5, 4096, 4096)
    by_tokens, report = harness.run("OP4KSR_FluxShift16x", model, "by tokens", 3.0, 1024, 1024)
    (equivalent,) = harness.run("ModelSamplingFlux", model, 1.15, 0.5, 512, 512)  # 1024 tokens at 8x
    return {
        "node": sigmas(model, 50),
        "own_at_ln_3": sigmas(own, 50),
        "own_as_it_comes": sigmas(as_it_comes, 50),
        "by_tokens": sigmas(by_tokens, 50),
        "equivalent": sigmas(equivalent, 50),
        "report": report,
        "input_untouched": sigmas(harness.load_model("ultraflux.safetensors"), 50)[1],
    }


CASES = (
    image,
    encoded,
    schedules,
)
