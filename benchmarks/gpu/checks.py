"""What the pack relies on, tried on the device at hand; written for CUDA, run on any.

Each check is a row with what was measured, its bound and whether it holds; one that cannot be tried says why.
``tests/gpu`` asks the same. The sizes are small on a CPU, where all of it only shows that the questions are asked
rightly.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from op4ksr_core.cli.options import parse_device
from op4ksr_core.errors import Op4ksrError, OptionError
from op4ksr_core.images.resize import Target
from op4ksr_core.machine import release_memory
from op4ksr_core.one_step import OneStepOptions, upscale
from op4ksr_core.planning.geometries import AUTOENCODERS, GEOMETRIES
from op4ksr_core.vae.estimate import WORKSPACE, Stage, peak_elements
from op4ksr_core.vae.strips import MEMORY_MODES, Affine, Moments, StripSettings
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

from ..memory import random_autoencoder, uneven
from ..pipeline import photo
from ..random_models import random_flux
from ..stage_clock import PeakMeter, wait_for
from ..tables import Row
from .fp8 import by_rows, has_scaled_mm, scaled_mm, store_in_fp8
from .step import StepReport, first_line, step_parser

YES, NO = "yes", "NO"


@dataclass(frozen=True)
class Check:
    """One finding: a number and the most that it may be."""

    what: str
    measured: float
    at_most: float

    def row(self) -> Row:
        verdict = YES if self.measured <= self.at_most else NO
        return {"check": self.what, "measured": self.measured, "at most": self.at_most, "holds": verdict}


def check_rows(device: torch.device, names: Sequence[str]) -> Iterator[Row]:
    """The checks of those names among ``CHECKS``, as they come."""
    for name in names:
        try:
            for check in CHECKS[name](device):  # one by one: those found before another fails stay
                yield check.row()
        except (RuntimeError, MemoryError, Op4ksrError) as error:
            reason = f"could not be tried: {first_line(error)}"
            yield {"check": name, "measured": None, "at most": None, "holds": reason}
        release_memory()


# --- the checks --------------------------------------------------------------------------------


def meter_checks(device: torch.device) -> Iterator[Check]:
    """The memory meter sees what is allocated, and what was given back."""
    size = 2**26
    with PeakMeter(device) as meter:
        meter.restart()
        block = torch.zeros(size, dtype=torch.uint8, device=device)
        first = meter.peak()
        del block
        meter.restart()
        second = meter.peak()
    yield Check("the memory meter: 64 MiB are seen, relative error", abs(first / size - 1), 0.01)
    yield Check("the memory meter: and gone again, share left", second / size, 0.01)


def norm_checks(device: torch.device) -> Iterator[Check]:
    """Statistics of bf16 maps are float32's: far from 0, where bf16's own would lose the variance."""
    generator = torch.Generator().manual_seed(0)
    norm = random_autoencoder(AUTOENCODERS["F16, bundled"]).decoder.norm_out.to(device, torch.bfloat16)
    exact = 20 + torch.randn(1, norm.num_channels, 64, 64, generator=generator, dtype=torch.float64)
    half = exact.to(device, torch.bfloat16)
    weight, bias = norm.weight.double(), norm.bias.double()
    truth = F.silu(F.group_norm(half.double(), norm.num_groups, weight, bias, norm.eps))
    moments = Moments()
    for strip in half.split(24, 2):
        moments.add(strip)
    ours = Affine(norm, moments)(half)
    yield Check("GroupNorm in strips, bf16: rms error from float64's", _rms(ours, truth), 5e-3)
    assert moments.mean is not None
    mean = half.double().mean((0, 2, 3))
    yield Check("its mean by channel: largest error", (moments.mean.to(device) - mean).abs().max().item(), 1e-4)


def strip_checks(device: torch.device) -> Iterator[Check]:
    """Strips are the plain pass, in true float32."""
    with true_float32():
        model = random_autoencoder(AUTOENCODERS["F16, bundled"]).to(device)
        latent = uneven(1, 16, 12, 8).to(device)
        for mode in MEMORY_MODES:
            ours = model.decode_strips(latent, strips=StripSettings(16, mode))
            error = (ours - model.decode_pixels(latent)).abs().max().item()
            yield Check(f"strips, {mode}, against the plain pass: largest error", error, 1e-4)


def peak_checks(device: torch.device) -> Iterator[Check]:
    """Peaks over their estimates, in bf16, a tenth for kernels included; at full width and 4096 px on a GPU."""
    name, side = ("F16, bundled", 512) if device.type == "cpu" else ("F16, full width", 4096)
    params = AUTOENCODERS[name]
    model = random_autoencoder(params).to(device, torch.bfloat16)
    low = side // params.ratio
    latent = torch.randn(1, 16, low, low, device=device).bfloat16()
    pixels = torch.rand(1, 3, side, side, device=device).bfloat16()
    out = torch.empty(1, 3, side, side, device=device)
    stages: tuple[Stage, ...] = get_args(Stage)
    for stage in stages:
        for mode in MEMORY_MODES:
            settings = StripSettings(mode=mode)
            release_memory()
            with torch.no_grad(), PeakMeter(device) as meter:
                meter.restart()
                if stage == "decode":
                    model.decode_strips(latent, out=out, strips=settings)
                else:
                    _ = model.encode_strips(pixels, strips=settings)
                wait_for(device)
                peak = meter.peak()
            estimated = 2 * peak_elements(params, stage, side, side, settings)
            yield Check(f"{stage}, {mode}, {name}, {side} px: peak over estimate", peak / estimated, 1 + WORKSPACE)


def parity_checks(device: torch.device) -> Iterator[Check]:
    """The bundled models draw the same picture here as on the CPU, in grey levels of 255."""
    image, target = photo(64, torch.device("cpu")), OneStepOptions(Target(scale=4))

    def picture(place: torch.device, dtype: torch.dtype) -> Tensor:
        models = (load(file, device=place, dtype=dtype) for load, file in _BUNDLED)
        flux, vae = models
        return upscale(image.to(place), flux, vae, target).cpu()  # pyright: ignore[reportArgumentType]

    truth = picture(torch.device("cpu"), torch.float32)
    with true_float32():
        error = (picture(device, torch.float32) - truth).abs().max().item()
        yield Check("the bundled models, float32: largest difference from the CPU, in levels", 255 * error, 0.1)
    error = _rms(picture(device, torch.bfloat16), truth)
    yield Check("the bundled models, bf16: rms difference from the CPU's float32, in levels", 255 * error, 2.0)


_BUNDLED: tuple[tuple[Any, Path], ...] = ((load_flux, BUNDLED_FLUX), (load_autoencoder, BUNDLED_AUTOENCODER))


def memory_checks(device: torch.device) -> Iterator[Check]:
    """A decode that runs out of memory goes on with leaner strips, and the picture is the same.

    On CUDA the process really gets no more than 1.3 times what "tiny" needs, which "fast" exceeds in the lowest
    strips too; elsewhere the first try is made to fail.
    """
    params, side = AUTOENCODERS["F16, bundled"], 2048 if device.type == "cuda" else 128
    model = random_autoencoder(params).to(device)
    latent = torch.randn(1, 16, side // 16, side // 16, device=device)
    with true_float32():
        whole = model.decode_strips(latent, strips=StripSettings(mode="tiny"))
        tries: list[int] = []

        def counted(done: int, total: int) -> None:
            if done == 0:
                tries.append(total)
            if device.type != "cuda" and len(tries) == 1:
                raise MemoryError("as if")

        need = 4 * peak_elements(params, "decode", side, side, StripSettings(mode="tiny"))
        out = torch.empty_like(whole)
        with limited(device, int(1.3 * need)):
            result = model.decode_strips(latent, counted, out, strips=StripSettings(mode="fast"))
    yield Check("out of memory: tries that it took, at least 2 (as 2 / tries)", 2 / len(tries), 1.0)
    yield Check("out of memory: largest difference of the picture", (result - whole).abs().max().item(), 1e-4)


@contextmanager
def limited(device: torch.device, size: int) -> Generator[None, None, None]:
    """Inside, this process gets ``size`` more bytes on a CUDA device than it holds now."""
    if device.type != "cuda":
        yield
        return
    release_memory()
    index = torch.empty(0, device=device).get_device()  # the setter wants a number
    total = torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(index) + size) / total, index)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, index)


def fp8_checks(device: torch.device) -> Iterator[Check]:
    """Products of 8-bit floats are the products of the rounded numbers, and a model of them is near the plain one."""
    if not has_scaled_mm(device):
        raise OptionError("fp8: torch._scaled_mm does not run on this device")
    a, b = (torch.randn(n, 256, generator=torch.Generator().manual_seed(n)).to(device) for n in (48, 96))
    (a, of_a), (b, of_b) = by_rows(a), by_rows(b)
    product = scaled_mm(a, b.t(), of_a, of_b.t(), torch.bfloat16)
    exact = (a.double() * of_a.double()) @ (b.double() * of_b.double()).t()
    yield Check("torch._scaled_mm: relative difference from float64's", _relative(product, exact), 4e-3)
    whole, rounded = (random_flux(GEOMETRIES["small"], device, torch.bfloat16) for _ in range(2))
    store_in_fp8(rounded)
    latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    with torch.no_grad():
        sigma = torch.full((1,), 0.5, device=device)
        results = [model(latent, sigma, *model.prompt(1)) for model in (rounded, whole)]
    yield Check("a transformer in fp8: relative difference from bf16's", _relative(*results), 0.15)


#: By name, in order: the quick and telling ones first.
CHECKS: dict[str, Callable[[torch.device], Iterator[Check]]] = {
    "memory meter": meter_checks,
    "norms": norm_checks,
    "fp8": fp8_checks,
    "parity": parity_checks,
    "strips": strip_checks,
    "out of memory": memory_checks,
    "peaks": peak_checks,
}


@contextmanager
def true_float32() -> Generator[None, None, None]:
    """Inside, CUDA's convolutions do not round float32 to TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def _rms(a: Tensor, b: Tensor) -> float:
    return (a.double() - b.double()).square().mean().sqrt().item()


def _relative(a: Tensor, b: Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


def main() -> int:
    """The step's command line."""
    parser = step_parser("what the pack relies on, tried on the device")
    parser.add_argument("--only", nargs="+", choices=CHECKS, help="these; default: all but peaks")
    options = parser.parse_args()
    report, title = StepReport(options.output), "checks"
    for row in check_rows(parse_device(options.device), options.only or [name for name in CHECKS if name != "peaks"]):
        report.add(title, row)
    rows = report.tables[title]
    amiss = [row["check"] for row in rows if row["holds"] != YES]
    report.conclude(f"{len(rows) - len(amiss)} of {len(rows)} hold" + "".join(f"; not: {name}" for name in amiss))
    return 0


if __name__ == "__main__":
    sys.exit(main())
