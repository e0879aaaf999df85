"""The plan inside a real ComfyUI: its node, the one-step node's use of it, and the plan against real runs."""

from __future__ import annotations

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "plan_cases", tmp_path_factory.mktemp("plan"))


def test_the_node_tells_sizes_and_whether_it_fits(plan: Cases) -> None:
    found = plan["node"]
    assert found["text"].startswith("100x60 -> 200x120 px, 288x192 with its margin; latent 18x12, 7 x 4 = 28 tokens")
    for word in ("encode", "transformer", "decode", "TFLOP", "VAE: ", "model: ", "fits"):
        assert word in found["text"]
    assert found["size"] == [200, 120] and found["fits"] is True


def test_the_picture_wins_over_the_widgets(plan: Cases) -> None:
    assert plan["node"]["by_picture"] == [200, 120]


def test_vae_only_plans_no_transformer(plan: Cases) -> None:
    assert not plan["node"]["vae_only"]


def test_what_enlarges_is_planned(plan: Cases) -> None:
    """Bicubic needs nothing worth telling; a network has a stage and weights, and the run logs the same."""
    found = plan["enlarging"]
    assert "enlarge " not in found["picture"] and "enlarge " not in found["detail_bicubic"]
    for name, words in (
        ("bundled", "op4ksr_small_enlarger"),
        ("own", "upscale_model (RealESRGAN Compact x2)"),
        ("detail", "op4ksr_small_enlarger"),
    ):
        (stage,) = (line for line in found[name].splitlines() if line.startswith("enlarge "))
        assert stage.endswith(f"TFLOP  {words}") and f"GB  {words}: " in found[name]
    assert found["run"]


def test_repair_is_planned(plan: Cases) -> None:
    """Whoever asks for it; the bundled enlarger then looks at the picture in four ways."""
    found = plan["enlarging"]
    plain, repaired, recommended = (
        next(line for line in found[name].splitlines() if line.startswith("enlarge "))
        for name in ("detail", "repaired", "recommended")
    )
    assert plain != repaired == recommended


def test_a_model_that_adds_detail_decodes_twice(plan: Cases) -> None:
    found = plan["enlarging"]
    for name in ("detail", "detail_bicubic"):
        (decode,) = (line for line in found[name].splitlines() if line.startswith("decode "))
        assert "  twice, strips of " in decode
    assert "twice" not in found["picture"] + found["vae_only"]


def test_at_detail_0_no_model_is_planned(plan: Cases) -> None:
    """On a GPU nothing may be left of it, where pictures are elsewhere."""
    found = plan["enlarging"]
    for name in ("alone", "alone_bicubic"):
        assert not {line.split()[0] for line in found[name].splitlines()} & {"encode", "transformer", "decode"}
    assert "decode " in found["vae_only"]
    whole, nothing, bundled = plan["enlarging_on_a_gpu"]
    assert "decode " in whole and "enlarge " in bundled
    assert "cuda:0, float32: needs 0.00 GB at its peak (finish)" in nothing


def test_a_vae_that_cannot_be_foretold_is_refused(plan: Cases) -> None:
    found = plan["node"]["not_ours"]
    assert found["classes"][0] == "OptionError" and "choose a" in found["message"]


def test_a_vae_of_other_layers_is_refused(plan: Cases) -> None:
    found = plan["node"]["other_layers"]
    words = "VAE: has other layers than Flux's, so its memory cannot be estimated; choose another"
    assert (found["classes"][0], found["message"]) == ("OptionError", words)


def test_a_vae_of_other_channels_is_refused_as_the_run_refuses_it(plan: Cases) -> None:
    found = plan["node"]["other_channels"]
    assert found["classes"][0] == "OptionError" and "4 latent channels" in found["message"]


@pytest.mark.parametrize("what", ["same_plan", "warned"])
def test_one_step_tells_the_same_plan(plan: Cases, what: str) -> None:
    assert plan["one_step_tells_it"][what]


@pytest.mark.parametrize("mega", ["2", "4", "1000"])
def test_the_strips_that_are_logged_are_the_ones_that_run(plan: Cases, mega: str) -> None:
    """Whatever memory is free later; room is made for the same, and a VAE node by itself runs what it asks for."""
    found = plan["logged_is_run"][mega]
    assert found["logged"] == found["ran"] and len(found["ran"]) == 2
    assert found["alone"]
    assert (found["ran"]["decode"] == "strips of 64 rows, fast") is (mega == "1000")


def test_one_step_refuses_before_computing(plan: Cases) -> None:
    found = plan["one_step_refuses"]
    assert found["classes"][0] == "OutOfMemoryError" and found["calls"] == [] and found["fits"] is False
    assert "this will not fit; ask for a long edge of at most" in found["message"]


@pytest.mark.parametrize("stage", ["encode", "transformer", "transformer_bf16", "decode"])
def test_the_host_needs_what_was_planned(plan: Cases, stage: str) -> None:
    """Live tensors, attention as on a GPU: within 10 %."""
    assert plan["prediction"][stage] == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("output", ["picture", "detail"])
@pytest.mark.parametrize("run", ["as_trained", "half", "own", "own_alone"])
def test_whole_runs_need_what_was_planned(plan: Cases, output: str, run: str) -> None:
    """x4 on the CPU, live tensors and weights of the largest stage: within 5 %; what enlarges alone, at most that."""
    share = plan["whole_runs"][f"{output} {run}"]
    assert (0.75 if run == "own_alone" else 0.95) < share < 1.05


@pytest.mark.parametrize("side", ["512", "128"], ids=["whole", "a window"])
def test_the_host_needs_what_was_planned_for_12_b_at_4096_px(plan: Cases, side: str) -> None:
    """On an 8x VAE, live tensors without values: within 10 %."""
    assert plan["twelve_billion"][side] == pytest.approx(1, abs=0.1)
