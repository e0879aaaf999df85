"""Measurements as tables: JSON for machines, Markdown for people, with the machine and the command."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from .errors import OutputError

Row = dict[str, Any]


def machine() -> dict[str, str]:
    """What a figure depends on."""
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
    """Rows with the same keys as a Markdown table."""
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for row in rows:
        cells = [f"{row[n]:.4g}" if isinstance(row[n], float) else str(row[n]) for n in names]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def write_report(
    folder: Path, name: str, tables: Mapping[str, Sequence[Row]], details: Sequence[Row] | None = None
) -> Path:
    """Write ``<name>.json`` and ``<name>.md``, each table under its title; returns the latter. Raises OutputError."""
    command = "python -m op4ksr_core " + " ".join(sys.argv[1:])
    report: Row = {"command": command, "machine": machine(), "tables": {k: list(v) for k, v in tables.items()}}
    if details is not None:
        report["details"] = list(details)
    parts = [f"`{command}`", ", ".join(f"{k} {v}" for k, v in machine().items())]
    for title, rows in tables.items():
        parts += [f"### {title}", markdown(rows).strip()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.json").write_text(json.dumps(report, indent=2) + "\n", "utf-8")
        (folder / f"{name}.md").write_text("\n\n".join(parts) + "\n", "utf-8")
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written to ({error.strerror}); choose another folder") from error
    return folder / f"{name}.md"
