"""Names and tooltips in other languages: every one is there, and none is left over."""

from __future__ import annotations

import json
from typing import Any

import pytest
from help_pages import LOCALES
from host_support import input_specs

pytestmark = pytest.mark.host

LANGUAGES = sorted(path.name for path in LOCALES.iterdir())


def read(language: str, name: str) -> dict[str, Any]:
    return json.loads((LOCALES / language / name).read_text("utf-8"))


@pytest.fixture(params=LANGUAGES)
def language(request: pytest.FixtureRequest) -> str:
    return request.param


def test_chinese_is_there() -> None:
    assert "zh" in LANGUAGES


def test_every_node_input_and_output_is_translated_and_nothing_else(host_info: dict[str, Any], language: str) -> None:
    wanted = {
        node: {
            "inputs": set(input_specs(info)),
            "outputs": {str(slot) for slot in range(len(info["output"]))},
        }
        for node, info in host_info.items()
    }
    have = {
        node: {"inputs": set(entry["inputs"]), "outputs": set(entry["outputs"])}
        for node, entry in read(language, "nodeDefs.json").items()
    }
    assert have == wanted


def test_every_entry_is_complete(language: str) -> None:
    for node, entry in read(language, "nodeDefs.json").items():
        assert set(entry) == {"display_name", "description", "inputs", "outputs"}, node
        assert entry["display_name"] and entry["description"], node
        for text in (*entry["inputs"].values(), *entry["outputs"].values()):
            assert set(text) == {"name", "tooltip"} and all(text.values()), node


def test_chinese_is_chinese(host_info: dict[str, Any]) -> None:
    """Nothing is left in English: every tooltip has Chinese characters, and differs from the schema's."""
    entries = read("zh", "nodeDefs.json")
    for node, info in host_info.items():
        texts = [entries[node]["description"], entries[node]["display_name"]]
        texts += [text["tooltip"] for text in (*entries[node]["inputs"].values(), *entries[node]["outputs"].values())]
        for text in texts:
            assert any("\u4e00" <= letter <= "\u9fff" for letter in text), f"{node}: {text}"
        assert entries[node]["display_name"] != info["display_name"]


def test_categories_are_ours(host_info: dict[str, Any], language: str) -> None:
    """main.json translates parts of our categories that the host may not know, and nothing else."""
    used = {part for info in host_info.values() for part in info["category"].split("/")}
    words = read(language, "main.json")
    assert set(words) == {"nodeCategories"} and set(words["nodeCategories"]) <= used
