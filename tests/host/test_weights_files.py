"""Weights files as no loader should get them, through the loader nodes of a real ComfyUI."""

from __future__ import annotations

from typing import Any

import pytest
from host_support import find_host, run_cases

pytestmark = pytest.mark.host

SAID = {
    "bomb": {
        "loras": "is half a LoRA",
        "vae": "expected blocks numbered",
        "diffusion_models": "expected blocks numbered",
    },
    "bool": "expected one of the dtypes",
    "integers": "expected one of the dtypes",
    "complex": "expected one of the dtypes",
    "escape": r"'a\x1b[2J'",
    "deep": "nested too deeply",
    "web_page": "is a web page",
    "lfs": "is a Git LFS pointer",
    "pipe": ("named pipe", "is not in ComfyUI's models"),
    "folder": ("folder", "is not in ComfyUI's models"),
    "empty": "is empty",
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_cases(find_host(), "weights_file_cases", tmp_path_factory.mktemp("weights_files"))


@pytest.mark.parametrize("kind", ["vae", "diffusion_models", "loras"])
def test_each_loader_says_in_one_sentence_and_at_once_what_is_wrong(found: dict[str, Any], kind: str) -> None:
    odd = found["odd_weights"]
    assert odd["seconds"] < 20 and odd[kind].keys() == SAID.keys()
    for name, refused in odd[kind].items():
        words = SAID[name]
        words = words[kind] if isinstance(words, dict) else words
        assert "Op4ksrError" in refused["classes"], (name, refused)
        message = refused["message"]
        assert any(word in message for word in ((words,) if isinstance(words, str) else words)), (name, message)
        assert message.isprintable() and len(message) < 700


def test_what_the_host_cannot_load_is_one_sentence_too(found: dict[str, Any]) -> None:
    for name, refused in found["quantized"].items():
        assert "UnsupportedCheckpointError" in refused["classes"], (name, refused)
        assert {"misfit": "1 of another shape"}.get(name, "is quantized in a way that ComfyUI") in refused["message"]
        assert refused["message"].isprintable()
