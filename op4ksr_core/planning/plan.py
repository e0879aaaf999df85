"""What a run will need, before anything is computed: sizes, tokens, work, memory by stage, the path taken.

Memory is in live tensors, as ``vae.estimate`` and ``cost`` estimate it; kernels' own workspace comes on top
(``WORKSPACE``). A plan says "will not fit" only where even the settings that need least do not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, get_args

import torch

from ..errors import OutOfMemoryError
from ..images.resize import Target, framed_size, picture_bytes
from ..machine import dtype_name
from ..models.flux import FluxParams
from ..models.latent import MARGIN, PATCH
from ..vae.estimate import LEAST_MEMORY, Stage, StripPlan, choose_strips, peak_elements
from ..vae.layers import AutoEncoderParams
from ..vae.strips import MEMORY_MODES, MemoryMode, StripSettings
from .cost import autoencoder_flops, flux_flops, flux_peak_bytes, image_tokens

#: Copies of the output picture (3 channels, float32) alive: while the VAE encodes, while the transformer
#: runs, while the VAE decodes, and in colour fix and back-projection. As counted.
_PICTURES = {"encode": 2.1, "transformer": 1.1, "decode": 2.1, "finish": 4.3}

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
    not among the tokens.
    """

    input: tuple[int, int]
    output: tuple[int, int]
    framed: tuple[int, int]
    latent: tuple[int, int]
    tokens: tuple[int, int]
    stages: tuple[StagePlan, ...]
    weights: tuple[Weights, ...]
    machine: Machine
    train_tokens: int | None
    #: Remedies, where it does not fit.
    remedies: tuple[str, ...] = ()
    #: Pictures of this size, done one by one.
    batch: int = 1

    @property
    def peak(self) -> int:
        """Bytes at the worst stage, all that shares the memory included."""
        return max(self._needs(stage) for stage in self.stages)

    @property
    def least(self) -> int:
        """Bytes at the worst stage when every stage runs with the settings that need least."""
        return max(self._needs(stage, stage.least) for stage in self.stages)

    @property
    def fits(self) -> bool | None:
        """Whether the settings that need least do; None where the free memory is unknown."""
        free = self.machine.free
        return None if free is None else self.least <= free

    def _needs(self, stage: StagePlan, peak: int | None = None) -> int:
        return (stage.peak if peak is None else peak) + _beside(stage.pictures, self.weights, self.machine)

    @property
    def worst(self) -> StagePlan:
        """The stage with the highest peak."""
        return max(self.stages, key=self._needs)

    @property
    def warnings(self) -> list[str]:
        """Warnings for the user: a grid larger than the model has seen."""
        if self.train_tokens is None or max(self.tokens) <= self.train_tokens:
            return []
        rows, columns = self.tokens
        return [
            f"{rows} x {columns} tokens are more than the {self.train_tokens} per side this model was trained on: "
            "it is computed, but nobody knows how well the model does there"
        ]

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
        return {name: settings for name in stages if (settings := by_name[name]) is not None}

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
            f"{columns} x {rows} = {rows * columns:,} tokens"
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

    def report(self) -> dict[str, Any]:
        """The plan as plain values, for JSON; sizes are [width, height]."""
        return {
            "input_size": list(self.input[::-1]),
            "output_size": list(self.output[::-1]),
            "framed_size": list(self.framed[::-1]),
            "latent_size": list(self.latent[::-1]),
            "pictures": self.batch,
            "tokens": {"rows": self.tokens[0], "columns": self.tokens[1], "train_tokens": self.train_tokens},
            "stages": [_stage_report(stage) for stage in self.stages],
            "weights": [{"name": w.name, "size": w.size, "place": w.place} for w in self.weights],
            "device": self.machine.device,
            "dtype": dtype_name(self.machine.dtype),
            "free_bytes": self.machine.free,
            "peak_bytes": self.peak,
            "fits": self.fits,
            "verdict": self.verdict(),
            "warnings": self.warnings,
        }


def _beside(pictures: int, weights: tuple[Weights, ...], machine: Machine) -> int:
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


# --- making one -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Models:
    """What runs: the geometry of the models, and their weights.

    flux None: there is no transformer, or it is another architecture, whose needs ``transformer_peak`` tells.
    """

    autoencoder: AutoEncoderParams
    #: Of the encoder, if it is unlike the decoder.
    encoder: AutoEncoderParams | None = None
    flux: FluxParams | None = None
    text_tokens: int = 1
    #: The transformer's, if it is not the VAE's.
    transformer_dtype: torch.dtype | None = None
    #: Bytes for (rows, columns) tokens, of a transformer that is not the core's own.
    transformer_peak: Callable[[int, int], int] | None = None
    weights: tuple[Weights, ...] = ()
    train_tokens: int | None = None
    #: Strips that are asked for; a stage that is not named gets the fastest that fit.
    strips: StripPlan | None = None


def make_plan(size: tuple[int, int], target: Target, models: Models, machine: Machine, batch: int = 1) -> Plan:
    """The plan for ``batch`` pictures of ``size`` (height, width). Raises OptionError beyond the target's ceiling."""
    plan = _plan(size, target, models, machine, batch)
    if plan.fits is not False:
        return plan
    return replace(plan, remedies=tuple(_remedies(size, target, models, machine, batch)))


