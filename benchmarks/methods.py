"""Ways to enlarge a picture, by name, and what each one's output depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image
from torch import Tensor

import op4ksr_core
from op4ksr_core.errors import OptionError
from op4ksr_core.files import regular_file
from op4ksr_core.images.color import back_project
from op4ksr_core.images.io import Picture, from_pil, to_pil
from op4ksr_core.images.resize import resize
from op4ksr_core.plain_text import plain

#: What the model is held against: all that it needs a network for comes on top of this.
BASE = "bicubic + back-projection"

#: LR (1, 3, h, w) in [0, 1], factor -> (1, 3, h * factor, w * factor).
Enlarge = Callable[[Tensor, int], Tensor]

#: The library's modules that a picture depends on; with them the scores that are kept on the disk are thrown away.
_CODE = ("one_step.py", "base.py", "images/color.py", "images/resize.py", "models/*.py", "vae/*.py")


@dataclass(frozen=True)
class Method:
    """``key``: of all that its output depends on beside its input and the library's code. ``columns``: of its rows."""

    name: str
    key: str
    enlarge: Enlarge
    columns: Mapping[str, object] = field(default_factory=dict[str, object])


def bicubic(low: Tensor, factor: int) -> Tensor:
    """As ``upscale`` begins, clamped."""
    return resize(low, low.shape[-2] * factor, low.shape[-1] * factor).clamp(0, 1)


def _lanczos(low: Tensor, factor: int) -> Tensor:
    """Pillow's, in 8 bit."""
    small = to_pil(Picture(low))
    return from_pil(small.resize((small.width * factor, small.height * factor), Image.Resampling.LANCZOS)).image


def projected(enlarge: Enlarge) -> Enlarge:
    """The same, and back-projection after it."""
    return lambda low, factor: back_project(enlarge(low, factor), low, 1.0).clamp(0, 1)


#: What needs no network, by name.
PLAIN = {
    method.name: method
    for method in (
        Method("bicubic", "bicubic", bicubic),
        Method("Lanczos", "Lanczos", _lanczos),
        Method(BASE, BASE, projected(bicubic)),
    )
}


@cache
def file_key(path: Path) -> str:
    """A file's SHA-256. Raises OptionError where it cannot be read."""
    if (other := regular_file(path)) is not None:
        raise OptionError(f"{plain(path)}: cannot be read (is {other}); name a file")
    try:
        with open(path, "rb") as file:
            digest = hashlib.sha256()
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise OptionError(f"{plain(path)}: cannot be read ({error.strerror}); check the name") from error
    return digest.hexdigest()


@cache
def code_key() -> str:
    """Of the library's modules that a picture depends on."""
    root = Path(op4ksr_core.__file__).parent
    digest = hashlib.sha256()
    for pattern in _CODE:
        for path in sorted(root.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()
