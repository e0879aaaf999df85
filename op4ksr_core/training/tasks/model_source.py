"""Where the models that a training run starts from come from: its files, or something of their shape."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from ...bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from ...models.flux import Flux
from ...vae.autoencoder import AutoEncoder
from ...weights.checkpoint import load_autoencoder, load_flux
from ..config import TrainConfig
from ..config_sections import BUNDLED
from .frozen import freeze_blocks


class ModelSource(Protocol):
    """Gives the frozen autoencoder and the transformer to start from. Nothing in either is set to be trained yet."""

    def autoencoder(self) -> AutoEncoder:
        """The autoencoder, its weights in channels_last order, in which convolutions are faster."""
        ...

    def flux(self, dtype: torch.dtype | None) -> Flux:
        """The transformer, its blocks held as ``train.base`` says. dtype: of everything else; None: float32."""
        ...


def file_of(name: str, bundled: Path) -> Path:
    """The file that a config names, or the bundled one."""
    return bundled if name == BUNDLED else Path(name)


class Files:
    """The files that the config names. Raises UnsupportedCheckpointError, OptionError without torchao."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.autoencoder_file = file_of(config.model.autoencoder, BUNDLED_AUTOENCODER)
        self.flux_file = file_of(config.model.start, BUNDLED_FLUX)

    def autoencoder(self) -> AutoEncoder:
        return load_autoencoder(self.autoencoder_file).to(memory_format=torch.channels_last)  # pyright: ignore

    def flux(self, dtype: torch.dtype | None) -> Flux:
        flux = load_flux(self.flux_file, dtype=dtype)
        freeze_blocks(flux, self.config.train.base)
        return flux
