"""Sets of pictures for benchmarks: ``<set>/LR`` and ``<set>/HR``, paired by file name; either may be missing.

Syn sets have both: HR pictures and their seeded degradation, which ``make_set`` writes. Real ones (RealSquare,
RealVary) have LR pictures only, of any aspect. The layout is our decision; the paper's own sets are not public.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from op4ksr_core.errors import ImageError, OptionError, OutputError
from op4ksr_core.files import make_folder, write_whole
from op4ksr_core.images.io import Picture, load_image, save_image, to_8_bit
from op4ksr_core.images.paths import gather, output_paths
from op4ksr_core.training.data.degradation import Degradation, degrade

LOW, HIGH = "LR", "HR"

#: The file in a set that tells how it was made.
RECIPE = "set.json"

OnPicture = Callable[[str], None]


@dataclass(frozen=True)
class PictureSet:
    """``lows`` and ``highs`` in one order; highs empty for real pictures, lows empty where only HR is there."""

    name: str
    lows: tuple[Path, ...]
    highs: tuple[Path, ...]

    def first(self, count: int | None) -> PictureSet:
        """The first ``count`` pictures by name; None: all."""
        return PictureSet(self.name, self.lows[:count], self.highs[:count])


@dataclass(frozen=True)
class Pair:
    """low (1, 3, h, w), high (1, 3, h * factor, w * factor) or None, in [0, 1]."""

    name: str
    low: Tensor
    high: Tensor | None
    factor: int


def is_set(path: Path) -> bool:
    """Whether a folder has LR or HR in it."""
    return any((path / name).is_dir() for name in (LOW, HIGH))


def open_set(folder: Path) -> PictureSet:
    """The set in a folder. Raises OptionError for one without pictures, names twice, or pictures without a partner."""
    lows, highs = (_named(folder / name) if (folder / name).is_dir() else {} for name in (LOW, HIGH))
    if lows and highs and lows.keys() != highs.keys():
        alone = sorted(lows.keys() ^ highs.keys())
        raise OptionError(
            f"{folder}: {len(alone)} pictures are in one of LR and HR only ({', '.join(alone[:5])}); give each its "
            "partner of the same name, or take one of the two folders away"
        )
    return PictureSet(
        folder.resolve().name, tuple(lows.values()), tuple(highs[name] for name in (lows or highs) if highs)
    )


def _named(folder: Path) -> dict[str, Path]:
    """A folder's pictures by their names without the ending. Raises OptionError where two have the same."""
    found: dict[str, Path] = {}
    for path in gather([folder]):
        if path.stem in found:
            raise OptionError(f"{path}: {found[path.stem].name} is there too; pairs are found by name, so keep one")
        found[path.stem] = path
    return found


def load_pair(low: Path, high: Path | None, factor: int, largest: int) -> Pair:
    """Read a pair. The factor is that of the two sizes, or the one given where there is no HR picture.

    largest: px a side of what is enlarged; of larger pictures the middle is taken. Raises ImageError, also where HR is
    no whole multiple of LR.
    """
    small = load_image(low).image
    if high is None:
        return Pair(low.stem, _middle(small, max(1, largest // factor)), None, factor)
    large = load_image(high).image
    (h, w), (height, width) = small.shape[-2:], large.shape[-2:]
    factor = height // h
    if (h * factor, w * factor) != (height, width):
        raise ImageError(
            f"{high}: {width}x{height} px are no whole multiple of its LR picture's {w}x{h} px; cut or shrink one"
        )
    side = max(1, largest // factor)
    return Pair(low.stem, _middle(small, side), _middle(large, side * factor, factor), factor)


def _middle(image: Tensor, side: int, step: int = 1) -> Tensor:
    """At most ``side`` px on each axis; cut at multiples of ``step``, so that a smaller picture's middle fits."""
    height, width = (min(length, side) for length in image.shape[-2:])
    top, left = ((image.shape[-2] - height) // step // 2 * step, (image.shape[-1] - width) // step // 2 * step)
    return image[..., top : top + height, left : left + width]


@dataclass(frozen=True)
class SetRecipe:
    """How a Syn set is made: HR cut from the middle, ``side`` px at most on each axis, and made worse.

    factor: HR side over LR side, 2 and up. clean: only shrunk. Each picture's damage is drawn from ``seed`` and
    its name, so that it is the same whatever else is in the set.
    """

    side: int = 4096
    factor: int = 4
    seed: int = 41
    clean: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.factor <= 16:
            raise OptionError(f"--factor: expected a whole number from 2 to 16, got {self.factor}")
        if self.side < self.factor or self.seed < 0:
            raise OptionError(
                f"benchmarks make-set: expected a side of at least the factor and a seed from 0 up, got {self.side} px "
                f"and {self.seed}; change them"
            )

    @property
    def degradation(self) -> Degradation:
        """What happens to each picture."""
        return Degradation(factor=(self.factor, self.factor), clean=float(self.clean))


def make_set(sources: Sequence[Path], folder: Path, recipe: SetRecipe, on_picture: OnPicture | None = None) -> None:
    """Write ``folder/HR``, ``folder/LR`` (8-bit PNG) and ``set.json``, which tells what was done to each picture.

    Raises OutputError where a set is there already, ImageError for pictures smaller than the factor.
    """
    for name in (LOW, HIGH):
        if (folder / name).is_dir() and any((folder / name).iterdir()):
            raise OutputError(f"{folder}: holds a set already; name another folder")
    targets = output_paths(sources, folder / HIGH)
    make_folder(folder / LOW)
    made: dict[str, Any] = {}
    for source, target in targets:
        if on_picture is not None:
            on_picture(source.name)
        high = _cut(load_image(source).image, recipe, source)
        result = degrade(high, recipe.degradation, (recipe.seed, zlib.crc32(source.stem.encode("utf-8"))))
        save_image(target, Picture(high))
        save_image(folder / LOW / target.name, Picture(result.low))
        made[target.stem] = {"px": list(high.shape[-2:]), "steps": result.steps}
    text = json.dumps({"recipe": asdict(recipe), "degradation": asdict(recipe.degradation), "pictures": made}, indent=1)
    write_whole(folder / RECIPE, text + "\n")


def _cut(image: Tensor, recipe: SetRecipe, source: Path) -> Tensor:
    """A picture's middle, at most ``recipe.side`` px a side and in multiples of the factor; 8-bit levels."""
    height, width = (length // recipe.factor * recipe.factor for length in image.shape[-2:])
    if not height or not width:
        raise ImageError(f"{source}: is smaller than {recipe.factor} px; take a larger picture")
    return to_8_bit(_middle(image[..., :height, :width], recipe.side // recipe.factor * recipe.factor))
