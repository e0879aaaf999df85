"""A training run's TOML file -> ``TrainConfig``, every unknown key and wrong value refused by name."""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from ..errors import OptionError
from ..files import regular_file
from ..plain_text import plain
from .config import TrainConfig

#: The largest file that is read as a recipe, bytes.
LARGEST = 2**20

#: What was expected, by pydantic's names of errors; its own words stand for the rest.
_EXPECTED = {
    "greater_than_equal": "at least {ge:g}",
    "greater_than": "above {gt:g}",
    "less_than_equal": "at most {le:g}",
    "less_than": "less than {lt:g}",
    "multiple_of": "a multiple of {multiple_of:g}",
    "finite_number": "a finite number",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text in quotes",
    "bool_type": "true or false",
    "tuple_type": "a list in square brackets",
    "int_parsing_size": "a whole number of fewer digits",
    "too_long": "at most {max_length} values",
    "too_short": "at least {min_length} values",
    "literal_error": "one of {expected}",
    "dataclass_type": "a table [{key}]",
}


def read_config(path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The run that a TOML file describes.

    Raises OptionError: no such file, no TOML, unknown or missing keys, values out of range, pydantic not installed.
    """
    return parse_config(read_text(path), str(path), changes)


def read_text(path: str | Path) -> str:
    """A config file's text. Raises OptionError."""
    if (other := regular_file(Path(path))) is not None:
        raise OptionError(f"{path}: cannot be read (is {other}); name a TOML file")
    try:
        with open(path, "rb") as file:
            content = file.read(LARGEST + 1)
        if len(content) > LARGEST:
            raise OptionError(f"{path}: is larger than {LARGEST:,} bytes, which no recipe is; name a TOML file")
        return content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read ({error}); name a TOML file") from error


def parse_config(text: str, name: str = "config", changes: Sequence[str] = ()) -> TrainConfig:
    """``read_config`` of a text; ``name`` is for the errors. changes: ``section.key=value``, value as in TOML."""
    found = parse_table(text, name)
    for change in changes:
        key, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            raise OptionError(f"change {change!r}: expected KEY=VALUE, such as train.steps=500")
        new = parse_table(f"{key} = {value}", f"change {change!r}")
        for section, content in new.items():
            old = found.get(section)
            found[section] = {**old, **content} if isinstance(old, dict) and isinstance(content, dict) else content
    try:
        return _checked(found)
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from error


def parse_table(text: str, name: str) -> dict[str, Any]:
    """A TOML text as it is, unchecked; ``name`` is for the errors. Raises OptionError."""
    toml = _toml()
    try:
        return toml.loads(text)
    except RecursionError as error:
        raise OptionError(f"{name}: is nested too deeply; a recipe has tables of values and lists") from error
    except ValueError as error:  # TOMLDecodeError is one, and so is what a number of 5,000 digits raises
        raise OptionError(f"{name}: is no TOML ({plain(error)}); texts need quotes") from error


def _toml() -> Any:
    """The standard library's parser; before Python 3.11 tomli (extra: train), which is the same."""
    if sys.version_info >= (3, 11):
        import tomllib

        return tomllib
    try:
        import tomli  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise OptionError("Python 3.10 reads TOML with tomli: pip install tomli") from error
    return tomli  # pyright: ignore


def _checked(table: dict[str, Any]) -> TrainConfig:
    """The config that a table describes. As JSON, in which pydantic's strict mode takes a list for a tuple."""
    try:
        from pydantic import ValidationError
    except ImportError as error:
        raise OptionError('training configs are checked with pydantic: pip install "op4ksr[train]"') from error
    try:
        return _adapter().validate_json(json.dumps(_with_lists(TrainConfig, table), default=str))
    except RecursionError as error:
        raise OptionError("it is nested too deeply; a recipe has tables of values and lists") from error
    except ValidationError as error:
        raise OptionError(_sentence(error.errors(include_url=False)[0])) from error


@lru_cache
def _adapter() -> Any:
    """Pydantic's reader of configs, which takes a tenth of a second to make."""
    from pydantic import TypeAdapter

    return TypeAdapter(TrainConfig)


def _with_lists(section: type[Any], table: dict[str, Any]) -> dict[str, Any]:
    """The table with single values in lists where the section wants lists, as ``theta = 256``."""
    hints = get_type_hints(section)
    found = dict(table)
    for key, value in table.items():
        hint = hints.get(key)
        if is_dataclass(hint) and isinstance(value, dict):
            found[key] = _with_lists(hint, value)  # pyright: ignore
        elif get_origin(hint) is tuple and not isinstance(value, list):
            found[key] = [value]
    return found


def _sentence(error: Any) -> str:
    """One of pydantic's errors: which key, what was expected, what was got, and the remedy."""
    place = [part for part in error["loc"] if isinstance(part, str)]
    key, kind, value = plain(".".join(place)), error["type"], error["input"]
    if kind == "json_invalid":
        return "it is nested too deeply, or holds a text that is no Unicode; change it"
    if kind == "unexpected_keyword_argument":
        return f"unknown key {key!r}{_nearest(place)}"
    if kind == "missing" and place == list(error["loc"]):
        return f"key {key!r} is missing; add it"
    if kind == "missing":
        return f"{key}: expected more values, got {_shown(value)}; add what is missing"
    expected = _EXPECTED.get(kind, str(error["msg"])).format(key=key, **error.get("ctx", {}))
    return f"{key}: expected {expected}, got {_shown(value)}; {_remedy(place, kind, value)}"


def _shown(value: Any) -> str:
    """The value as it goes into a message: whole numbers may have too many digits to be written."""
    try:
        return plain(repr(value))
    except ValueError:
        return "a number of thousands of digits"


def _remedy(place: list[str], kind: str, value: Any) -> str:
    if kind == "literal_error":
        known = [str(one) for one in get_args(get_type_hints(_section(place))[place[-1]])]
        near = difflib.get_close_matches(str(value), known, 1, 0.5)
        return f"did you mean {near[0]!r}?" if near else "choose one"
    return "change it"


def _section(place: list[str]) -> type[Any]:
    """The dataclass that holds the key at that place."""
    return TrainConfig if len(place) == 1 else get_type_hints(TrainConfig)[place[0]]


def _nearest(place: list[str]) -> str:
    """The known key that is most like an unknown one: in its own section, else in any."""
    where, key = "".join(f"{part}." for part in place[:-1]), place[-1]
    names = [f.name for f in fields(_section(place))]
    if here := difflib.get_close_matches(key, names, 1, 0.6):
        return f"; did you mean {where + here[0]!r}?"
    hints = get_type_hints(TrainConfig).items()
    everywhere = [(s, f.name) for s, hint in hints if is_dataclass(hint) for f in fields(hint)]
    same = [f"{section}.{name}" for section, name in everywhere if name == key]
    like = [f"{section}.{name}" for section, name in everywhere if difflib.get_close_matches(key, [name], 1, 0.8)]
    return f"; did you mean {(same or like)[0]!r}?" if same or like else f"; known here: {', '.join(names)}"
