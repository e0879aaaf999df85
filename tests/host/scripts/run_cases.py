"""Start ComfyUI inside this process and run the cases of a module beside this file.

python run_cases.py MODULE HOST PACK FOLDER [CASE ...]: the host's root, the pack's root, an empty folder
for files. The module's ``CASES`` are run; the last line printed is a JSON object, case -> outcome.
pytest never imports any file of this folder: they run in the host's Python, after the host's start.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import Any


def boot(host: Path, pack: Path) -> None:
    """The host's own start on the CPU, without its server; the pack is loaded as a custom node."""
    sys.path.insert(0, str(host))
    os.chdir(host)
    import comfy.cli_args

    comfy.cli_args.args.cpu = True  # before anything asks for a device
    import utils.install_util  # noqa: F401 - before nodes, or comfy/utils.py takes its name

    nodes: Any = importlib.import_module("nodes")

    async def load() -> bool:
        await nodes.init_extra_nodes(init_custom_nodes=False, init_api_nodes=False)
        return await nodes.load_custom_node(str(pack))

    if not asyncio.run(load()):
        raise SystemExit(f"the host could not load {pack}; its log is above")
    sys.path.append(str(pack / "tests"))  # scenes, seeded models
    sys.path.append(str(pack))  # last, so that the pack's nodes/ does not hide the host's nodes.py


def run(module: str, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """A case that raises does not stop the others."""
    import torch

    with torch.inference_mode():
        cases = importlib.import_module(module).CASES
    lacking = importlib.import_module("harness").LackingError
    results: dict[str, dict[str, Any]] = {}
    for case in cases:
        if wanted and case.__name__ not in wanted:
            continue
        try:
            with torch.inference_mode():
                results[case.__name__] = {"value": case()}
        except lacking as reason:
            results[case.__name__] = {"skip": str(reason)}
        except Exception:
            results[case.__name__] = {"error": traceback.format_exc()}
    return results


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    boot(Path(sys.argv[2]), Path(sys.argv[3]))
    outcome = run(sys.argv[1], sys.argv[5:])
    print(f"\n{json.dumps(outcome)}", flush=True)
