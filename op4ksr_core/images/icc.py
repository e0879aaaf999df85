"""Colour profiles: a picture in Adobe RGB, Display P3, a CMYK or grey profile -> sRGB, which all else here assumes."""

from __future__ import annotations

import io
from typing import Any

from PIL import Image, features

from ..plain_text import plain_logger

log = plain_logger(__name__)

#: Modes that a profile can be applied to as they are.
_PROFILED = ("RGB", "L", "CMYK")


def to_srgb(picture: Image.Image, name: str) -> tuple[Image.Image, bool]:
    """The picture in sRGB, 8 bit, and whether anything changed; ``name`` is for the log.

    Relative colorimetric with black point compensation, as picture editors do it (our choice). A profile
    that is sRGB already leaves every pixel as it is; one that is broken, or for other pixels, is left out
    with a warning.
    """
    content = picture.info.get("icc_profile")
    if not content:
        return picture, False
    if picture.mode.startswith("I") or picture.mode == "F":
        log.warning("%s: its colour profile is for more than 8 bits of grey and is left out", name)
        return picture, False
    if not features.check("littlecms2"):
        log.warning("%s: has a colour profile, but this Pillow has no littlecms; its colours are taken for sRGB", name)
        return picture, False
    from PIL import ImageCms

    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(content))
        described = ImageCms.getProfileDescription(profile).strip()
        if "srgb" in described.lower():
            return picture, False
        converted = _convert(picture, profile, ImageCms)
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError) as error:
        log.warning("%s: its colour profile cannot be used (%s); its colours are taken for sRGB", name, error)
        return picture, False
    log.info("%s: colours converted from %s to sRGB", name, described)
    return converted, True


def _convert(picture: Image.Image, profile: Any, cms: Any) -> Image.Image:
    transparent = picture.mode in ("RGBA", "LA", "PA") or "transparency" in picture.info
    alpha = picture.convert("RGBA").getchannel("A") if transparent else None
    base = picture
    if picture.mode not in _PROFILED:
        base = picture.convert("L" if picture.mode in ("LA", "1") else "RGB")
    out = cms.profileToProfile(
        base,
        profile,
        cms.createProfile("sRGB"),
        renderingIntent=cms.Intent.RELATIVE_COLORIMETRIC,
        outputMode="RGB",
        flags=cms.Flags.BLACKPOINTCOMPENSATION,
    )
    out.info.clear()
    if alpha is not None:
        out.putalpha(alpha)
    return out
