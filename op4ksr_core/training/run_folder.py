"""A run's folder: config.toml, log.csv, samples/, checkpoints/. Every file in it is whole or not there."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import OptionError, OutputError, UnsupportedCheckpointError
from ..files import make_folder, write_whole
from ..weights.checkpoint import save_tensors

STATE = "state.safetensors"


class RunFolder:
    """Where a run writes. ``state`` is what ``--resume`` reads."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.checkpoints, self.samples = self.path / "checkpoints", self.path / "samples"
        self.state, self.log = self.checkpoints / STATE, self.path / "log.csv"

    def begin(self, config_text: str, resume: bool) -> bool:
        """Make the folder and copy the config into it; True if there is a state to resume from.

        Raises OptionError where a run is there already and ``resume`` was not asked for.
        """
        there = self.state.exists() or self.log.exists()
        if there and not resume:
            raise OptionError(f"{self.path}: holds a run already; resume it by --resume, or name another")
        for folder in (self.path, self.checkpoints, self.samples):
            make_folder(folder)
        write_whole(self.path / "config.toml", config_text)
        return resume and self.state.exists()

    def save_state(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Write what the run can be resumed from. Raises OutputError."""
        save_tensors(self.state, tensors, {"op4ksr.kind": "state", "op4ksr.state": json.dumps(facts)})

    def load_state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors on the CPU, and facts. Raises UnsupportedCheckpointError for a damaged file.

        The tensors are copies: what safetensors gives maps the file, which the next save replaces.
        """
        try:
            with safe_open(self.state, framework="pt") as opened:
                tensors = {name: opened.get_tensor(name).clone() for name in opened.keys()}  # noqa: SIM118 - no dict
                return tensors, json.loads((opened.metadata() or {})["op4ksr.state"])
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise UnsupportedCheckpointError(
                self.state, f"is no state of a run ({error}); start in another folder"
            ) from error

    def weights(self, name: str, step: int) -> Path:
        """The file of the weights after that step."""
        return self.checkpoints / f"{name}_{step:07d}.safetensors"

    def prune(self, name: str, keep: int) -> None:
        """Delete all but the last ``keep`` + 1 files of weights."""
        for old in sorted(self.checkpoints.glob(f"{name}_*.safetensors"))[: -keep - 1]:
            old.unlink()


class CsvLog:
    """log.csv: one row per interval. A resumed run's keeps the rows up to its state; the file is whole all the time.

    step: the state's. Raises OutputError, and OptionError for a file that is no such log.
    """

    def __init__(self, path: Path, columns: list[str], step: int) -> None:
        self.path, self.columns = path, columns
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(_rows(path, step) if step and path.exists() else [])
        write_whole(path, text.getvalue())

    def write(self, row: dict[str, Any]) -> None:
        """Add a row, whose keys are among the columns; those that it lacks stay empty. Raises OutputError."""
        cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(cells)
        except OSError as error:  # a full disk shows when the file is closed
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another run folder"
            ) from error


def _rows(path: Path, step: int) -> list[dict[str, str]]:
    """A log's rows up to a step, without a last one that was cut short."""
    try:
        text = path.read_text("utf-8")
        rows = csv.DictReader(text[: text.rfind("\n") + 1].splitlines())
        return [row for row in rows if int(row["step"]) <= step]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path}: is no log of a run ({error}); move it to another place") from error


def pack_optimizer(optimizer: torch.optim.Optimizer, prefix: str) -> dict[str, Tensor]:
    """An optimizer's state as named tensors."""
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{prefix}.{i}.{name}": value.detach() if isinstance(value, Tensor) else torch.tensor(float(value))
        for i, entry in state.items()
        for name, value in entry.items()
    }


def unpack_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], prefix: str) -> None:
    """The reverse of ``pack_optimizer``; without such tensors the optimizer stays as it is."""
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith(prefix + "."):
            index, _, key = name[len(prefix) + 1 :].partition(".")
            state.setdefault(int(index), {})[key] = tensor
    if state:
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
