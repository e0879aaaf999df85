"""Colours that a file states, by a profile or by numbers -> sRGB, which all else here assumes."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image, features

from ..plain_text import plain, plain_logger
from .content import Samples
from .spaces import SAME, Space, probe, space_of_profile

log = plain_logger(__name__)

#: Modes that a profile can be applied to as they are.
_PROFILED = ("RGB", "L", "CMYK", "LAB")

#: littlecms's flag for black point compensation, which Pillow names since 10.3.
_BLACK_POINT = 0x2000

#: Values that the integers of deep samples reach; floats reach 1.
_TOP_16 = 65535


def to_srgb(picture: Image.Image, name: str, space: Space | None = None) -> tuple[Image.Image, bool]:
    """The picture in sRGB, 8 bit, and whether anything changed; ``name`` is for the log.

    By the profile in its ``info``: relative colorimetric with black point compensation, as picture editors do it (our
    choice). A profile that is sRGB by what it does to colours, whatever its name, leaves every pixel as it is; one that
    is broken, or for other pixels, is left out with a warning. By ``space`` where there is none that can be used.
    """
    content = picture.info.get("icc_profile")
    found = _by_profile(picture, content, name, space) if content else None
    if found is not None:
        return found
    return (picture, False) if space is None else (_by_numbers(picture, space, name), True)


def _by_profile(
    picture: Image.Image, content: bytes, name: str, space: Space | None
) -> tuple[Image.Image, bool] | None:
    """As ``to_srgb``; None for a profile that cannot be used, with a warning that tells what is taken instead."""
    if not features.check("littlecms2"):
        instead = "sRGB" if space is None else space.name
        log.warning(
            "%s: has a colour profile, but this Pillow has no littlecms; its colours are taken for %s", name, instead
        )
        return None
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        described = ImageCms.getProfileDescription(profile).strip()
        base, alpha = _split(picture)
        if _is_srgb(base.mode, profile, ImageCms):
            return picture, False
        converted = _converted(base, profile, ImageCms)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        _warn_unusable(name, plain(error), space)
        return None
    log.info("%s: colours converted from %s to sRGB", name, plain(described))
    converted.info.clear()
    if alpha is not None:
        converted.putalpha(alpha)
    return converted, True


def _warn_unusable(name: str, why: str, space: Space | None) -> None:
    instead = "sRGB" if space is None else space.name
    log.warning("%s: its colour profile cannot be used (%s); its colours are taken for %s", name, why, instead)


def _split(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours, in a mode that profiles are made for, and the transparency."""
    if picture.mode == "La":
        picture = picture.convert("LA")
    transparent = picture.mode in ("RGBA", "LA", "PA", "RGBa") or "transparency" in picture.info
    alpha = picture.convert("RGBA").getchannel("A") if transparent else None
    if picture.mode in _PROFILED:
        return picture, alpha
    return picture.convert("L" if picture.mode in ("LA", "1") else "RGB"), alpha


def _is_srgb(mode: str, profile: Any, cms: Any) -> bool:
    """Whether the profile moves no colour of a probe by more than ``SAME`` levels."""
    if mode not in ("RGB", "L"):
        return False
    colors = np.rint(probe() * 255).astype(np.uint8)
    pixels = np.ascontiguousarray(colors[:256, 0] if mode == "L" else colors)[None]
    moved = np.asarray(_converted(Image.fromarray(pixels, mode), profile, cms)).astype(int)
    return int(np.abs(moved - colors[: pixels.shape[1]].astype(int)).max()) <= SAME


def _converted(base: Image.Image, profile: Any, cms: Any) -> Image.Image:
    found: Image.Image = cms.profileToProfile(
        base,
        profile,
        cms.createProfile("sRGB"),
        renderingIntent=cms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=_BLACK_POINT,
    )
    return found


def _by_numbers(picture: Image.Image, space: Space, name: str) -> Image.Image:
    """8 bits by ``space``, rounded."""
    base, alpha = _split(picture)
    if base.mode not in ("RGB", "L"):
        base = base.convert("RGB")
    pixels = np.asarray(base)
    out = Image.fromarray(_levels(pixels.reshape(*pixels.shape[:2], -1), space))
    if alpha is not None:
        out.putalpha(alpha)
    log.info("%s: colours converted from %s to sRGB", name, space.name)
    return out


def _levels(pixels: Samples, space: Space) -> Samples:
    """(H, W, 1 or 3) uint8 -> (H, W) or (H, W, 3): rows by rows, without the whole picture in floats."""
    rows = [np.rint(space.to_srgb(row[None] / np.float32(255)) * 255).astype(np.uint8) for row in pixels]
    out = np.concatenate(rows)
    return out[..., 0] if out.shape[2] == 1 else out


def deep_to_srgb(colors: Samples, profile: bytes | None, space: Space | None, name: str) -> Samples:
    """(H, W, 1 or 3) uint16, or float32 in [0, 1], in sRGB.

    Exactly where the profile has curves and primaries, or one grey curve; one of tables, of RGB, is applied in 8 bits
    with a warning. By ``space`` where there is none that can be used.
    """
    if profile:
        own = space_of_profile(profile, "its profile")
        if own is None and (tables := _by_tables(colors, profile, name, space)) is not None:
            return tables
        if own is not None and (len(own.curves) == 1) == (colors.shape[2] == 1):
            space = None if own.is_srgb() else own
        elif own is not None:
            kinds = ("colours", "grey") if len(own.curves) == 1 else ("grey", "colours")
            _warn_unusable(name, "these are {}, it is for {}".format(*kinds), space)
    if space is None:
        return colors
    log.info("%s: colours converted from %s to sRGB", name, space.name)
    return space.to_srgb(_floats(colors))


def _floats(colors: Samples) -> Samples:
    return colors if colors.dtype.kind == "f" else colors / np.float32(_TOP_16)


def _by_tables(colors: Samples, profile: bytes, name: str, space: Space | None) -> Samples | None:
    """By a profile that littlecms alone can apply, to 8 bits; None where it cannot, as is told."""
    pixels = np.rint(_floats(colors) * 255).astype(np.uint8)
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels))
    found = _by_profile(picture, profile, name, space)
    if found is None or not found[1]:
        return None if found is None else colors
    log.warning("%s: the colour profile was applied in 8 bit; convert it to sRGB first to keep all 16", name)
    return np.asarray(found[0]).astype(np.float32) / np.float32(255)
