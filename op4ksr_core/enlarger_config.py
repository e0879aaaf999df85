"""What a run of kind "enlarger" is told beside the rest: geometry, and how factors are drawn."""

from __future__ import annotations

from dataclasses import dataclass

from .enlarger import EnlargerParams
from .errors import OptionError
from .ranges import FROM_0, FROM_1, SHARE, check_ranges


@dataclass(frozen=True)
class EnlargerConfig:
    """A new enlarger's geometry (with ``model.start`` the file has its own) and its batches.

    A batch has one factor, drawn with the weights ``often``. ``degradation.clean`` is the share of pictures that are
    only shrunk; ``simple`` is the share, of the others, that get one round of damage after shrinking in place of the
    second-order scheme before it. ``degradation.factor`` has no say.
    """

    width: int = 48
    blocks: int = 8
    factors: tuple[int, ...] = (2, 3, 4)
    often: tuple[float, ...] = (1.0, 1.0, 4.0)
    simple: float = 0.5

    def __post_init__(self) -> None:
        check_ranges("enlarger", self, {FROM_1: ("width", "blocks"), FROM_0: ("often",), SHARE: ("simple",)})
        if len(self.often) != len(self.factors) or not sum(self.often):
            raise OptionError(
                f"enlarger.often: expected a weight for each of the factors {self.factors}, not all of them 0, "
                f"got {self.often}; change one of the two"
            )
        try:
            self.params()
        except ValueError as error:
            raise OptionError(f"enlarger.factors: {error}; change them") from error

    def params(self) -> EnlargerParams:
        """The geometry of a new model."""
        return EnlargerParams(self.width, self.blocks, self.factors)

    def check_crop(self, name: str, side: int) -> None:
        """Raise OptionError unless a crop of that side, px, is a whole number of input pixels at the largest factor."""
        if side % self.factors[-1]:
            raise OptionError(
                f"data.{name}: expected a multiple of {self.factors[-1]} px, the largest of enlarger.factors, "
                f"got {side}; change one of the two"
            )
