"""Pictures to train on, made from nothing and the same on every machine: textured dead leaves.

Occluding shapes of all sizes with natural luma, small chroma and 1/f textures; gradients and flat
areas; text-like strokes; fine periodic textures, among them exact 8, 16 and 32 px ones, which L_AP
must not mistake for a mesh. All of it is our choice. ``dice`` says how it stays exact.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .dice import Dice, FloatArray, sine, steady

#: Raised whenever a picture changes, so that pools made before are not taken for today's.
VERSION = 1

#: Side of a texture tile, px; tiles wrap around. Kept doubled, so that a cut never wraps.
TILE = 256
TEXTURES, GLYPHS, STAMPS = 40, 48, 384

#: Radii of leaves, px and share of the side; those below STAMP_RADIUS come from a stock of masks.
SMALLEST, LARGEST, STAMP_RADIUS = 2.5, 0.35, 9.0

#: Total area of the leaves over the picture's.
COVERAGE = 3.0

#: Shares of the pictures with: nearly nothing on them, a periodic texture, writing, blur, noise.
FLAT, PERIODIC, WRITTEN, BLURRED, NOISY = 0.2, 0.2, 0.3, 0.3, 0.3

#: Share of drawings: plain colours, no texture, gradient or noise, which normed networks do badly on unseen.
DRAWN = 0.1

#: Shares of the grounds that have a gradient but no texture, where a mesh shows first: of flat and of other pictures.
SMOOTH_FLAT, SMOOTH = 0.7, 0.2


# --- textures ---------------------------------------------------------------------------------


def doubled(x: FloatArray, axis: int) -> FloatArray:
    """Twice as long on one axis, linearly (1/4, 3/4), wrapping around."""
    before, after = np.roll(x, 1, axis), np.roll(x, -1, axis)
    even = np.float32(0.75) * x + np.float32(0.25) * before
    odd = np.float32(0.75) * x + np.float32(0.25) * after
    shape = list(x.shape)
    shape[axis] *= 2
    return np.stack([even, odd], axis + 1).reshape(shape)


def noise_tile(dice: Dice, steepness: float, stretch: int = 0) -> FloatArray:
    """(TILE, TILE) noise, its octaves' amplitudes falling as f^-(steepness - 1) (1/f in amplitude: 2).

    stretch: the noise is 2^stretch times as long along the rows. Deviation 1.
    """
    side = 4
    noise = np.zeros((side, side), np.float32)
    while True:
        share = np.float32(steady(side ** (1.0 - steepness)))
        fresh = dice.normals(side, max(2, side >> stretch))
        while fresh.shape[1] < side:
            fresh = doubled(fresh, 1)
        noise = noise + share * fresh
        if side == TILE:
            break
        noise = doubled(doubled(noise, 0), 1)
        side *= 2
    return standard(noise)


def standard(x: FloatArray) -> FloatArray:
    """Mean 0 and deviation 1, to four digits, so that the order of summation does not show."""
    mean = round(float(x.mean(dtype=np.float64)), 4)
    deviation = round(float(x.std(dtype=np.float64)), 4)
    return (x - np.float32(mean)) / np.float32(max(1e-3, deviation))


def wave_tile(dice: Dice) -> FloatArray:
    """(TILE, TILE) stripes, grids or dots of 3 to 48 px, in any direction, soft or hard."""
    y, x = grid(TILE, TILE)
    period, (c, s) = dice.log_uniform(3, 48), dice.turn()
    u = (x * np.float32(c) + y * np.float32(s)) / np.float32(period)
    v = (y * np.float32(c) - x * np.float32(s)) / np.float32(period * dice.uniform(0.7, 3))
    a, b = sine(u), sine(v)
    wave = dice.choose((a, a * b, np.maximum(a, b)))
    hard = np.float32(dice.uniform(1, 6))
    return standard((hard * wave) / (np.float32(1) + np.abs(hard * wave)))


def repeated_tile(dice: Dice) -> FloatArray:
    """(TILE, TILE) made of one random tile of exactly 4, 8, 16, 32 or 64 px, or of rows or columns alone."""
    period = dice.choose((4, 8, 8, 16, 16, 32, 32, 64))
    one = dice.normals(period, period)
    for _ in range(dice.whole(0, 3)):
        one = one + np.roll(one, 1, 0) + np.roll(one, -1, 0)
        one = one + np.roll(one, 1, 1) + np.roll(one, -1, 1)
    kind = dice.whole(0, 4)
    if kind < 2:
        one = np.broadcast_to(one[:, :1] if kind else one[:1], one.shape)
    return standard(np.tile(one, (TILE // period, TILE // period)))


@lru_cache(maxsize=2)
def stock(seed: int) -> tuple[list[FloatArray], list[FloatArray], list[FloatArray], list[FloatArray]]:
    """What the pictures of one seed share: (natural textures, periodic ones, glyphs, small masks)."""
    dice = Dice(seed, 1)
    noises = [noise_tile(dice, dice.uniform(0.9, 2.6), dice.whole(0, 3)) for _ in range(TEXTURES)]
    periodic = [wave_tile(dice) for _ in range(8)] + [repeated_tile(dice) for _ in range(16)]
    glyphs = [glyph(dice, dice.whole(6, 26)) for _ in range(GLYPHS)]
    stamps = [leaf_mask(dice, radius_of(dice, SMALLEST, STAMP_RADIUS, 1.6)) for _ in range(STAMPS)]
    both = [[np.tile(tile, (2, 2)) for tile in tiles] for tiles in (noises, periodic)]
    return both[0], both[1], glyphs, stamps


# --- shapes -----------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def grid(height: int, width: int) -> tuple[FloatArray, FloatArray]:
    """(height, 1) rows and (1, width) columns, px."""
    return np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)[None]


def radius_of(dice: Dice, smallest: float, largest: float, power: float) -> float:
    """A radius whose cumulated frequency falls as r^-power (2: the same at every scale)."""
    u = dice.uniform()
    return steady((smallest**-power * (1 - u) + largest**-power * u) ** (-1 / power))


def leaf_mask(dice: Dice, radius: float) -> FloatArray:
    """(n, n) in [0, 1], antialiased: an ellipse, a convex polygon, a bar or a lobed blob of about this radius."""
    n = int(2 * radius) + 3
    y, x = grid(n, n)
    centre, (c, s) = np.float32(n / 2), dice.turn()
    u = (x - centre) * np.float32(c) + (y - centre) * np.float32(s)
    v = (y - centre) * np.float32(c) - (x - centre) * np.float32(s)
    kind = dice.whole(0, 4)
    if kind == 0:
        inside = ellipse(u, v, radius, radius * dice.uniform(0.3, 1))
    elif kind == 1:
        inside = ellipse(u, v, radius, radius)
        for _ in range(dice.whole(3, 8)):
            p, q = dice.turn()
            sign = 1 if dice.chance(0.5) else -1
            inside = np.minimum(inside, np.float32(radius * dice.uniform(0.35, 0.9)) - sign * (u * p + v * q))
    elif kind == 2:
        half = max(0.6, radius * dice.log_uniform(0.05, 0.7))
        inside = np.minimum(np.float32(radius * 0.97) - np.abs(u), np.float32(half) - np.abs(v))
    else:
        lobe = np.float32(dice.uniform(0.25, 0.45) * radius)
        inside = np.maximum(
            ellipse(u - lobe, v, radius * 0.6, radius * 0.7), ellipse(u + lobe, v + lobe, radius / 2, radius / 2)
        )
    softness = np.float32(1 + (radius * dice.uniform(0.02, 0.3) if dice.chance(0.15) else 0))
    return np.clip(inside / softness + np.float32(0.5), 0, 1).astype(np.float32)


def ellipse(u: FloatArray, v: FloatArray, a: float, b: float) -> FloatArray:
    """About the distance (px) from the rim of an ellipse of half axes a and b, positive inside."""
    a, b = max(a, 0.5), max(b, 0.5)
    x, y = u / np.float32(a), v / np.float32(b)
    return (np.float32(1) - np.sqrt(x * x + y * y)) * np.float32(min(a, b))


def glyph(dice: Dice, size: int) -> FloatArray:
    """(size, size) text-like mark: two to four straight strokes of one width between points of a coarse grid."""
    y, x = grid(size, size)
    half = np.float32(max(0.5, size * dice.uniform(0.04, 0.12)))
    mark = np.zeros((size, size), np.float32)
    for _ in range(dice.whole(2, 5)):
        ay, ax, by, bx = (np.float32((0.15 + 0.35 * dice.whole(0, 3)) * size) for _ in range(4))
        length = max(np.float32(1e-3), (bx - ax) * (bx - ax) + (by - ay) * (by - ay))
        t = np.clip(((x - ax) * (bx - ax) + (y - ay) * (by - ay)) / length, 0, 1).astype(np.float32)
        dx, dy = x - ax - t * (bx - ax), y - ay - t * (by - ay)
        mark = np.maximum(mark, np.clip(half - np.sqrt(dx * dx + dy * dy) + np.float32(0.5), 0, 1))
    return mark.astype(np.float32)


# --- pictures ---------------------------------------------------------------------------------


class Colours:
    """One picture's colours: broad luma, chroma small and mostly along blue-orange (daylight)."""

    def __init__(self, dice: Dice) -> None:
        self.dice = dice
        self.level, self.contrast = dice.uniform(0.12, 0.8), dice.uniform(0.08, 0.3)
        self.warmth, self.spread = dice.normal(0, 0.04), dice.log_normal(0.035, 0.6)

    def colour(self) -> tuple[float, float, float]:
        """RGB, about 0 to 1, not clipped."""
        dice = self.dice
        luma = min(1.0, max(0.0, dice.normal(self.level, self.contrast)))
        strength = 0.4 + min(luma, 0.6)
        warmth = self.warmth + dice.normal(0, self.spread) * strength
        tint = dice.normal(0, 0.45 * self.spread) * strength
        u, v = tint - 0.9 * warmth, tint + 0.8 * warmth
        return luma + 1.402 * v, luma - 0.344 * u - 0.714 * v, luma + 1.772 * u


