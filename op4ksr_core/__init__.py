"""OP4KSR: a whole photo to 4096 px in one Flux forward pass. The reference open implementation's core.

Images are (B, 3, H, W) float in [0, 1]. The public names below are stable; torch is imported with the
first of them, not before.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .version import __version__

if TYPE_CHECKING:
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

#: The module of each public name.
_HOMES = {
    "BUNDLED_AUTOENCODER": "bundled",
    "BUNDLED_FLUX": "bundled",
    "AutoEncoder": "vae.autoencoder",
    "AutoEncoderParams": "vae.autoencoder",
    "Flux": "models.flux",
    "FluxParams": "models.flux",
    "ImageError": "errors",
    "OneStepOptions": "one_step",
    "OneStepSettings": "models.flux",
    "Op4ksrError": "errors",
    "OptionError": "errors",
    "OutOfMemoryError": "errors",
    "OutputError": "errors",
    "PeriodicityLoss": "periodicity.loss",
    "PeriodicityReport": "periodicity.report",
    "RescaledEmbedND": "models.rope",
    "Rfr": "models.rope",
    "Target": "images.resize",
    "UnsupportedCheckpointError": "errors",
    "load_autoencoder": "weights.checkpoint",
    "load_flux": "weights.checkpoint",
    "measure_periodicity": "periodicity.meter",
    "save_autoencoder": "weights.checkpoint",
    "save_flux": "weights.checkpoint",
    "suppress_periodicity": "periodicity.suppress",
    "upscale": "one_step",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    return value
