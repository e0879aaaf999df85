"""The usual way to a large picture, in overlapping patches: to compare with, no upscale uses it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from op4ksr_core.errors import OptionError
from op4ksr_core.images.resize import Target, mirror_frame
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.models.latent import MARGIN, PATCH
from op4ksr_core.one_step import OneStepOptions, Stages, run

from .tiles import one_pass, places


@dataclass(frozen=True)
class Cut:
    """Patches of ``side`` px that share ``overlap`` px with their neighbours."""

    side: int = 1024
    overlap: int = 128

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.side:
            raise OptionError(
                f"patches: expected an overlap from 0 to less than the side of {self.side} px, got {self.overlap}; "
                "take a smaller overlap or larger patches"
            )

    def sizes(self, size: tuple[int, int]) -> Counter[tuple[int, int]]:
        """How many patches of which (height, width) cover a picture of ``size`` (height, width)."""
        return Counter((height, width) for _, _, height, width in places(size, (self.side, self.side), self.overlap))


class PatchStages(Stages):
    """Any ``Stages`` as a patch-by-patch upscaler has them: for ``run`` with ``vae_only``.

    Its encode hands the enlarged picture through, and its decode does the work: every patch is a picture of its
    own to ``run`` (with the mirrored margin, encode, transformer, decode; no colour fix), faded into its
    neighbours by ``tiles.one_pass``. So colour fix and back-projection are done on the whole, as without patches.
    """

    def __init__(self, stages: Stages, cut: Cut, size: tuple[int, int], vae_only: bool = False) -> None:
        """size: (height, width) of the enlarged picture, in px. vae_only: no transformer in the patches either."""
        self.stages, self.cut, self.size = stages, cut, size
        self.ratio, self.base, self.repair = stages.ratio, stages.base, stages.repair
        self.options = OneStepOptions(Target(scale=1), color="none", fidelity=0.0, vae_only=vae_only)

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        return image

    def transform(self, raw: Tensor, tell: OnProgress) -> Tensor:
        return raw

    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        margin, (height, width) = self.ratio * MARGIN, self.size
        picture = raw[..., margin : margin + height, margin : margin + width]
        blended = one_pass(picture, self._one, (self.cut.side, self.cut.side), self.cut.overlap, 1)
        return mirror_frame(blended, self.ratio * PATCH, margin)  # as ``run`` expects it, which cuts this off

    def _one(self, patch: Tensor) -> Tensor:
        return run(patch, self.stages, self.options)


# --- how far the pictures are apart -----------------------------------------------------------


def seams(size: tuple[int, int], cut: Cut) -> tuple[list[int], list[int]]:
    """The rows and the columns, inside a picture of ``size`` (height, width), at which patches begin or end."""
    rows: set[int] = set()
    columns: set[int] = set()
    for top, left, height, width in places(size, (cut.side, cut.side), cut.overlap):
        rows |= {top, top + height}
        columns |= {left, left + width}
    return sorted(rows - {0, size[0]}), sorted(columns - {0, size[1]})


def difference(image: Tensor, reference: Tensor, cut: Cut) -> dict[str, float]:
    """How far two pictures (1, 3, H, W) in [0, 1] are apart, in grey levels of 255; ``image`` is the one in patches.

    A step is the jump of their difference from one pixel to the next, so that the picture's own edges do not
    count; at seams, where patches begin or end (fading leaves little of a step there), and elsewhere.
    """
    levels = (image - reference) * 255
    at, elsewhere = _steps(levels, seams((image.shape[-2], image.shape[-1]), cut))
    return {
        "RMS": levels.square().mean().sqrt().item(),
        "largest": levels.abs().max().item(),
        "largest step at seams": at[0],
        "largest step elsewhere": elsewhere[0],
        "RMS step at seams": at[1],
        "RMS step elsewhere": elsewhere[1],
    }


def _steps(levels: Tensor, lines: tuple[Sequence[int], Sequence[int]]) -> tuple[tuple[float, float], ...]:
    """(largest, RMS) of the steps across the given rows and columns, then of all others; 0 where there are none."""
    largest: dict[bool, list[Tensor]] = {True: [], False: []}
    squares: dict[bool, list[Tensor]] = {True: [], False: []}
    for axis, chosen in zip((-2, -1), lines, strict=True):
        steps = levels.diff(dim=axis).movedim(axis, 0).flatten(1)  # the step to line i is row i - 1
        inside = torch.zeros(len(steps), dtype=torch.bool)
        inside[[line - 1 for line in chosen]] = True
        for here in (True, False):
            largest[here].append(steps.abs().amax(1)[inside == here])
            squares[here].append(steps.square().mean(1)[inside == here])

    def summed(here: bool) -> tuple[float, float]:
        high, mean = torch.cat(largest[here]), torch.cat(squares[here])
        return (high.max().item(), mean.mean().sqrt().item()) if len(high) else (0.0, 0.0)

    return summed(True), summed(False)
