"""What another node may give to an input of ours, in a real ComfyUI, which checks none of it."""

from __future__ import annotations

from typing import Any

import pytest
from host.test_nodes import assert_refused
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "input_cases", tmp_path_factory.mktemp("inputs"))


def assert_all_refused(found: dict[str, Any], name: str = "") -> None:
    for case, refused in found.items():
        kind = "ImageError" if "ImageError" in refused["classes"] else "OptionError"
        assert_refused(refused, kind, name or case.split()[1])


def test_no_input_takes_what_is_of_another_kind(given: Cases) -> None:
    """One sentence that names the input, for every input of every node."""
    assert len(given["refused"]) > 1000
    by_their_names = ("vae_name", "model_name", "lora_name", "embedding_name")
    found = {case: one for case, one in given["refused"].items() if case.split()[1] not in by_their_names}
    assert_all_refused(found)
    for case, refused in given["refused"].items():
        assert_refused(refused, refused["classes"][0])
        assert refused["message"].isprintable(), case


def test_every_node_checks_its_inputs(given: Cases) -> None:
    assert all(given["every_node_checks"].values()), given["every_node_checks"]


def test_every_number_has_bounds(given: Cases) -> None:
    assert given["bounds"]["numbers"] > 25 and not given["bounds"]["open"]


def test_what_means_the_same_passes(given: Cases) -> None:
    found = given["passing"]
    assert found["whole_floats"] == [2, 16, 2, 4]
    assert found["masks"] == [pytest.approx(0.5, abs=0.01)] * 4 + [0.0] and found["same"]
    assert found["nothing"] == [1, 16, 16, 3] and found["memory"] == "ExactVAE"


def test_every_bound_runs_or_is_told(given: Cases) -> None:
    """No bound of a number ends in an error of Python's."""
    assert len(given["extremes"]) > 150
    words = ("base_shift, max_shift: 0 and 100 give mu 27,300 for 1,048,576 tokens", "bring them nearer")
    assert_refused(given["extremes"]["steep"], "OptionError", *words)
    for case, found in given["extremes"].items():
        told = "Op4ksrError" in found["classes"] or found["message"] == "nothing was refused"
        assert told, (case, found)


def test_a_terabyte_is_not_asked_for(given: Cases) -> None:
    words = ("batch_size: 4096 latents of 32768x32768 px", "1,099.5 GB", "ask for fewer")
    assert_refused(given["too_large"], "OptionError", *words)


def test_latents_and_pictures_that_a_vae_cannot_take(given: Cases) -> None:
    """In the host's own nodes too, which check nothing: a NaN would become a black picture."""
    found = given["latents"]
    for node in ("decode", "tiled", "sampler"):
        assert_all_refused(found[node], "LATENT")
    for node in ("encode", "tiled_encode"):
        assert_all_refused(found[node], "IMAGE")
    assert found["five_dimensions"] == [1, 32, 32, 3]


def test_a_picture_far_below_zero_is_told(given: Cases) -> None:
    (warning,) = given["words"]
    assert "image: has values down to -1; those below 0 become black" in warning


def test_an_error_that_the_hosts_log_cannot_write_is_made_plain(given: Cases) -> None:
    """The host's worker would end with it, and run no prompt any more."""
    found = given["unwritable"]
    assert_refused(found["raw"], "Op4ksrError", "ValueError: a\\ud800b")
    assert found["cause"]["message"] == "option: its value; the remedy"
    assert found["plain"]["classes"][0] == "ValueError"


def test_the_hosts_own_exceptions_pass_through(given: Cases) -> None:
    assert given["interrupts"] == ["InterruptProcessingException", "OutOfMemoryError", "KeyboardInterrupt"]
