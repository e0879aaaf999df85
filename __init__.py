"""OP4KSR for ComfyUI. The host calls ``comfy_entrypoint``; anything else may import this safely."""

from importlib.util import find_spec

# Test runners import this file too, without the host and without a package name.
if __package__ and find_spec("comfy_api") is not None:
    from .nodes import comfy_entrypoint

    #: Served by the host; the help panel looks for docs/<node>/<language>.md and docs/<node>.md in it.
    WEB_DIRECTORY = "./web"
    __all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]
