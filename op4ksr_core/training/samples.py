"""Pictures that a training run shows as it goes, the same ones each time; procedural ones are never trained on."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ..images.io import Picture, from_array, load_image, save_image
from ..images.metrics import psnr
from ..images.paths import gather
from ..images.resize import middle
from ..periodicity.meter import measure_periodicity
from .config import OutputConfig
from .data.leaves import picture as procedural_picture
from .data.sources import HELD_OUT
from .tasks.task import Task


def open_samples(output: OutputConfig) -> list[Tensor]:
    """Sharp pictures (1, 3, H, W) in [0, 1], ``output.samples`` of them at most; none where none are wanted.

    From the config's folder, or a slope and procedural pictures. Raises OptionError for a folder without pictures,
    ImageError for one that cannot be read.
    """
    if not output.sample_every:
        return []
    if output.sample_folder:
        paths = gather([Path(output.sample_folder)])[: output.samples]
        return [centre(load_image(path).image, output.sample_side) for path in paths]
    side = output.sample_side // 32 * 32  # whole tokens, as ``centre`` leaves them
    made = [procedural_picture(HELD_OUT + i, side, side) for i in range(output.samples - 1)]
    return [_slope(side), *map(from_array, made)][: output.samples]


def show_samples(task: Task, samples: list[Tensor], folder: Path, step: int) -> dict[str, float]:
    """Write each sample as ``step_<step>_<number>.png``: input enlarged, output and sharp picture side by side.

    Returns the mean PSNR (dB) of the outputs and their highest periodicity score. Raises OutputError.
    """
    scores: list[tuple[float, float]] = []
    for i, high in enumerate(samples):
        enlarged, output, low = task.show(high, i)
        score = measure_periodicity(output, low).score
        shared = [min(view.shape[side] for view in (enlarged, output, high)) for side in (-2, -1)]  # of whole factors
        enlarged, output, sharp = (view[..., : shared[0], : shared[1]] for view in (enlarged, output, high))
        save_image(folder / f"step_{step:07d}_{i}.png", Picture(torch.cat([enlarged, output, sharp], dim=-1)))
        scores.append((psnr(output, sharp), score))
    return {
        "sample_psnr": sum(s[0] for s in scores) / len(scores),
        "sample_periodicity": max(s[1] for s in scores),
    }


def centre(image: Tensor, side: int) -> Tensor:
    """(1, 3, H, W) -> its middle, at most ``side`` px and, where it is large enough, whole tokens of 32 px."""
    height, width = (min(side, length) // 32 * 32 or length for length in image.shape[-2:])
    return middle(image, height, width).contiguous()


def _slope(side: int) -> Tensor:
    """(1, 3, side, side): a soft, slightly warm slope from dark to light, where a mesh shows first."""
    ramp = torch.linspace(0.3, 0.7, side)
    plane = (ramp[:, None] + ramp[None]) / 2
    return torch.stack([plane + 0.02, plane, plane - 0.02])[None]
