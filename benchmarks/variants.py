"""The pack's own models as methods: which files, and with which options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from op4ksr_core.base import CHOICES, Base
from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_ENLARGER, BUNDLED_FLUX
from op4ksr_core.cli.enlargers import load_base
from op4ksr_core.errors import OptionError
from op4ksr_core.files import regular_file
from op4ksr_core.images.color import back_project
from op4ksr_core.images.resize import Target
from op4ksr_core.models.flux import Flux
from op4ksr_core.one_step import OneStepOptions, followed_fidelity, upscale
from op4ksr_core.plain_text import plain
from op4ksr_core.vae.autoencoder import AutoEncoder
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

from .methods import Method, file_key


@dataclass(frozen=True)
class Variant:
    """One way to run the pack's models. enlarger: as ``op4ksr upscale --enlarger`` takes it; the other options are
    ``OneStepOptions``'."""

    name: str
    vae: Path = BUNDLED_AUTOENCODER
    model: Path = BUNDLED_FLUX
    enlarger: str = "auto"
    detail: float = 1.0
    repair: float | None = None
    fidelity: float = 1.0
    vae_only: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        self.options(4)

    def options(self, factor: int) -> OneStepOptions:
        """For that factor. Raises OptionError for numbers out of their ranges."""
        return OneStepOptions(
            target=Target(scale=factor),
            detail=self.detail,
            repair=self.repair,
            fidelity=self.fidelity,
            vae_only=self.vae_only,
        )

    def key(self) -> str:
        """Of its files' contents and its options, whatever it is called. Raises OptionError for files not there."""
        if self.enlarger not in CHOICES and (other := regular_file(Path(self.enlarger))) is not None:
            known = ", ".join(CHOICES)
            raise OptionError(
                f"enlarger: expected {known} or a file, got {plain(self.enlarger)}, which is {other}; change it"
            )
        enlarger = self.enlarger if self.enlarger in CHOICES else file_key(Path(self.enlarger))
        bundled = "" if self.enlarger in ("bicubic",) else file_key(BUNDLED_ENLARGER)
        return " ".join((file_key(self.vae), file_key(self.model), enlarger, bundled, repr(self.options(1))))

    def enlarge(self, low: Tensor, factor: int) -> Tensor:
        """LR (1, 3, h, w) in [0, 1] -> (1, 3, h * factor, w * factor), on the same device, whatever the models' is."""
        autoencoder, flux, base = loaded(self.vae, self.model, self.enlarger, self.device)
        return upscale(low, flux, autoencoder, self.options(factor), base=base)

    def method(self) -> Method:
        """As a method. Its files are read when it first runs."""
        return Method(self.name, self.key(), self.enlarge)


@lru_cache(maxsize=16)
def loaded(vae: Path, model: Path, enlarger: str, device: str = "cpu") -> tuple[AutoEncoder, Flux, Base]:
    """The models of a variant and what enlarges before them. Raises UnsupportedCheckpointError, OptionError."""
    autoencoder, flux = load_autoencoder(vae, device=device), load_flux(model, device=device)
    return autoencoder, flux, load_base(enlarger, flux.settings.output, torch.device(device))


def old_files(folder: Path) -> tuple[Path, Path]:
    """The VAE's and the model's file of other bundled weights in a folder: those with vae and with flux in their names.

    Raises OptionError unless there is one of each.
    """
    found: list[Path] = []
    for word in ("vae", "flux"):
        own = sorted(path for path in folder.glob("*.safetensors") if word in path.name)
        if len(own) != 1:
            raise OptionError(
                f"--old {plain(folder)}: expected one file whose name has {word!r} and ends in .safetensors, found "
                f"{len(own)}; name a folder of bundled weights"
            )
        found += own
    return found[0], found[1]


def usual(new: Variant, old: Path | None) -> list[Variant]:
    """What a table of quality has: other weights, where there are any, and ``new`` with more and less of its parts."""
    named: dict[str, dict[str, object]] = {
        "base alone": {"detail": 0.0},
        "detail 0.5": {"detail": 0.5},
        "full": {},
        "VAE only": {"vae_only": True},
        "VAE only, fidelity 0": {"vae_only": True, "fidelity": 0.0},
        "base alone, fidelity 0": {"detail": 0.0, "fidelity": 0.0},
        "full, fidelity 0": {"fidelity": 0.0},
    }
    rows = [replace(new, name=name, **changes) for name, changes in named.items()]  # pyright: ignore
    if old is not None:
        vae, model = old_files(old)
        rows.insert(0, Variant(OLD, vae, model))
    return rows


#: The rows of other bundled weights.
OLD = "v1"


# --- damage -------------------------------------------------------------------------------------

REPAIRS = (0.0, 0.25, 0.5, 0.75, 1.0)

#: How exactly the input is kept, beside what follows the repair.
FIDELITIES = (0.0, 0.5, 1.0)


@dataclass(frozen=True)
class Finished:
    """A variant's output without back-projection, computed once per picture, and then back-projected by ``fidelity``.

    As ``upscale`` does it, but for values outside [0, 1], which are cut off before instead of after.
    """

    drawn: Drawn
    fidelity: float

    def __call__(self, low: Tensor, factor: int) -> Tensor:
        return back_project(self.drawn(low, factor), low, self.fidelity).clamp(0, 1)


class Drawn:
    """A variant's output; the last picture's is kept."""

    def __init__(self, variant: Variant) -> None:
        self.variant = variant
        self.last: tuple[Tensor, Tensor] | None = None

    def __call__(self, low: Tensor, factor: int) -> Tensor:
        if self.last is None or self.last[0] is not low:
            self.last = low, self.variant.enlarge(low, factor)
        return self.last[1]


def repairing(new: Variant) -> list[Method]:
    """Base alone and full at each of ``REPAIRS``, by each of ``FIDELITIES`` and the one that follows the repair."""
    methods: list[Method] = []
    for name, detail in (("base alone", 0.0), ("full", new.detail)):
        for repair in REPAIRS:
            variant = replace(new, detail=detail, repair=repair, fidelity=0.0)
            drawn = Drawn(variant)
            for fidelity in sorted({*FIDELITIES, followed_fidelity(1.0, repair)}):
                words: dict[str, object] = {
                    "repair": f"{repair:g}",
                    "fidelity": f"{fidelity:g}",
                    "followed": "yes" if fidelity == followed_fidelity(1.0, repair) else "no",
                }
                title = f"{name}, repair {repair:g}, fidelity {fidelity:g}"
                methods.append(Method(title, f"{variant.key()} {fidelity!r}", Finished(drawn, fidelity), words))
    return methods
