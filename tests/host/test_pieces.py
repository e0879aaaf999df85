"""The pieces apart, in a real ComfyUI: one-step sampler, 16x empty latent, LoRA with its settings."""

from __future__ import annotations

import pytest
from host.test_nodes import assert_refused
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Of images in [0, 1], as in test_nodes.py; and a difference that shows.
SAME, VISIBLE = 1e-4, 0.02


@pytest.fixture(scope="module")
def pieces(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "piece_cases", tmp_path_factory.mktemp("pieces"))


@pytest.mark.parametrize("case", ["difference", "typed_sigma"])
def test_the_hosts_sampler_node_is_the_one_step_node(pieces: Cases, case: str) -> None:
    assert pieces["one_step_sampler"][case] <= SAME
    assert pieces["one_step_sampler"]["model_shows"] > VISIBLE
    assert pieces["one_step_sampler"]["sigma_shows"] > VISIBLE


def test_the_sampler_takes_the_files_sigma_and_no_noise(pieces: Cases) -> None:
    found = pieces["one_step_sampler"]
    assert found["sigmas"] == [0.3, 0.0]
    assert found["noise_is_ignored"]
    assert found["denoised_is_the_output"] <= SAME


def test_outside_a_noise_mask_the_latent_stays(pieces: Cases) -> None:
    found = pieces["noise_mask"]
    assert found["inside"] <= SAME and found["outside"] <= SAME
    assert found["changes"] > VISIBLE


def test_the_empty_latent_gives_the_size_asked_for(pieces: Cases) -> None:
    found = pieces["empty_latent"]
    assert found["latent"] == found["sampled"] == [2, 16, 6, 8] and found["zero"] == 0
    assert found["image"] == [2, 96, 128, 3]


@pytest.mark.parametrize("layout", ["peft_diffusers", "peft_bare", "peft_wrapped", "bfl", "kohya"])
def test_a_lora_with_its_settings_is_the_cores_merge(pieces: Cases, layout: str) -> None:
    found = pieces["sr_lora"][layout]
    assert found["difference"] <= SAME and found["constants_only"] <= SAME
    assert found["weights_show"] > VISIBLE and found["constants_show"] > VISIBLE


def test_the_base_model_stays_as_it_is(pieces: Cases) -> None:
    assert pieces["sr_lora"]["base_is_as_before"]


@pytest.mark.parametrize(
    ("case", "kind", "words"),
    [
        ("no_lora", "UnsupportedCheckpointError", ("none.safetensors", "holds no LoRA", "choose a LoRA")),
        ("no_prompt", "UnsupportedCheckpointError", ("nor a prompt embedding", "convert --prompt-embedding")),
        ("no_match", "UnsupportedCheckpointError", ("none of its 2 tensors fits", "trained on")),
        ("other_prompt", "UnsupportedCheckpointError", ("another model's prompt embedding", "(T, 64)")),
        ("no_flux", "OptionError", ("MODEL: is a BaseModel", "Load SR LoRA needs the Flux model")),
        ("missing", "OptionError", ("no_such_file.safetensors", "choose another")),
    ],
)
def test_refused_loras(pieces: Cases, case: str, kind: str, words: tuple[str, ...]) -> None:
    assert_refused(pieces["refused_loras"][case], kind, *words)
