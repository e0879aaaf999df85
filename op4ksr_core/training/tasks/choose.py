"""Which task a training config asks for: an autoencoder's, a transformer's, a LoRA's, an enlarger's, or detail's."""

from __future__ import annotations

from ..config import Kind, TrainConfig
from .autoencoder import AutoencoderTask
from .detail import DetailTask
from .enlarger import EnlargerTask
from .one_step import LoraTask, OneStepTask
from .task import Task

_TASKS: dict[Kind, type[Task]] = {
    "autoencoder": AutoencoderTask,
    "one_step": OneStepTask,
    "lora": LoraTask,
    "enlarger": EnlargerTask,
    "detail": DetailTask,
}


def make_task(config: TrainConfig) -> Task:
    """The task of the config's kind, on the CPU. Raises UnsupportedCheckpointError for files that do not fit."""
    return _TASKS[config.kind](config)
