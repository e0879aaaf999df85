"""A LoRA trained here loads through ComfyUI's own LoRA loader and does what the core's merge does."""

from __future__ import annotations

from typing import Any

import pytest
from host_support import find_host, run_cases

pytestmark = pytest.mark.host


def test_a_trained_lora_is_the_same_in_the_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = run_cases(find_host(), "lora_cases", tmp_path_factory.mktemp("lora"))["trained_lora"]
    assert found["layers"] == 12 + 2 * 5
    assert found["changes"] > 5 / 255, "the LoRA changes nothing that shows, so the case proves nothing"
    assert found["as_merged"] <= 1 / 255


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cases(find_host(), "lora_file_cases", tmp_path_factory.mktemp("lora_files"))


def test_every_file_changes_the_weights_as_the_cores_merge_does(files: dict[str, Any]) -> None:
    """Whatever states the alpha, in every layout and kind that both compute."""
    found = files["as_the_core_merges"]
    assert len(found) == 16
    for name, case in found.items():
        assert case["same_weights"] and case["change"] > 1e-2 and case["error"] < 1e-5, (name, case)
    assert found["xlabs"]["weights"] == [
        "double_blocks.0.img_attn.proj.weight",
        "double_blocks.0.img_attn.qkv.weight",
        "single_blocks.0.linear1.weight",
    ]
    logs = {name: case["log"] for name, case in found.items()}
    (line,) = logs.pop("text_encoders")
    assert "2 tensors change text encoders and are left out (lora_te1_" in line and not any(logs.values())


def test_dora_is_the_hosts(files: dict[str, Any]) -> None:
    assert files["dora"]["error"] < 1e-5 < 1e-2 < files["dora"]["change"]


def test_what_the_model_lacks_is_named_once(files: dict[str, Any]) -> None:
    assert files["left_out"]["weights"] == ["double_blocks.0.img_attn.qkv.weight"]
    (line,) = files["left_out"]["log"]
    assert "2 tensors fit nothing in this model and are left out (lora_unet_single_blocks_30_linear2" in line


REFUSED = {
    "rank_0": "has rank 0",
    "alpha_of_two": "expected a single number, got the shape (2,)",
    "alpha_nan": "holds NaN or infinite numbers",
    "alpha_bool": "expected one of the dtypes",
    "nan": "lora_up.weight holds NaN",
    "half": "is half a LoRA (down missing)",
    "ranks": "do not fit together",
    "size": "is for a model of another size",
    "rows": "is for a model of another size",
    "unknown": "parts of a kind that is not known here (",
    "unknown_alone": "holds no LoRA that we know",
    "magnitude": "is DoRA (LoRA)",
    "dora_size": "does not fit (384, 128)",
    "text_alone": "changes text encoders alone",
    "integers": "expected one of the dtypes",
    "metadata_text": "expected a number above 0, got 'much'",
    "metadata_nan": "expected a number above 0, got 'nan'",
    "metadata_negative": "its metadata lora_alpha is wrong",
    "metadata_rank": "states rank 8 and its tensors have 4",
    "metadata_deep": "nested too deeply",
    "metadata_list": "is no JSON object",
    "two_names": "changes one module under two names",
    "two_layouts": "changes one module under two names",
    "other_model": "fits this model",
    "strength": "strength: expected a number",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_that_cannot_be_applied_whole_is_one_sentence(files: dict[str, Any], name: str) -> None:
    found = files["refusals"][name]
    assert "Op4ksrError" in found["classes"], found
    assert REFUSED[name] in found["message"] and found["message"].isprintable() and len(found["message"]) < 700


def test_every_refusal_is_expected(files: dict[str, Any]) -> None:
    assert files["refusals"].keys() == REFUSED.keys()
