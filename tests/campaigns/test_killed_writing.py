"""Campaign: kill -9 at random moments of writing. A file is the old one or the new one; leftovers are hidden."""

from __future__ import annotations

import hashlib
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError, safe_open

from op4ksr_core import BUNDLED_FLUX
from op4ksr_core.files import is_temporary
from op4ksr_core.images.io import Picture, save_image
from op4ksr_core.images.paths import gather
from op4ksr_core.weights.convert import Conversion, convert

from .outcomes import Tally

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform == "win32", reason="no fork")]

#: Runs that are killed, of each kind.
RUNS = 20


def noise(seed: int) -> Picture:
    return Picture(torch.rand(1, 3, 700, 700, generator=torch.Generator().manual_seed(seed)))


def weights(path: Path, seed: int) -> None:
    convert(BUNDLED_FLUX, path, Conversion(metadata={"op4ksr.sigma": f"0.{seed + 1}"}))


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "a.png": lambda path, seed: save_image(path, noise(seed)),
    "a.webp": lambda path, seed: save_image(path, noise(seed)),
    "a.safetensors": weights,
}


def digest(path: Path) -> str:
    """Of the content; the order of metadata in a weights file is a matter of chance. "" for a file that is none."""
    if path.suffix != ".safetensors":
        return hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name).numpy().tobytes() for name in sorted(file.keys())}
            return hashlib.sha256(repr((sorted(file.metadata().items()), tensors)).encode()).hexdigest()
    except SafetensorError:
        return ""


@pytest.mark.parametrize("name", WRITERS)
def test_a_killed_writer_leaves_the_old_file_or_the_new_one(tmp_path: Path, name: str) -> None:
    torch.set_num_threads(1)
    write, path, tally = WRITERS[name], tmp_path / name, Tally(f"killed writing {name}")
    whole: list[str] = []
    for seed in (0, 1):
        begun = time.monotonic()
        write(path, seed)
        whole.append(digest(path))
        took = time.monotonic() - begun
    moments = np.random.default_rng(7).uniform(0, 2 * took, RUNS)
    for index, moment in enumerate(moments):
        child = os.fork()
        if child == 0:
            while True:
                write(path, index % 2)
        time.sleep(moment)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left = [p.name for p in tmp_path.iterdir() if p != path]
        if digest(path) not in whole:
            tally.fault(f"{moment:.3f} s", "neither the old file nor the new one")
        elif not all(map(is_temporary, left)):
            tally.fault(f"{moment:.3f} s", f"left over: {left}")
        else:
            tally.right()
    if path.suffix != ".safetensors":
        assert gather([tmp_path]) == [path]
    print(f"{len(list(tmp_path.iterdir())) - 1} unfinished files")
    tally.close()
