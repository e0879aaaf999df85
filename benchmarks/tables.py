"""Measurements as tables: JSON for machines, Markdown for people, with the machine and the command."""

from __future__ import annotations

import json
import os
import platform
import shlex
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path, PureWindowsPath
from typing import Any

from op4ksr_core.files import make_folder, write_whole
from op4ksr_core.version import __version__

Row = dict[str, Any]
#: Tables by title.
Tables = dict[str, list[Row]]

#: The output's side over the input's, where a benchmark names the output's sides.
FACTOR = 4


def machine() -> dict[str, str]:
    """What a figure depends on: processor, threads, GPU, versions and system, as words."""
    import torch  # here: what uses the tables alone runs without it

    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "system": platform.system(),
    }


def means(rows: Sequence[Row], key: str = "method") -> list[Row]:
    """One row per method: the mean of every score, and the number of photos."""
    table: list[Row] = []
    for name in dict.fromkeys(row[key] for row in rows):
        chosen = [row for row in rows if row[key] == name]
        scores = [k for k, v in chosen[0].items() if isinstance(v, float)]
        table.append({key: name, "photos": len(chosen)})
        table[-1] |= {k: sum(row[k] for row in chosen) / len(chosen) for k in scores}
    return table


def markdown(rows: Sequence[Row]) -> str:
    """Rows with the same keys as a Markdown table; None is an empty cell."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row[name]) for name in names) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def without_places(words: Sequence[str]) -> str:
    """A command's words, every path in them cut to its last name: where it lay on one machine is nobody's concern."""
    return shlex.join(_without_place(word) for word in words)


def _without_place(word: str) -> str:
    option, equals, value = word.rpartition("=") if word.startswith("-") else ("", "", word)
    return option + equals + (PureWindowsPath(value).name or value)  # Windows' rules know both separators


def write_report(
    folder: Path,
    name: str,
    tables: Mapping[str, Sequence[Row]],
    details: Sequence[Row] | None = None,
    command: str | None = None,
) -> Path:
    """Write ``<name>.json`` and ``<name>.md``, each table under its title; returns the latter. Raises OutputError.

    Both hold the command (default: this process's, paths cut to their last names), the pack's version, the day (UTC)
    and the machine. Each file is whole whenever it is read.
    """
    report: Row = {
        "kind": name,
        "command": command or "python -m benchmarks " + without_places(sys.argv[1:]),
        "version": __version__,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "machine": machine(),
        "tables": {title: list(rows) for title, rows in tables.items()},
    }
    page = "\n\n".join(paragraphs(report, "###")) + "\n"
    if details is not None:
        report["details"] = list(details)
    write_text(folder / f"{name}.json", json.dumps(report, indent=2) + "\n")
    write_text(folder / f"{name}.md", page)
    return folder / f"{name}.md"


def write_text(path: Path, text: str) -> None:
    """Write a text, whole, with LF on every system; its folder is made. Raises OutputError."""
    make_folder(path.parent)
    write_whole(path, text)


def setting_rows(values: Mapping[str, str]) -> list[Row]:
    """A table of settings."""
    return [{"setting": name, "value": value} for name, value in values.items()]


def paragraphs(report: Row, heading: str) -> list[str]:
    """A report as paragraphs of Markdown: how it was made, and each table under ``heading`` and its title.

    A report without its version or day says so.
    """
    version, date = report.get("version"), report.get("date")
    made = f"op4ksr {version}, {date}" if version else "version and day not recorded"
    parts = [f"`{report['command']}`", ", ".join(f"{k} {v}" for k, v in report["machine"].items()), made]
    for title, rows in report["tables"].items():
        parts += [f"{heading} {title}", markdown(rows).strip()]
    return parts
