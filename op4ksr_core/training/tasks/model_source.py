"""Where the models that a training run starts from come from: its files, or something of their shape."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch

from ...bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from ...errors import UnsupportedCheckpointError
from ...models.flux import Flux
from ...vae.autoencoder import AutoEncoder
from ...weights.checkpoint import load_autoencoder, load_flux
from ...weights.description import Description, describe_autoencoder, describe_flux
from ...weights.probe import doubt
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


def describe_start(config: TrainConfig, file: Path) -> Description:
    """What an autoencoder's file is, its stride as the config says, else as the file does."""
    return describe_autoencoder(file, stride=config.model.stride or None)


def autoencoder_of(config: TrainConfig, file: Path) -> AutoEncoder:
    """The autoencoder in a file, float32.

    Raises UnsupportedCheckpointError where neither the config nor the file states the stride, and a test picture
    speaks against 16x: most files of 8x VAEs say nothing.
    """
    found = describe_start(config, file)
    model = load_autoencoder(found)
    if (warning := doubt(found, model)) is not None:
        raise UnsupportedCheckpointError(file, f"{warning}; say which with model.stride, 1 for 8x or 2 for 16x")
    return model


class Files:
    """The files that the config names. Raises UnsupportedCheckpointError, OptionError without torchao.

    The transformer's has to make the picture itself: one that adds detail is trained by ``DetailTask``.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.autoencoder_file = file_of(config.model.autoencoder, BUNDLED_AUTOENCODER)
        self.flux_file = file_of(config.model.start, BUNDLED_FLUX)

    def autoencoder(self) -> AutoEncoder:
        model = autoencoder_of(self.config, self.autoencoder_file)
        return model.to(memory_format=torch.channels_last)  # pyright: ignore

    def described_flux(self) -> Description:
        """What the transformer's file is."""
        found = describe_flux(self.flux_file)
        if found.settings is not None and found.settings.output == "detail":
            raise UnsupportedCheckpointError(
                self.flux_file,
                'adds detail to an enlarged picture (op4ksr.output), and kinds "one_step" and "lora" train models that '
                'make the picture itself; set kind to "detail", or model.start to another file',
            )
        return found

    def flux(self, dtype: torch.dtype | None) -> Flux:
        flux = load_flux(self.described_flux(), dtype=dtype)
        freeze_blocks(flux, self.config.train.base)
        return flux
