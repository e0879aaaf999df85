"""Pictures for tests, made from nothing: occluding textured shapes of all sizes ("dead leaves").

Quicker than the trainer's own scenes (``op4ksr_core.training.data.leaves``), and with no period of their own.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

FloatArray = NDArray[np.float32]

TEXTURE_SIDE = 512
TEXTURE_COUNT = 40
SMALLEST_LEAF, LARGEST_LEAF = 2.5, 0.35  # px, and share of the side
COVERAGE = 4.0  # total leaf area over the picture's area: what lies deepest hardly shows
STROKES_PER_MEGAPIXEL = 120


def fractal_noise(rng: np.random.Generator, side: int, exponent: float, stretch: float = 1.0) -> FloatArray:
    """(side, side) periodic noise of amplitude spectrum 1/f^exponent, mean 0, std 1."""
    fy = np.fft.fftfreq(side)[:, None] * stretch
    fx = np.fft.rfftfreq(side)[None] / stretch
    f = np.sqrt(fy**2 + fx**2) * side
    f[0, 0] = 1.0
    spectrum = np.fft.rfft2(rng.standard_normal((side, side))) / f**exponent
    spectrum[0, 0] = 0
    noise = np.fft.irfft2(spectrum, s=(side, side))
    return (noise / noise.std()).astype(np.float32)


def pattern(rng: np.random.Generator, side: int) -> FloatArray:
    """(side, side) stripes, grids or dots of a random period, warped a little; mean 0, std 1."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32)
    warp = fractal_noise(rng, side, 2.0) * rng.uniform(0, 4)
    angle, period = rng.uniform(0, np.pi), float(np.exp(rng.uniform(np.log(3), np.log(60))))
    u = (x * np.cos(angle) + y * np.sin(angle) + warp) * (2 * np.pi / period)
    v = (y * np.cos(angle) - x * np.sin(angle) + warp) * (2 * np.pi / (period * rng.uniform(0.7, 3)))
    wave = {0: np.sin(u), 1: np.sin(u) * np.sin(v), 2: np.maximum(np.sin(u), np.sin(v))}[int(rng.integers(3))]
    sharpness = rng.uniform(1, 8)
    wave = np.tanh(sharpness * wave)
    return ((wave - wave.mean()) / (wave.std() + 1e-6)).astype(np.float32)


@lru_cache(maxsize=2)
def texture_atlas(seed: int) -> tuple[FloatArray, ...]:
    """The textures that the scenes of one seed share: fractal noise, and a tenth of patterns."""
    rng = np.random.default_rng(seed)
    atlas: list[FloatArray] = []
    for i in range(TEXTURE_COUNT):
        if i % 10 == 9:
            atlas.append(pattern(rng, TEXTURE_SIDE))
        else:
            stretch = float(np.exp(rng.normal(0, 0.6)))
            atlas.append(fractal_noise(rng, TEXTURE_SIDE, rng.uniform(0.3, 2.0), stretch))
    return tuple(atlas)


