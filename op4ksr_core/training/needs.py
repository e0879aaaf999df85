"""What a recipe needs at the very least, counted before anything is made: no run asks for terabytes."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import OutOfMemoryError
from ..machine import system_memory
from .config import TrainConfig
from .data.batches import LATENT_BATCH

#: Bytes of a number in float32, and how many of each weight a run holds: itself, its gradient, AdamW's means, the mean.
FLOAT, COPIES = 4, 5


def check_needs(config: TrainConfig) -> None:
    """Raise OutOfMemoryError where a batch, or a new model, alone is larger than the memory this process can have.

    A lower bound: what fits by it may still be too much (``step_plan`` counts a transformer's step exactly).
    """
    free = system_memory()
    for size, keys in _sizes(config):
        if free is not None and size > free:
            raise OutOfMemoryError(
                f"{keys}: needs {size / 1e9:,.1f} GB of memory at least, and {free / 1e9:,.1f} GB are free; lower it"
            )


def _sizes(config: TrainConfig) -> Iterator[tuple[int, str]]:
    """(bytes, what is to be lowered)."""
    data, train = config.data, config.train
    pixels = 3 * FLOAT * (2 if config.has_transformer else 1)
    yield train.batch * data.crop**2 * pixels, f"train.batch {train.batch} of data.crop {data.crop} px"
    if data.late_from < 1:
        late = f"data.late_batch {data.late_batch} of data.late_crop {data.late_crop} px"
        yield data.late_batch * data.late_crop**2 * pixels, late
    if config.has_transformer and train.grid_every:
        largest = max(train.grid_tokens)
        yield 2 * largest**2 * 64 * FLOAT, f"train.grid_tokens {largest}"
    if config.latent_steps:
        yield LATENT_BATCH * train.batch * (data.crop // 16) ** 2 * 32 * FLOAT, f"train.batch {train.batch}"
    if config.has_transformer and (train.grid_every or train.latent_steps):
        encoded = train.grid_pictures * (data.picture_side // 16) ** 2 * 32 * FLOAT
        yield encoded, f"train.grid_pictures {train.grid_pictures} of data.picture_side {data.picture_side} px"
    if config.kind == "detail" and train.grid_every:
        largest = max(train.grid_tokens)
        yield (largest * 32) ** 2 * 3 * FLOAT, f"train.grid_tokens {largest}"
    if config.output.sample_every:
        samples, side = config.output.samples, config.output.sample_side
        yield samples * side**2 * 3 * FLOAT, f"output.samples {samples} of output.sample_side {side} px"
    if not config.model.start:
        yield _weights(config) * FLOAT * COPIES, "the new model, by its sizes in the config,"
    if config.kind == "detail" and not config.model.autoencoder:
        yield _autoencoder_weights(config) * FLOAT * COPIES, "the new autoencoder, by its sizes in the config,"


def _weights(config: TrainConfig) -> int:
    """How many numbers a new model has, at least: its large layers alone."""
    model = config.model
    if config.kind == "enlarger":
        width = config.enlarger.width
        return 2 * config.enlarger.blocks * 9 * width**2
    if config.kind == "autoencoder":
        return _autoencoder_weights(config)
    hidden = model.hidden_size
    blocks = 36 * model.depth + 15 * model.depth_single_blocks
    return blocks * hidden**2 + hidden * (model.context_in_dim + model.vec_in_dim)


def _autoencoder_weights(config: TrainConfig) -> int:
    return 2 * sum(2 * config.model.layers_per_block * 9 * width**2 for width in config.model.widths)
