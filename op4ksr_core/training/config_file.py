"""A training run's TOML file -> ``TrainConfig``, every unknown key and wrong value refused by name."""

from __future__ import annotations

import difflib
import sys
import types
from collections.abc import Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..errors import OptionError
from .config import TrainConfig

Config = TypeVar("Config")


def read_config(path: str | Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The run that a TOML file describes. Raises OptionError: no such file, bad TOML, wrong keys or values."""
    return parse_config(read_text(path), str(path), changes)


def read_text(path: str | Path) -> str:
    """A config file's text. Raises OptionError."""
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: cannot be read ({error}); name a TOML file") from error


def parse_config(text: str, name: str = "config", changes: Sequence[str] = ()) -> TrainConfig:
    """``read_config`` of a text; ``name`` is for the errors. changes: ``section.key=value``, value as in TOML."""
    found = _table(text, name)
    for change in changes:
        key, equals, value = (part.strip() for part in change.partition("="))
        if not equals:
            raise OptionError(f"change {change!r}: expected KEY=VALUE, such as train.steps=500")
        new = _table(f"{key} = {value}", f"change {change!r}")
        for section, content in new.items():
            old = found.get(section)
            found[section] = {**old, **content} if isinstance(old, dict) and isinstance(content, dict) else content
    try:
        return build(TrainConfig, found)
    except OptionError as error:
        raise OptionError(f"{name}: {error}") from error


def _table(text: str, name: str) -> dict[str, Any]:
    toml = _toml()
    try:
        return toml.loads(text)
    except toml.TOMLDecodeError as error:
        raise OptionError(f"{name}: is no TOML ({error}); texts need quotes") from error


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


def build(cls: type[Config], table: dict[str, Any], where: str = "") -> Config:
    """A dataclass from a table of its fields' names. Raises OptionError, with the nearest right name."""
    hints = get_type_hints(cls)
    names = [f.name for f in fields(cls)]  # pyright: ignore
    for key in table:
        if key not in names:
            raise OptionError(f"unknown key {where + key!r}{_nearest(key, where, names)}")
    missing = [f.name for f in fields(cls) if f.name not in table and _required(f)]  # pyright: ignore
    if missing:
        raise OptionError(f"key {where + missing[0]!r} is missing; add it")
    return cls(**{key: _value(hints[key], value, where + key) for key, value in table.items()})


def _required(f: Any) -> bool:

    return f.default is MISSING and f.default_factory is MISSING


def _nearest(key: str, where: str, names: list[str]) -> str:
    here = difflib.get_close_matches(key, names, 1, 0.6)
    if here:
        return f"; did you mean {where + here[0]!r}?"
    elsewhere = {f"{section}.{name}": name for section, name in _all_keys()}
    found = [full for full, name in elsewhere.items() if name == key]
    found = found or [full for full, name in elsewhere.items() if difflib.get_close_matches(key, [name], 1, 0.8)]
    return f"; did you mean {found[0]!r}?" if found else f"; known here: {', '.join(names)}"


def _all_keys() -> list[tuple[str, str]]:
    hints = get_type_hints(TrainConfig)
    sections = [(name, hint) for name, hint in hints.items() if is_dataclass(hint)]
    return [(section, f.name) for section, hint in sections for f in fields(hint)]


def _value(hint: Any, value: Any, key: str) -> Any:
    """``value`` as TOML gave it -> what the field wants; OptionError where it does not fit."""
    origin, args = get_origin(hint), get_args(hint)
    if is_dataclass(hint):
        if not isinstance(value, dict):
            raise OptionError(f"{key}: expected a table [{key}], got {value!r}")
        return build(hint, value, key + ".")  # pyright: ignore
    if origin is Literal:
        if value not in args:
            near = difflib.get_close_matches(str(value), [str(a) for a in args], 1, 0.5)
            raise OptionError(
                f"{key}: expected one of {', '.join(map(repr, args))}; got {value!r}"
                + (f"; did you mean {near[0]!r}?" if near else "")
            )
        return value
    if origin in (Union, types.UnionType):
        return _value(next(a for a in args if a is not type(None)), value, key)
    if origin is tuple:
        return _tuple(args, value, key)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise OptionError(f"{key}: expected {hint.__name__}, got {value!r}")
    return value


def _tuple(args: tuple[Any, ...], value: Any, key: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        value = [value]
    if args[-1] is not Ellipsis and len(args) != len(value):
        raise OptionError(f"{key}: expected {len(args)} values, got {value!r}")
    kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
    return tuple(_value(kind, item, key) for kind, item in zip(kinds, value, strict=True))
