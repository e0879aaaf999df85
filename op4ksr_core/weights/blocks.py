"""Block numbers in tensor names. How many blocks a model has is read off them, so they are checked first:
``double_blocks.100000000.x`` in a file of ten tensors must not build a hundred million blocks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Lists of blocks in a VAE, a Flux transformer or an enlarger: BFL's names and ours, then diffusers'.
_LISTS = (
    "double_blocks|single_blocks|down|up|block|body"
    "|transformer_blocks|single_transformer_blocks|down_blocks|up_blocks|resnets"
)
_NUMBERED = re.compile(rf"(?:^|\.)(?:{_LISTS})\.([^.]*)(?=\.)")


def numbering_fault(names: Iterable[str]) -> str | None:
    """What is wrong with the block numbers, or None where every list runs 0, 1, 2 ... without a gap.

    Decimal digits without leading zeros only; no number is converted, however long it is.
    """
    lists: dict[str, set[str]] = {}
    for name in names:
        for match in _NUMBERED.finditer(name):
            lists.setdefault(name[: match.start(1) - 1], set()).add(match[1])
    for name, numbers in sorted(lists.items()):
        expected = {str(i) for i in range(len(numbers))}
        if numbers != expected:
            missing = min(expected - numbers, key=int)
            extra = min(numbers - expected, key=lambda number: (len(number), number))
            return f"{name}.{missing} is missing, but there is {name}.{extra[:20]}{'...' * (len(extra) > 20)}"
    return None


def count_blocks(names: Iterable[str], blocks: str) -> int:
    """How many blocks a list has, by its full name (``encoder.down.0.block``); the numbering is sound."""
    return len({name[len(blocks) + 1 :].partition(".")[0] for name in names if name.startswith(f"{blocks}.")})
