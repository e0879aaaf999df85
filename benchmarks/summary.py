"""Rows of photos as tables: means by method and by set, and on which share of the photos a method is the better one."""

from __future__ import annotations

from collections.abc import Sequence

from .methods import BASE
from .scores import LESS
from .tables import Row

#: Scores that a method can be better in.
SCORES = ("psnr", "ssim", "gmsd", "haarpsi")

#: What gains are counted over, and of which scores.
PLAINEST, GAINS = "bicubic", ("psnr", "haarpsi")

#: What tells rows apart, and is no score.
_HEAD = ("photo", "set", "degradation")

Key = tuple[str, str, str]


def photo_of(row: Row) -> Key:
    """Photos of several sets may have one name."""
    return row["set"], row["photo"], row["degradation"]


def names(rows: Sequence[Row]) -> list[str]:
    """The methods, in order."""
    return list(dict.fromkeys(row["method"] for row in rows))


def complete(rows: Sequence[Row]) -> list[Row]:
    """Rows of the photos that every method has scores of: means of different photos cannot be compared."""
    everyone = set(names(rows))
    own: dict[Key, set[str]] = {}
    for row in rows:
        own.setdefault(photo_of(row), set()).add(row["method"])
    return [row for row in rows if own[photo_of(row)] == everyone]


def by_method(rows: Sequence[Row], against: str = BASE) -> list[Row]:
    """A row per method: means of all scores, what some gain over bicubic's, and shares of photos.

    A share is of the photos on which the method is better than ``against`` in that score.
    """
    held = {photo_of(row): row for row in rows if row["method"] == against}
    plain = means([row for row in rows if row["method"] == PLAINEST] or rows[:0])
    table: list[Row] = []
    for name in names(rows):
        own = [row for row in rows if row["method"] == name]
        row: Row = {"method": name} | {k: v for k, v in own[0].items() if k not in (*_HEAD, "method") and _is_word(v)}
        row |= {"photos": len(own)} | means(own)
        if plain:
            row |= {f"{key} gain": row[key] - plain[key] for key in GAINS}
        if held:
            row |= {f"{key} better": None if name == against else _share(own, held, key) for key in SCORES}
        table.append(row)
    return table


def _is_word(value: object) -> bool:
    return isinstance(value, str)


def means(rows: Sequence[Row]) -> Row:
    """Of all numbers; None where a photo has none."""
    keys = [key for key, value in (rows[0] if rows else {}).items() if key not in _HEAD and not isinstance(value, str)]
    found: Row = {}
    for key in keys:
        values = [row[key] for row in rows if row[key] is not None]
        found[key] = sum(values) / len(values) if values else None
    return found


def _share(own: Sequence[Row], held: dict[Key, Row], key: str) -> float:
    better = [
        (row[key] < held[photo_of(row)][key]) == (key in LESS) for row in own if row[key] != held[photo_of(row)][key]
    ]
    return sum(better) / len(own)


def by_set(rows: Sequence[Row], score: str = "psnr") -> list[Row]:
    """A row per method, a column per set: the mean of one score, and over all photos."""
    sets = list(dict.fromkeys(row["set"] for row in rows))
    table: list[Row] = []
    for name in names(rows):
        own = [row for row in rows if row["method"] == name]
        row: Row = {"method": name}
        for group in sets:
            values = [r[score] for r in own if r["set"] == group]
            row[group] = sum(values) / len(values) if values else None
        table.append(row | {"all": sum(r[score] for r in own) / len(own)})
    return table


def tables_of(rows: Sequence[Row], title: str) -> dict[str, list[Row]]:
    """The tables of one report, for each damage: by method, and PSNR and HaarPSI by set."""
    tables: dict[str, list[Row]] = {}
    for damage in dict.fromkeys(row["degradation"] for row in rows):
        own = complete([row for row in rows if row["degradation"] == damage])
        if not own:
            continue
        tables[f"{title}, {damage}"] = by_method(own)
        if len({row["set"] for row in own}) > 1:
            for score in ("psnr", "haarpsi"):
                tables[f"{title}, {damage}: {score} by set"] = by_set(own, score)
    return tables
