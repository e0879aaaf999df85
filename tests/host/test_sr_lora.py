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

    from op4ksr_core.weights.prompt import PromptEmbedding, read_prompt
    from op4ksr_core.weights.sr_convert import convert_sr_lora

    public.save_base(given)
    public.save_omgsr(given / "OMGSR")
    public.save_fluxsr(given / "FluxSR")
    public.save_prompt(given / "empty.safetensors")
    saved = given / "empty.safetensors"
    convert_sr_lora(given / "OMGSR", given / "one.safetensors", {}, PromptEmbedding((saved,), read_prompt(saved)))
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


def test_one_file_of_both_halves_is_the_folder(published: Cases) -> None:
    found = published["omgsr_in_one_file"]
    assert max(found["both"]) <= TOLERANCE and found["patched"]


def test_fluxsrs_prompt_is_asked_for(published: Cases) -> None:
    message = published["fluxsr_without_prompt"]["message"]
    assert "carries no prompt embedding: connect one" in message and "convert --sr-lora" in message


def test_the_constants_are_the_published_ones(published: Cases) -> None:
    """sigma, guidance, how to encode, tokens of the prompt."""
    sigma = math.exp(1.15) / (math.exp(1.15) + 999 / 244 - 1)
    assert published["constants"]["omgsr"] == [pytest.approx(sigma, abs=1e-6), 1.0, "sample", 5]
    assert published["constants"]["fluxsr"] == [0.25, 1.0, "mean", 5]


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "sr_lora_cases", tmp_path_factory.mktemp("graphs"))


#: Of images in [0, 1]: fp32 in another order.
SAME = 1e-4
#: A difference that shows.
VISIBLE = 0.02


def test_the_node_is_the_cores_upscale(graphs: Cases) -> None:
    found = graphs["as_the_core"]
    assert max(found["batch"], found["half"]) <= SAME and found["half_shows"] > VISIBLE
    assert found["pieces"] <= SAME and found["pieces_show"] > VISIBLE


def test_picture_i_has_the_sample_of_seed_plus_i(graphs: Cases) -> None:
    found = graphs["as_the_core"]
    assert found["picture_1_is_seed_6"] == found["default_is_0"] == 0
    assert min(found["seed_shows"], found["vae_only"]) > VISIBLE
    assert graphs["own_file"]["seed_is_not_used"] == 0


@pytest.mark.parametrize("way", ["lora_after", "lora_before", "exact_after", "exact_before", "clone", "rfr_before"])
def test_other_nodes_before_and_after(graphs: Cases, way: str) -> None:
    found = graphs["what_comes_after"]
    assert found[way] <= SAME
    assert min(found["shows"], found["lora_shows"], found["rfr_shows"]) > VISIBLE


def test_on_a_base_in_fp8(graphs: Cases) -> None:
    found = graphs["what_comes_after"]
    assert 0 < found["fp8"] < found["fp8_is_not_the_base"] / 5


def test_on_the_hosts_own_loader(graphs: Cases) -> None:
    assert graphs["hosts_own_loader"]["far"] <= SAME


def test_branches_with_and_without_do_not_leak(graphs: Cases) -> None:
    found = graphs["two_branches"]
    assert found["leaks"] == 0 and found["apart"] > VISIBLE


def test_after_a_cancel_all_is_as_before(graphs: Cases) -> None:
    found = graphs["cancelled"]
    assert found.pop("same") == 0
    assert found == {"ended_8": "interrupted", "clean_8": True, "ended_60": "interrupted", "clean_60": True}


def test_the_prompt_is_the_connected_one_else_the_files(graphs: Cases) -> None:
    found = graphs["own_file"]
    assert found["own_prompt"] and found["connected_wins"] and found["travels"] == 0 and found["differ"] > VISIBLE
    assert found["guidance"] == [2.5, 2.5, 2.5] and len(found["said"]) == 1
    assert found["without_pooled"] == 0 and found["base_is_left_alone"] == 0.5


def test_a_vae_passes_where_the_file_changes_none(graphs: Cases) -> None:
    assert graphs["own_file"]["vae_passes"] and graphs["own_file"]["without_vae"]
    found = graphs["every_file_of_the_folder"]
    assert found["passed"] and found["none"]


def test_any_file_of_a_folder_stands_for_it(graphs: Cases) -> None:
    assert graphs["every_file_of_the_folder"]["far"] == 0


def test_half_of_a_lora_is_warned_of(graphs: Cases) -> None:
    found = graphs["plain_encoder"]
    (line,) = found["half"]
    assert line.endswith("this VAE has no LoRA; connect the VAE of Load SR LoRA")
    assert found["whole"] == found["none"] == []
    (line,) = found["16x"]
    assert "was trained with Flux's own 8x VAE, and this one is 16x" in line and line.endswith("with compression 8x")
    (line,) = found["schnell"]
    assert "this MODEL has no guidance (FLUX.1-schnell has none); load FLUX.1-dev" in line


def test_a_prompt_of_another_length_is_warned_of(graphs: Cases) -> None:
    found = graphs["prompts_of_other_lengths"]
    assert found["trained"] == []
    (line,) = found["by_itself"]
    assert "was trained with a prompt of 512 tokens, and this embedding has 256; in ComfyUI put T5 Tokenizer" in line
    (line,) = found["half"]
    assert line.startswith("conditioning: has no pooled_output, so that zeros take its place")


REFUSED = {
    "no_prompt": "carries no prompt embedding: connect one to conditioning, from ComfyUI's CLIP Text Encode",
    "no_vae": "also changes the VAE's encoder, and no VAE is connected; connect",
    "two_prompts": "conditioning: holds 2 prompts",
    "batch": "conditioning: holds 2 prompts",
    "pooled_batch": "conditioning: its pooled_output holds 2 prompts",
    "other_models": "CONDITIONING: has 96 channels, but the model takes 64",
    "other_vae": "it is for another VAE",
    "no_strips": "VAE: is of a kind that cannot give a seeded sample",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_go_wrong_is_one_sentence(graphs: Cases, case: str) -> None:
    found = graphs["refused"][case]
    assert "Op4ksrError" in found["classes"] and REFUSED[case] in found["message"]
    assert "\n" not in found["message"] and len(found["message"]) < 700


def test_every_refusal_is_expected_too(graphs: Cases) -> None:
    assert graphs["refused"].keys() == REFUSED.keys()