class Palette:
    """Colours of one scene: luma from a wide beta; chroma small, mostly along blue-orange (daylight)."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        level, spread = rng.uniform(0.2, 0.75), rng.uniform(1.5, 6)
        self.luma = (level * spread, (1 - level) * spread)
        self.warmth = rng.normal(0, 0.04)
        self.spread = float(np.exp(rng.normal(np.log(0.035), 0.6)))

    def colour(self) -> FloatArray:
        """RGB (3,), not clipped."""
        luma = self.rng.beta(*self.luma)
        warmth, tint = self.rng.normal(0, (self.spread, 0.45 * self.spread)) * (0.4 + min(luma, 0.6))
        u, v = tint - 0.9 * (self.warmth + warmth), tint + 0.8 * (self.warmth + warmth)
        rgb = (luma + 1.402 * v, luma - 0.344 * u - 0.714 * v, luma + 1.772 * u)
        return np.array(rgb, np.float32)


def shape_mask(rng: np.random.Generator, radius: float) -> FloatArray:
    """Antialiased mask (n, n) in [0, 1] of one ellipse, polygon, bar or blob of about this radius."""
    n = int(2 * radius) + 3
    scale = 4 if n < 100 else 2
    side = n * scale
    picture = Image.new("L", (side, side))
    draw = ImageDraw.Draw(picture)
    kind, angle = rng.integers(4), rng.uniform(0, 2 * np.pi)
    count = {0: 40, 1: int(rng.integers(3, 8)), 2: 4, 3: 40}[int(kind)]
    t = np.linspace(0, 2 * np.pi, count, endpoint=False)
    r = np.ones(count)
    aspect = rng.uniform(0.3, 1)
    if kind == 1:
        r = rng.uniform(0.5, 1, count)
    elif kind == 2:
        t = np.array([0.25, 0.75, 1.25, 1.75]) * np.pi
        aspect = float(np.exp(rng.uniform(np.log(0.05), 0)))
    elif kind == 3:
        r = 0.75 + 0.25 * np.sin(t * rng.integers(2, 7) + angle)
    x, y = r * np.cos(t), r * np.sin(t) * aspect
    px = side / 2 + radius * scale * (x * np.cos(angle) - y * np.sin(angle))
    py = side / 2 + radius * scale * (x * np.sin(angle) + y * np.cos(angle))
    draw.polygon(list(zip(px.tolist(), py.tolist(), strict=True)), fill=255)
    picture = picture.reduce(scale)
    if rng.random() < 0.2:  # out of focus
        picture = picture.filter(ImageFilter.GaussianBlur(radius * rng.uniform(0.02, 0.2)))
    return np.asarray(picture, np.float32) / np.float32(255)


def leaf_surface(
    rng: np.random.Generator, palette: Palette, atlas: tuple[FloatArray, ...], height: int, width: int
) -> FloatArray:
    """(height, width, 3): a colour, a gradient across it, and a texture."""
    colour = palette.colour()
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    slope = rng.normal(0, 0.12, 2) / max(height, width)
    shade = slope[0] * (y - height / 2) + slope[1] * (x - width / 2)
    texture = atlas[int(rng.integers(len(atlas)))]
    if rng.random() < 0.5:
        texture = texture.T
    top, left = rng.integers(TEXTURE_SIDE, size=2)
    rows = (np.arange(height) + top) % TEXTURE_SIDE
    columns = (np.arange(width) + left) % TEXTURE_SIDE
    contrast = min(0.25, float(np.exp(rng.normal(np.log(0.035), 0.9))))
    shade = shade + contrast * texture[rows[:, None], columns[None]]
    tint = 1 + rng.normal(0, 0.15, 3)
    return (colour + shade[..., None] * tint).astype(np.float32)


def paste(canvas: FloatArray, surface: FloatArray, mask: FloatArray, top: int, left: int) -> None:
    """Composite a surface (n, n, 3) through its mask (n, n) onto the canvas, cut at the borders."""
    n, m = mask.shape
    height, width = canvas.shape[:2]
    y0, x0 = max(0, -top), max(0, -left)
    y1, x1 = min(n, height - top), min(m, width - left)
    if y0 >= y1 or x0 >= x1:
        return
    view = canvas[top + y0 : top + y1, left + x0 : left + x1]
    alpha = mask[y0:y1, x0:x1, None]
    view += alpha * (surface[y0:y1, x0:x1] - view)


def strokes(rng: np.random.Generator, palette: Palette, canvas: FloatArray) -> None:
    """Thin text-like lines and arcs, 1 to 4 px wide, in rows of one colour."""
    height, width = canvas.shape[:2]
    for _ in range(int(rng.integers(0, 1 + STROKES_PER_MEGAPIXEL * height * width // 4_000_000))):
        box = int(rng.integers(24, 120))
        picture = Image.new("L", (box * 3, box * 3))
        draw = ImageDraw.Draw(picture)
        thick = int(rng.integers(2, 12))
        for _ in range(int(rng.integers(2, 12))):
            ends = rng.integers(0, box * 3, 4).tolist()
            if rng.random() < 0.5:
                draw.line(ends, fill=255, width=thick)
            else:
                corners = [min(ends[0], ends[2]), min(ends[1], ends[3])]
                corners += [max(ends[0], ends[2]) + 3, max(ends[1], ends[3]) + 3]
                start = float(rng.uniform(0, 360))
                draw.arc(corners, start, start + float(rng.uniform(60, 300)), fill=255, width=thick)
        mask = np.asarray(picture.reduce(3), np.float32) / np.float32(255)
        surface = np.broadcast_to(palette.colour(), (box, box, 3)).astype(np.float32)
        paste(canvas, surface, mask, int(rng.integers(-box, height)), int(rng.integers(-box, width)))


def scene(seed: int, height: int = 512, width: int = 512, *, atlas_seed: int = 0) -> NDArray[np.uint8]:
    """One picture, uint8 RGB (height, width, 3), the same for the same arguments."""
    rng = np.random.default_rng((atlas_seed, seed))
    atlas = texture_atlas(atlas_seed)
    palette = Palette(rng)
    canvas = leaf_surface(rng, palette, atlas, height, width)
    largest = LARGEST_LEAF * min(height, width)
    power = rng.uniform(0.7, 1.9)  # of the cumulated sizes; 2 is dead leaves' scale invariance
    to_cover = COVERAGE * float(np.exp(rng.normal(-0.3, 0.5))) * height * width
    while to_cover > 0:
        u = rng.random()
        radius = (SMALLEST_LEAF**-power * (1 - u) + largest**-power * u) ** (-1 / power)
        mask = shape_mask(rng, radius)
        surface = leaf_surface(rng, palette, atlas, *mask.shape)
        top, left = (int(rng.integers(-mask.shape[0] // 2, side)) for side in (height, width))
        paste(canvas, surface, mask, top, left)
        to_cover -= float(mask.sum())
    strokes(rng, palette, canvas)
    picture = Image.fromarray((canvas.clip(0, 1) * 255).round().astype(np.uint8))
    if rng.random() < 0.3:  # the whole lens
        picture = picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.3)))
    if rng.random() < 0.3:  # the sensor
        noise = rng.normal(0, rng.uniform(0.5, 5), (height, width, 3))
        return (np.asarray(picture) + noise).clip(0, 255).round().astype(np.uint8)
    return np.asarray(picture)
