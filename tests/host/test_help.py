"""A help page per node and language, and none says other than the schema."""

from __future__ import annotations

import re
from typing import Any

import pytest
from help_pages import LANGUAGES, PAGES, WORDS, fallback_of, page_of, rewritten, rows, section, table, title
from host_support import PACK
from PIL import Image

pytestmark = pytest.mark.host

NODES = sorted(path.stem for path in PAGES.glob("*.md"))


def test_every_node_has_its_pages_and_no_page_is_left_over(host_info: dict[str, Any]) -> None:
    assert set(NODES) == set(host_info)
    pages = {page_of(node, language) for node in host_info for language in LANGUAGES}
    assert pages | {fallback_of(node) for node in host_info} == set(PAGES.rglob("*.md"))


@pytest.mark.parametrize("node", NODES)
def test_other_languages_get_the_english_page(node: str) -> None:
    assert fallback_of(node).read_bytes() == page_of(node, "en").read_bytes()


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_page_says_what_the_schema_says(host_info: dict[str, Any], node: str, language: str) -> None:
    """Title, and every input and output with its tooltip; python tests/help_pages.py writes them anew."""
    page, info = page_of(node, language).read_text("utf-8"), host_info[node]
    for kind, entries in rows(info, language).items():
        wanted = table(kind, entries, language).splitlines()
        assert sorted(section(page, WORDS[language][kind]).splitlines()) == sorted(wanted)
    if "search_aliases" in info:  # older hosts have longer names, and 0.3 another order
        assert page.splitlines()[0] == f"# {title(info, language)}"
        assert rewritten(page, info, language) == page


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("node", NODES)
def test_page_has_a_graph_and_remedies(node: str, language: str) -> None:
    """Besides the two tables: what it does, a typical graph, errors; and no input that does not exist."""
    page = page_of(node, language).read_text("utf-8")
    assert len(re.findall(r"^## ", page, re.MULTILINE)) == 4
    opening = page.split("## ")[0].splitlines()[1:]
    assert len("".join(opening)) > 40
    assert re.search(r"^- .+", page.rsplit("## ", 1)[1], re.MULTILINE)


def test_pictures_are_there_small_and_used() -> None:
    used = set()
    for path in PAGES.rglob("*.md"):
        for name in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", path.read_text("utf-8")):
            used.add(PAGES / name)  # the panel resolves names against docs/, whatever the language
    assert used == set((PAGES / "img").iterdir())
    for picture in used:
        assert picture.stat().st_size < 60_000 and Image.open(picture).width >= 480


def test_templates_named_on_a_page_exist() -> None:
    known = {path.stem for path in (PACK / "workflows").glob("*.json")}
    for path in PAGES.rglob("*.md"):
        named = re.findall(r"(?:[Tt]emplate|\u6a21\u677f)[:\uff1a]? ?`(\w+)`", path.read_text("utf-8"))
        assert set(named) <= known, path
