"""Save Prompt Embedding and Load Prompt Embedding in a real ComfyUI."""

from __future__ import annotations

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def prompts(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "prompt_cases", tmp_path_factory.mktemp("prompts"))


def test_there_and_back(prompts: Cases) -> None:
    found = prompts["there_and_back"]
    names = ["prompt_embedding_00001_", "prompt_embedding_00002_", "sub/empty text_00001_"]
    assert found["names"] == [f"{name}.safetensors" for name in names]
    assert found["keys"] == {"op4ksr.txt": [5, 64], "op4ksr.vec": [32]}
    assert found["same"] and found["half"] and found["listed"] and found["guidance"] == [False, 2.0]


def test_diffusers_names_are_read_too(prompts: Cases) -> None:
    assert prompts["diffusers_names"]


def test_convert_makes_it_part_of_a_lora(prompts: Cases) -> None:
    assert prompts["into_a_lora"]


def test_the_host_pads_an_empty_text_to_fewer_tokens_than_were_trained(prompts: Cases) -> None:
    assert prompts["an_empty_text"] == {"alone": 256, "padded": 512}


def test_what_is_left_out_is_named(prompts: Cases) -> None:
    (line,) = prompts["left_out"]
    assert line.startswith("conditioning: its area, strength is left out")


REFUSED = {
    "two": "conditioning: holds 2 prompts",
    "batch": "conditioning: holds 2 prompts",
    "no_pooled": "conditioning: has no pooled_output",
    "long": "conditioning: has 4,097 tokens, and a prompt embedding at most 4,096",
    "nan": "conditioning: holds NaN or infinite values",
    "outside": "is outside the output folder",
    "absolute": "is outside the output folder",
    "missing": "is not in ComfyUI's models/embeddings folder",
    "load_inversion": "expected a prompt embedding (op4ksr.txt or prompt_embeds or txt), got emb_params",
    "load_nan": "holds NaN or infinite numbers",
    "load_batch": "save one prompt's embedding",
    "load_text": "is no safetensors file",
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(prompts: Cases, case: str) -> None:
    found = prompts["refused"][case]
    assert "Op4ksrError" in found["classes"] and REFUSED[case] in found["message"], found
    assert "\n" not in found["message"]


def test_nothing_is_left_of_what_was_refused(prompts: Cases) -> None:
    assert prompts["refused"]["nothing_is_left"] and prompts["refused"].keys() == {*REFUSED, "nothing_is_left"}
