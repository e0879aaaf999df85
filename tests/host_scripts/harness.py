"""Importing this starts ComfyUI inside this process, on the CPU, with the pack loaded as a custom node.

The scripts beside it import it first, so that ``comfy``, ``nodes`` and ``op4ksr_core`` can be imported
after it, and call ``main(case, case, ...)``. Their arguments are the host's root, the pack's root, an
empty folder for files and, optionally, the names of the cases to run. pytest never imports any of them.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

HOST, PACK, FOLDER = (Path(argument) for argument in sys.argv[1:4])
KINDS = ("vae", "diffusion_models", "loras")

Case = Callable[[], Any]


def _boot() -> None:
    """The host's own start, without its server."""
    sys.path.insert(0, str(HOST))
    os.chdir(HOST)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # before anything asks for a device
    import folder_paths
    import utils.install_util  # noqa: F401 - before nodes, or comfy/utils.py takes its name

    import nodes

    async def load() -> bool:
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        return await nodes.load_custom_node(str(PACK))

    if not asyncio.run(load()):
        raise SystemExit(f"the host could not load {PACK}; its log is above")
    sys.path.append(str(PACK))  # last, so that the pack's nodes/ does not hide the host's nodes.py
    for kind in KINDS:
        (FOLDER / kind).mkdir(exist_ok=True)
        folder_paths.add_model_folder_path(kind, str(FOLDER / kind))


logging.basicConfig(level=logging.INFO)
_boot()

import torch  # noqa: E402

import nodes  # noqa: E402


def run(node_id: str, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Execute a node of ours (V3) or of the host (V1 or V3); all its outputs."""
    node = nodes.NODE_CLASS_MAPPINGS[node_id]
    if hasattr(node, "define_schema"):
        return node.execute(*args, **kwargs).result
    return getattr(node(), node.FUNCTION)(*args, **kwargs)


def load_vae(name: str, **widgets: Any) -> Any:
    return run("OP4KSR_LoadF16VAE", name, **widgets)[0]


def load_model(name: str, **widgets: Any) -> Any:
    return run("OP4KSR_LoadFluxSR", name, **widgets)[0]


def apply_rfr(model: Any, policy: str, theta: float = 10000.0, **widgets: Any) -> Any:
    return run("OP4KSR_ApplyRFR", model, policy, theta, theta, **widgets)[0]


def upscale_node(image: Any, model: Any, vae: Any, **changes: Any) -> tuple[Any, Any]:
    """The one-step node's IMAGE and MASK: x2, and nothing after the decoder unless ``changes`` say so."""
    widgets: dict[str, Any] = {
        "target": "factor",
        "pixels": 4096,
        "factor": 2.0,
        "megapixels": 16.0,
        "color_fix": "none",
        "fidelity": 0.0,
        "vae_only": False,
    }
    image, mask = run("OP4KSR_OneStepUpscale", image, model, vae, **{**widgets, **changes})
    return image, mask


def refusal(attempt: Callable[[], Any]) -> dict[str, Any]:
    """What a user is told when ``attempt`` fails: the error's classes and its text."""
    try:
        attempt()
    except Exception as error:
        return {"classes": [cls.__name__ for cls in type(error).__mro__], "message": str(error)}
    return {"classes": [], "message": "nothing was refused"}


class Lacking(Exception):
    """Raised by a case for what this version of the host does not have: the test is skipped."""


def main(*cases: Case) -> None:
    """Run the cases; a case that raises does not stop the others. The last line printed is JSON."""
    wanted, results = sys.argv[4:], {}
    for case in cases:
        if wanted and case.__name__ not in wanted:
            continue
        try:
            with torch.inference_mode():
                results[case.__name__] = {"value": case()}
        except Lacking as lacking:
            results[case.__name__] = {"skip": str(lacking)}
        except Exception:
            results[case.__name__] = {"error": traceback.format_exc()}
    print(f"\n{json.dumps(results)}", flush=True)
