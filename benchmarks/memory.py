"""``memory`` and ``speed``: the VAE's strips against the plain pass and against tiles; peaks counted and estimated.

Weights of full width are random (seeded): they prove exactness, memory and speed, never quality.
"""

from __future__ import annotations

import copy
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX, SAMPLE_PHOTO
from op4ksr_core.images.io import load_image
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.machine import AllocationTracker, dtype_name, explain_out_of_memory, peak_memory
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.one_step import CoreStages, OneStepOptions, Stages, run
from op4ksr_core.planning.geometries import AUTOENCODERS
from op4ksr_core.vae.autoencoder import AutoEncoder, AutoEncoderParams
from op4ksr_core.vae.estimate import Stage, both, peak_elements
from op4ksr_core.vae.strips import MEMORY_MODES, MemoryMode, StripSettings
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

from .own_process import in_own_process
from .stage_clock import wait_for
from .tables import Row
from .tiles import three_passes

log = logging.getLogger(__name__)

#: ComfyUI's tiled nodes as they are set when put on the canvas, in px.
TILE, OVERLAP = 512, 64


def random_autoencoder(params: AutoEncoderParams) -> AutoEncoder:
    """Seeded weights, no norm neutral; scaled so that nearly all outputs lie in [-1, 1]."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = AutoEncoder(params).eval().requires_grad_(False)
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        small = model.decode_pixels(torch.randn(1, params.latent_channels, 8, 8))
        model.decoder.conv_out.weight.mul_(0.33 / small.std())
    return model


def uneven(*shape: int, seed: int = 0) -> Tensor:
    """Noise whose contrast differs from place to place, as a picture's does: what statistics per tile get wrong."""
    generator = torch.Generator().manual_seed(seed)
    contrast = resize(torch.rand(1, 1, 3, 3, generator=generator), *shape[2:]).abs()
    return torch.randn(shape, generator=generator) * (0.2 + 1.6 * contrast)


# --- exactness --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """One comparison: a geometry at a size (height, width), in px; with tiles or, where they take too long, without."""

    geometry: str
    size: tuple[int, int]
    tiles: bool = True


CASES = (
    Case("F16, bundled", (512, 512)),
    Case("F16, bundled", (1024, 1024)),
    Case("F16, bundled", (992, 544)),
    Case("F16, full width", (512, 512)),
    Case("F16, full width", (1024, 1024)),
    Case("F16, full width, shift 1", (544, 288)),
    Case("F8, full width", (512, 512), tiles=False),
)
QUICK_CASES = (Case("F16, bundled", (256, 256)), Case("F16, bundled", (544, 144)))


