"""The transformer in pieces in a real ComfyUI: parity with the published tiling, the node, its plan, cancelling."""

from __future__ import annotations

from collections.abc import Callable

import published_tiling
import pytest
import torch
from host_support import Cases, find_host, run_cases
from safetensors.torch import save_file
from torch import nn

from op4ksr_core import save_flux

pytestmark = pytest.mark.host

#: Of the largest magnitude, and of pictures in [0, 1].
TOLERANCE, VISIBLE = 1e-4, 0.02


@pytest.fixture(scope="module")
def windows(make_diffusers_flux: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> Cases:
    """With diffusers' numbers beside the weights that made them, for a Python that may lack diffusers."""
    host, folder = find_host(), tmp_path_factory.mktemp("windows")
    (folder / "published").mkdir()
    theirs, ours = published_tiling.strong_pair(make_diffusers_flux, tmp_path_factory.mktemp("diffusers"))
    raw = torch.randn(1, 16, 24, 40, generator=torch.Generator().manual_seed(2))
    tiles = published_tiling.in_tiles(theirs, raw, ours.settings, 16, 8)
    save_flux(folder / "published" / "flux.safetensors", ours)
    save_file({"raw": raw, "in_tiles": tiles.float()}, folder / "published" / "latents.safetensors")
    return run_cases(host, "window_cases", folder)


def test_latents_in_pieces_are_the_published_ones(windows: Cases) -> None:
    found = windows["published"]
    assert found["in_pieces"]["error"] <= TOLERANCE and found["in_pieces"]["spread"] > 0.05
    assert found["whole"]["error"] > 100 * TOLERANCE and found["another_overlap"]["error"] > 10 * TOLERANCE


def test_the_node_in_pieces_is_the_core(windows: Cases) -> None:
    assert windows["node"]["difference"] <= TOLERANCE and windows["node"]["shows"] > VISIBLE


@pytest.mark.parametrize("case", ["zero_is_whole", "no_larger_is_whole"])
def test_the_whole_picture_stays_to_the_bit(windows: Cases, case: str) -> None:
    assert windows["node"][case] is True


@pytest.mark.parametrize(
    ("case", "words"),
    [("no_tokens", "multiples of 32 px for this VAE (16x), got 80 and 16; take 64 and 0")]
    + [("overlap", "an overlap from 0 to less than it, got a size of 64 and an overlap of 64")],
)
def test_refused_pieces(windows: Cases, case: str, words: str) -> None:
    found = windows["node"][case]
    assert found["classes"][0] == "OptionError" and words in found["message"]


def test_the_plan_knows_the_pieces(windows: Cases) -> None:
    found = windows["plan"]
    first = "144x80 -> 288x160 px, 352x224 with its margin; latent 22x14, 9 x 5 = 45 tokens"
    assert found["whole"].splitlines()[0] == first
    assert found["cut"].splitlines()[0] == f"{first}, in 32 pieces of 2 x 2 = 4"
    assert found["cut"].splitlines()[0] in found["logged"] and not found["warned"]


def test_beyond_the_trained_side_the_plan_says_what_to_try(windows: Cases) -> None:
    found = windows["plan"]
    assert (
        "5 x 9 tokens are more than the 2 per side this model was trained on (64 px): it is computed, but nobody knows "
        "how well the model does there; to compare, try Apply RFR (policy ntk, interpolate or parts), pieces "
        "(pieces 64, pieces_overlap 32), or a target of at most 64 px a side"
    ) in found["whole"]
    assert "it is computed, with RFR ntk, but" in found["known"] and "Apply RFR" not in found["known"]


def test_a_cancelled_run_ends_between_windows_and_inside_them(windows: Cases) -> None:
    found = windows["cancelled"]
    inside = 2 if find_host().version >= (0, 4) else None  # whose layers do not look for it: the next window does
    assert found == {"before": [0, 1, 2], "inside": inside, "not": None}
