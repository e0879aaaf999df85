"""docs/errors.md against the sources: every message is in the table, none is left over, each has a remedy."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from error_table import ROOT, messages, rows

ALL = messages()


def test_the_sources_have_errors() -> None:
    assert len(ALL) > 100 and any(place.startswith("nodes/") for places in ALL.values() for place in places)


def test_every_message_is_in_the_table_and_no_other() -> None:
    """python tests/error_table.py prints the rows that are missing."""
    listed = [message for message, _ in rows()]
    assert len(listed) == len(set(listed))
    assert set(listed) == set(ALL)


def test_every_message_has_a_remedy() -> None:
    assert [message for message, remedy in rows() if not re.search(r"\w{3}.*[.?]$", remedy)] == []


@pytest.mark.parametrize("path", sorted((ROOT / "web" / "docs").rglob("*.md")), ids=lambda path: path.stem)
def test_messages_quoted_on_help_pages_exist(path: Path) -> None:
    """A help page quotes errors in backticks at the start of a line, before a colon."""
    page = path.read_text("utf-8").rsplit("## ", 1)[1]
    for quoted in re.findall(r"^- `([^`]+)`(?:, |\u3001)?(?:`([^`]+)`)?[:\uff1a]", page, re.MULTILINE):
        for text in filter(None, quoted):
            assert any(said(text, message) for message in ALL), text


def said(quoted: str, message: str) -> bool:
    """Whether all parts of a quotation (with ... between) stand in the message, in order."""
    place = 0
    for part in filter(None, (piece.strip() for piece in quoted.split("..."))):
        place = message.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True
