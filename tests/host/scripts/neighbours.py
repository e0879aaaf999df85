"""Other packs, looked for where a user has them; a case that needs one says which is missing, and where.

They are looked for in the host's custom_nodes, then in the folder that $OP4KSR_NEIGHBOURS names; a pack's folder has
the name of its repository, in upper or lower case.
"""

from __future__ import annotations

import asyncio
import os
import sys
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import folder_paths
from harness import FOLDER, LackingError

import nodes

#: Modules that a pack imports and that its own requirements.txt asks for.
NEEDS = {
    "ComfyUI-DyPE": (),
    "ComfyUI-GGUF": ("gguf",),
    "ComfyUI-KJNodes": ("color_matcher", "cv2", "matplotlib", "mss"),
    "rgthree-comfy": (),
}


@lru_cache
def neighbour(name: str) -> Path:
    """Load the pack; its folder. LackingError where it, or a module that it needs, is not there."""
    folder = _find(name)
    if missing := [module for module in NEEDS[name] if find_spec(module) is None]:
        raise LackingError(f"{name} is in {folder}, but the host's Python lacks its {', '.join(missing)}")
    _start_server()
    if not asyncio.run(nodes.load_custom_node(str(folder))):
        raise RuntimeError(f"the host could not load {folder}; its log says why")
    return folder


def _find(name: str) -> Path:
    places = [Path(sys.argv[2]) / "custom_nodes"]
    if stated := os.environ.get("OP4KSR_NEIGHBOURS"):
        places.append(Path(stated).expanduser())
    for place in places:
        for folder in sorted(place.iterdir()) if place.is_dir() else ():
            if folder.name.lower() == name.lower() and (folder / "__init__.py").is_file():
                return folder
    looked = ", ".join(str(place) for place in places)
    hint = "" if stated else "; $OP4KSR_NEIGHBOURS names no further folder"
    raise LackingError(f"no {name} in {looked}{hint}")


@lru_cache
def _start_server() -> None:
    """Some packs add routes to the host's server when they are imported: it exists, but serves nothing."""
    folder_paths.set_user_directory(str(FOLDER / "user"))  # which it makes
    import server

    if not hasattr(server.PromptServer, "instance"):
        server.PromptServer(asyncio.new_event_loop())
