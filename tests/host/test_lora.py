"""A LoRA trained here loads through ComfyUI's own LoRA loader and does what the core's merge does."""

from __future__ import annotations

import pytest
from host_support import find_host, run_cases

pytestmark = pytest.mark.host


def test_a_trained_lora_is_the_same_in_the_host(tmp_path_factory: pytest.TempPathFactory) -> None:
    found = run_cases(find_host(), "lora_cases", tmp_path_factory.mktemp("lora"))["trained_lora"]
    assert found["layers"] == 12 + 2 * 5
    assert found["changes"] > 5 / 255, "the LoRA changes nothing that shows, so the case proves nothing"
    assert found["as_merged"] <= 1 / 255
