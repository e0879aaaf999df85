"""800 odd picture files: each is read rightly or refused in one sentence; some are upscaled and cleaned too."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from campaigns.odd_pictures import Odd, draw
from campaigns.outcomes import Run, Tally, command, forked

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.name == "nt", reason="no fork"),
    pytest.mark.filterwarnings("ignore"),
]

PICTURES = 800

#: Of every so many, one is upscaled, or cleaned, by the command line as well.
COMMANDS = 10

#: Seconds that a file of these sizes may take.
SLOW = 20.0


def read(path: Path, odd: Odd) -> int:
    """Read it in this process; status 1 with the error's sentence, and a line of what is wrong with what came."""
    from op4ksr_core.errors import Op4ksrError
    from op4ksr_core.images.io import load_image

    logging.basicConfig(level=logging.WARNING, format="told: %(message)s", stream=sys.stdout, force=True)
    try:
        picture = load_image(path)
    except Op4ksrError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    image = picture.image[0].permute(1, 2, 0).numpy()
    alpha = None if picture.alpha is None else picture.alpha[0, 0].numpy()
    if what := difference(odd, image, alpha):
        print(f"wrong: {what}")
    return 0


def difference(odd: Odd, image: np.ndarray, alpha: np.ndarray | None) -> str | None:
    if not (np.isfinite(image).all() and image.min() >= 0 and image.max() <= 1):
        return "values outside [0, 1]"
    if odd.refused:
        return "it was read"
    if odd.colors is None:
        return None
    if image.shape != odd.colors.shape:
        return f"{image.shape} instead of {odd.colors.shape}"
    wanted = np.ones(image.shape[:2]) if odd.alpha is None else odd.alpha
    found = np.ones(image.shape[:2]) if alpha is None else alpha
    if (off := float(np.abs(found - wanted).max())) > max(odd.near, 1e-6):
        return f"transparency off by {255 * off:.2f} levels"
    # A colour under little alpha is as fine as its premultiplied levels are.
    weight = np.where(wanted > 0, np.minimum(1, wanted), 0)[..., None]
    if (off := float((np.abs(image - odd.colors) * weight).max())) > odd.near:
        return f"colours off by {255 * off:.2f} levels"
    return None


def judged(odd: Odd, run: Run) -> str | None:
    """What is wrong although it ended well."""
    lines = run.out.split("\n")
    if found := next((line for line in lines if line.startswith("wrong: ")), None):
        return found
    if odd.told and not any(line.startswith("told: ") and odd.told in line for line in lines):
        return f"not told: {odd.told}"
    return f"took {run.seconds:.0f} s" if run.seconds > SLOW else None


def made(path: Path) -> str | None:
    """What is wrong with a picture that a command wrote."""
    from PIL import Image

    if not path.exists():
        return "nothing was written"
    with Image.open(path) as opened:
        opened.load()
    return None


def test_odd_pictures(tmp_path: Path) -> None:
    tally = Tally("odd pictures")
    count = int(os.environ.get("ODD_PICTURES", PICTURES))
    for seed in range(count):
        odd = draw(seed)
        path = tmp_path / f"odd{seed}{odd.ending}"
        path.write_bytes(odd.content)
        case = f"{seed}: {odd.name}"
        run = forked(lambda path=path, odd=odd: read(path, odd))
        refused = run.code == 1 and not odd.refused and odd.colors is not None and run.fault() is None
        if refused:
            tally.fault(case, f"refused: {run.err.strip()[-200:]}")
        else:
            tally.judge(case, run, lambda odd=odd, run=run: judged(odd, run))
        if seed % COMMANDS == 0:
            out = tmp_path / f"out{seed}.png"
            way = ["upscale", path, "-o", out, "--long-edge", "64"] if seed % 20 else ["suppress", path, "-o", out]
            tally.judge(f"{case} ({way[0]})", command(way), lambda out=out: made(out))
            out.unlink(missing_ok=True)
        path.unlink()
        assert not [left.name for left in tmp_path.iterdir()], "something is left"
    tally.close()
