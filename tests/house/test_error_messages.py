"""The errors of the sources, and the help pages that quote them."""

from __future__ import annotations

import re

from error_messages import ROOT, messages

ALL = messages()


def test_the_sources_have_errors() -> None:
    assert len(ALL) > 100 and any(place.startswith("nodes/") for places in ALL.values() for place in places)


def test_messages_quoted_on_help_pages_exist() -> None:
    """A help page quotes errors in backticks at the start of a line, before a colon."""
    for path in sorted((ROOT / "web" / "docs").rglob("*.md")):
        page = path.read_text("utf-8").rsplit("## ", 1)[1]
        for quoted in re.findall(r"^- `([^`]+)`(?:, |\u3001)?(?:`([^`]+)`)?[:\uff1a]", page, re.MULTILINE):
            for text in filter(None, quoted):
                assert any(said(text, message) for message in ALL), (path.name, text)


def said(quoted: str, message: str) -> bool:
    """Whether all parts of a quotation (with ... between) stand in the message, in order."""
    place = 0
    for part in filter(None, (piece.strip() for piece in quoted.split("..."))):
        place = message.find(part, place)
        if place < 0:
            return False
        place += len(part)
    return True
