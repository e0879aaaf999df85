"""Our nodes beside other packs' in one graph: order, meaning, and what is said when one patch hides another.

DyPE, ComfyUI-GGUF, KJNodes and rgthree are looked for in the host's custom_nodes and in the folder that
$OP4KSR_NEIGHBOURS names; a test whose pack is missing is skipped and says which. What needs no pack (a patch made as
those packs make it) is tried always. The packs' own requirements may lie in a folder of $PYTHONPATH.
"""

from __future__ import annotations

from typing import Any

import pytest
from host_support import Cases, find_host, run_cases

pytestmark = pytest.mark.host

#: Of images in [0, 1]: the same fp32 numbers in another order.
SAME = 1e-4
#: A difference that shows.
VISIBLE = 0.02
#: fp16 weights computed another way: a quarter of an 8-bit step.
HALF = 0.25 / 255


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "foreign_cases", tmp_path_factory.mktemp("foreign"))


@pytest.fixture(scope="module")
def packs(tmp_path_factory: pytest.TempPathFactory) -> Cases:
    return run_cases(find_host(), "neighbour_cases", tmp_path_factory.mktemp("packs"), timeout=900)


def assert_warns(text: str, whose: str) -> None:
    """One sentence on what was set, one on what is in force, one on the remedy."""
    assert f"this run's positions are those of {whose}, patched in by a later node: the last one wins" in text
    assert "Put Apply RFR after that node" in text and text.count("positions are those of") == 1


# --- without any of them ----------------------------------------------------------------------


def test_of_two_packs_positions_the_last_wins(foreign: Cases) -> None:
    found = foreign["last_wins"]
    assert found["differ"] > VISIBLE, "both draw the same picture, so the case proves nothing"
    assert found["foreign_last"] and found["rfr_last"] and found["sampler_foreign_last"]


def test_the_report_names_what_was_replaced(foreign: Cases) -> None:
    found = foreign["last_wins"]
    assert found["report"].endswith("replaces the positions that ForeignEmbedder had patched in: the last one wins.")
    assert found["report_of_two"].endswith("It replaces an earlier Apply RFR: the last one wins.")
    assert "replaces" not in found["report_alone"]


@pytest.mark.parametrize("sampler", ["warning", "sampler_warning"])
def test_a_run_warns_that_rfr_is_hidden(foreign: Cases, sampler: str) -> None:
    """In One-Step Upscale and in KSampler, where no node of ours runs."""
    found = foreign["last_wins"]
    assert_warns(found[sampler], "ForeignEmbedder")
    assert "-> 80 (rows), 80 (columns)" in found[sampler]
    assert found["silence"] == ""


@pytest.mark.parametrize("way", ["plain", "rfr", "twice", "clone", "lora", "sr_lora", "after another branch"])
def test_nothing_is_said_where_nothing_is_hidden(foreign: Cases, way: str) -> None:
    assert foreign["silent"][way] == ""


def test_a_files_own_theta_is_not_lost_behind_another_patch(foreign: Cases) -> None:
    found = foreign["own_theta"]
    assert found["found"] == [46.7, 46.7], "a pack that reads the model finds another theta before and after a run"
    assert found["back"] and "own theta 46.7 (rows), 300 (columns)" in found["report"]
    assert_warns(found["hidden"], "ForeignEmbedder")


def test_a_loras_own_theta_as_well(foreign: Cases) -> None:
    found = foreign["theta_of_a_lora"]
    assert "its theta is the model's from now on. It replaces the positions that ForeignEmbedder" in found["says"]
    assert found["last_wins"] and found["back"]
    assert_warns(found["hidden"], "ForeignEmbedder")


@pytest.mark.parametrize("order", ["before", "after"])
def test_another_attention_stays(foreign: Cases, order: str) -> None:
    """One call per block: one double block, one single block."""
    assert foreign["attention"]["without"] == 0
    assert foreign["attention"][order] == {"same": True, "calls": 2}


