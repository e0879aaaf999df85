"""How near to the sharp photo: the models against what needs none, against others, and their parts by themselves.

Photos are shrunk by the factor, and made worse as ``damages`` has it, and enlarged again by every method.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from op4ksr_core.base import Base
from op4ksr_core.images.io import load_image, to_8_bit
from op4ksr_core.images.metrics import load_piq, psnr
from op4ksr_core.images.resize import Target, mirror_frame
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.models.latent import MARGIN, PATCH
from op4ksr_core.one_step import CoreStages, OneStepOptions, run, upscale
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.vae.autoencoder import AutoEncoder

from .damages import shrunk
from .methods import PLAIN, Method, bicubic
from .tables import Row
from .variants import OLD, Variant, usual

#: Photos are shrunk by this, and enlarged again; a set of LR and HR pictures has a factor of its own.
FACTOR = 4

#: All that can be asked for by name; ``OLD`` where other weights are named.
CHOICES = (*PLAIN, OLD, *(variant.name for variant in usual(Variant(""), None)))


def methods_of(new: Variant, old: Path | None = None) -> dict[str, Method]:
    """By name: what needs no network, the weights in the folder ``old``, and ``new`` with all and some of its parts."""
    return PLAIN | {variant.name: variant.method() for variant in usual(new, old)}


class SharpLatent(CoreStages):
    """In place of a transformer one that never errs: of detail, what this autoencoder's latent can carry at best."""

    def __init__(self, autoencoder: AutoEncoder, high: Tensor, base: Base) -> None:
        super().__init__(None, autoencoder, base=base)
        self.output = "detail"
        self.high = mirror_frame(high, self.ratio * PATCH, self.ratio * MARGIN)

    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        """The sharp picture's latent, without its margin, whatever ``raw`` is; of its shape."""
        return self.encode(self.high, tell)[..., MARGIN:-MARGIN, MARGIN:-MARGIN]


def reconstruction(photos: Sequence[Path], autoencoder: AutoEncoder, base: Base) -> list[Row]:
    """A row per photo and kind, PSNR and whether the meter, with what went in as reference, alarms (0 or 1).

    sharp, enlarged (bicubic): the photo, and as small models' encoders see it, there and back, against itself. base,
    base and its detail: what ``base`` makes of the photo when shrunk, back-projected, and with the detail of
    ``SharpLatent``, against the photo.
    """
    load_piq()
    rows: list[Row] = []
    for path in photos:
        high = load_image(path).image
        height, width = (length // FACTOR * FACTOR for length in high.shape[-2:])
        high = high[..., :height, :width]
        low = shrunk(high, FACTOR)
        for kind, picture in (("sharp", high), ("enlarged", bicubic(low, FACTOR))):
            options = OneStepOptions(target=Target(scale=1), color="none", fidelity=0.0, vae_only=True)
            rows.append(_row(path, kind, upscale(picture, None, autoencoder, options), picture, picture))
        for kind, detail in (("base", 0.0), ("base and its detail", 1.0)):
            options = OneStepOptions(target=Target(scale=FACTOR), detail=detail)
            rows.append(_row(path, kind, run(low, SharpLatent(autoencoder, high, base), options), high, low))
    return rows


def _row(path: Path, kind: str, output: Tensor, sharp: Tensor, reference: Tensor) -> Row:
    output = to_8_bit(output)
    alarm = float(measure_periodicity(output, reference).alarm)
    return {"photo": path.stem, "picture": kind, "psnr": psnr(output, sharp), "alarms": alarm}