class Canvas:
    """A picture in the making, planar (3, H, W) float32."""

    def __init__(self, dice: Dice, height: int, width: int, seed: int, smooth: float) -> None:
        self.dice, self.height, self.width = dice, height, width
        self.drawn = dice.chance(DRAWN)
        self.noises, self.periodic, self.glyphs, self.stamps = stock(seed)
        self.colours = Colours(dice)
        self.planes = np.zeros((3, height, width), np.float32)
        ground = np.zeros((2 * TILE, 2 * TILE), np.float32) if dice.chance(smooth) else self.natural()
        self.paint(None, 0, 0, height, width, None if self.drawn else ground, 2.0)

    def natural(self) -> FloatArray:
        """One of the natural textures."""
        return self.dice.choose(self.noises)

    def texture(self, tile: FloatArray, height: int, width: int) -> FloatArray:
        """A random cut of a (doubled) tile, repeated where it is too small, in any of four directions."""
        dice = self.dice
        if dice.chance(0.5):
            tile = tile.T
        if max(height, width) > TILE:
            tile = np.tile(tile[:TILE, :TILE], (height // TILE + 2, width // TILE + 2))
        top, left = dice.whole(0, TILE), dice.whole(0, TILE)
        return tile[top : top + height, left : left + width]

    def paint(
        self,
        mask: FloatArray | None,
        top: int,
        left: int,
        n: int,
        m: int,
        tile: FloatArray | None,
        strength: float = 1.0,
    ) -> None:
        """A surface (colour, gradient, texture) of n x m px through its mask, cut at the borders."""
        dice, colour = self.dice, self.colours.colour()
        y0, x0 = max(0, -top), max(0, -left)
        y1, x1 = min(n, self.height - top), min(m, self.width - left)
        if y0 >= y1 or x0 >= x1:
            return
        view = self.planes[:, top + y0 : top + y1, left + x0 : left + x1]
        alpha = np.float32(1) if mask is None else mask[y0:y1, x0:x1]
        if tile is None:
            view += alpha * (np.array(colour, np.float32)[:, None, None] - view)
            return
        y, x = grid(y1 - y0, x1 - x0)
        slope = [np.float32(dice.normal(0, 0.12 * strength) / max(n, m)) for _ in range(2)]
        contrast = np.float32(min(0.25, dice.log_normal(0.035, 0.9)))
        shade = contrast * self.texture(tile, y1 - y0, x1 - x0) + (slope[0] * y + slope[1] * x)
        for plane, value in zip(view, colour, strict=True):
            plane += alpha * (np.float32(value) + np.float32(dice.normal(1, 0.15)) * shade - plane)

    def leaves(self, coverage: float) -> None:
        """Occluding shapes of all sizes, of ``coverage`` times the picture's area together."""
        dice = self.dice
        area, power = coverage * self.height * self.width, dice.uniform(0.7, 1.9)
        largest = LARGEST * min(self.height, self.width)
        while area > 0:
            radius = radius_of(dice, SMALLEST, largest, power)
            small = radius < STAMP_RADIUS
            mask = dice.choose(self.stamps) if small else leaf_mask(dice, radius)
            if small and dice.chance(0.5):
                mask = mask.T
            n = len(mask)
            top, left = dice.whole(-n // 2, self.height), dice.whole(-n // 2, self.width)
            self.paint(mask, top, left, n, n, None if self.drawn or radius < 5 else self.natural())
            area -= 2.2 * radius * radius

    def pattern(self) -> None:
        """A periodic texture on a large leaf, or on everything."""
        dice, tile = self.dice, self.dice.choose(self.periodic)
        if dice.chance(0.3):
            cut = self.texture(tile, self.height, self.width)
            self.planes += np.float32(dice.log_uniform(0.01, 0.12)) * cut
            return
        mask = leaf_mask(dice, dice.uniform(0.2, 0.5) * min(self.height, self.width))
        top, left = (dice.whole(-len(mask) // 3, side - len(mask) // 3) for side in (self.height, self.width))
        self.paint(mask, top, left, len(mask), len(mask), tile)

    def writing(self) -> None:
        """Lines of marks of one size class and colour each."""
        dice = self.dice
        for _ in range(dice.whole(1, 6)):
            size = len(dice.choose(self.glyphs))
            alike = [mark for mark in self.glyphs if abs(len(mark) - size) <= 2]
            top, left = dice.whole(0, self.height), dice.whole(-20, self.width)
            colour = [np.float32(value) for value in self.colours.colour()]
            for _ in range(dice.whole(4, 30)):
                mark = dice.choose(alike)
                y1, x0, x1 = min(len(mark), self.height - top), max(0, -left), min(len(mark), self.width - left)
                if x0 < x1:
                    for plane, value in zip(self.planes, colour, strict=True):
                        view = plane[top : top + y1, left + x0 : left + x1]
                        view += mark[:y1, x0:x1] * (value - view)
                left += size + (size if dice.chance(0.15) else 1)

    def blur(self, rounds: int) -> None:
        """Binomial (1, 2, 1) / 4 on both axes, ``rounds`` times: deviation sqrt(rounds / 2) px."""
        for _ in range(rounds):
            for axis in (1, 2):
                padded = np.pad(self.planes, [(0, 0), (axis == 1,) * 2, (axis == 2,) * 2], "edge")
                low, mid, high = (np.take(padded, range(i, i + self.planes.shape[axis]), axis) for i in range(3))
                self.planes = np.float32(0.25) * (low + high) + np.float32(0.5) * mid


def picture(seed: int, height: int = 256, width: int = 256, *, stock_seed: int = 0) -> NDArray[np.uint8]:
    """One picture, uint8 RGB (height, width, 3): bit for bit the same on every machine."""
    dice = Dice(stock_seed, 2, seed)
    flat = dice.chance(FLAT)
    canvas = Canvas(dice, height, width, stock_seed, SMOOTH_FLAT if flat else SMOOTH)
    canvas.leaves(0.15 if flat else COVERAGE * dice.log_normal(0.75, 0.5))
    if dice.chance(PERIODIC) and not canvas.drawn:
        canvas.pattern()
    if dice.chance(WRITTEN):
        canvas.writing()
    if dice.chance(BLURRED):
        canvas.blur(dice.whole(1, 5))
    if dice.chance(NOISY) and not canvas.drawn:
        canvas.planes += np.float32(dice.log_uniform(0.5, 5) / 255) * dice.normals(3, height, width)
    levels = np.floor(np.clip(canvas.planes, 0, 1) * np.float32(255) + np.float32(0.5))
    return np.ascontiguousarray(levels.astype(np.uint8).transpose(1, 2, 0))
