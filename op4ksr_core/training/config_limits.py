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


#: Whole numbers.
Natural = Annotated[int, Within(ge=0)]
Count = Annotated[int, Within(ge=1)]
#: Of a picture's side, px: one token at least; and whole tokens.
Side = Annotated[int, Within(ge=32)]
TokenSide = Annotated[int, Within(ge=32, multiple_of=32)]

Amount = Annotated[float, Within(ge=0)]
Positive = Annotated[float, Within(gt=0)]
Share = Annotated[float, Within(ge=0, le=1)]
Decay = Annotated[float, Within(ge=0, lt=1)]

Counts = Annotated[tuple[Count, ...], Within(min_length=1)]
