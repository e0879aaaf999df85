"""A run's plan from its sizes, models and machine, and what would help where it cannot fit. Nothing is computed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch

from ..base import Base, Bicubic
from ..images.resize import Target, framed_size, picture_bytes
from ..models.flux import FluxParams, Output
from ..models.latent import MARGIN, PATCH
from ..models.rope import FLUX_TRAIN_TOKENS, Policy
from ..pieces import Pieces, Window, blend_bytes, windows
from ..plain_text import plain
from ..vae.estimate import LEAST_MEMORY, Stage, StripPlan, choose_strips, peak_elements
from ..vae.layers import AutoEncoderParams
from ..vae.strips import MEMORY_MODES, MemoryMode, StripSettings
from .cost import autoencoder_flops, flux_flops, flux_peak_bytes, image_tokens
from .plan import Machine, Plan, StagePlan, Weights, beside, pieces_asked_for

#: Copies of the output picture (3 channels, float32) alive: while it is enlarged, while the VAE encodes, while the
#: transformer runs (one more for models that add detail: what they add to), while the VAE decodes, and in colour fix
#: and back-projection. As counted.
_PICTURES = {"enlarge": 1.1, "encode": 2.1, "transformer": 1.1, "decode": 2.1, "finish": 4.3}


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
    #: Windows that the transformer runs over; None: the whole picture.
    pieces: Pieces | None = None
    #: The positions that the transformer runs with, as far as they depend on the grid.
    positions: Policy = "checkpoint"
    #: What enlarges, how much damage it undoes, what the transformer's latents are for, and how much of them is added.
    base: Base = field(default_factory=Bicubic)
    repair: float = 0.0
    output: Output = "picture"
    detail: float = 1.0

    @property
    def has_transformer(self) -> bool:
        """Whether one is there; without, the VAE runs alone."""
        return self.flux is not None or self.transformer_peak is not None


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
    stages = _enlarge_stages(size, output, models, pictures["enlarge"])
    cut = [Window(0, 0, *tokens)] if models.pieces is None else windows(tokens, models.pieces, params.ratio)
    twice = models.output == "detail" and models.has_transformer
    transformer = None
    if models.detail or not models.has_transformer:
        stages.append(_strip_stage("encode", framed, models, machine, pictures["encode"]))
        held = pictures["transformer"] + twice * picture_bytes(*framed)
        transformer = _transformer_stage(tokens, models, machine, held, cut)
        stages += [transformer] if transformer else []
        added = models.has_transformer and (twice or models.detail != 1)
        held = pictures["decode"] + (added and machine.host) * picture_bytes(*framed)  # the host decodes it apart
        stages.append(_strip_stage("decode", framed, models, machine, held, 1 + twice))
    if machine.holds_pictures or not stages:  # elsewhere they need nothing of the device
        peak = pictures["finish"] - results if machine.holds_pictures else 0
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
        pieces=len(cut) if transformer else 0,
        window=(cut[0].rows, cut[0].columns),
        positions=models.positions,
        trained=trained_pieces(models),
    )


def _enlarge_stages(size: tuple[int, int], output: tuple[int, int], models: Models, pictures: int) -> list[StagePlan]:
    """One for what is more than bicubic, which needs nothing worth telling."""
    base = models.base
    if isinstance(base, Bicubic):
        return []
    peak, least = (base.peak_bytes(size, output, models.repair, least) for least in (False, True))
    flops = base.flops(size, output, models.repair)
    return [StagePlan("enlarge", peak, pictures, flops, plain(base.name), least=least)]


def _strip_stage(
    stage: Stage, framed: tuple[int, int], models: Models, machine: Machine, pictures: int, times: int = 1
) -> StagePlan:
    """times: how often it is done, one after the other."""
    params = (models.encoder or models.autoencoder) if stage == "encode" else models.autoencoder
    dtype = machine.dtype
    settings = (models.strips or {}).get(stage)
    if settings is None:
        free = machine.free if machine.usable is None else machine.usable
        taken = beside(pictures, models.weights, machine)
        settings = choose_strips(params, stage, *framed, dtype, free, taken)
    peaks: dict[MemoryMode, int] = {
        mode: _live(params, stage, framed, dtype, StripSettings(mode=mode)) for mode in MEMORY_MODES
    }
    return StagePlan(
        name=stage,
        peak=_live(params, stage, framed, dtype, settings),
        pictures=pictures,
        flops=times * autoencoder_flops(params, stage, *framed, settings),
        path=f"{'twice, ' if times > 1 else ''}strips of {settings.rows} rows, {settings.mode}",
        settings=settings,
        by_mode=peaks,
        least=_live(params, stage, framed, dtype, LEAST_MEMORY),
    )


def _transformer_stage(
    tokens: tuple[int, int], models: Models, machine: Machine, pictures: int, cut: list[Window]
) -> StagePlan | None:
    """One pass over all tokens, or one over each window, whose sums lie beside it as pictures do."""
    dtype, peak = models.transformer_dtype or machine.dtype, models.transformer_peak
    if models.flux is None and peak is None:
        return None
    rows, columns = cut[0].rows, cut[0].columns  # of all of them
    flops = None
    if models.flux is not None:
        flops = len(cut) * flux_flops(models.flux, rows * columns, models.text_tokens)
    if peak is not None:
        need = peak(rows, columns)
    else:
        assert models.flux is not None
        need = flux_peak_bytes(models.flux, rows * columns, models.text_tokens, dtype)
    if len(cut) > 1:
        pictures += blend_bytes(tokens, models.autoencoder.latent_channels)
    return StagePlan("transformer", need, pictures, flops, _path(models.pieces, len(cut)))


def _path(pieces: Pieces | None, count: int) -> str:
    if pieces is None or count == 1:
        return "one forward pass, no tiles"
    return f"{count} forward passes, pieces of {pieces.size_px} px that share {pieces.overlap_px} px, blended"


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
    pieces = trained_pieces(models)
    if models.pieces != pieces and fits(target, replace(models, pieces=pieces)):
        remedies.append(f"run the transformer in {pieces_asked_for(pieces, machine)}")
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


def trained_pieces(models: Models) -> Pieces:
    """Windows of the side that the model was trained at, else of Flux's, with half of it as overlap, as published."""
    token = models.autoencoder.ratio * PATCH
    side = models.train_tokens or FLUX_TRAIN_TOKENS
    return Pieces(side * token, side // 2 * token)


def _cast(models: Models, old: torch.dtype, new: torch.dtype) -> Models:
    """The same models with weights in another dtype."""
    weights = tuple(
        replace(w, size=w.size * new.itemsize // (w.dtype or old).itemsize, dtype=new) for w in models.weights
    )
    return replace(models, weights=weights, transformer_dtype=new if models.transformer_dtype else None)