def _plan(size: tuple[int, int], target: Target, models: Models, machine: Machine, batch: int) -> Plan:
    params, output = models.autoencoder, target.size(*size)
    side = params.ratio * PATCH
    tokens = image_tokens(params, *framed_size(*output, side))
    framed = framed_size(*output, side, params.ratio * MARGIN)
    results = picture_bytes(*output, batch) if batch > 1 else 0  # of a batch: in one block, from the start
    pictures = {name: int(count * picture_bytes(*framed)) + results for name, count in _PICTURES.items()}
    stages = [_strip_stage("encode", framed, models, machine, pictures["encode"])]
    transformer = _transformer_stage(tokens, models, machine, pictures["transformer"])
    stages += [transformer] if transformer else []
    stages.append(_strip_stage("decode", framed, models, machine, pictures["decode"]))
    if machine.holds_pictures:
        peak = pictures["finish"] - results
        stages.append(StagePlan("finish", peak, results, path="colour fix and back-projection"))
    latent = framed[0] // params.ratio, framed[1] // params.ratio
    return Plan(
        input=size,
        output=output,
        framed=framed,
        latent=latent,
        tokens=tokens,
        stages=tuple(stages),
        weights=models.weights,
        machine=machine,
        train_tokens=models.train_tokens,
        batch=batch,
    )


def _strip_stage(stage: Stage, framed: tuple[int, int], models: Models, machine: Machine, pictures: int) -> StagePlan:
    params = (models.encoder or models.autoencoder) if stage == "encode" else models.autoencoder
    dtype = machine.dtype
    settings = (models.strips or {}).get(stage)
    if settings is None:
        free = machine.free if machine.usable is None else machine.usable
        beside = _beside(pictures, models.weights, machine)
        settings = choose_strips(params, stage, *framed, dtype, free, beside)
    peaks: dict[MemoryMode, int] = {
        mode: _live(params, stage, framed, dtype, StripSettings(mode=mode)) for mode in MEMORY_MODES
    }
    return StagePlan(
        name=stage,
        peak=_live(params, stage, framed, dtype, settings),
        pictures=pictures,
        flops=autoencoder_flops(params, stage, *framed, settings),
        path=f"strips of {settings.rows} rows, {settings.mode}",
        settings=settings,
        by_mode=peaks,
        least=_live(params, stage, framed, dtype, LEAST_MEMORY),
    )


def _transformer_stage(tokens: tuple[int, int], models: Models, machine: Machine, pictures: int) -> StagePlan | None:
    count, dtype, peak = tokens[0] * tokens[1], models.transformer_dtype or machine.dtype, models.transformer_peak
    if models.flux is None and peak is None:
        return None
    flops = None if models.flux is None else flux_flops(models.flux, count, models.text_tokens)
    if peak is not None:
        need = peak(*tokens)
    else:
        assert models.flux is not None
        need = flux_peak_bytes(models.flux, count, models.text_tokens, dtype)
    return StagePlan("transformer", need, pictures, flops, "one forward pass, no tiles")


def _live(
    params: AutoEncoderParams, stage: Stage, framed: tuple[int, int], dtype: torch.dtype, settings: StripSettings
) -> int:
    return peak_elements(params, stage, *framed, settings) * dtype.itemsize


def _remedies(size: tuple[int, int], target: Target, models: Models, machine: Machine, batch: int) -> list[str]:
    """What would help, each checked."""

    def fits(target: Target, models: Models = models, machine: Machine = machine) -> bool:
        return _plan(size, target, models, machine, batch).fits is True

    remedies: list[str] = []
    if batch > 1 and _plan(size, target, models, machine, 1).fits:
        remedies.append(f"upscale fewer than {batch} pictures at once")
    low, high = 0, max(target.size(*size)) // 16
    while low < high:  # in steps of 16 px
        middle = (low + high + 1) // 2
        if fits(Target(long_edge=16 * middle, ceiling_megapixels=target.ceiling_megapixels)):
            low = middle
        else:
            high = middle - 1
    if low:
        remedies.append(f"ask for a long edge of at most {16 * low} px")
    if machine.host:
        return remedies or ["no size fits: choose a smaller model, or one in fp8"]
    half = _cast(models, machine.dtype, torch.bfloat16)
    whole = machine.dtype == torch.float32 == (models.transformer_dtype or machine.dtype)
    if whole and fits(target, half, replace(machine, dtype=torch.bfloat16)):
        remedies.append("use bfloat16")
    if machine.cpu_free is not None:
        cpu = Machine("cpu", torch.float32, machine.cpu_free)
        if fits(target, _cast(models, machine.dtype, torch.float32), cpu):
            remedies.append("run on the CPU")
    return remedies or ["no size fits: run it in ComfyUI, which moves weights in and out, or choose a smaller model"]


def _cast(models: Models, old: torch.dtype, new: torch.dtype) -> Models:
    """The same models with weights in another dtype."""
    weights = tuple(
        replace(w, size=w.size * new.itemsize // (w.dtype or old).itemsize, dtype=new) for w in models.weights
    )
    return replace(models, weights=weights, transformer_dtype=new if models.transformer_dtype else None)
