"""Which values the numbers of a configuration may have, as data: said in words, and checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from ..errors import OptionError


class Range(NamedTuple):
    """Values that a number may have, in words and as a question. No range holds NaN."""

    words: str
    holds: Callable[[float], bool]


FROM_0 = Range("at least 0", lambda value: value >= 0)
FROM_1 = Range("at least 1", lambda value: value >= 1)
FROM_32 = Range("at least 32 px (one token)", lambda value: value >= 32)
ABOVE_0 = Range("above 0", lambda value: value > 0)
SHARE = Range("0 to 1", lambda value: 0 <= value <= 1)
DECAY = Range("0 to less than 1", lambda value: 0 <= value < 1)


def check_ranges(section: str, config: object, ranges: Mapping[Range, Sequence[str]]) -> None:
    """Raise OptionError unless every named number of a configuration's section lies in its range.

    A name may stand for a tuple of numbers, which must not be empty; each of them is checked.
    """
    for wanted, names in ranges.items():
        for name in names:
            value = getattr(config, name)
            values = value if isinstance(value, tuple) else (value,)
            if not values or not all(map(wanted.holds, values)):
                raise OptionError(f"{section}.{name}: expected {wanted.words}, got {value}; change it")
