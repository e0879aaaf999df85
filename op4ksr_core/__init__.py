"""OP4KSR: a whole photo to 4096 px in one Flux forward pass. The reference open implementation's core.

Images are (B, 3, H, W) float in [0, 1]. The public names below are stable; importing them costs torch.
"""

from __future__ import annotations

from .bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from .errors import ImageError, Op4ksrError, OptionError, OutOfMemoryError, OutputError, UnsupportedCheckpointError
from .images.resize import Target
from .models.flux import Flux, FluxParams, OneStepSettings
from .models.rope import RescaledEmbedND, Rfr
from .one_step import OneStepOptions, upscale
from .periodicity.loss import PeriodicityLoss
from .periodicity.meter import measure_periodicity
from .periodicity.report import PeriodicityReport
from .periodicity.suppress import suppress_periodicity
from .vae.autoencoder import AutoEncoder, AutoEncoderParams
from .version import __version__
from .weights.checkpoint import load_autoencoder, load_flux, save_autoencoder, save_flux

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
