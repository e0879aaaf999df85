"""Save Picture beside the host's own Save Image. Cases for ``run_cases.py``."""

from __future__ import annotations

import inspect
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import comfy.cli_args
import folder_paths
import numpy as np
import torch
from comfy_api.latest import io
from harness import FOLDER, refusal
from PIL import Image

import nodes

OUTPUT = FOLDER / "output"
OUTPUT.mkdir()
folder_paths.set_output_directory(str(OUTPUT))

PROMPT, EXTRA = {"1": {"class_type": "a"}}, {"workflow": {"nodes": ["\u9ad8"]}}

WAVE = (torch.arange(12 * 16 * 3).view(1, 12, 16, 3) * 0.0131) % 1
HALVES = (torch.arange(256).view(1, 16, 16, 1).expand(-1, -1, -1, 3) + 0.5) / 255


def save(images: Any, prefix: str = "a", bits: str = "8", **more: Any) -> list[Path]:
    """The files that the node says it wrote, run as the host runs it, with what it hides."""
    hidden = {io.Hidden.prompt: PROMPT, io.Hidden.extra_pnginfo: EXTRA}
    prepare = nodes.NODE_CLASS_MAPPINGS["OP4KSR_SavePicture"].PREPARE_CLASS_CLONE
    bare = "hidden_inputs" in inspect.signature(prepare).parameters  # ComfyUI 0.3
    node: Any = prepare(hidden if bare else {"hidden_inputs": hidden})
    shown = node.execute(images, prefix, bits, **more).ui.as_dict()["images"]
    assert all(one["type"] == "output" for one in shown)
    return [OUTPUT / one["subfolder"] / one["filename"] for one in shown]


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def eight_bits() -> dict[str, Any]:
    """Rounded; the host's own cuts off. Texts as the host's."""
    (ours,) = save(HALVES, "ours")
    result = nodes.SaveImage().save_images(HALVES, "theirs", PROMPT, EXTRA)
    theirs = OUTPUT / result["ui"]["images"][0]["filename"]
    exact = (HALVES[0].double() * 255).numpy()
    opened: Any = Image.open(ours)
    return {
        "ours_off": float(abs(pixels(ours) - exact).max()),
        "theirs_off": float(abs(pixels(theirs) - exact).max()),
        "texts": [opened.text, Image.open(theirs).text],  # pyright: ignore
        "names": [ours.name, theirs.name],
    }


def sixteen_bits() -> dict[str, Any]:
    from op4ksr_core.images.io import load_image

    (path,) = save(WAVE, "deep", "16")
    found = load_image(path).image.movedim(1, -1)
    return {"off": (found - WAVE).abs().max().item() * 65535}


def batches() -> dict[str, Any]:
    """Names count on; folders and the number within the batch as in Save Image."""
    first = save(WAVE.expand(3, -1, -1, -1), "sub/b%batch_num%")
    second = save(WAVE, "sub/b0")
    return {"names": [str(path.relative_to(OUTPUT).as_posix()) for path in first + second]}


def names_module() -> Any:
    """Where the names are made; the host calls a pack's modules by its path."""
    save_module = nodes.NODE_CLASS_MAPPINGS["OP4KSR_SavePicture"].__module__
    return sys.modules[save_module.replace("nodes.save", "nodes.host.names")]


def names() -> dict[str, Any]:
    """Dates as ComfyUI's page fills them in for Save Image alone; the number within the batch does not overwrite."""
    then = datetime(2026, 3, 9, 4, 5, 6)
    written = {
        text: names_module().dated(text, then)
        for text in ("a_%date:yyyy-MM-dd%", "%date:yy/M/d%/b", "%date%", "%date:hhmmss%_%date:h.m.s%", "%width%_100%")
    }
    twice = [save(WAVE.expand(2, -1, -1, -1), "n%batch_num%") for _ in range(2)]
    return {"written": written, "twice": [path.name for files in twice for path in files]}


def transparency() -> dict[str, Any]:
    mask = torch.zeros(1, 12, 16)
    opaque = save(WAVE, "opaque", mask=mask)[0]
    mask[:, :6] = 1
    clear = save(WAVE.expand(2, -1, -1, -1), "clear", mask=mask)
    rgba = save(torch.cat((WAVE, WAVE[..., :1] * 0 + 0.4), -1), "rgba")[0]
    small = save(WAVE, "small", mask=mask[:, ::2, ::2])[0]
    return {
        "modes": [Image.open(path).mode for path in (opaque, *clear, rgba, small)],
        "alphas": [sorted(set(pixels(path)[..., 3].flatten().tolist())) for path in (*clear, rgba)],
    }


def compression() -> dict[str, Any]:
    flat = torch.full((1, 300, 300, 3), 0.5)
    return {level: save(flat, f"c{level}", compression=level)[0].stat().st_size for level in ("fast", "0", "9")}


def without_metadata() -> dict[str, Any]:
    comfy.cli_args.args.disable_metadata = True
    try:
        opened: Any = Image.open(save(WAVE, "bare")[0])
    finally:
        comfy.cli_args.args.disable_metadata = False
    return opened.text


def refused() -> dict[str, Any]:
    before = sorted(path.name for path in OUTPUT.rglob("*"))
    found = {
        "bits": refusal(lambda: save(WAVE, bits="12")),
        "compression": refusal(lambda: save(WAVE, compression="best")),
        "nan": refusal(lambda: save(WAVE / 0)),
        "outside": refusal(lambda: save(WAVE, "../../out")),
        "latent": refusal(lambda: save(torch.zeros(1, 16, 8, 8))),
    }
    return {**found, "nothing_is_left": before == sorted(path.name for path in OUTPUT.rglob("*"))}


def full_size() -> dict[str, Any]:
    """4096 px square, once: nothing but that it is right."""
    tile = torch.rand(1, 64, 64, 3, generator=torch.Generator().manual_seed(0))
    large = tile.repeat(1, 64, 64, 1)
    (path,) = save(large, "large")
    wanted = np.rint((tile[0] * 255).numpy()).astype(int)
    found = pixels(path)
    return {"shape": list(found.shape), "same": bool((found == np.tile(wanted, (64, 64, 1))).all())}


CASES = [eight_bits, sixteen_bits, batches, names, transparency, compression, without_metadata, refused, full_size]
