"""Which values the numbers of a config may have, as types: pydantic checks them where a file is read."""

from __future__ import annotations

from typing import Annotated, Any


class Within:
    """Limits of a number (ge, gt, le, lt, multiple_of) or of a list's length (min_length, max_length).

    Stands in ``Annotated`` where pydantic's own ``Field`` would, so that this package is imported without pydantic.
    """

    def __init__(self, **limits: float) -> None:
        self.limits = limits

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return {**handler(source), **self.limits}


#: Upper limits are our choice: above what any machine of today could do, and below what a library cannot count.
#: Counts of steps, pictures and the like; of a seed; of pictures at once; of processes, threads, heads, layers.
Natural = Annotated[int, Within(ge=0, le=10**9)]
Count = Annotated[int, Within(ge=1, le=10**9)]
Seed = Annotated[int, Within(ge=0, le=2**63 - 1)]
AtOnce = Annotated[int, Within(ge=1, le=65_536)]
Few = Annotated[int, Within(ge=1, le=1024)]
FewOrNone = Annotated[int, Within(ge=0, le=1024)]
#: Channels of a layer.
Width = Annotated[int, Within(ge=1, le=65_536)]
#: Of a picture's side, px: one token at least; and whole tokens.
Side = Annotated[int, Within(ge=32, le=16_384)]
TokenSide = Annotated[int, Within(ge=32, le=16_384, multiple_of=32)]
#: Of a grid's side, tokens.
Tokens = Annotated[int, Within(ge=1, le=16_384)]

Amount = Annotated[float, Within(ge=0, le=1e6)]
#: A learning rate.
Rate = Annotated[float, Within(ge=0, le=10)]
Positive = Annotated[float, Within(gt=0, le=1e6)]
Share = Annotated[float, Within(ge=0, le=1)]
Decay = Annotated[float, Within(ge=0, lt=1)]
