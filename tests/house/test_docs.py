"""The pages: every relative link leads somewhere, every page is in the index, the README stays short."""

from __future__ import annotations

import argparse
import json
import re
import shlex
from pathlib import Path

from house.test_import_direction import ROOMS

from benchmarks.commands.main import build_parser as benchmarks
from op4ksr_core.cli.main import build_parser as library
from op4ksr_core.one_step import UNPROJECTED

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
PAGES += [*(ROOT / "op4ksr_core" / "bundled").rglob("*.md"), *(ROOT / "configs").rglob("*.md")]


def anchors(page: Path) -> set[str]:
    """Of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text("utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken(page: Path) -> list[str]:
    """Links of a page to files or headings that are not there."""
    found: list[str] = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text("utf-8")):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            found.append(f"{page.relative_to(ROOT)}: {link}")
    return found


def test_every_link_leads_somewhere() -> None:
    assert len(PAGES) > 15
    assert [link for page in PAGES for link in broken(page)] == []


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text("utf-8")
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"({name})" not in index} == set()


def test_the_readme_is_read_in_five_minutes() -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    assert len(text.splitlines()) <= 80 and len(text.split()) <= 800


def test_commands_of_the_pages_are_understood() -> None:
    """Options and names of every ``op4ksr`` and ``python -m benchmarks`` line, by the parsers themselves."""
    reports = [str(json.loads(path.read_text("utf-8")).get("command", "")) for path in REPORTS]
    texts = [page.read_text("utf-8") for page in PAGES] + reports
    found = [line for text in texts for line in commands(text)]
    assert len(found) > 40
    unread = [line for line in found if not is_understood(line)]
    assert unread == []


def test_every_command_has_its_help() -> None:
    """A stray per cent sign in a help text breaks all of it."""
    for parser in (library(), benchmarks()):
        parsers = [
            parser,
            *(p for a in parser._actions if isinstance(a, argparse._SubParsersAction) for p in a.choices.values()),
        ]
        assert len(parsers) > 8 and all(one.format_help() for one in parsers)


REPORTS = sorted((ROOT / "docs" / "reports").glob("*.json"))


def commands(text: str) -> list[str]:
    """Command lines in a page: whole lines of its blocks, and quotations; continued lines joined, comments left out."""
    joined = text.replace("\\\n", " ")
    pattern = r"(?:^|`|\$ )((?:op4ksr|python -m op4ksr_core|python -m benchmarks) (?!\d|COMMAND)[^`\n]+)"
    lines = re.findall(pattern, joined, re.MULTILINE)
    return [re.split(r"\s#|\s\|\s", line)[0].strip() for line in lines]


def is_understood(line: str) -> bool:
    """Whether the parser takes the line; what stands for something else (CAPITALS, [optional], ...) is taken too."""
    line = re.sub(r"\[[^\]]*\]|\.\.\.|<[^>]*>", " ", line).replace("FILE PHOTO", "FILE")
    words = shlex.split(line.removeprefix("python -m "))
    if len(words) < 3 and not words[-1].startswith("-"):
        return words[1] in {"demo", *KINDS}
    parser = (library if words[0].startswith("op4ksr") else benchmarks)()
    try:
        parser.parse_args(words[1:])
    except SystemExit as ended:
        return ended.code == 0
    return True


def names_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for action in parser._actions if action.choices for name in action.choices}


KINDS = names_of(library()) | names_of(benchmarks())


def test_the_picture_of_the_rooms_is_the_direction_that_is_tested() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    order = {name: place for place, name in enumerate(ROOMS)} | {"bottom": -1, "nodes": 99, "benchmarks": 99}
    graph = re.findall(r"^  (\w+)(?:\[[^\]]*\])? --> (.+)$", text.split("```mermaid")[1].split("```")[0], re.MULTILINE)
    arrows = [(left, re.sub(r"\[.*", "", right).strip()) for left, many in graph for right in many.split(" & ")]
    assert len(arrows) >= 15
    assert [pair for pair in arrows if order[pair[0]] <= order[pair[1]]] == []
    assert {name for pair in arrows for name in pair} >= set(ROOMS) - {
        "plain_text",
        "errors",
        "version",
        "bundled",
        "files",
        "signals",
        "machine",
        "__main__",
    }


def test_paths_that_pages_name_are_there() -> None:
    """Backticked paths of this repository."""
    top = "op4ksr_core|nodes|benchmarks|tests|configs|workflows|locales|web|docs"
    for page in PAGES:
        for name in re.findall(rf"`((?:{top})/[\w/.*-]+)`", page.read_text("utf-8")):
            there = "OP4KSR_Name" in name or list(ROOT.glob(name.rstrip("/")))
            assert there, f"{page.relative_to(ROOT)}: {name}"


def test_pages_say_from_which_repair_nothing_is_projected() -> None:
    for page in ("command_line", "method"):
        assert f"to 0 at {UNPROJECTED:g}" in (ROOT / "docs" / f"{page}.md").read_text("utf-8").replace(
            "at repair ", "at "
        )
