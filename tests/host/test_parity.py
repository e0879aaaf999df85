"""The core computes what ComfyUI's own modules compute, on the same weights."""

from __future__ import annotations

from typing import Any

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Of the reference's largest magnitude: fp32 in another order of operations.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "parity_cases", tmp_path_factory.mktemp("parity"))


def assert_close(found: dict[str, Any]) -> None:
    assert found["error"] <= TOLERANCE
    assert found["spread"] > 0.05, "the reference is nearly constant and proves nothing"


@pytest.mark.parametrize(
    ("case", "latent"),
    [
        ("f8", [1, 16, 8, 12]),
        ("f8_through_vae", [1, 16, 8, 8]),
        ("f16_shift_0", [1, 16, 4, 6]),
        ("f16_shift_1", [1, 16, 4, 6]),
    ],
)
def test_autoencoder_is_the_hosts(parity: Cases, case: str, latent: list[int]) -> None:
    assert parity[case]["latent"] == latent
    for part in parity[case].keys() - {"latent"}:
        assert_close(parity[case][part])


@pytest.mark.parametrize(
    "case",
    ["flux_plain", "flux_guidance", "flux_theta_per_axis", "flux_guidance_theta_per_axis", "flux_small_heads"],
)
def test_flux_is_the_hosts(parity: Cases, case: str) -> None:
    found = parity[case]
    assert_close(found["velocity"])
    assert found["with_another_theta"] > 100 * TOLERANCE, "theta has no effect, so the case proves nothing of it"
    assert found["parameters"][0] == found["parameters"][1]


def test_positions_are_the_hosts_bit_for_bit(parity: Cases) -> None:
    assert len(parity["positions"]) == 4
    assert all(parity["positions"].values()), parity["positions"]
    assert parity["positions_per_axis"]
