"""A plan: what a run will need, stage by stage, and the sentences and values that tell it.

Memory is in live tensors, as ``vae.estimate`` and ``cost`` estimate it; kernels' own workspace comes on top
(``WORKSPACE``). A plan says "will not fit" only where even the settings that need least do not.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, get_args

import torch

from ..errors import OutOfMemoryError
from ..machine import dtype_name
from ..models.rope import GRID_POLICIES, Policy
from ..pieces import Pieces
from ..vae.estimate import Stage, StripPlan
from ..vae.strips import MemoryMode, StripSettings

GIGABYTE = 1e9


@dataclass(frozen=True)
class Weights:
    """One model's weights: bytes, where they are, and their dtype where it is known."""

    name: str
    size: int
    place: str
    dtype: torch.dtype | None = None


@dataclass(frozen=True)
class Machine:
    """Where the run takes place.

    free: bytes to be had on the device (None: unknown) before the run. holds_weights, holds_pictures: whether the
    models' weights, all of them, and the pictures come out of the same bytes; not where a manager
    moves weights out of the way, and pictures wait in ordinary memory.
    """

    device: str
    dtype: torch.dtype
    free: int | None
    holds_weights: bool = True
    holds_pictures: bool = True
    #: Under ComfyUI, which decides itself where models run and in which dtype.
    host: bool = False
    #: Bytes to be had on the CPU, where that is another device.
    cpu_free: int | None = None
    #: Bytes of ``free`` that strips are chosen for, where other programs or models hold the rest now; None: all.
    usable: int | None = None


@dataclass(frozen=True)
class StagePlan:
    """One stage of a run: what it needs and how it is done.

    peak: bytes above weights and pictures, done as ``settings`` and ``path`` say. pictures: bytes of pictures that lie
    beside it. by_mode: what the peak would be with each mode.
    """

    name: str
    peak: int
    pictures: int
    flops: float | None = None
    path: str = ""
    settings: StripSettings | None = None
    by_mode: dict[MemoryMode, int] | None = None
    #: Bytes with the settings that need least; None: there is but one way.
    least: int | None = None


