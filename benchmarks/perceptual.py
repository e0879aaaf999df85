"""LPIPS, DISTS, NIQE and MUSIQ through pyiqa (extra ``bench``), where the files they need are on this disk.

pyiqa and torchvision fetch what is missing. So every file is looked for first, under the very name that the
installed pyiqa would give it, in torch's hub folder; a score with a file missing is left out by name, and
nothing is ever fetched. pyiqa opens its files with pickle: whoever puts them there vouches for them.
"""

from __future__ import annotations

import importlib
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Metric:
    """A score of pyiqa's: where its own file's address stands, and of which torchvision weights it is made.

    referenced: it compares with the HR picture. largest: side in px of what it is given at once; larger pictures are
    cut into equal parts, and the mean of the parts' scores counts (our choice). smallest: side in px below which
    the score fails or means nothing; NIQE's blocks are of 96 px.
    """

    module: str
    key: str
    backbone: str = ""
    referenced: bool = True
    largest: int = 1024
    smallest: int = 32


#: By pyiqa's name, with its default settings. Addresses as in pyiqa 0.1.16; read there, not copied. With parts of
#: these sizes a process peaks below 3 GB. NIQE is a statistic of blocks and wants many; at 4096 px at once it
#: would take 8.2 GB.
METRICS = {
    "lpips": Metric("lpips_arch", "0.1_alex", "AlexNet_Weights"),
    "dists": Metric("dists_arch", "url", "VGG16_Weights"),
    "niqe": Metric("niqe_arch", "url", referenced=False, largest=2048, smallest=192),
    "musiq": Metric("musiq_arch", "koniq10k", referenced=False),
}

#: Scores where less is better.
LESS = ("lpips", "dists", "niqe")


@dataclass(frozen=True)
class Perceptual:
    """The scores that can be had here, ready to run, and why the others cannot, by name."""

    networks: dict[str, Callable[..., Tensor]]
    missing: dict[str, str]

    def scores(self, image: Tensor, target: Tensor | None) -> dict[str, float]:
        """Of a picture (1, 3, H, W) in [0, 1]; without a target (the same shape) only those that need none.

        Scores that need a larger picture are not there.
        """
        found: dict[str, float] = {}
        for name, network in self.networks.items():
            metric = METRICS[name]
            if (metric.referenced and target is None) or min(image.shape[-2:]) < metric.smallest:
                continue
            pictures = [image] if not metric.referenced or target is None else [image, target]
            parts = list(zip(*(cut(p, metric.largest) for p in pictures), strict=True))
            found[name] = sum(float(network(*part)) for part in parts) / len(parts)
        return found


def cut(image: Tensor, largest: int) -> list[Tensor]:
    """(1, C, H, W) in equal parts (to a pixel) of at most ``largest`` px a side, row by row."""
    rows = image.tensor_split(max(1, math.ceil(image.shape[-2] / largest)), -2)
    return [part for row in rows for part in row.tensor_split(max(1, math.ceil(image.shape[-1] / largest)), -1)]


def load_perceptual(device: torch.device | None = None) -> Perceptual:
    """Whatever of ``METRICS`` can be had without a network; never raises for what cannot."""
    try:
        import pyiqa  # pyright: ignore[reportMissingImports]
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision built for another torch
        log.info("pyiqa: %s", error)
        reason = "is not installed" if isinstance(error, ModuleNotFoundError) else "cannot be imported"
        return Perceptual({}, dict.fromkeys(METRICS, f"pyiqa {reason} ({type(error).__name__})"))
    networks: dict[str, Callable[..., Tensor]] = {}
    missing: dict[str, str] = {}
    for name, metric in METRICS.items():
        try:
            absent = [path for path in files_of(metric) if not path.is_file()]
        except (ImportError, AttributeError, KeyError) as error:
            log.info("%s: %s", name, error)
            missing[name] = f"this pyiqa is built otherwise than 0.1.16 ({type(error).__name__})"
            continue
        if absent:
            log.warning("%s is left out, for want of %s", name, ", ".join(map(str, absent)))
            missing[name] = f"{' and '.join(path.name for path in absent)} not in torch's hub folder"
        else:
            try:
                networks[name] = pyiqa.create_metric(name, device=device or torch.device("cpu"))
            except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
                log.warning("%s is left out: %s", name, error)
                missing[name] = f"its files cannot be loaded ({type(error).__name__})"
    return Perceptual(networks, missing)


def files_of(metric: Metric) -> list[Path]:
    """Where the installed pyiqa and torchvision look before they fetch: <hub>/pyiqa/... and <hub>/checkpoints/..."""
    addresses: dict[str, Any] = importlib.import_module(f"pyiqa.archs.{metric.module}").default_model_urls
    own = Path(importlib.import_module("pyiqa.utils.download_util").DEFAULT_CACHE_DIR)
    files = [own / _last_name(addresses[metric.key])]
    if metric.backbone:
        weights = getattr(importlib.import_module("torchvision.models"), metric.backbone).IMAGENET1K_V1
        files.append(Path(torch.hub.get_dir()) / "checkpoints" / _last_name(weights.url))
    return files


def _last_name(address: str) -> str:
    return Path(urlparse(address).path).name
