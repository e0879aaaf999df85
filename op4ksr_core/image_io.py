"""Picture files <-> tensors, with Pillow; every way in which a file can be wrong has its sentence."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .errors import ImageError, OutputError

#: What a folder is searched for.
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")

#: Pillow's names of the formats that are written.
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")

#: Those of them that cannot hold transparency, or that few programs read it from.
_OPAQUE_FORMATS = ("JPEG", "BMP")


@dataclass(frozen=True)
class Picture:
    """image (1, 3, H, W) and alpha (1, 1, H, W) or None, float32 in [0, 1], upright."""

    image: Tensor
    alpha: Tensor | None = None

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in px."""
        return self.image.shape[-2], self.image.shape[-1]


def load_image(path: str | Path) -> Picture:
    """Read a picture, turned upright by its EXIF orientation, to RGB and alpha.

    16-bit grey keeps its range; palettes, CMYK and grey become RGB. Raises ImageError: no such
    file, no picture, cut short, without pixels.
    """
    path = Path(path)
    try:
        # Not by name: Pillow garbles turned grey TIFFs that it can map into memory.
        with path.open("rb") as file, Image.open(file) as opened:
            opened.load()
            picture = ImageOps.exif_transpose(opened)
    except FileNotFoundError as error:
        raise ImageError(f"{path}: no such file; check the name and the folder") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"{path}: is no picture that Pillow can read; expected PNG, JPEG, WebP or TIFF") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path}: {error}; shrink it first") from error
    except (OSError, SyntaxError, ValueError, TypeError, NotImplementedError) as error:
        raise ImageError(f"{path}: is damaged or cut short ({error}); save it again from its source") from error
    return from_pil(picture)


def from_pil(picture: Image.Image) -> Picture:
    """A Pillow picture of any mode -> ``Picture``."""
    if picture.mode.startswith("I;16") or picture.mode == "I":
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32) / 65535).clamp(0, 1)
        return Picture(grey[None, None].repeat(1, 3, 1, 1))
    if picture.mode == "F":
        grey = torch.from_numpy(np.asarray(picture).astype(np.float32)).clamp(0, 1)
        return Picture(grey[None, None].repeat(1, 3, 1, 1))
    has_alpha = picture.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in picture.info
    pixels = np.asarray(picture.convert("RGBA" if has_alpha else "RGB"))
    tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None].float().div_(255)
    return Picture(tensor[:, :3].contiguous(), tensor[:, 3:].contiguous() if has_alpha else None)


def to_pil(picture: Picture) -> Image.Image:
    """The first picture of a batch -> 8-bit RGB or RGBA."""
    planes = [picture.image[0]] if picture.alpha is None else [picture.image[0], picture.alpha[0]]
    tensor = torch.cat([plane.float().cpu() for plane in planes])
    pixels = tensor.clamp(0, 1).mul(255).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels)


def save_image(path: str | Path, picture: Picture) -> None:
    """Write the first picture of a batch, 8 bit, in the format of the name's ending; whole or not at all.

    Formats without transparency get the colours alone. Raises OutputError: unknown ending, no such
    folder, not writable, disk full; a file that was there is then untouched.
    """
    path = Path(path)
    kind = _format(path)
    content = to_pil(Picture(picture.image) if kind in _OPAQUE_FORMATS else picture)
    options = {"quality": 95, "subsampling": 0} if kind == "JPEG" else {}
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=path.suffix)
        os.close(handle)
        try:
            content.save(temporary, **options)  # pyright: ignore
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{path}: cannot be written ({reason}); choose another folder or name") from error


def check_output(path: str | Path) -> None:
    """Raise the OutputError that ``save_image`` would: unknown ending, no such folder, not writable."""
    path = Path(path)
    _format(path)
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}); choose another folder or name") from error


def holds_alpha(path: str | Path) -> bool:
    """Whether the format that the name's ending means can hold transparency."""
    return _format(Path(path)) not in _OPAQUE_FORMATS


def _format(path: Path) -> str:
    """Pillow's name of the format that the name's ending means."""
    Image.init()
    kind = Image.EXTENSION.get(path.suffix.lower(), "")
    if kind not in _FORMATS:
        raise OutputError(f"{path}: unknown picture format {path.suffix!r}; end the name in .png, .jpg or .webp")
    return kind
