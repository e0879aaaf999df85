"""Save Picture beside the host's own Save Image. Cases for ``run_cases.py``."""

from __future__ import annotations

import inspect
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import comfy.cli_args
import comfy.model_management
import folder_paths
import harness
import numpy as np
import torch
from comfy_api.latest import io
from harness import FOLDER, refusal
from PIL import Image

import nodes
from op4ksr_core.errors import OutputError

OUTPUT = FOLDER / "output"
OUTPUT.mkdir()
folder_paths.set_output_directory(str(OUTPUT))

PROMPT, EXTRA = {"1": {"class_type": "a"}}, {"workflow": {"nodes": ["\u9ad8"]}}

WAVE = (torch.arange(12 * 16 * 3).view(1, 12, 16, 3) * 0.0131) % 1
HALVES = (torch.arange(256).view(1, 16, 16, 1).expand(-1, -1, -1, 3) + 0.5) / 255


def save(images: Any, prefix: str = "a", bits: str = "8", extra: Any = EXTRA, **more: Any) -> list[Path]:
    """The files that the node says it wrote, run as the host runs it, with what it hides."""
    hidden = {io.Hidden.prompt: PROMPT, io.Hidden.extra_pnginfo: extra}
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


def safe_names() -> dict[str, Any]:
    """Prefix -> as what it is saved, on a system as this one, and on Windows."""
    prefixes = {
        "kept": "a b/%width%_\u9ad8\U0001f600-(1)",
        "surrogate": "a\ud800b\udc80",
        "control": "\0a\x1b[2J\n\u2028b\u202ec",
        "nothing": "",
        "dots": "./x/.././",
        "folders": "sub\\deep//name/",
        "long": "x" * 1_000_000,
        "long_letters": "\u9ad8" * 300 + "/" + "\u9ad8" * 300,
        "device": "aux/con.txt/NUL",
        "windows": 'a:b?/c. ./d"',
    }
    module = names_module()
    found = {
        key: [module.safe_prefix(prefix, "/out", system) for system in (False, True)]
        for key, prefix in prefixes.items()
    }
    return {**found, "inside": module.safe_prefix("/out/a/b", "/out", False)}


def odd_names() -> dict[str, Any]:
    """Where files land whose names could not be written, or hung the server."""
    odd = ("a\ud800b", "\0/\x1b[2J", "x" * 5000, "y" * 300 + "/" + "%date:yyyy%" * 90, "%width%" * 60)
    with harness.Log() as log:
        files = [path for prefix in odd for path in save(WAVE, prefix)]
    bytes_of = [len(part.encode()) for path in files for part in path.relative_to(OUTPUT).parts]
    return {"printable": all(str(path).isprintable() for path in files), "most": max(bytes_of), "log": log.warnings}


def refused_names() -> dict[str, Any]:
    """By what the host calls before anything runs, and by the node itself, whose name may come by a link."""
    (OUTPUT / "file").write_bytes(b"")
    (OUTPUT / "away").symlink_to(FOLDER)
    odd = {
        "climbing": "../../out",
        "climbing_surrogate": "../\ud800",
        "absolute": "/etc/out",
        "deep": "d/" * 5000,
        "many": "d/" * 52,
        "path": ("d" * 200 + "/") * 40,
    }
    validate = nodes.NODE_CLASS_MAPPINGS["OP4KSR_SavePicture"].validate_inputs
    found = {case: harness.refusal(lambda p=p: save(WAVE, p)) for case, p in odd.items()}
    at_once = {case: validate(filename_prefix=prefix) for case, prefix in odd.items()}
    here = {
        case: harness.refusal(lambda p=p: save(WAVE, p)) for case, p in {"file": "file/a", "link": "away/a"}.items()
    }
    return {"run": found, "at_once": at_once, "here": here, "good": [validate(filename_prefix="a"), validate()]}


def claims() -> dict[str, Any]:
    """Many at once in one folder: as two servers are to each other. A failure leaves no empty file."""
    with ThreadPoolExecutor(8) as pool:
        files = [
            path for paths in pool.map(lambda _: save(WAVE.expand(3, -1, -1, -1), "many"), range(16)) for path in paths
        ]
    left = {}
    module = sys.modules[nodes.NODE_CLASS_MAPPINGS["OP4KSR_SavePicture"].__module__]
    original = module.save_image
    interrupt = comfy.model_management.InterruptProcessingException
    for error in (OutputError("full"), interrupt(), OSError("full")):
        module.save_image = Mock(side_effect=error)
        try:
            save(WAVE, "fails")
        except BaseException as came:
            left[type(came).__name__] = [path.name for path in OUTPUT.glob("fails*")]
        finally:
            module.save_image = original
    return {"files": len(set(files)), "whole": all(Image.open(path).size == (16, 12) for path in files), "left": left}


def metadata() -> dict[str, Any]:
    circle: list[Any] = []
    circle.append(circle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    odd = {
        **{"list": [1], "text": "a", "number": 5, "nan": float("nan"), "bytes": b"a"},
        **{"circle": {"workflow": circle}, "deep": {"workflow": deep}, "bytes_inside": {"workflow": b"a"}},
        **{
            "no_name": {"": 1},
            "long_name": {"k" * 80: 1},
            "surrogate": {"\ud800": 1},
            "nul": {"a\0": 1},
            "int": {5: 1},
        },
        "huge": {"workflow": "x" * 40_000_000},
    }
    before = len(list(OUTPUT.rglob("*")))
    found = {case: harness.refusal(lambda e=e: save(WAVE, extra=e)) for case, e in odd.items()}
    nothing_left = before == len(list(OUTPUT.rglob("*")))
    (path,) = save(WAVE, extra={"workflow": ["\ud800"], "\u00e9 a": 1})
    opened: Any = Image.open(path)
    return {"refused": found, "nothing_left": nothing_left, "texts": opened.text, "none": len(save(WAVE, extra=None))}


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


CASES = [
    eight_bits,
    sixteen_bits,
    batches,
    names,
    safe_names,
    odd_names,
    refused_names,
    claims,
    metadata,
    transparency,
    compression,
    without_metadata,
    refused,
    full_size,
]
