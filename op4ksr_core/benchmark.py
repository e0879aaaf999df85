"""Measurements as tables: JSON for machines, Markdown for people, with the machine and the command."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .autoencoder import AutoEncoder
from .color import back_project
from .errors import OptionError, OutputError
from .flux import Flux
from .image_io import IMAGE_SUFFIXES, load_image
from .metrics import fidelity_scores, load_piq
from .one_step import OneStepOptions, upscale
from .resize import Target, resize

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


def quality(photos: Sequence[Path], flux: Flux, autoencoder: AutoEncoder, factor: int = 4) -> list[Row]:
    """Scores of each photo (and the mean) by method: shrink by ``factor``, enlarge, compare.

    The LR picture is bicubic and rounded to 8 bit; sides are cut to multiples of the factor. Methods:
    bicubic, bicubic + back-projection, VAE only, full; the last two with the default options, and
    full with fidelity 0 besides.
    """
    if not photos:
        raise OptionError(f"benchmark quality: no pictures found (looked for {', '.join(IMAGE_SUFFIXES)})")
    load_piq()
    methods = _methods(flux, autoencoder, factor)
    rows: list[Row] = []
    for path in photos:
        high = load_image(path).image
        height, width = (length // factor * factor for length in high.shape[-2:])
        high = high[..., :height, :width]
        low = resize(high, height // factor, width // factor).clamp(0, 1).mul(255).round().div(255)
        for name, method in methods.items():
            rows.append({"photo": path.stem, "set": path.parent.name, "method": name})
            rows[-1] |= fidelity_scores(method(low), high)
    return rows


def _methods(flux: Flux, autoencoder: AutoEncoder, factor: int) -> dict[str, Callable[[Tensor], Tensor]]:
    options = OneStepOptions(target=Target(scale=factor))

    def bicubic(low: Tensor) -> Tensor:
        return resize(low, low.shape[-2] * factor, low.shape[-1] * factor).clamp(0, 1)

    return {
        "bicubic": bicubic,
        "bicubic + back-projection": lambda low: back_project(bicubic(low), low, 1.0).clamp(0, 1),
        "VAE only": lambda low: upscale(low, None, autoencoder, replace(options, vae_only=True)),
        "full": lambda low: upscale(low, flux, autoencoder, options),
        "full, fidelity 0": lambda low: upscale(low, flux, autoencoder, replace(options, fidelity=0.0)),
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
