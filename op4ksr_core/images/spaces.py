"""Colour spaces by their numbers: three curves and three primaries -> sRGB, exactly, in as many bits as there are.

What states them: ICC profiles of curves and a matrix, PNG's gAMA, cHRM and cICP, AVIF's nclx. Sources: ICC.1:2010,
W3C PNG third edition, ITU-T H.273. sRGB's curve: IEC 61966-2-1.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]
Curve = Callable[[Floats], Floats]
Chromaticities = Sequence[tuple[float, float]]

#: x, y of white, red, green, blue. sRGB and BT.709.
SRGB_PRIMARIES = ((0.3127, 0.3290), (0.640, 0.330), (0.300, 0.600), (0.150, 0.060))

#: H.273's numbers of primaries that are exact there.
_PRIMARIES: dict[int, Chromaticities] = {
    1: SRGB_PRIMARIES,
    4: ((0.310, 0.316), (0.67, 0.33), (0.21, 0.71), (0.14, 0.08)),
    5: ((0.3127, 0.3290), (0.64, 0.33), (0.29, 0.60), (0.15, 0.06)),
    6: ((0.3127, 0.3290), (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    7: ((0.3127, 0.3290), (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),
    9: ((0.3127, 0.3290), (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),
    11: ((0.314, 0.351), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    12: ((0.3127, 0.3290), (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),
    22: ((0.3127, 0.3290), (0.630, 0.340), (0.295, 0.605), (0.155, 0.077)),
}

#: Numbers that mean that nothing is stated.
UNSTATED = 2

#: H.273's transfer functions of light brighter than white, which no picture of ours can hold.
HDR = {16: "PQ", 18: "HLG"}

#: Levels of 255 up to which a space counts as sRGB: what the rounding of profiles makes. Our choice.
SAME = 2.0

#: PNG's gAMA counts as sRGB's curve within this share of 1 / 2.2, as in libpng: most writers mean sRGB by it.
_GAMMA_TOLERANCE = 0.05

#: Rows that are converted at a time.
_BAND = 64

_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def srgb_curve(values: Floats) -> Floats:
    """sRGB -> linear light."""
    return np.where(values <= 0.04045, values / 12.92, ((values.clip(0) + 0.055) / 1.055) ** 2.4)


def to_srgb_curve(linear: Floats) -> Floats:
    """Linear light -> sRGB."""
    return np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear.clip(0) ** (1 / 2.4) - 0.055)


def _power(gamma: float, values: Floats) -> Floats:
    return values**gamma


@dataclass(frozen=True)
class Space:
    """name: for the log. curves: stored values in [0, 1] -> linear light, one for grey or three.

    matrix: linear light in its primaries -> in sRGB's; None: they are sRGB's, or there is no colour.
    """

    name: str
    curves: tuple[Curve, ...]
    matrix: Floats | None = None

    def to_srgb(self, colors: Floats) -> Floats:
        """(H, W, 1 or 3) in [0, 1] -> sRGB, float32 in [0, 1]; what sRGB does not have is clipped."""
        out = np.empty(colors.shape, np.float32)
        for top in range(0, len(colors), _BAND):
            out[top : top + _BAND] = self._band(colors[top : top + _BAND].astype(np.float64))
        return out

    def _band(self, colors: Floats) -> Floats:
        curves = self.curves * colors.shape[-1] if len(self.curves) == 1 else self.curves
        linear = np.stack([curve(colors[..., i]) for i, curve in enumerate(curves[: colors.shape[-1]])], -1)
        if self.matrix is not None and colors.shape[-1] == 3:
            linear = linear @ self.matrix.T
        return to_srgb_curve(linear.clip(0, 1)).clip(0, 1)

    def is_srgb(self) -> bool:
        """Whether it moves no colour of a probe by more than ``SAME`` levels of 255."""
        colors = probe()[None] if len(self.curves) == 3 or self.matrix is not None else probe()[None, :256, :1]
        return float(np.abs(self.to_srgb(colors) - colors).max()) <= SAME / 255


def probe() -> Floats:
    """Colours that show what a profile does: all 256 greys, and a cube of 9 levels; (985, 3) float in [0, 1]."""
    greys = np.repeat(np.arange(256)[:, None] / 255, 3, 1)
    steps = np.linspace(0, 255, 9).round() / 255
    return np.concatenate([greys, np.stack(np.meshgrid(steps, steps, steps), -1).reshape(-1, 3)])


def _to_xyz(primaries: Chromaticities) -> Floats:
    """Linear RGB -> XYZ, white at Y = 1. Raises ValueError for primaries that span no colours."""
    if any(y <= 0 or not np.isfinite([x, y]).all() for x, y in primaries):
        raise ValueError("primaries outside the diagram")
    columns = np.array([[x / y, 1.0, (1 - x - y) / y] for x, y in primaries]).T
    if abs(np.linalg.det(columns[:, 1:])) < 1e-6:
        raise ValueError("primaries that span no colours")
    return columns[:, 1:] * np.linalg.solve(columns[:, 1:], columns[:, 0])


def _between(primaries: Chromaticities) -> Floats:
    """Linear light in those primaries -> in sRGB's; another white is adapted to D65 by Bradford."""
    own, srgb = _to_xyz(primaries), _to_xyz(SRGB_PRIMARIES)
    white, wanted = _BRADFORD @ own.sum(1), _BRADFORD @ srgb.sum(1)
    adapted = np.linalg.inv(_BRADFORD) @ np.diag(wanted / white) @ _BRADFORD
    matrix: Floats = np.linalg.inv(srgb) @ adapted @ own
    return matrix


