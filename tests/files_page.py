"""Writes the tables of docs/files.md from the code that decides them: ``python tests/files_page.py``."""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "files.md"
sys.path.insert(0, str(ROOT))

from op4ksr_core.images.formats import FORMATS, Written  # noqa: E402


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_table() -> str:
    rows = [
        (found.name, ", ".join(found.endings), found.depth, found.alpha, found.colors, _known_by(found.starts))
        for found in FORMATS
    ]
    return table(("format", "endings", "depth", "transparency", "colours", "known by"), rows)


def _known_by(starts: tuple[bytes, ...]) -> str:
    return "its content" if starts else "its ending"


def written_table() -> str:
    rows = [
        (
            found.name,
            " or ".join(map(str, found.written.bits)),
            "kept" if found.written.alpha else "left out, and that is told",
            _largest(found.written),
        )
        for found in FORMATS
        if found.written is not None
    ]
    return table(("format", "bits per colour", "transparency", "largest picture"), rows)


def _largest(written: Written) -> str:
    if written.room is not None:
        return f"{written.room / 1e9:.2f} GB of pixels"
    return f"{written.side:,} px on a side"


def page() -> str:
    """The page as it should be."""
    text = PAGE.read_text("utf-8")
    for name, made in (("read", read_table()), ("written", written_table())):
        text = re.sub(
            rf"(<!-- {name}: made by tests/files_page.py -->\n).*?(\n<!-- end -->)",
            lambda found, made=made: found[1] + made + found[2],
            text,
            flags=re.DOTALL,
        )
    return text


if __name__ == "__main__":
    PAGE.write_text(page(), "utf-8")
