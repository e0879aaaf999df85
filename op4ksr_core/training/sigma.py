"""Which sigma fits the data: the noise level at which the schedule's noise has the power of the LR's error.

OMGSR (arXiv 2508.08227, "mid-timestep") sets the two ratios of signal to noise equal, of the noised latent
(1 - s) z_H + s n and of the degraded picture's latent z_L:

    (1 - s)^2 E[z_H^2] / s^2 = E[z_H^2] / E[(z_L - z_H)^2],  so  s = e / (1 + e)  with  e^2 = E[(z_L - z_H)^2].

The signal's power drops out. The published script searches the t of Flux's 999-step schedule whose ratio has the
smallest mean absolute difference to the pairs': that is the median of the pairs' own sigmas, weighted by the power of
z_H, and not the sigma of their mean error (``Suggestion`` has both).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..models.flux import DEFAULT_SIGMA, OnProgress
from ..models.flux_schedule import FLUX_STEPS, MAX_SHIFT, nearest_step, sigma_of_time
from ..plain_text import plain
from ..weights.description import describe_flux
from .config import TrainConfig
from .data.batches import Batches
from .data.loader import load_batches
from .data.sources import ShardSource, open_source
from .engine import OneProcess
from .needs import check_needs
from .tasks.model_source import Files
from .tasks.one_step import encoded

#: Pairs of pictures that are looked at unless the command says otherwise.
PAIRS = 64


def sigma_of_error(error: float) -> float:
    """s = e / (1 + e), in [0, 1). error: root mean square of z_L - z_H, processed latents, at least 0."""
    return error / (1 + error)


@dataclass(frozen=True)
class Suggestion:
    """What was measured on N pairs. errors: mean (z_L - z_H)^2 of each pair; powers: mean z_H^2 of each."""

    errors: tuple[float, ...]
    powers: tuple[float, ...]
    #: The sigma that the run has: the config's, else its start file's, else ``DEFAULT_SIGMA``; None: no such file here.
    configured: float | None

    @property
    def sigma(self) -> float:
        """Of the mean error of all pairs: what is suggested."""
        return sigma_of_error(math.sqrt(sum(self.errors) / len(self.errors)))

    @property
    def each(self) -> list[float]:
        """Each pair's own sigma, ascending."""
        return sorted(sigma_of_error(math.sqrt(error)) for error in self.errors)

    def quantile(self, share: float) -> float:
        """Of the pairs' own sigmas; share in [0, 1]."""
        return float(torch.tensor(self.each, dtype=torch.float64).quantile(share))

    @property
    def published(self) -> float:
        """The pairs' weighted median, which the published search finds to the nearest step of its schedule."""
        ranked = sorted(zip(self.errors, self.powers, strict=True))
        half, passed = sum(self.powers) / 2, 0.0
        for error, power in ranked:
            passed += power
            if passed >= half:
                return sigma_of_error(math.sqrt(error))
        return sigma_of_error(math.sqrt(ranked[-1][0]))

    def text(self) -> str:
        """For people, the last line for the recipe."""
        step = nearest_step(self.sigma)
        own = "what model.start has, which is not here" if self.configured is None else f"{self.configured:.4f}"
        rows = (
            ("pairs of pictures", f"{len(self.errors)}"),
            ("suggested sigma", f"{self.sigma:.4f}  of the mean error of all pairs' latents"),
            ("one pair in ten is below", f"{self.quantile(0.1):.4f}"),
            (
                "half of the pairs",
                f"{self.quantile(0.5):.4f}  (weighted as the published search does: {self.published:.4f})",
            ),
            ("one pair in ten is above", f"{self.quantile(0.9):.4f}"),
            (
                "nearest step of Flux",
                f"t = {step} of {FLUX_STEPS}, sigma {sigma_of_time(step / FLUX_STEPS, MAX_SHIFT):.4f}",
            ),
            ("this run has", own),
            ("for the recipe, in [model]", f"sigma = {self.sigma:.4g}"),
        )
        return "\n".join(f"{name:<28} {value}" for name, value in rows)

    def report(self) -> dict[str, Any]:
        """The same as plain values, for JSON."""
        return {
            "pairs": len(self.errors),
            "sigma": self.sigma,
            "quantiles": {str(share): self.quantile(share) for share in (0.1, 0.5, 0.9)},
            "published": self.published,
            "step": nearest_step(self.sigma),
            "configured": self.configured,
        }


def suggest_sigma(config: TrainConfig, pairs: int = PAIRS, on_progress: OnProgress | None = None) -> Suggestion:
    """Measure the run's own first pairs, encoded as the run encodes them. No transformer is loaded.

    pairs: at least 1; batches are whole ones, so as many more as fill the last. on_progress: (done, of how many).
    Raises OptionError for a kind without a transformer, for latents that are not finite and for pairs without any
    error, and what files and pictures raise.
    """
    if not config.has_transformer:
        raise OptionError('--suggest-sigma: kind "one_step" or "lora" has a sigma, and this run is of another kind')
    if pairs < 1:
        raise OptionError(f"--pairs: expected at least 1, got {pairs}; ask for more")
    check_needs(config)
    files = Files(config)
    errors, powers = _measured(config, files, -(-pairs // config.train.batch), on_progress)
    if not all(math.isfinite(number) for number in (*errors, *powers)):
        raise OptionError(
            f"model.autoencoder: latents of {plain(files.autoencoder_file)} are not finite; set train.precision to "
            "fp32, or name another file"
        )
    if not any(errors):
        raise OptionError(
            "data: the degraded pictures have the latents of the sharp ones, which no sigma above 0 stands for; "
            "name other pictures, or raise degradation.factor"
        )
    return Suggestion(tuple(errors), tuple(powers), _configured(config, files))


def _measured(
    config: TrainConfig, files: Files, batches: int, on_progress: OnProgress | None
) -> tuple[list[float], list[float]]:
    """(mean (z_L - z_H)^2, mean z_H^2) of each pair of the run's first batches."""
    if config.train.threads:
        torch.set_num_threads(config.train.threads)
    device = OneProcess(config.train.device).device
    autoencoder = files.autoencoder().to(device)
    source = open_source(config.data, config.seed, config.cache_folder)
    workers = min(1, config.data.workers) if isinstance(source, ShardSource) else config.data.workers
    found = Batches(config, source, 0, pairs=True, fresh=True)
    errors: list[float] = []
    powers: list[float] = []
    for high, low in load_batches(found, range(batches), workers, pinned=False):
        target = encoded(autoencoder, high.to(device), config)
        errors += _mean_squares(encoded(autoencoder, low.to(device), config) - target)
        powers += _mean_squares(target)
        if on_progress:
            on_progress(len(errors), batches * config.train.batch)
    return errors, powers


def _mean_squares(latents: Tensor) -> list[float]:
    """Of each of (B, C, h, w)."""
    return latents.double().square().mean((1, 2, 3)).tolist()


def _configured(config: TrainConfig, files: Files) -> float | None:
    if config.model.sigma is not None:
        return config.model.sigma
    if not config.model.start:
        return DEFAULT_SIGMA
    settings = describe_flux(files.flux_file).settings if files.flux_file.exists() else None
    return None if settings is None else settings.sigma
