"""OP4KSR: a whole photo to 4096 px in one Flux forward pass. The reference open implementation's core.

Images are (B, 3, H, W) float in [0, 1]. The public names below are stable; importing them costs torch.
"""

from __future__ import annotations

from .autoencoder import AutoEncoder, AutoEncoderParams
from .checkpoint import (
    BUNDLED_AUTOENCODER,
    BUNDLED_FLUX,
    load_autoencoder,
    load_flux,
    save_autoencoder,
    save_flux,
)
from .errors import (
    ImageError,
    Op4ksrError,
    OptionError,
    OutOfMemoryError,
    OutputError,
    UnsupportedCheckpointError,
)
from .flux import Flux, FluxParams, OneStepSettings
from .losses import PeriodicityLoss
from .one_step import OneStepOptions, upscale
from .periodicity import PeriodicityReport, measure_periodicity
from .resize import Target
from .rope import RescaledEmbedND, Rfr
from .suppress import suppress_periodicity
from .version import __version__

__all__ = [
    "BUNDLED_AUTOENCODER",
    "BUNDLED_FLUX",
    "AutoEncoder",
    "AutoEncoderParams",
    "Flux",
    "FluxParams",
    "ImageError",
    "OneStepOptions",
    "OneStepSettings",
    "Op4ksrError",
    "OptionError",
    "OutOfMemoryError",
    "OutputError",
    "PeriodicityLoss",
    "PeriodicityReport",
    "RescaledEmbedND",
    "Rfr",
    "Target",
    "UnsupportedCheckpointError",
    "__version__",
    "load_autoencoder",
    "load_flux",
    "measure_periodicity",
    "save_autoencoder",
    "save_flux",
    "suppress_periodicity",
    "upscale",
]