# --- numbers in containers ------------------------------------------------------------------------


def space_of_gamma(gamma: float | None, primaries: Chromaticities | None) -> Space | None:
    """PNG's gAMA (1 / exponent) and cHRM; None where they say sRGB. Raises ValueError for numbers that mean nothing."""
    curve, words = srgb_curve, "sRGB's curve"
    if gamma is not None:
        if not 0.05 <= gamma <= 20:
            raise ValueError(f"a gamma of {gamma:g}")
        if abs(gamma * 2.2 - 1) > _GAMMA_TOLERANCE:
            curve, words = partial(_power, 1 / gamma), f"gamma {1 / gamma:.3g}"
    matrix = None if primaries is None else _between(primaries)
    space = Space(f"{words} with its own primaries" if matrix is not None else words, (curve,), matrix)
    return None if space.is_srgb() else space


def space_of_codes(primaries: int, transfer: int, full_range: bool = True) -> Space | None:
    """H.273's numbers, of PNG's cICP or AVIF's nclx; None where they say sRGB or nothing.

    Raises ValueError, with what cannot be followed in words, for light brighter than white and unknown numbers.
    """
    if transfer in HDR:
        raise ValueError(f"HDR ({HDR[transfer]})")
    stated = _PRIMARIES.get(primaries)
    if stated is None and primaries != UNSTATED:
        raise ValueError(f"primaries of number {primaries}")
    curve = _transfer(transfer)
    ranged: Curve = curve if full_range else lambda values: curve(((values * 255 - 16) / 219).clip(0, 1))
    matrix = None if stated is None or stated is SRGB_PRIMARIES else _between(stated)
    space = Space(f"H.273's primaries {primaries} and transfer {transfer}", (ranged,), matrix)
    return None if space.is_srgb() else space


def _transfer(number: int) -> Curve:
    """H.273's transfer function -> linear light. Those of BT.709 and its kin are what was filmed, as it states them."""
    if number in (UNSTATED, 13):
        return srgb_curve
    if number in (4, 5, 8):
        return partial(_power, {4: 2.2, 5: 2.8, 8: 1.0}[number])
    if number in (1, 6, 14, 15):
        return lambda v: np.where(v < 0.081, v / 4.5, ((v.clip(0) + 0.099) / 1.099) ** (1 / 0.45))
    raise ValueError(f"a transfer function of number {number}")


# --- profiles --------------------------------------------------------------------------------------


def space_of_profile(profile: bytes, name: str) -> Space | None:
    """An ICC profile of curves and a matrix, or of one grey curve; None for one of another kind (tables), or broken."""
    try:
        tags = _profile_tags(profile)
        if any(table in tags for table in (b"A2B0", b"A2B1", b"A2B2", b"D2B0", b"D2B1")):
            return None
        if profile[16:20] == b"GRAY":
            return Space(name, (_profile_curve(tags[b"kTRC"]),))
        if profile[16:20] != b"RGB " or profile[20:24] != b"XYZ ":
            return None
        curves = tuple(_profile_curve(tags[color + b"TRC"]) for color in (b"r", b"g", b"b"))
        own = np.array([_xyz(tags[color + b"XYZ"]) for color in (b"r", b"g", b"b")]).T
        return Space(name, curves, np.linalg.inv(_SRGB_D50) @ own)
    except (KeyError, struct.error, ValueError, IndexError):
        return None


#: sRGB's primaries in the profiles' D50.
_SRGB_D50 = np.array(
    [[0.43607, 0.38515, 0.14307], [0.22249, 0.71687, 0.06061], [0.01392, 0.09708, 0.71410]], np.float64
)


def _profile_tags(profile: bytes) -> dict[bytes, bytes]:
    (count,) = struct.unpack_from(">I", profile, 128)
    if count > 1000:
        raise ValueError("too many tags")
    found: dict[bytes, bytes] = {}
    for i in range(count):
        tag, offset, size = struct.unpack_from(">4sII", profile, 132 + 12 * i)
        found[tag] = profile[offset : offset + size]
    return found


def _xyz(tag: bytes) -> tuple[float, ...]:
    return tuple(value / 65536 for value in struct.unpack_from(">iii", tag, 8))


def _profile_curve(tag: bytes) -> Curve:
    """ICC's curveType and parametricCurveType."""
    if tag[:4] == b"curv":
        (count,) = struct.unpack_from(">I", tag, 8)
        table = np.array(struct.unpack_from(f">{count}H", tag, 12), np.float64)
        if count == 0:
            return partial(_power, 1.0)
        if count == 1:
            return partial(_power, table[0] / 256)
        return lambda values: np.interp(values, np.linspace(0, 1, count), table / 65535)
    if tag[:4] != b"para":
        raise ValueError("another kind of curve")
    (kind,) = struct.unpack_from(">H", tag, 8)
    lengths = (1, 3, 4, 5, 7)
    g, a, b, c, d, e, f = (
        *(value / 65536 for value in struct.unpack_from(f">{lengths[kind]}i", tag, 12)),
        *(1.0, 0.0, 0.0, 0.0, 0.0, 0.0)[lengths[kind] - 1 :],
    )
    if kind == 0:
        return partial(_power, g)
    if kind == 1:
        return lambda v: np.where(v >= -b / a, (a * v + b).clip(0) ** g, 0.0)
    if kind == 2:
        return lambda v: np.where(v >= -b / a, (a * v + b).clip(0) ** g + c, c)
    return lambda v: np.where(v >= d, (a * v + b).clip(0) ** g + e, c * v + f)
