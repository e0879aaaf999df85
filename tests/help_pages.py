"""The help pages of web/docs: reading them, and the tables of inputs and outputs that the schemas demand.

python tests/help_pages.py writes those tables anew into every page (it needs a ComfyUI); the rest of a page is
written by hand. A new node needs ``web/docs/<node>/<language>.md`` first. ``<node>.md``, for every language that
has none of its own, is a copy of the English page.
"""

from __future__ import annotations

import json
import re
import tempfile
from pathlib import Path
from typing import Any

from host_support import PACK, find_host, input_specs, run_cases

PAGES = PACK / "web" / "docs"
LOCALES = PACK / "locales"

#: Headings and column titles by language.
WORDS = {
    "en": {"inputs": "Inputs", "outputs": "Outputs", "input": "input", "output": "output", "what": "what it is"},
    "zh": {"inputs": "\u8f93\u5165", "outputs": "\u8f93\u51fa", "input": "\u8f93\u5165", "output": "\u8f93\u51fa"}
    | {"what": "\u8bf4\u660e"},
}

LANGUAGES = sorted(WORDS)


def page_of(node: str, language: str) -> Path:
    return PAGES / node / f"{language}.md"


def fallback_of(node: str) -> Path:
    """For a browser in any other language."""
    return PAGES / f"{node}.md"


def translation(node: str, language: str) -> dict[str, Any]:
    """The node's entry in locales/<language>/nodeDefs.json; {} for English, which is in the schema."""
    if language == "en":
        return {}
    return json.loads((LOCALES / language / "nodeDefs.json").read_text("utf-8")).get(node, {})


def title(info: dict[str, Any], language: str) -> str:
    return translation(info["name"], language).get("display_name", info["display_name"])


def rows(info: dict[str, Any], language: str) -> dict[str, list[tuple[str, str]]]:
    """What the tables must say: (name, tooltip) of the inputs and of the outputs, in order."""
    own = translation(info["name"], language)
    inputs = [(name, options["tooltip"]) for name, (_, options) in input_specs(info).items()]
    outputs = list(zip(info["output_name"], info["output_tooltips"], strict=True))
    if own:
        inputs = [_translated(name, own["inputs"][name]) for name, _ in inputs]
        outputs = [_translated(name, own["outputs"][str(slot)]) for slot, (name, _) in enumerate(outputs)]
    return {"inputs": inputs, "outputs": outputs}


def _translated(name: str, text: dict[str, str]) -> tuple[str, str]:
    """The name as the graph file has it, then as the browser shows it."""
    return (name if name == text["name"] else f"{name}` `{text['name']}"), text["tooltip"]


def table(kind: str, entries: list[tuple[str, str]], language: str) -> str:
    words = WORDS[language]
    lines = [f"| {words[kind[:-1]]} | {words['what']} |", "| --- | --- |"]
    return "\n".join([*lines, *(f"| `{name}` | {text} |" for name, text in entries)])


def section(page: str, heading: str) -> str:
    """The text under ``## heading``; fails if there is none."""
    found = re.search(rf"^## {re.escape(heading)}\n\n(.*?)\s*(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, f"no section {heading}"
    return found.group(1)


def rewritten(page: str, info: dict[str, Any], language: str) -> str:
    """The page with the tables and the title that the schema demands."""
    page = re.sub(r"\A# .*", lambda _: f"# {title(info, language)}", page)
    for kind, entries in rows(info, language).items():
        heading = WORDS[language][kind]
        page = page.replace(
            f"## {heading}\n\n{section(page, heading)}", f"## {heading}\n\n{table(kind, entries, language)}"
        )
    return page


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        cases = run_cases(find_host(), "info_cases", Path(folder))
    for node, info in cases["object_info"].items():
        for language in LANGUAGES:
            path = page_of(node, language)
            path.write_text(rewritten(path.read_text("utf-8"), info, language), "utf-8")
        fallback_of(node).write_text(page_of(node, "en").read_text("utf-8"), "utf-8")


if __name__ == "__main__":
    main()