@dataclass(frozen=True)
class Plan:
    """Sizes are (height, width) in px; tokens (rows, columns).

    framed: what the VAE sees, whole tokens and the mirrored margin; latent: its latent. The margin is
    not among the tokens. pieces: how many windows the transformer runs over, of ``window`` tokens each;
    1: the whole picture, 0: there is no transformer.
    """

    input: tuple[int, int]
    output: tuple[int, int]
    framed: tuple[int, int]
    latent: tuple[int, int]
    tokens: tuple[int, int]
    pieces: int
    window: tuple[int, int]
    stages: tuple[StagePlan, ...]
    weights: tuple[Weights, ...]
    machine: Machine
    train_tokens: int | None
    #: Remedies, where it does not fit.
    remedies: tuple[str, ...] = ()
    #: Pictures of this size, done one by one.
    batch: int = 1
    #: Of the model.
    positions: Policy = "checkpoint"
    #: Windows that the model was trained for.
    trained: Pieces = field(default_factory=Pieces)

    @property
    def peak(self) -> int:
        """Bytes at the worst stage, all that shares the memory included."""
        return max(self._needs(stage) for stage in self.stages)

    @property
    def least(self) -> int:
        """Bytes at the worst stage when every stage runs with the settings that need least."""
        return max(self._needs(stage, stage.least) for stage in self.stages)

    @property
    def flops(self) -> float:
        """Of all stages that tell theirs."""
        return sum(stage.flops or 0.0 for stage in self.stages)

    @property
    def fits(self) -> bool | None:
        """Whether the settings that need least do; None where the free memory is unknown."""
        free = self.machine.free
        return None if free is None else self.least <= free

    def _needs(self, stage: StagePlan, peak: int | None = None) -> int:
        return (stage.peak if peak is None else peak) + beside(stage.pictures, self.weights, self.machine)

    @property
    def worst(self) -> StagePlan:
        """The stage with the highest peak."""
        return max(self.stages, key=self._needs)

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user: a pass over more tokens than the model has seen, and what to try."""
        rows, columns = self.window
        if self.train_tokens is None or max(rows, columns) <= self.train_tokens or not self.pieces:
            return []
        side = self.trained.size_px
        ways = [pieces_asked_for(self.trained, self.machine), f"a target of at most {side} px a side"]
        known = f", with RFR {self.positions}," if self.positions in GRID_POLICIES else ","
        if self.positions not in GRID_POLICIES:
            ways.insert(0, _rfr_asked_for(self.machine))
        return [
            f"{rows} x {columns} tokens are more than the {self.train_tokens} per side this model was trained on "
            f"({side} px): it is computed{known} but nobody knows how well the model does there; to compare, try "
            f"{', '.join(ways[:-1])}{',' if len(ways) > 2 else ''} or {ways[-1]}"
        ]

    def _pieces_report(self) -> dict[str, int] | None:
        if self.pieces <= 1:
            return None
        return {"count": self.pieces, "rows": self.window[0], "columns": self.window[1]}

    def verdict(self) -> str:
        """One sentence: fits, or will not fit and what to do."""
        need, free = f"{self.peak / GIGABYTE:.2f} GB at its peak ({self.worst.name})", self.machine.free
        if free is None:
            return f"needs {need} on {self.machine.device}, whose free memory is unknown"
        have = f"{free / GIGABYTE:.2f} GB on {self.machine.device}"
        if self.peak <= free:
            return f"needs {need} of {have}: fits"
        if self.fits:
            return f"needs {need}, more than {have}: strips that need less memory will be tried"
        need = f"{self.least / GIGABYTE:.2f} GB"
        do = " or ".join(self.remedies)
        return f"needs {need} even with the settings that need least, but there are {have}: this will not fit; {do}"

    def strips(self) -> StripPlan:
        """The strips of each stage of the VAE, to be run with."""
        stages: tuple[Stage, ...] = get_args(Stage)
        by_name = {stage.name: stage.settings for stage in self.stages}
        return {name: settings for name in stages if (settings := by_name.get(name)) is not None}

    def refuse_if_hopeless(self) -> None:
        """Raise OutOfMemoryError, before anything is computed, where even the settings that need least do not fit."""
        if self.fits is False:
            raise OutOfMemoryError(f"{self.output[1]}x{self.output[0]} px {self.verdict()}")

    def text(self) -> str:
        """The plan in lines, for a console or a node."""
        sizes = [_size(self.input), _size(self.output), _size(self.framed), _size(self.latent)]
        rows, columns = self.tokens
        lines = [
            f"{sizes[0]} -> {sizes[1]} px, {sizes[2]} with its margin; latent {sizes[3]}, "
            f"{columns} x {rows} = {rows * columns:,} tokens{self._in_pieces()}"
        ]
        lines += [_line(stage) for stage in self.stages]
        lines += [f"weights      {w.size / GIGABYTE:8.3f} GB  {w.name}: {w.place}" for w in self.weights]
        if self.machine.holds_pictures:
            size = self.worst.pictures
            what = "enlarged input and result" if self.batch == 1 else f"enlarged input and {self.batch} results"
            lines.append(f"pictures     {size / GIGABYTE:8.3f} GB  beside {self.worst.name}: {what}")
            lines.append(f"together     {self.peak / GIGABYTE:8.3f} GB  with {self.worst.name}, the largest stage")
        lines.append(f"{self.machine.device}, {dtype_name(self.machine.dtype)}: {self.verdict()}")
        return "\n".join(lines + [f"warning: {text}" for text in self.warnings])

    def _in_pieces(self) -> str:
        if self.pieces <= 1:
            return ""
        rows, columns = self.window
        return f", in {self.pieces} pieces of {columns} x {rows} = {rows * columns:,}"

    def report(self) -> dict[str, Any]:
        """The plan as plain values, for JSON; sizes are [width, height]."""
        return {
            "input_size": list(self.input[::-1]),
            "output_size": list(self.output[::-1]),
            "framed_size": list(self.framed[::-1]),
            "latent_size": list(self.latent[::-1]),
            "pictures": self.batch,
            "tokens": {"rows": self.tokens[0], "columns": self.tokens[1], "train_tokens": self.train_tokens},
            "pieces": self._pieces_report(),
            "stages": [_stage_report(stage) for stage in self.stages],
            "weights": [{"name": w.name, "size": w.size, "place": w.place} for w in self.weights],
            "device": self.machine.device,
            "dtype": dtype_name(self.machine.dtype),
            "flops": self.flops,
            "free_bytes": self.machine.free,
            "peak_bytes": self.peak,
            "fits": self.fits,
            "verdict": self.verdict(),
            "warnings": self.warnings,
        }


def pieces_asked_for(pieces: Pieces, machine: Machine) -> str:
    """How the user asks for them: a node's inputs, or the command's option."""
    if machine.host:
        return f"pieces (pieces {pieces.size_px}, pieces_overlap {pieces.overlap_px})"
    return f"pieces (--pieces {pieces.size_px}:{pieces.overlap_px})"


def _rfr_asked_for(machine: Machine) -> str:
    return "Apply RFR (policy ntk, interpolate or parts)" if machine.host else "--rfr ntk, interpolate or parts"


def beside(pictures: int, weights: tuple[Weights, ...], machine: Machine) -> int:
    """Bytes that a stage finds taken by what the run itself holds."""
    taken = pictures if machine.holds_pictures else 0
    return taken + (sum(w.size for w in weights) if machine.holds_weights else 0)


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]}x{size[0]}"


def _line(stage: StagePlan) -> str:
    work = "" if stage.flops is None else f"  {stage.flops / 1e12:8.2f} TFLOP"
    text = f"{stage.name:<12} {stage.peak / GIGABYTE:8.3f} GB{work}"
    if stage.path:
        text += f"  {stage.path}"
    others = {mode: size for mode, size in (stage.by_mode or {}).items() if size < stage.peak}
    if others:
        text += " (" + ", ".join(f"{mode} {size / GIGABYTE:.3f}" for mode, size in others.items()) + ")"
    return text


def _stage_report(stage: StagePlan) -> dict[str, Any]:
    settings = stage.settings
    return {
        "name": stage.name,
        "peak_bytes": stage.peak,
        "picture_bytes": stage.pictures,
        "flops": stage.flops,
        "path": stage.path,
        "strips": None if settings is None else {"rows": settings.rows, "mode": settings.mode},
        "peak_bytes_by_mode": stage.by_mode,
    }
