"""All that speaks for a periodic artifact in one picture, as named statistics; calibration.py weighs them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from .autocorrelation import Autocorrelation, folded_spectra, from_power, high_pass, local_energy, mean_power
from .block_steps import Steps, block_steps
from .coherence import is_mesh
from .lattice import AXIS_CLIP, PERIODS, Lines, axis_lines, coherent, excess, incoherent, interior_lines, neighbourhoods
from .periods import FoundPeriod, comb_period, tile_period

#: Exponents of the local energy that the picture is divided by: alone, and beside a reference.
WHITENING, WHITENING_BESIDE = 0.5, 0.75

#: z of a window of the reference (tiles; lines) above which the window is left out: it was like that before.
KNOWN_TILE, KNOWN_LINES, KNOWN_STEPS, KNOWN_PERIOD = 5.0, 5.0, 5.0, 6.0

#: Share of windows that the reference may rule out before steps and free periods are not believed either.
TOO_MUCH_KNOWN = 0.4

#: z of the picture's own 8 px steps above which it is a JPEG, and its 8 and 16 px powers count less.
JPEG_STEPS = 4.0

#: Share of the mean power of whitened windows under which one is flat.
DEAD = 1e-4

#: Side of the smaller windows, for what drifts and for the map of where, and the period looked for in each.
SMALL_WINDOW, LOCAL_PERIOD = 128, 32


@dataclass(frozen=True)
class Evidence:
    """statistics: name -> z-like number, by family: "tile", "lines", "block", "free" are the names' beginnings.

    heat, heat_lines (rows, columns): z per small window, of tiles and of lines. steps: of the picture
    itself, for JPEG's grid. kept: share of windows that the reference did not rule out.
    """

    statistics: dict[str, float]
    heat: Tensor
    heat_lines: Tensor
    tile: FoundPeriod
    lines: FoundPeriod
    steps: Steps
    correlation: Autocorrelation
    kept: float


def gather_evidence(plane: Tensor, reference: Tensor | None = None) -> Evidence:
    """plane: luma (H, W) of 0 to 255, both sides >= 64 px; reference: the same size (the enlarged input), or None."""
    detail = high_pass(plane)
    norm = local_energy(detail).pow_(-(WHITENING if reference is None else WHITENING_BESIDE))
    white = detail.mul_(norm)
    known = None if reference is None else high_pass(reference).mul_(norm)
    del norm, detail
    statistics: dict[str, float] = {}
    heat, heat_lines, kept = _line_statistics(statistics, white, known)
    steps = block_steps(plane)
    _block_statistics(statistics, plane, reference, steps)
    power, known_power = mean_power(white), None if known is None else mean_power(known)
    correlation = from_power(power, known=known_power)
    tile, lines = tile_period(correlation), comb_period(power)
    statistics["free_tile"] = tile.z if is_mesh(white, tile) else 0.0
    statistics["free_lines"] = lines.z if is_mesh(white, lines) else 0.0
    if known_power is not None:
        _forgive_known(statistics, known_power, tile, lines, kept)
    _forgive_jpeg(statistics, steps)
    return Evidence(statistics, heat, heat_lines, tile, lines, steps, correlation, kept)


def _line_statistics(statistics: dict[str, float], white: Tensor, known: Tensor | None) -> tuple[Tensor, Tensor, float]:
    """Fill in what the line spectra say; returns the maps of where, and the share of windows kept."""
    inside, along, kept = _lines_of(white, known, 2 * SMALL_WINDOW)
    _coherent_statistics(statistics, inside, along)
    inside, along, _ = _lines_of(white, known, SMALL_WINDOW)
    heat = torch.zeros(inside.signal.shape[:2])
    for side, power in neighbourhoods(inside, (1, 2)):
        maps = [excess(power, inside.own(period), inside.controls()) for period in PERIODS]
        heat = torch.stack(maps).amax(0)
        if side == 1:
            z = maps[PERIODS.index(LOCAL_PERIOD)]
            statistics[f"tile_local_{LOCAL_PERIOD}"] = among(float(z.max()), z.numel())
    return heat, torch.stack([_heat_of_lines(lines) for lines in along]).amax(0), kept


def _lines_of(white: Tensor, known: Tensor | None, largest: int) -> tuple[Lines, list[Lines], float]:
    """Bins off the axes, on each axis, and the share of windows kept: the picture's without the reference's."""
    spectra = folded_spectra(white, largest)
    keep = None
    if known is not None:
        before = folded_spectra(known, largest)
        keep = _unlike_reference(before)
        spectra = spectra - radial_gain(spectra, before) * before
    alive = _not_flat(spectra)
    tiles, lines = (alive, alive) if keep is None else (keep[0] & alive, keep[1] & alive)
    inside = interior_lines(spectra).kept(tiles)
    along = [axis_lines(spectra, axis).kept(lines) for axis in (0, 1)]
    return inside, along, 1.0 if keep is None else float(keep[0].float().mean())


def _not_flat(spectra: Tensor) -> Tensor:
    """(rows, columns) bool: windows that hold more than the rounding of floats, as black borders and space do not."""
    power = torch.view_as_real(spectra).square().sum((-3, -2, -1))
    return power > DEAD * power.mean()


def _coherent_statistics(statistics: dict[str, float], inside: Lines, along: list[Lines]) -> None:
    """What keeps its phase over the picture; of lines also each window's own power, for what drifts."""
    power = coherent(inside)
    for period in PERIODS:
        statistics[f"tile_{period}"] = float(excess(power, inside.own(period), inside.controls()))
        if period > PERIODS[-1]:
            statistics[f"tile_all_{period}"] = float(excess(power, inside.on_lattice(period), inside.controls()))
    for name, lines in zip(("rows", "columns"), along, strict=True):
        for kind, power in (("lines", coherent(lines)), ("lines_power", incoherent(lines))):
            for period in PERIODS:
                z = excess(power, lines.on_lattice(period), lines.controls(), AXIS_CLIP, log=True)
                statistics[f"{kind}_{name}_{period}"] = float(z)


