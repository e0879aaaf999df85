"""Campaign: commands under a limit on the process's memory end right, or in one sentence."""

from __future__ import annotations

import re
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from .outcomes import Run, Tally, forked

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="limits are others elsewhere")]

#: What is added to what the process has at its start, MB. With less than these not even a thread of Python's can start,
#: and Python waits for it for ever.
ROOMS = [4, 7, 10, 15, 20, 40, 60, 80, 110, 150, 200, 280, 400, 600, 900]


def limited(room: int, *arguments: str) -> Run:
    """A command that may take ``room`` MB more than it has."""

    def work() -> int:
        from op4ksr_core.cli.main import main

        found = re.search(r"VmSize:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found is not None
        limit = int(found[1]) * 1024 + room * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        return main(list(arguments))

    return forked(work, 30.0)


def test_little_memory(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    from op4ksr_core.cli.main import build_parser

    build_parser()
    tally = Tally("memory limits")
    source = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (500, 500, 3), np.uint8)).save(source)
    large = tmp_path / "large.png"
    Image.new("RGB", (6000, 6000), "gray").save(large)
    commands = {
        "upscale": ("upscale", str(source), "--scale", "1", "--vae-only"),
        "upscale anyway": ("upscale", str(source), "--scale", "1", "--anyway"),
        "large": ("upscale", str(large), "--long-edge", "64", "--vae-only"),
        "suppress": ("suppress", str(source)),
    }
    whole: dict[str, bytes] = {}
    for room in reversed(ROOMS):
        for name, arguments in commands.items():
            output = tmp_path / f"{name} out.png"
            output.unlink(missing_ok=True)
            run = limited(room, *arguments, "-o", str(output))

            def wrong(name: str = name, output: Path = output) -> str | None:
                """Another picture than with more memory, by more than strips' rounding makes."""
                pixels = np.asarray(Image.open(output).convert("RGB")).astype(int)
                first = whole.setdefault(name, pixels.tobytes())
                return None if np.abs(pixels.ravel() - np.frombuffer(first, int)).max() <= 2 else "another picture"

            what = run.fault() or (wrong() if run.code == 0 else None)
            if what is None and any(p.name.startswith(".op4ksr") for p in tmp_path.iterdir()):
                what = "left over"
            if what:
                tally.fault(f"{name}, {room} MB", f"{what} | {run.err[-300:]!r}")
            elif run.code:
                tally.sentence()
            else:
                tally.right()
    tally.close()
