"""All that speaks for a periodic artifact in one picture, as a list of statistics (statistic.py).

meter.py calls ``gather_evidence`` once for each picture, and so does the calibration benchmark. Three sources: the line
spectra of windows (autocorrelation.py, lattice.py), steps at block borders (block_steps.py), and the autocorrelation
of the whole picture (periods.py, checked by coherence.py). What the reference shows too, and what JPEG leaves, is then
discounted. calibration.py weighs the result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .autocorrelation import Autocorrelation, folded_spectra, from_power, mean_power
from .block_steps import Steps, block_steps
from .coherence import is_mesh
from .lattice import AXIS_CLIP, PERIODS, Lines, axis_lines, coherent, excess, incoherent, interior_lines, neighbourhoods
from .local_mean import high_pass, local_energy
from .periods import FoundPeriod, comb_period, tile_period
from .statistic import Axis, Family, Statistic
from .thresholds import (
    JPEG_STEPS,
    KNOWN_LINES,
    KNOWN_PERIOD,
    KNOWN_STEPS,
    KNOWN_TILE,
    SAME_PERIOD,
    TOO_MUCH_KNOWN,
)

#: Exponents of the local energy that the picture is divided by: alone, and with a reference.
WHITENING, WHITENING_WITH_REFERENCE = 0.5, 0.75

#: Share of the mean power of whitened windows under which one is flat.
DEAD = 1e-4

#: Side of the smaller windows, for what drifts and for the map of where, and the period looked for in each.
SMALL_WINDOW, LOCAL_PERIOD = 128, 32

#: Cycles per px up to which the reference's own lines are looked at: what an input enlarged four times has.
LOW = 0.14

#: The axes of the spectrum's axis 0 and 1.
AXES: tuple[Axis, Axis] = ("rows", "columns")


@dataclass(frozen=True)
class Evidence:
    """statistics: all of them, of every family, in a fixed order.

    heat, heat_lines (rows, columns): z per small window, of tiles and of lines. tile, lines: the periods found
    without a list. steps: of the picture itself, for JPEG's grid. correlation: for the report picture.
    """

    statistics: list[Statistic]
    heat: Tensor
    heat_lines: Tensor
    tile: FoundPeriod
    lines: FoundPeriod
    steps: Steps
    correlation: Autocorrelation


def gather_evidence(plane: Tensor, reference: Tensor | None = None) -> Evidence:
    """plane: luma (H, W) of 0 to 255, both sides >= 64 px; reference: the same size (the enlarged input), or None."""
    detail = high_pass(plane)
    norm = local_energy(detail).pow_(-(WHITENING if reference is None else WHITENING_WITH_REFERENCE))
    white = detail.mul_(norm)
    known = None if reference is None else high_pass(reference).mul_(norm)
    del norm, detail
    from_lines, heat, heat_lines, kept = _line_statistics(white, known)
    steps = block_steps(plane)
    blocks = _block_statistics(plane, reference, steps)
    power, known_power = mean_power(white), None if known is None else mean_power(known)
    correlation = from_power(power, known=known_power)
    tile, lines = tile_period(correlation), comb_period(power)
    free = [
        Statistic("free_tile", tile.z if is_mesh(white, tile) else 0.0),
        Statistic("free_lines", lines.z if is_mesh(white, lines) else 0.0),
    ]
    if known_power is not None:
        free = _without_known(free, known_power, tile, lines)
    if kept < 1 - TOO_MUCH_KNOWN:
        blocks, free = ([replace(statistic, z=0.0) for statistic in family] for family in (blocks, free))
    statistics = _less_for_jpeg([*from_lines, *blocks, *free], steps)
    return Evidence(statistics, heat, heat_lines, tile, lines, steps, correlation)


def _line_statistics(white: Tensor, known: Tensor | None) -> tuple[list[Statistic], Tensor, Tensor, float]:
    """What the line spectra say; the maps of where, of tiles and of lines; the share of windows kept."""
    inside, along, kept = _lines_of(white, known, 2 * SMALL_WINDOW)
    statistics = [*_tile_statistics(inside), *_axis_statistics(along)]
    inside, along, _ = _lines_of(white, known, SMALL_WINDOW)
    heat = torch.zeros(inside.signal.shape[:2])
    for side, power in neighbourhoods(inside, (1, 2)):
        maps = [excess(power, inside.own(period), inside.controls()) for period in PERIODS]
        heat = torch.stack(maps).amax(0)
        if side == 1:
            z = maps[PERIODS.index(LOCAL_PERIOD)]
            statistics.append(Statistic("tile_local", among(float(z.max()), z.numel()), LOCAL_PERIOD))
    return statistics, heat, torch.stack([_heat_of_lines(lines) for lines in along]).amax(0), kept


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


def _tile_statistics(inside: Lines) -> list[Statistic]:
    """Off the axes: what keeps its phase over the picture."""
    power = coherent(inside)
    found: list[Statistic] = []
    for period in PERIODS:
        found.append(Statistic("tile", float(excess(power, inside.own(period), inside.controls())), period))
        if period > PERIODS[-1]:
            z = float(excess(power, inside.on_lattice(period), inside.controls()))
            found.append(Statistic("tile_all", z, period))
    return found


def _axis_statistics(along: list[Lines]) -> list[Statistic]:
    """On each axis: what keeps its phase over the picture, and each window's own power, for what drifts."""
    found: list[Statistic] = []
    for axis, lines in zip(AXES, along, strict=True):
        powers: tuple[tuple[Family, Tensor], ...] = (("lines", coherent(lines)), ("lines_power", incoherent(lines)))
        for family, power in powers:
            for period in PERIODS:
                z = excess(power, lines.on_lattice(period), lines.controls(), AXIS_CLIP, log=True)
                found.append(Statistic(family, float(z), period, axis))
    return found


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
    """(K,) bool: bins of low frequency, which an input enlarged four times has too."""
    return (lines.ky.abs() <= LOW * lines.fold[0]) & (lines.kx <= LOW * lines.fold[1])


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