@pytest.mark.parametrize("order", ["before", "after"])
def test_compiled_blocks_keep_rfr(foreign: Cases, order: str) -> None:
    found = foreign["compiled"]
    assert found["effect"] > VISIBLE
    assert found[order] <= SAME and found["other_branch"] <= SAME


@pytest.mark.parametrize("ours", ["rfr", "sr_lora"])
def test_loras_on_either_side(foreign: Cases, ours: str) -> None:
    found = foreign["loras"][ours]
    assert found["loras_show"] > VISIBLE and found["ours_shows"] > VISIBLE
    assert found["orders"] <= SAME


# --- DyPE -------------------------------------------------------------------------------------


def test_dype_and_rfr_the_last_wins(packs: Cases) -> None:
    found = packs["dype_order"]
    assert min(found["rfr_shows"], found["dype_shows"], found["differ"]) > VISIBLE
    assert found["dype_last"] and found["rfr_last"]


def test_dype_and_rfr_are_told_of(packs: Cases) -> None:
    found = packs["dype_order"]
    for text in (found["warning"], found["sampler_warning"]):
        assert "those of PosEmbedFlux (" in text and "Put Apply RFR after that node" in text
    assert found["silence"] == ""
    assert "replaces the positions that PosEmbedFlux (" in found["report"]


def test_dype_starts_from_the_files_own_theta(packs: Cases) -> None:
    found = packs["dype_order"]
    assert found["theta_found"] == 46.7 and found["own_theta"]


def test_dypes_schedule_stays_under_rfr(packs: Cases) -> None:
    found = packs["dype_schedule"]
    assert found["shifts"] == [1.15, 2.0]
    assert found["many_steps"] > VISIBLE and found["one_step"] == 0


# --- ComfyUI-GGUF -----------------------------------------------------------------------------


@pytest.mark.parametrize("graph", ["plain", "rfr", "lora, rfr", "rfr, lora", "sr lora", "omgsr"])
def test_gguf_is_the_safetensors_file(packs: Cases, graph: str) -> None:
    found = packs["gguf_files"]
    assert min(found[f"{name}_shows"] for name in ("rfr", "lora", "sr_lora", "omgsr")) > VISIBLE
    assert found["F16"][graph]["largest"] <= HALF
    assert 0 < found["Q8_0"][graph]["mean"] <= 1 / 255


# --- KJNodes ----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("order", ["before", "after", "whole_model", "other_branch"])
def test_kjnodes_compile(packs: Cases, order: str) -> None:
    found = packs["kj_compile"]
    assert found["rfr_shows"] > VISIBLE
    assert found[order] <= SAME


@pytest.mark.parametrize("order", ["before", "after"])
def test_kjnodes_sage_says_what_it_lacks(packs: Cases, order: str) -> None:
    """On a CPU: SageAttention, or where that is installed, the GPU. So its patch reaches the model."""
    found: dict[str, Any] = packs["kj_sage"]
    assert found["disabled"] == 0
    assert "sageattention" in found[order].lower() or "cuda" in found[order].lower()


# --- rgthree ----------------------------------------------------------------------------------


def test_power_lora_loader_is_the_hosts(packs: Cases) -> None:
    assert packs["power_lora"]["plain"] == 0


@pytest.mark.parametrize("order", ["before", "after"])
@pytest.mark.parametrize("ours", ["rfr", "sr_lora"])
def test_power_lora_loader_on_either_side(packs: Cases, ours: str, order: str) -> None:
    found = packs["power_lora"][ours]
    assert found["loras_show"] > VISIBLE
    assert found[order] <= SAME


# --- all of them ------------------------------------------------------------------------------


@pytest.mark.slow
def test_all_in_one_graph(packs: Cases) -> None:
    found = packs["one_graph"]
    assert min(found["loras_show"], found["dype_would_show"]) > VISIBLE
    assert found["difference"] <= HALF