def _heat_of_lines(lines: Lines) -> Tensor:
    """(rows, columns): z of each window's lines, the strongest period."""
    power = torch.view_as_real(lines.signal).square().sum(-1) / lines.weight.clamp(min=1e-30)
    off = lines.controls()
    return torch.stack([excess(power, lines.on_lattice(p), off, AXIS_CLIP, log=True) for p in PERIODS]).amax(0)


def among(z: float, count: int) -> float:
    """A z that is the largest of ``count``, as one z."""
    return math.sqrt(max(0.0, z * z - 2 * math.log(count))) if z > 0 else z


def _unlike_reference(before: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, columns) bool twice: windows in which the reference has no tile, no lines, of the periods looked for."""
    tiles = interior_lines(before)
    power = torch.view_as_real(tiles.signal).square().sum(-1) / tiles.weight
    z = torch.stack([excess(power, tiles.on_lattice(p) & _low(tiles), tiles.controls() & _low(tiles)) for p in PERIODS])
    free = z.amax(0) < KNOWN_TILE
    free_lines = free
    for axis in (0, 1):
        lines = axis_lines(before, axis)
        power = torch.view_as_real(lines.signal).square().sum(-1) / lines.weight
        low = _low(lines)
        for p in PERIODS:
            z = excess(power, lines.on_lattice(p) & low, lines.controls() & low, AXIS_CLIP, log=True)
            free_lines = free_lines & (z < KNOWN_LINES)
    return free, free_lines


def _low(lines: Lines) -> Tensor:
    """(K,) bool: bins below 0.14 cycles per px: what an input enlarged four times has."""
    return (lines.ky.abs() <= 0.14 * lines.fold[0]) & (lines.kx <= 0.14 * lines.fold[1])


def radial_gain(spectra: Tensor, before: Tensor) -> Tensor:
    """(Ny, Nx/2+1): per ring of frequency, the gain in [0, 1.5] with which the reference is in the picture."""
    ny, half = spectra.shape[-2:]
    fy = torch.fft.fftfreq(ny, device=spectra.device)[:, None]
    fx = torch.fft.rfftfreq(2 * half - 2, device=spectra.device)[None]
    ring = (torch.hypot(fy.expand(ny, half), fx.expand(ny, half)) * 32).long().clamp(max=15).flatten()
    a, b = torch.view_as_real(spectra), torch.view_as_real(before)
    top = torch.zeros(16, device=ring.device).index_add_(0, ring, (a * b).sum((0, 1, 4)).flatten())
    bottom = torch.zeros(16, device=ring.device).index_add_(0, ring, b.square().sum((0, 1, 4)).flatten())
    return (top / (bottom + 1e-9)).clamp(0, 1.5)[ring].view(ny, half)


def _block_statistics(statistics: dict[str, float], plane: Tensor, reference: Tensor | None, steps: Steps) -> None:
    if reference is None:
        statistics |= {f"block_{p}": z for p, z in steps.exclusive.items() if p > 8}
        return
    added, before = block_steps(plane - reference), block_steps(reference)
    for p, z in added.exclusive.items():
        if p > 8:
            statistics[f"block_{p}"] = z if before.exclusive[p] < KNOWN_STEPS else 0.0


def _forgive_jpeg(statistics: dict[str, float], steps: Steps) -> None:
    """JPEG's blocks and cosines raise the powers of its periods, and a little their coherent sums: less trust."""
    share = min(1.0, (JPEG_STEPS / max(steps.full[8], 1e-6)) ** 2)
    for name, z in statistics.items():
        powers = name.startswith(("tile_local", "lines_power")) or name == "block_16"
        if z > 0:
            statistics[name] = z * (share if powers else share**0.25)


def _forgive_known(
    statistics: dict[str, float], known_power: Tensor, tile: FoundPeriod, lines: FoundPeriod, kept: float
) -> None:
    """A period that the reference has too is no artifact; nor are steps where much of the reference is periodic."""
    if kept < 1 - TOO_MUCH_KNOWN:
        for name in statistics:
            if name.startswith(("block", "free")):
                statistics[name] = 0.0
    before, lines_before = tile_period(from_power(known_power)), comb_period(known_power)
    for name, old, new in (("free_tile", before, tile), ("free_lines", lines_before, lines)):
        if old.z > KNOWN_PERIOD and same_period(old.rows, new.rows) and same_period(old.columns, new.columns):
            statistics[name] = 0.0


def same_period(a: float, b: float) -> bool:
    """Whether one period is a whole multiple of the other, within 3 %."""
    if a == 0 or b == 0:
        return a == b
    ratio = max(a, b) / min(a, b)
    return abs(ratio - round(ratio)) < 0.03 * ratio