def _block_statistics(plane: Tensor, reference: Tensor | None, steps: Steps) -> list[Statistic]:
    """Steps that JPEG's 8 px grid does not explain; with a reference, of what was added to it."""
    if reference is None:
        return [Statistic("block", z, period) for period, z in steps.exclusive.items() if period > PERIODS[-1]]
    added, before = block_steps(plane - reference).exclusive, block_steps(reference).exclusive
    return [
        Statistic("block", z if before[period] < KNOWN_STEPS else 0.0, period)
        for period, z in added.items()
        if period > PERIODS[-1]
    ]


def _less_for_jpeg(statistics: list[Statistic], steps: Steps) -> list[Statistic]:
    """JPEG's blocks and cosines raise the powers of its periods, and a little their coherent sums: less trust."""
    share = min(1.0, (JPEG_STEPS / max(steps.full[8], 1e-6)) ** 2)
    return [
        replace(s, z=s.z * (share if _shows_jpeg(s) else share**0.25)) if s.z > 0 else s  # our choice
        for s in statistics
    ]


def _shows_jpeg(statistic: Statistic) -> bool:
    return statistic.family in ("tile_local", "lines_power") or (statistic.family, statistic.period) == ("block", 16)


def _without_known(
    free: list[Statistic], known_power: Tensor, tile: FoundPeriod, lines: FoundPeriod
) -> list[Statistic]:
    """The z of free periods, 0 for one that the reference has too: it is no artifact."""
    before = (tile_period(from_power(known_power)), comb_period(known_power))
    return [
        replace(statistic, z=0.0) if old.z > KNOWN_PERIOD and _same_periods(old, new) else statistic
        for statistic, old, new in zip(free, before, (tile, lines), strict=True)
    ]


def _same_periods(old: FoundPeriod, new: FoundPeriod) -> bool:
    return same_period(old.rows, new.rows) and same_period(old.columns, new.columns)


def same_period(a: float, b: float) -> bool:
    """Whether one period is a whole multiple of the other, within 3 %."""
    if a == 0 or b == 0:
        return a == b
    ratio = max(a, b) / min(a, b)
    return abs(ratio - round(ratio)) < SAME_PERIOD * ratio
