"""The public one-step LoRAs through Load SR LoRA in a real ComfyUI: parity with the published code, and every input."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from host_support import Cases, find_host, run_cases
from scenes import scene
from torch import Tensor

pytestmark = pytest.mark.host

#: Of the published result's largest magnitude.
TOLERANCE = 1e-4
#: What is far from it: an adapter that is off.
FAR = 100 * TOLERANCE


def picture(height: int, width: int) -> Tensor:
    """(1, 3, height, width) in [0, 1]: the enlarged one."""
    return torch.from_numpy(scene(5, height, width).copy()).movedim(-1, 0)[None].float() / 255


def write_published(given: Path) -> None:
    """The files that users download, in small, and what the published code makes of them."""
    import one_step_weights as public
    from peft import LoraConfig, PeftModel
    from safetensors.torch import save_file

    public.save_base(given)
    public.save_omgsr(given / "OMGSR")
    public.save_fluxsr(given / "FluxSR")
    public.save_prompt(given / "empty.safetensors")
    prompt, found, image = public.small_prompt(), dict[str, Any](), picture(64, 96)
    flux, vae, _ = public.omgsr_adapters()
    sigma = math.exp(1.15) / (math.exp(1.15) + 999 / 244 - 1)
    found["omgsr"] = image, public.published(flux, vae, image, sigma, prompt, seed=7)
    found["fluxsr"] = image, public.published(public.fluxsr_transformer(), public.small_vae(), image, 0.25, prompt)
    wide = public.small_vae(block_out_channels=(128, 256, 512, 512), layers_per_block=2, norm_num_groups=32)
    wide.save_pretrained(given / "wide")
    config = LoraConfig(r=8, lora_alpha=16, target_modules=public.OMGSR_ENCODER, init_lora_weights="gaussian")
    encoder = PeftModel(wide.encoder, config, adapter_name="vae_encoder_adapter").eval()
    public._stir(encoder, 0.3, 6)
    flux.save_pretrained(given / "OMGSR_wide")
    encoder.save_pretrained(given / "OMGSR_wide")
    small = image[..., :32, :48]
    found["wide"] = small, public.published(flux, wide, small, sigma, prompt, seed=7)
    tensors = {f"{case}.image": image for case, (image, _) in found.items()}
    for case, (_, result) in found.items():
        tensors |= {f"{case}.{name}": getattr(result, name) for name in ("encoded", "latent", "picture")}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, given / "published.safetensors")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    for module in ("diffusers", "peft"):
        pytest.importorskip(module)
    folder = tmp_path_factory.mktemp("published")
    write_published(folder / "given")
    return run_cases(find_host(), "published_cases", folder)


@pytest.mark.parametrize("case", ["omgsr", "omgsr_in_exact_vae", "omgsr_in_the_hosts_vae", "fluxsr"])
def test_latents_and_picture_are_the_published_codes(published: Cases, case: str) -> None:
    found = published[case]
    assert max(found["both"]) <= TOLERANCE
    assert min(found["without_transformer"][1:]) > FAR
    if case == "fluxsr":
        assert found["same_vae"]
        return
    assert max(found["both_again"]) <= TOLERANCE
    assert min(found["without_encoder"]) > FAR and min(found["other_seed"]) > FAR


def test_the_constants_are_the_published_ones(published: Cases) -> None:
    """sigma, guidance, how to encode, tokens of the prompt."""
    sigma = math.exp(1.15) / (math.exp(1.15) + 999 / 244 - 1)
    assert published["constants"]["omgsr"] == [pytest.approx(sigma, abs=1e-6), 1.0, "sample", 5]
    assert published["constants"]["fluxsr"] == [0.25, 1.0, "mean", 5]
