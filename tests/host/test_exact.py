"""Exact VAE inside a real ComfyUI: over the host's own Flux, SDXL and Flux 2 autoencoders, at full width."""

from __future__ import annotations

from typing import Any

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Largest difference in strips, of latents and images of order 1, in fp32.
SAME = 2e-5


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "exact_cases", tmp_path_factory.mktemp("exact"))


@pytest.mark.parametrize("kind", ["flux", "sdxl", "flux2"])
def test_the_same_as_the_hosts_own(exact: Cases, kind: str, record_property: Any) -> None:
    found = exact[f"same_{kind}"]
    record_property("differences", {memory: found[memory] for memory in ("auto", "tiny")})
    assert found["latent_std"] > 0.1 and found["image_std"] > 0.1
    assert max(found["auto"] + found["tiny"]) <= SAME


@pytest.mark.parametrize("kind", ["flux", "sdxl", "flux2"])
def test_the_given_vae_keeps_its_ways_and_shares_its_weights(exact: Cases, kind: str) -> None:
    found = exact[f"same_{kind}"]
    assert found["given_is_left_alone"] and found["weights_are_shared"] and found["saves_the_same_file"]


@pytest.mark.parametrize("kind", ["flux", "sdxl", "flux2"])
def test_the_manager_is_asked_for_less(exact: Cases, kind: str) -> None:
    assert 0.1 < exact[f"same_{kind}"]["asks_for"] < 0.25


def test_tiles_are_another_picture(exact: Cases) -> None:
    assert exact["same_flux"]["tiles"] > 1000 * SAME


@pytest.mark.parametrize("stage", ["encode", "decode", "next_run"])
def test_out_of_memory_in_a_strip_gives_the_same_picture(exact: Cases, stage: str) -> None:
    assert exact["out_of_memory"][stage] <= SAME


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("nothing_helps", "VAE decode of 128x96 px: out of memory even with the settings that need least"),
        ("nothing_helps_encode", "VAE encode of 128x96 px: out of memory even with the settings that need least"),
        ("elsewhere", "VAE decode of 128x96 px: out of memory while the weights were loaded"),
        ("elsewhere_encode", "VAE encode of 128x96 px: out of memory while the weights were loaded"),
    ],
)
def test_then_one_sentence_and_never_tiles(exact: Cases, case: str, words: str) -> None:
    found = exact["out_of_memory"][case]
    assert found["classes"][0] == "OutOfMemoryError"
    assert found["message"].startswith(words) and "smaller target" in found["message"]


def test_the_host_is_asked_first_whether_that_was_out_of_memory(exact: Cases) -> None:
    """Its answer also clears the error that CUDA keeps for the next call."""
    assert exact["out_of_memory"]["host_is_asked"] == ["OutOfMemoryError"]


def test_tiles_on_request_still_work(exact: Cases) -> None:
    assert exact["out_of_memory"]["tiles_on_request"] == [1, 96, 128, 3]


def test_cancel_ends_at_the_next_strip(exact: Cases) -> None:
    assert exact["cancel"] == {"ended": "interrupted", "strips": 5}


def test_one_step_runs_a_plain_vae_in_strips(exact: Cases) -> None:
    found = exact["one_step_is_exact"]
    assert found["shape"] == [1, 64, 96, 3] and not found["whole_passes"]
    assert found["difference"] <= SAME


def test_the_benchmarks_tiles_are_the_hosts(exact: Cases) -> None:
    found = exact["tiles"]
    assert max(found["decode"], found["encode"]) <= SAME < 0.01 < found["whole"]


def test_weights_are_let_go_with_the_last_use(exact: Cases) -> None:
    assert exact["weights_are_let_go"] is True


@pytest.mark.parametrize("case", ["pixel", "attention", "video", "changed"])
def test_what_cannot_run_in_strips_is_refused(exact: Cases, case: str) -> None:
    found = exact["refused"][case]
    assert found["classes"][0] == "OptionError" and "choose a Flux-type picture VAE" in found["message"]


def test_a_picture_too_small_is_refused_in_words(exact: Cases) -> None:
    found = exact["refused"]["too_small"]
    assert found["classes"][0] == "ImageError"
    assert "image: 41x4 px is smaller than one latent pixel (8 px)" in found["message"]


def test_copies_have_weights_of_their_own(exact: Cases) -> None:
    found = exact["copies"]
    assert found["same"] == found["kept"] == found["part"] == 0 < 0.01 < found["own"]
    assert found["refused"] == "OptionError"
