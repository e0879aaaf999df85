"""The script that trains better weights in one run, at small scale on the CPU: three files in time, usable at once."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from op4ksr_core import load_autoencoder, load_flux, upscale
from op4ksr_core.base import Learned
from op4ksr_core.weights.enlarger import load_enlarger

ROOT = Path(__file__).resolve().parents[2]

SMALL = (
    "data.workers=0 data.pictures=4 data.picture_side=128 data.crop=128 train.batch=1 train.grid_every=0 "
    "train.precision='fp32' output.log_every=1 train.threads=1"
)


@pytest.mark.slow
def test_three_files_in_time(tmp_path: Path) -> None:
    changes = [part for change in SMALL.split() for part in ("--set", change)]
    # The enlarger's crops are multiples of 12 px, the detail's of 128: 384 px are both.
    changes[changes.index("data.crop=128")] = "data.crop=384"
    changes[changes.index("data.picture_side=128")] = "data.picture_side=384"
    began = time.monotonic()
    command = [sys.executable, "-m", "benchmarks.gpu.weights", "--device", "cpu", "--minutes", "2.5"]
    run = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), *changes], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert time.monotonic() - began < 2.5 * 60 + 60
    files = {path.name for path in (tmp_path / "out").glob("*.safetensors")}
    assert files == {f"op4ksr_small_{name}.safetensors" for name in ("enlarger", "flux", "vae")}
    enlarger, flux, vae = (
        tmp_path / "out" / f"op4ksr_small_{name}.safetensors" for name in ("enlarger", "flux", "vae")
    )
    model = load_flux(flux)
    assert model.settings.output == "detail"
    base = Learned(load_enlarger(enlarger), "made")
    out = upscale(torch.rand(1, 3, 16, 16), model, load_autoencoder(vae), base=base)
    assert out.shape == (1, 3, 64, 64)
