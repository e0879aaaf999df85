"""UltraFlux natively in a real ComfyUI: the same picture as the published pipeline, from the host's own nodes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from host_support import Cases, find_host, run_cases
from unit.models.test_ultraflux import PUBLISHED, TOLERANCE

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def ultraflux(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "ultraflux_cases", tmp_path_factory.mktemp("ultraflux"))


def error(got: list[float], name: str) -> float:
    expected = np.array(PUBLISHED[name])
    return float(np.abs(np.array(got) - expected).max() / np.abs(expected).max())


def test_the_picture_is_the_published_pipelines(ultraflux: Cases) -> None:
    """Three Euler steps by SamplerCustomAdvanced, then VAEDecode."""
    found = ultraflux["image"]
    assert found["shape"] == [1, 2112, 64, 3]
    assert error(found["sampled"], "image") <= TOLERANCE
    assert error(found["without_rfr"], "image") > 100 * TOLERANCE


def test_the_hosts_simple_scheduler_comes_close(ultraflux: Cases, record_property: Any) -> None:
    """It takes sigmas from a table of 10,000, up to 1e-4 beside; random weights make much of that (0.0032 here)."""
    found = ultraflux["image"]
    record_property("difference", error(found["simple"], "image"))
    assert found["simple_sigmas"] == pytest.approx(PUBLISHED["sigmas"], abs=1e-4)
    assert error(found["simple"], "image") < 0.01


def test_the_vae_encodes_as_published(ultraflux: Cases) -> None:
    assert error(ultraflux["encoded"], "encoded") <= TOLERANCE


def test_the_shift_node_gives_the_published_sigmas(ultraflux: Cases) -> None:
    found = ultraflux["schedules"]
    assert found["node"] == pytest.approx(PUBLISHED["sigmas_of_50"], abs=1e-4)
    assert found["own_at_ln_3"] == pytest.approx(PUBLISHED["sigmas_of_50"], abs=1e-4)
    assert max(abs(a - b) for a, b in zip(found["own_as_it_comes"], PUBLISHED["sigmas_of_50"], strict=True)) > 0.5


def test_by_tokens_counts_32_px_tokens(ultraflux: Cases) -> None:
    found = ultraflux["schedules"]
    assert found["by_tokens"] == pytest.approx(found["equivalent"], abs=1e-6)
    mu = 0.5 + 0.65 / 3840 * (1024 - 256)
    assert found["report"] == f"Shift {math.exp(mu):.4g} (mu {mu:.4f}), for 1,024 tokens."


def test_the_input_model_keeps_its_shift(ultraflux: Cases) -> None:
    s = math.exp(1.15)  # the host's default for Flux
    assert ultraflux["schedules"]["input_untouched"] == pytest.approx(s * 0.98 / (1 + (s - 1) * 0.98), abs=1e-4)