def exactness(cases: tuple[Case, ...] = CASES) -> list[Row]:
    """Strips (each mode, and another height) and tiles against the plain pass; float32 is the truth for bfloat16.

    ``max`` is the largest difference from the plain pass of the same dtype, ``rms`` the distance from
    the plain float32 pass, ``rms of plain`` the plain pass's own distance from it; outputs are scaled
    into [-1, 1].
    """
    rows: list[Row] = []
    for case in cases:
        log.info("exactness: %s, %s", case.geometry, case.size)
        params = AUTOENCODERS[case.geometry]
        model = random_autoencoder(params)
        latent = uneven(1, params.latent_channels, *(side // params.ratio for side in case.size))
        pixels = model.decode_strips(latent).clamp(-1, 1)
        for stage, given in (("encode", pixels), ("decode", latent)):
            truth = _into_unit_range(model, stage, _plain(model, stage, given))
            rows += _compare(case, model, stage, given, truth, _ways(case.tiles and max(case.size) > TILE))
            half = copy.deepcopy(model).to(torch.bfloat16)
            rows += _compare(case, half, stage, given.to(torch.bfloat16), truth, _ways(tiles=False))
    return rows


def _into_unit_range(model: AutoEncoder, stage: str, output: Tensor) -> Tensor:
    """Scale the last convolution so that the output becomes [-1, 1] at most; returns it so."""
    largest = output.abs().max()
    last = model.decoder.conv_out if stage == "decode" else model.encoder.conv_out
    with torch.no_grad():
        for parameter in last.parameters():
            parameter.div_(largest)
    return output / largest


def _ways(tiles: bool) -> dict[str, StripSettings | None]:
    ways: dict[str, StripSettings | None] = {f"strips, {mode}": StripSettings(mode=mode) for mode in MEMORY_MODES}
    ways |= {"strips, fast, 24 rows": StripSettings(24)}
    return ways | {"tiles": None} if tiles else ways


def _compare(
    case: Case, model: AutoEncoder, stage: str, given: Tensor, truth: Tensor, ways: dict[str, StripSettings | None]
) -> Iterator[Row]:
    plain = truth if given.dtype == truth.dtype else _plain(model, stage, given)
    own = _rms(plain, truth)
    for name, settings in ways.items():
        result = _tiled(model, stage, given) if settings is None else _strips(model, stage, given, settings)
        yield {
            "weights": case.geometry,
            "px": f"{case.size[1]}x{case.size[0]}",
            "stage": stage,
            "dtype": dtype_name(given.dtype),
            "way": name,
            "max": (result.float() - plain.float()).abs().max().item(),
            "rms": _rms(result, truth),
            "rms of plain": own,
            "std": truth.std().item(),
        }


def _rms(a: Tensor, b: Tensor) -> float:
    return (a.float() - b.float()).square().mean().sqrt().item()


def _plain(model: AutoEncoder, stage: str, given: Tensor) -> Tensor:
    return model.decode_pixels(given) if stage == "decode" else model.encode_pixels(given)


def _strips(model: AutoEncoder, stage: str, given: Tensor, settings: StripSettings) -> Tensor:
    run = model.decode_strips if stage == "decode" else model.encode_strips
    return run(given, strips=settings)


def _tiled(model: AutoEncoder, stage: str, given: Tensor) -> Tensor:
    ratio = model.params.ratio
    if stage == "decode":
        return three_passes(given, model.decode_pixels, TILE // ratio, OVERLAP // ratio, ratio)
    return three_passes(given, model.encode_pixels, TILE, OVERLAP, 1 / ratio)


def tiles_on_the_sample() -> list[Row]:
    """The bundled weights on the bundled photo, in grey levels of 255: what tiles change in a real picture."""
    model = load_autoencoder(BUNDLED_AUTOENCODER)
    image = load_image(SAMPLE_PHOTO).image
    side = TILE * 2  # the middle, larger than a tile
    image = resize(image, side, side * image.shape[-1] // image.shape[-2] // 32 * 32)
    latent = _plain(model, "encode", image * 2 - 1)
    plain = _plain(model, "decode", latent)
    rows: list[Row] = []
    for way in (*MEMORY_MODES, "tiles"):
        settings = None if way == "tiles" else StripSettings(mode=way)
        result = _tiled(model, "decode", latent) if settings is None else _strips(model, "decode", latent, settings)
        error = (result - plain).abs() * 127.5
        name = "tiles" if settings is None else f"strips, {way}"
        rows.append({"way": name, "max (levels)": error.max().item(), "rms (levels)": _rms(result, plain) * 127.5})
    return rows


# --- peaks ------------------------------------------------------------------------------------

#: Most gigabytes at full width in bfloat16, F16: (stage, side, mode) -> GB. From the issue that set them.
TARGETS: dict[tuple[str, int, str], float] = {
    ("decode", 4096, "fast"): 3.5,
    ("decode", 4096, "tiny"): 2.0,
    ("encode", 4096, "fast"): 2.4,
    ("encode", 4096, "tiny"): 1.5,
    ("decode", 8192, "fast"): 13.5,
    ("decode", 8192, "tiny"): 7.2,
}


def peaks(
    geometries: tuple[str, ...] = ("F16, bundled", "F16, full width", "F8, full width"),
    real_sides: tuple[int, ...] = (1024, 2048),
    meta_sides: tuple[int, ...] = (4096, 8192),
) -> list[Row]:
    """Live tensors above the input in bfloat16, counted on real and on meta tensors, beside the prediction."""
    rows: list[Row] = []
    for name in geometries:
        for side in (*real_sides, *meta_sides):
            large = AUTOENCODERS[name].stride == 1 and side > min(real_sides)  # minutes each
            device = "meta" if side in meta_sides or large else "cpu"
            for stage in ("encode", "decode"):
                log.info("peaks: %s, %d px, %s", name, side, stage)
                rows += _peaks_of(name, stage, side, device)
    return rows


def _peaks_of(name: str, stage: Stage, side: int, device: str) -> Iterator[Row]:
    params = AUTOENCODERS[name]
    with torch.device(device):
        model = AutoEncoder(params, dtype=torch.bfloat16).requires_grad_(False)
        shape = (params.latent_channels, side // params.ratio, side // params.ratio)
        given = torch.zeros(1, *(shape if stage == "decode" else (3, side, side)), dtype=torch.bfloat16)
        out = torch.zeros(1, 3, side, side) if stage == "decode" else None
    for way in ("plain", *MEMORY_MODES):
        with torch.no_grad(), AllocationTracker() as tracker:
            _run_once(model, stage, given, out, way)
        predicted = None
        if way != "plain":
            predicted = 2 * peak_elements(params, stage, side, side, StripSettings(mode=_mode(way))) / 1e9
        limit = TARGETS.get((stage, side, way)) if name == "F16, full width" else None
        yield {
            "weights": name,
            "stage": stage,
            "px": side,
            "tensors": "meta" if device == "meta" else "real",
            "way": way,
            "GB": tracker.peak / 1e9,
            "predicted GB": predicted if predicted is not None else "",
            "predicted / counted": predicted * 1e9 / tracker.peak if predicted is not None else "",
            "at most": limit if limit is not None else "",
        }


def _mode(way: str) -> MemoryMode:
    return next(mode for mode in MEMORY_MODES if mode == way)


def _run_once(model: AutoEncoder, stage: str, given: Tensor, out: Tensor | None, way: str) -> None:
    if way == "plain":
        _plain(model, stage, given)
        return
    settings = StripSettings(mode=_mode(way))
    if stage == "decode":
        model.decode_strips(given, out=out, strips=settings)
    else:
        model.encode_strips(given, strips=settings)


# --- a whole run ------------------------------------------------------------------------------


class PlainStages(CoreStages):
    """The same run with the autoencoder's plain passes: what the strips replaced."""

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        model = self.autoencoder
        with torch.no_grad(), explain_out_of_memory("the VAE's plain encode"):
            return model.encode_pixels(image.to(model.device, model.dtype) * 2 - 1)

    def decode(self, raw: Tensor, tell: OnProgress) -> Tensor:
        model = self.autoencoder
        with torch.no_grad(), explain_out_of_memory("the VAE's plain decode"):
            return model.decode_pixels(raw.to(model.device, model.dtype)).add_(1).div_(2).clamp_(0, 1)

    add_decoded = Stages.add_decoded


def end_to_end(side: int = 1024, factor: int = 4) -> list[Row]:
    """Peak memory of a process that upscales ``side`` x ``side`` px with the bundled weights on the CPU."""
    ways = {"plain passes": "plain", **{f"strips, {mode}": mode for mode in MEMORY_MODES}}
    log.info("a whole run: %d -> %d px", side, side * factor)
    return [{"run": name, **_in_a_process(way, side, factor)} for name, way in ways.items()]


def _in_a_process(way: str, side: int, factor: int) -> Row:
    what = f"benchmarks memory: the run of {side} px with {way}"
    remedy = "free memory, or leave it out with --only peaks sample exactness"
    return in_own_process(_upscale_and_tell, (way, side, factor), what, remedy)


def _upscale_and_tell(way: str, side: int, factor: int, results: Any) -> None:
    autoencoder, flux = load_autoencoder(BUNDLED_AUTOENCODER), load_flux(BUNDLED_FLUX)
    if way == "plain":
        stages = PlainStages(flux, autoencoder)
    else:
        stages = CoreStages(flux, autoencoder, strips=both(StripSettings(mode=_mode(way))))
    image = resize(load_image(SAMPLE_PHOTO).image, side, side).clamp(0, 1)
    before = peak_memory(torch.device("cpu")) or 0
    options = replace(OneStepOptions(), target=Target(scale=factor))
    run(image, stages, options)
    peak = peak_memory(torch.device("cpu")) or 0
    results.put({"px": f"{side} -> {side * factor}", "GB at start": before / 1e9, "GB at peak": peak / 1e9})


# --- speed ------------------------------------------------------------------------------------

#: Geometry, side in px, dtype.
SpeedCase = tuple[str, int, torch.dtype]
SPEED_CASES: tuple[SpeedCase, ...] = (
    ("F16, full width", 1024, torch.bfloat16),
    ("F16, full width", 512, torch.float32),
    ("F8, full width", 512, torch.bfloat16),
    ("F16, bundled", 2048, torch.float32),
)
QUICK_SPEED_CASES = (("F16, bundled", 256, torch.float32),)


def speed(cases: Sequence[SpeedCase] = SPEED_CASES, device: str = "cpu", repeats: int = 3) -> list[Row]:
    """Plain and each mode in turn, ``repeats`` times after one warm-up; the fastest of each counts."""
    rows: list[Row] = []
    for name, side, dtype in cases:
        params = AUTOENCODERS[name]
        model = random_autoencoder(params).to(device, dtype)
        latent = uneven(1, params.latent_channels, side // params.ratio, side // params.ratio).to(device, dtype)
        pixels = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        for stage, given in (("encode", pixels), ("decode", latent)):
            seconds: dict[str, list[float]] = {way: [] for way in ("plain", *MEMORY_MODES)}
            for turn in range(repeats + 1):
                for way, taken in seconds.items():
                    spent = _seconds(model, stage, given, way)
                    if turn:
                        taken.append(spent)
            plain = min(seconds["plain"])
            for way, taken in seconds.items():
                rows.append(
                    {
                        "weights": name,
                        "px": side,
                        "dtype": dtype_name(dtype),
                        "stage": stage,
                        "way": way,
                        "seconds": min(taken),
                        "slowest": max(taken),
                        "of plain": min(taken) / plain,
                    }
                )
    return rows


def _seconds(model: AutoEncoder, stage: str, given: Tensor, way: str) -> float:
    settings = next((StripSettings(mode=mode) for mode in MEMORY_MODES if mode == way), None)
    plain, strips = {
        "encode": (model.encode_pixels, model.encode_strips),
        "decode": (model.decode_pixels, model.decode_strips),
    }[stage]
    wait_for(given.device)
    began = time.perf_counter()
    with torch.no_grad():
        _ = plain(given) if settings is None else strips(given, strips=settings)
    wait_for(given.device)
    return time.perf_counter() - began
