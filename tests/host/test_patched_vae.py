"""A VAE with changed weights in a real ComfyUI: exact in strips, however it is loaded, and seen by one branch alone."""

from __future__ import annotations

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Of the latent's or the picture's standard deviation: fp32 in another order.
SAME = 1e-4
VAES = ("load_vae", "exact_vae", "load_f16_vae")


@pytest.fixture(scope="module")
def patched(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "patched_vae_cases", tmp_path_factory.mktemp("patched"), timeout=600)


@pytest.mark.parametrize("vae", VAES)
def test_it_computes_with_the_changed_weights(patched: Cases, vae: str) -> None:
    found = patched["same_in_every_vae"][vae]
    assert found["same"] <= SAME < 0.1 < found["shows"]
    assert found["kind"] == ("VAE" if vae == "load_vae" else "ExactVAE")


@pytest.mark.parametrize("vae", VAES)
def test_the_given_vae_and_its_file_stay_as_they_are(patched: Cases, vae: str) -> None:
    """Save VAE reads weights without loading them: each branch's are its own."""
    found = patched["same_in_every_vae"][vae]
    assert found["given"] == 0 and found["weights_put_back"] and found["saved"] <= 1e-6


@pytest.mark.parametrize("vae", VAES)
def test_branches_do_not_leak_in_any_order(patched: Cases, vae: str) -> None:
    found = patched["two_branches"]
    assert found[vae] == 0 and found[f"{vae}_exact"] <= SAME < 0.1 < found[f"{vae}_differ"]


@pytest.mark.parametrize("half", ["encoder", "decoder"])
@pytest.mark.parametrize("vae", VAES[1:])
def test_partly_loaded_it_is_the_same(patched: Cases, vae: str, half: str) -> None:
    """Weights that do not fit are patched as they are cast, norms and upsampling layers too."""
    found = patched["low_memory"][f"{vae}_{half}"]
    nothing, some, everything = found["patched"]
    assert nothing > some > everything == 0 and max(found["far"]) <= SAME


def test_under_dynamic_vram_weights_are_the_hosts_cast(patched: Cases) -> None:
    found = patched["dynamic_memory"]
    assert found == {"own": True, "read": [3.0, 4.0], "offloadable": True, "given_back": True}


def test_the_tiled_nodes_compute_with_the_changes(patched: Cases) -> None:
    found = patched["tiles"]
    assert found["same"] <= SAME < 0.1 < found["shows"] and found["clean"]


def test_two_changes_are_added(patched: Cases) -> None:
    assert patched["twice"]["same"] <= SAME < 0.1 < patched["twice"]["shows"]


def test_on_another_device_it_keeps_the_changes(patched: Cases) -> None:
    assert patched["another_device"] == {"own_model": True, "same": 0, "kind": True}


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("pixel", "is a PixelspaceConversionVAE without an encoder of Flux's kind"),
        ("foreign", "is a Foreign of another node pack"),
        ("other_names", "has no encoder.other.weight, which the LoRA changes"),
    ],
)
def test_what_cannot_be_patched_is_refused(patched: Cases, case: str, words: str) -> None:
    found = patched["refused"][case]
    assert found["classes"][0] == "OptionError"
    assert found["message"].startswith(f"VAE: {words}") and "connect" in found["message"]
