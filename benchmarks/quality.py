"""How near to the sharp photo: the model against what needs none, and its parts by themselves.

Photos are shrunk by the factor, bicubic and rounded to 8 bit ("clean"), or made worse by the seeded
second-order degradation ("degraded"), and enlarged again by every method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor

from op4ksr_core.images.color import back_project
from op4ksr_core.images.io import Picture, from_pil, load_image, to_8_bit, to_pil
from op4ksr_core.images.metrics import load_piq, psnr
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.models.flux import Flux
from op4ksr_core.one_step import OneStepOptions, upscale
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.training.data.degradation import Degradation, degrade
from op4ksr_core.vae.autoencoder import AutoEncoder

from .picture_sets import HIGH
from .scores import fidelity_scores
from .tables import Row

#: Seed of the degraded pictures, beside each one's number.
SEED = 41

#: What the model is held against: all that it needs a network for comes on top of this.
BASE = "bicubic + back-projection"

#: Photos are shrunk by this, and enlarged again; a set of LR and HR pictures has a factor of its own.
FACTOR = 4

#: What is done to photos of which there is no small picture.
DAMAGES = ("clean", "degraded")

#: Scores where less is better.
LESS = ("gmsd",)

Method = Callable[[Tensor], Tensor]


def quality(
    photos: Sequence[Path],
    flux: Flux,
    autoencoder: AutoEncoder,
    damages: Sequence[str] = DAMAGES,
) -> list[Row]:
    """A row per photo, degradation and method: PSNR, SSIM, GMSD, HaarPSI, and whether the meter alarms (0 or 1).

    Methods: bicubic, Lanczos, bicubic + back-projection, VAE only and full with the default options and
    with fidelity 0. Sides are cut to multiples of the factor. Raises OptionError where piq is missing.
    """
    methods = methods_of(flux, autoencoder, FACTOR)
    rows: list[Row] = []
    for index, (path, high) in enumerate(_loaded(photos)):
        for damage in damages:
            low = _low(high, index, damage)
            for name, method in methods.items():
                output = to_8_bit(method(low))
                head = {"photo": path.stem, "set": _set_of(path), "degradation": damage, "method": name}
                alarm = float(measure_periodicity(output, low).alarm)
                rows.append(head | fidelity_scores(output, high) | {"alarms": alarm})
    return rows


def reconstruction(photos: Sequence[Path], autoencoder: AutoEncoder) -> list[Row]:
    """A row per photo and kind (sharp; enlarged, as the one step's encoder sees it): the autoencoder there and back.

    PSNR against what went in, and whether the meter, with that as reference, alarms (0 or 1).
    """
    options = OneStepOptions(target=Target(scale=1), color="none", fidelity=0.0, vae_only=True)
    rows: list[Row] = []
    for path, high in _loaded(photos):
        low = _shrunk(high)
        for kind, picture in (("sharp", high), ("enlarged", _bicubic(low, FACTOR))):
            output = to_8_bit(upscale(picture, None, autoencoder, options))
            alarm = float(measure_periodicity(output, picture).alarm)
            rows.append({"photo": path.stem, "picture": kind, "psnr": psnr(output, picture), "alarms": alarm})
    return rows


def shares(rows: Sequence[Row]) -> list[Row]:
    """A row per method but ``BASE``: on which share of the photos it is better than that, score by score."""
    scores = [key for key, value in rows[0].items() if isinstance(value, float) and key != "alarms"]
    held = {_photo(row): row for row in rows if row["method"] == BASE}
    table: list[Row] = []
    for name in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == name]
        better = {
            key: sum((row[key] < held[_photo(row)][key]) == (key in LESS) for row in own) / len(own) for key in scores
        }
        table += [] if name == BASE else [{"method": name, "photos": len(own), **better}]
    return table


def _photo(row: Row) -> tuple[str, str]:
    """Photos of several sets may have one name."""
    return row["set"], row["photo"]


def _loaded(photos: Sequence[Path]) -> Iterator[tuple[Path, Tensor]]:
    load_piq()
    for path in photos:
        high = load_image(path).image
        height, width = (length // FACTOR * FACTOR for length in high.shape[-2:])
        yield path, high[..., :height, :width]


def _low(high: Tensor, index: int, damage: str) -> Tensor:
    if damage == "clean":
        return _shrunk(high)
    return degrade(high, Degradation(factor=(FACTOR, FACTOR)), (SEED, index)).low


def _set_of(path: Path) -> str:
    """The folder, or of <set>/HR the set."""
    folder = path.resolve().parent
    return folder.parent.name if folder.name == HIGH else folder.name


def _shrunk(high: Tensor) -> Tensor:
    height, width = high.shape[-2:]
    return to_8_bit(resize(high, height // FACTOR, width // FACTOR))


def _bicubic(low: Tensor, factor: int) -> Tensor:
    return resize(low, low.shape[-2] * factor, low.shape[-1] * factor).clamp(0, 1)


def _lanczos(low: Tensor, factor: int) -> Tensor:
    """Pillow's, in 8 bit."""
    small = to_pil(Picture(low))
    return from_pil(small.resize((small.width * factor, small.height * factor), Image.Resampling.LANCZOS)).image


def methods_of(flux: Flux, autoencoder: AutoEncoder, factor: int) -> dict[str, Method]:
    """By name: LR (1, 3, h, w) in [0, 1] -> (1, 3, h * factor, w * factor)."""
    options = OneStepOptions(target=Target(scale=factor))

    def model(vae_only: bool, **changes: Any) -> Method:
        chosen = replace(options, vae_only=vae_only, **changes)
        return lambda low: upscale(low, None if vae_only else flux, autoencoder, chosen)

    return {
        "bicubic": lambda low: _bicubic(low, factor),
        "Lanczos": lambda low: _lanczos(low, factor),
        BASE: lambda low: back_project(_bicubic(low, factor), low, 1.0).clamp(0, 1),
        "VAE only": model(True),
        "VAE only, fidelity 0": model(True, fidelity=0.0),
        "full": model(False),
        "full, fidelity 0": model(False, fidelity=0.0),
    }
