"""log.csv: one row per interval of a run."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path
from typing import Any

from ..errors import OptionError, OutputError
from ..files import regular_file, write_whole
from ..plain_text import plain

#: The largest file that is read as a log, bytes: millions of rows.
_LARGEST = 2**30


class CsvLog:
    """log.csv: one row per interval. A resumed run's keeps the rows up to its state; the file is whole all the time.

    step: the state's; count: how many rows it says there are up to it, None where it does not say. Raises OutputError,
    and OptionError for a file that is no such log.
    """

    def __init__(self, path: Path, columns: list[str], step: int, count: int | None = None) -> None:
        self.path, self.columns = path, columns
        text = io.StringIO()
        there = bool(step) and os.path.lexists(path)
        rows = _rows(path, step) if there else []
        if count is not None and there and len(rows) != count:
            raise _no_log(path, f"it has {len(rows)} rows up to step {step}, and the run had {count}")
        #: How many rows there are.
        self.count = len(rows)
        writer = csv.DictWriter(text, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_whole(path, text.getvalue())

    def write(self, row: dict[str, Any]) -> None:
        """Add a row, whose keys are among the columns; those that it lacks stay empty. Raises OutputError.

        It is on the disk afterwards: a state that is saved later finds its row after a power cut, too.
        """
        cells = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}
        try:
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerow(cells)
                file.flush()
                os.fsync(file.fileno())
            self.count += 1
        except OSError as error:  # a full disk
            raise OutputError(
                f"{self.path}: cannot be written ({error.strerror}); choose another run folder"
            ) from error


def _rows(path: Path, step: int) -> list[dict[str, str]]:
    """A log's rows up to a step, without a last one that was cut short. Raises OptionError."""
    if (other := regular_file(path)) is not None:
        raise _no_log(path, other)
    try:
        if path.stat().st_size > _LARGEST:
            raise _no_log(path, f"{path.stat().st_size:,} bytes")
        text = path.read_text("utf-8-sig")
        header, *lines = list(csv.reader(text[: text.rfind("\n") + 1].splitlines(), strict=True)) or [[]]
    except (OSError, ValueError, csv.Error) as error:
        raise _no_log(path, str(error)) from error
    if header[:1] != ["step"] or len(set(header)) < len(header):
        raise _no_log(path, f"its first line is {plain(','.join(header), 80)!r}")
    kept: list[dict[str, str]] = []
    for number, cells in enumerate(lines, 2):
        if len(cells) != len(header) or not _is_count(cells[0]) or not all(map(_is_cell, cells)):
            raise _no_log(path, f"line {number} is {plain(','.join(cells), 80)!r}")
        if int(cells[0]) <= step:
            kept.append(dict(zip(header, cells, strict=True)))
    return kept


def _is_count(cell: str) -> bool:
    return cell.isascii() and cell.isdecimal() and len(cell) < 16


def _is_cell(cell: str) -> bool:
    """A number, of any kind, or nothing."""
    try:
        float(cell or 0)
    except ValueError:
        return False
    return len(cell) < 64


def _no_log(path: Path, reason: str) -> OptionError:
    return OptionError(f"{path}: is no log of a run ({reason}); move it to another place")
