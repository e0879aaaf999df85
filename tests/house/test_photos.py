"""The list of photographs to train on: every row whole, and the sums that its page tells."""

from __future__ import annotations

import csv
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "configs" / "photos"
CARD = ROOT / "op4ksr_core" / "bundled" / "models" / "README.md"
COLUMNS = ["name", "blob", "repository", "path", "commit", "author", "licence", "stated in", "squares"]


def listed() -> list[dict[str, str]]:
    with (FOLDER / "photos.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def test_the_list_of_photos_is_whole_and_its_page_counts_right() -> None:
    rows = listed()
    assert list(rows[0]) == COLUMNS
    for row in rows:
        assert all(row[column] for column in COLUMNS), row
        assert re.fullmatch(r"[0-9a-f]{40}", row["blob"]) and re.fullmatch(r"[0-9a-f]{40}", row["commit"])
        assert re.fullmatch(r"[\w.-]+", row["name"]) and re.fullmatch(r"[\w.-]+/[\w.-]+", row["repository"])
        assert row["licence"] in ("CC0", "public domain")
    assert len({row["name"].casefold() for row in rows}) == len({row["blob"] for row in rows}) == len(rows)
    page = (FOLDER / "README.md").read_text("utf-8")
    assert f"lists {len(rows)} photographs" in page
    assert f"{sum(int(row['squares']) for row in rows)} squares" in page
    assert {row["repository"] for row in rows} == set(re.findall(r"^- \*\*(.+?)\*\*", page, re.MULTILINE))


def test_the_bundled_weights_card_names_every_photo() -> None:
    card = CARD.read_text("utf-8")
    for repository in {row["repository"] for row in listed()}:
        names = {row["name"] for row in listed() if row["repository"] == repository}
        (line,) = re.findall(rf"^- \[{re.escape(repository)}\]\(https://github.com/.+?\): (.+)\.$", card, re.MULTILINE)
        assert set(line.split(", ")) == names
    assert f"**{len(listed())} photographs**" in card
    assert f"{sum(int(row['squares']) for row in listed()):,} squares" in card
