"""Rows of a comparison, as a TOML file or the command line lists them.

[[row]]
name = "latent 32"
vae = "runs/latent32/vae.safetensors"   # relative to the file; left out: the bundled one
detail = 0.5
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from op4ksr_core.base import CHOICES
from op4ksr_core.errors import OptionError
from op4ksr_core.plain_text import plain
from op4ksr_core.training.config_file import parse_table, read_text

from .variants import Variant

#: Keys of a row beside its name, and what each one's value is. Whole numbers are taken for numbers.
_KEYS: dict[str, type] = {
    "vae": str,
    "model": str,
    "enlarger": str,
    "detail": float,
    "repair": float,
    "fidelity": float,
    "vae_only": bool,
}
_WORDS = {str: "text in quotes", float: "a number", bool: "true or false"}


def read_rows(path: Path) -> list[Variant]:
    """The rows of a TOML file; files in it are looked for from its folder. Raises OptionError."""
    table = parse_table(read_text(path), str(path))
    rows = table.get("row")
    if set(table) != {"row"} or not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise OptionError(f"{plain(path)}: expected [[row]] tables and nothing else, got {plain(list(table))}")
    found = [_variant(row, f"{path}, row {number}", path.parent) for number, row in enumerate(rows, 1)]
    if len({variant.name for variant in found}) < len(found):
        raise OptionError(f"{plain(path)}: two rows have one name; give each its own")
    return found


def parse_row(words: Sequence[str]) -> Variant:
    """NAME KEY=VALUE ... as on a command line; values as in TOML, files without quotes. Raises OptionError."""
    name, *pairs = words
    row: dict[str, Any] = {"name": name}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise OptionError(f"--row {plain(name)}: expected KEY=VALUE, got {plain(pair)}")
        is_text = _KEYS.get(key) is str
        row[key] = value if is_text else parse_table(f"value = {value}", f"--row {plain(name)}: {key}")["value"]
    return _variant(row, f"--row {name}", Path())


def _variant(row: Mapping[str, Any], place: str, folder: Path) -> Variant:
    place = plain(place)
    if not isinstance(row.get("name"), str) or not row["name"]:
        raise OptionError(f'{place}: needs a name in quotes; add name = "..."')
    values: dict[str, Any] = {}
    for key, value in row.items():
        if key == "name":
            continue
        if key not in _KEYS:
            raise OptionError(f"{place}: unknown key {plain(key)}; known are name, {', '.join(_KEYS)}")
        kind = _KEYS[key]
        given = float(value) if kind is float and type(value) is int else value
        if type(given) is not kind:
            raise OptionError(f"{place}: {key}: expected {_WORDS[kind]}, got {plain(value)}; change it")
        values[key] = _file(key, given, folder) if kind is str else given
    try:
        return Variant(row["name"], **values)
    except OptionError as error:
        raise OptionError(f"{place}: {error}") from error


def _file(key: str, value: str, folder: Path) -> Path | str:
    if key != "enlarger":
        return folder / value
    return value if value in CHOICES else str(folder / value)
