"""The nodes again and again in one process of the host. Cases for ``run_cases.py``; the judge is tests/campaigns."""

from __future__ import annotations

import gc
import hashlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
import harness
import torch
from weights import noise, picture

RUNS, WARM = 300, 100


def resident() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def made(*tensors: Any) -> str:
    return "".join(hashlib.sha256(one.contiguous().numpy().tobytes()).hexdigest() for one in tensors)


def kinds() -> dict[str, Callable[[], str]]:
    vae_name = "bundled: op4ksr_small_f16_vae.safetensors"
    model, conditioning = harness.run("OP4KSR_LoadFluxSR", "bundled: op4ksr_small_flux.safetensors")
    vae, image, mask = harness.load_vae(vae_name), picture(12, 20), torch.zeros(1, 12, 20)
    mask[..., 5:] = 1

    def saved() -> str:
        output = harness.FOLDER / "output"
        harness.run("OP4KSR_SavePicture", image, "a", "8", mask)
        (path,) = output.glob("a_*.png")
        content = path.read_bytes()
        path.unlink()
        return hashlib.sha256(content).hexdigest()

    (harness.FOLDER / "output").mkdir()
    folder_paths.set_output_directory(str(harness.FOLDER / "output"))
    return {
        "upscale": lambda: made(*harness.upscale_node(image, model, vae, mask=mask)),
        "conditioning": lambda: made(*harness.upscale_node(image, model, vae, conditioning=conditioning)),
        "rfr": lambda: made(harness.upscale_node(image, harness.apply_rfr(model, "theta", 50.0), vae)[0]),
        "exact": lambda: made(harness.run("OP4KSR_ExactVAE", vae, "tiny")[0].decode(noise(1, 16, 2, 3))),
        "plan": lambda: harness.run("OP4KSR_Plan", model, vae, 16, 12, "factor", 64, 2.0, 1.0, False)[0][:20],
        "suppress": lambda: made(harness.run("OP4KSR_SuppressPeriodicity", image)[0]),
        "save": saved,
        "loads": lambda: made(harness.load_vae(vae_name).decode(noise(1, 16, 2, 3))),
        "refused": lambda: harness.refusal(lambda: harness.upscale_node(image / 0, model, vae))["message"],
    }


def soak() -> dict[str, Any]:
    first: dict[str, str] = {}
    runs: list[tuple[str, str]] = []
    before = 0
    for number, (name, work) in enumerate(itertools.islice(itertools.cycle(kinds().items()), RUNS)):
        if number == WARM:
            before = resident()
        runs.append((name, work()))
        first.setdefault(name, runs[-1][1])
    return {"runs": runs, "first": first, "warm": WARM, "before": before, "grown": resident() - before}


CASES = (soak,)
