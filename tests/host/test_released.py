"""Node ids, inputs and outputs that were released are kept: saved workflows go on working."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
from released_nodes import RELEASED, Slots, appended, broken, read, slots, written

RELEASED_NODES = read()


@pytest.fixture(scope="module")
def now(host_info: dict[str, dict[str, Any]]) -> dict[str, Slots]:
    return {node: slots(info) for node, info in host_info.items()}


@pytest.mark.host
def test_every_released_node_keeps_its_inputs_and_outputs(now: dict[str, Slots]) -> None:
    assert broken(RELEASED_NODES, now) == []


@pytest.mark.host
def test_what_came_later_is_optional(host_info: dict[str, dict[str, Any]], now: dict[str, Slots]) -> None:
    """Else a prompt that was saved before is refused."""
    for node, name in appended(RELEASED_NODES, now):
        assert name in host_info[node]["input_order"].get("optional", []), f"{node}: {name} is required"


def test_a_broken_promise_is_seen() -> None:
    node = "OP4KSR_OneStepUpscale"
    for kind in ("inputs", "outputs"):
        for spoil in (list.reverse, list.pop, lambda pairs: pairs.insert(0, ["new", "INT"])):
            changed = copy.deepcopy(RELEASED_NODES)
            spoil(changed[node][kind])
            (found,) = broken(RELEASED_NODES, changed)
            assert found.startswith(f"{node}: its {kind} were ")
        changed = copy.deepcopy(RELEASED_NODES)
        changed[node][kind][0][1] = "OTHER"
        assert len(broken(RELEASED_NODES, changed)) == 1
    without = {name: parts for name, parts in RELEASED_NODES.items() if name != node}
    assert broken(RELEASED_NODES, without) == [f"{node} is gone"]


def test_what_is_appended_breaks_nothing() -> None:
    node, changed = "OP4KSR_OneStepUpscale", copy.deepcopy(RELEASED_NODES)
    changed[node]["inputs"].append(["new", "INT"])
    changed["OP4KSR_New"] = {"inputs": [], "outputs": []}
    assert broken(RELEASED_NODES, changed) == []
    assert appended(RELEASED_NODES, changed) == [(node, "new")]


def test_the_file_is_as_the_script_writes_it() -> None:
    text = RELEASED.read_text("utf-8")
    assert written(RELEASED_NODES) == text and json.loads(text) == RELEASED_NODES
