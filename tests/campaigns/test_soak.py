"""Many runs in one process, in the library and in ComfyUI: the memory stays flat, and the pictures stay the same."""

from __future__ import annotations

import gc
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from campaigns.outcomes import Tally
from host_support import find_host, run_cases
from torch import Tensor

from op4ksr_core import BUNDLED_AUTOENCODER, BUNDLED_FLUX, OneStepOptions, Target, load_autoencoder, load_flux, upscale
from op4ksr_core.errors import Op4ksrError
from op4ksr_core.images.io import Picture, load_image, save_image
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.periodicity.suppress import suppress_periodicity

pytestmark = pytest.mark.slow

#: Runs, and those after which it is warm: of 3,000 the first 400 added 40 MB, all the others 4.
RUNS, WARM = 1000, 400

#: Bytes that the process may have grown by after it was warm; ComfyUI's own log and caches are among them.
GROWTH = 12_000_000


def resident() -> int:
    """Bytes of memory that the process holds."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def of_tensor(image: Tensor) -> str:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).hexdigest()


def kinds(folder: Path) -> dict[str, Callable[[], str]]:
    """What is done in turn -> a hash of what it made, or the sentence that refused it."""
    flux, vae = load_flux(BUNDLED_FLUX), load_autoencoder(BUNDLED_AUTOENCODER)
    photo = torch.rand(2, 3, 12, 20, generator=torch.Generator().manual_seed(3))
    large = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(4))

    def enlarged(image: Tensor, **options: object) -> str:
        return of_tensor(upscale(image, flux, vae, OneStepOptions(target=Target(scale=2), **options)))  # pyright: ignore

    def refused(attempt: Callable[[], object]) -> str:
        with pytest.raises(Op4ksrError) as error:
            attempt()
        return str(error.value)

    def stored(name: str, bits: int) -> str:
        save_image(folder / name, Picture(photo[:1]), bits)
        return of_tensor(load_image(folder / name).image)

    (folder / "damaged.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    return {
        "one": lambda: enlarged(photo[:1]),
        "batch": lambda: enlarged(photo),
        "lab": lambda: enlarged(photo[:1], color="lab", fidelity=0.5),
        "vae": lambda: enlarged(photo[:1], vae_only=True),
        "png": lambda: stored("a.png", 16),
        "jpeg": lambda: stored("a.jpg", 8),
        "measured": lambda: repr(measure_periodicity(large)),
        "suppressed": lambda: of_tensor(suppress_periodicity(large)),
        "nan": lambda: refused(lambda: enlarged(photo / 0)),
        "damaged": lambda: refused(lambda: load_image(folder / "damaged.png")),
    }


def test_the_library(tmp_path: Path) -> None:
    tally, known, before = Tally("soak, library"), dict[str, str](), 0
    todo = kinds(tmp_path)
    for number, (name, work) in enumerate(itertools.islice(itertools.cycle(todo.items()), RUNS)):
        if number == WARM:
            before = resident()
        came = work()
        if known.setdefault(name, came) == came:
            tally.right()
        else:
            tally.fault(name, f"run {number} made something else")
    grown = resident() - before
    print(f"soak, library: {grown / 1e6:+.1f} MB after {WARM} runs, of {before / 1e6:.0f}")
    if grown > GROWTH:
        tally.fault("memory", f"grew by {grown / 1e6:.1f} MB")
    tally.close()


@pytest.mark.host
def test_the_nodes_in_comfyui(tmp_path: Path) -> None:
    found = run_cases(find_host(), "soak_cases", tmp_path, timeout=500)["soak"]
    tally = Tally("soak, ComfyUI")
    for number, (name, came) in enumerate(found["runs"]):
        if came == found["first"][name]:
            tally.right()
        else:
            tally.fault(name, f"run {number} made something else")
    print(f"soak, ComfyUI: {found['grown'] / 1e6:+.1f} MB after {found['warm']} runs, of {found['before'] / 1e6:.0f}")
    if found["grown"] > GROWTH:
        tally.fault("memory", f"grew by {found['grown'] / 1e6:.1f} MB")
    tally.close()
