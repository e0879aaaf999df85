"""What the cases share: running nodes, and telling what is refused. Imported after the host's start."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths

import nodes

FOLDER = Path(sys.argv[4])
for kind in ("vae", "diffusion_models", "loras", "embeddings"):
    (FOLDER / kind).mkdir()
    folder_paths.add_model_folder_path(kind, str(FOLDER / kind))


class LackingError(Exception):
    """Raised by a case for what this version of the host does not have: the test is skipped."""


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


class Log(logging.Handler):
    """What is logged while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.warnings: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())
        if record.levelno >= logging.WARNING:
            self.warnings.append(record.getMessage())

    def __enter__(self) -> Log:
        logging.getLogger().addHandler(self)
        return self

    def __exit__(self, *_: Any) -> None:
        logging.getLogger().removeHandler(self)


def refusal(attempt: Callable[[], Any]) -> dict[str, Any]:
    """What a user is told when ``attempt`` fails: the error's classes and its text."""
    try:
        attempt()
    except Exception as error:
        return {"classes": [cls.__name__ for cls in type(error).__mro__], "message": str(error)}
    return {"classes": [], "message": "nothing was refused"}
