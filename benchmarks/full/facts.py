"""``benchmark facts``: what the pack relies on, tried on the device at hand; written for CUDA, run on any.

Each fact is a row with what was measured, its bound and a verdict; one that cannot be tried says why. The sizes are
small on a CPU, where all of it only shows that the questions are asked rightly.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

from op4ksr_core.bundled import BUNDLED_AUTOENCODER, BUNDLED_FLUX
from op4ksr_core.errors import Op4ksrError, OptionError
from op4ksr_core.images.resize import Target
from op4ksr_core.machine import release_memory, wait_for
from op4ksr_core.models.attention import attention, in_chunks
from op4ksr_core.one_step import OneStepOptions, upscale
from op4ksr_core.planning.geometries import AUTOENCODERS, GEOMETRIES
from op4ksr_core.vae.estimate import WORKSPACE, Stage, peak_elements
from op4ksr_core.vae.strips import MEMORY_MODES, Affine, Moments, StripSettings
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux

from ..memory import random_autoencoder, uneven
from ..pipeline import photo
from ..stage_clock import PeakMeter
from ..tables import Row
from .files import write_random
from .fp8 import has_scaled_mm, scaled_mm, scaled_to_fp8
from .kernels import KERNELS, Kernel, only

YES, NO = "yes", "NO"


@dataclass(frozen=True)
class Fact:
    """One finding: a number and the most that it may be."""

    what: str
    measured: float
    at_most: float

    def row(self) -> Row:
        verdict = YES if self.measured <= self.at_most else NO
        return {"fact": self.what, "measured": self.measured, "at most": self.at_most, "holds": verdict}


def facts(device: torch.device, tell: Callable[[list[Row]], None] = lambda rows: None) -> list[Row]:
    """Every fact, one after the other; ``tell`` gets what there is after each."""
    rows: list[Row] = []
    for name, question in QUESTIONS.items():
        try:
            for fact in question(device):
                rows.append(fact.row())  # one by one: those found before another fails stay
        except (RuntimeError, MemoryError, Op4ksrError) as error:
            rows.append({"fact": name, "measured": "", "at most": "", "holds": f"could not be tried: {_reason(error)}"})
        release_memory()
        tell(rows)
    return rows


def _reason(error: BaseException) -> str:
    """An error's first line, fit for a table."""
    return (str(error).splitlines() or [""])[0][:160].replace("|", "/")


# --- attention --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attention:
    """One attention of a 4096 px run: heads, channels of each, tokens."""

    what: str
    heads: int
    dim: int
    tokens: int


#: The transformer's with 512 text tokens, and the VAE's middle with its margin (264 x 264); small ones for a CPU.
ATTENTIONS = (Attention("transformer, 4096 px", 24, 128, 16896), Attention("VAE's middle, 4096 px", 1, 512, 264 * 264))
SMALL_ATTENTIONS = (Attention("heads of 128", 2, 128, 512), Attention("heads of 512", 1, 512, 1040))

#: Bytes of a matrix that the plain kernel may store.
_LARGEST_MATRIX = 2**32


#: The columns of the table.
_ATTENTION_ROW: Row = {"attention": "", "kernel": "", "s": "", "TFLOP/s": "", "GB": "", "off": "", "outcome": ""}


def attention_rows(device: torch.device) -> Iterator[Row]:
    """Each attention as the pack calls it, with each kernel alone, and in chunks of products: seconds, rate, bytes.

    GB: above the inputs. off: relative difference from the pack's.
    """
    for case in SMALL_ATTENTIONS if device.type == "cpu" else ATTENTIONS:
        shape = 1, case.heads, case.tokens, case.dim
        q, k, v = (torch.randn(shape, device=device).bfloat16() for _ in range(3))
        try:
            own = attention(q, k, v)
        except RuntimeError as error:
            yield {**_ATTENTION_ROW, "attention": case.what, "kernel": "the pack's", "outcome": _reason(error)}
            continue
        ways: dict[str, tuple[Kernel, Callable[[], Tensor]]] = {"the pack's": ("auto", partial(attention, q, k, v))}
        for kernel in KERNELS:
            ways[kernel] = kernel, partial(F.scaled_dot_product_attention, q, k, v)
        ways["the pack's, in chunks of queries"] = "auto", partial(in_chunks, q, k, v)
        ways["products, in chunks"] = "auto", partial(chunked_products, q, k, v)
        ways["products, in chunks, bf16 scores"] = "auto", partial(chunked_products, q, k, v, exact=False)
        for name, (kernel, run) in ways.items():
            too_large = name == "plain" and 2 * case.heads * case.tokens**2 > _LARGEST_MATRIX
            row: Row = {**_ATTENTION_ROW, "attention": case.what, "kernel": name}
            row["outcome"] = "left out: it stores the whole matrix" if too_large else "done"
            yield row if too_large else row | _attention_row(case, kernel, run, own)


def chunked_products(q: Tensor, k: Tensor, v: Tensor, rows: int = 1024, exact: bool = True) -> Tensor:
    """Attention by two matrix products and a softmax per ``rows`` queries: for heads that no fused kernel likes.

    exact: scores in float32, as fused kernels keep them. In bf16 the result is 2 to 10 times as far from float64's
    as theirs (heads of 512, on a CPU), for half of the bytes.
    """
    out, scale = torch.empty_like(q), q.shape[-1] ** -0.5
    for top in range(0, q.shape[2], rows):
        scores = _scores(q[:, :, top : top + rows] * scale, k, exact)
        out[:, :, top : top + rows] = scores.softmax(-1).to(v.dtype) @ v
    return out


def _scores(q: Tensor, k: Tensor, exact: bool) -> Tensor:
    if not exact:
        return q @ k.mT
    if q.device.type != "cuda":
        return q.float() @ k.mT.float()
    product: Any = torch.bmm  # out_dtype: PyTorch 2.8 and newer, on CUDA only
    return product(q.flatten(0, 1), k.mT.flatten(0, 1), out_dtype=torch.float32).unflatten(0, q.shape[:2])


def _attention_row(case: Attention, kernel: Kernel, run: Callable[[], Tensor], own: Tensor) -> Row:
    try:
        with only(kernel):
            seconds, peak = _best(run, own.device)
            off = _relative(run().flatten(0, -2)[::97], own.flatten(0, -2)[::97])
    except (RuntimeError, TypeError) as error:  # TypeError: an older PyTorch without an option
        release_memory()
        return {"outcome": f"not here: {str(error).splitlines()[0][:80]}".replace("|", "/")}
    rate = 4.0 * case.heads * case.tokens**2 * case.dim / 1e12 / seconds
    return {"s": seconds, "TFLOP/s": rate, "GB": peak / 1e9, "off": off}


def _best(run: Callable[[], object], device: torch.device) -> tuple[float, int]:
    """The least seconds of a few runs (of one on a CPU, where they mean nothing), and the bytes of the first."""
    with PeakMeter(device) as meter:
        meter.restart()
        run()
        wait_for(device)
        peak = meter.peak()
    taken: list[float] = []
    for _ in range(1 if device.type == "cpu" else 3):
        began = time.perf_counter()
        run()
        wait_for(device)
        taken.append(time.perf_counter() - began)
    return min(taken), peak


# --- the facts --------------------------------------------------------------------------------


def meter_facts(device: torch.device) -> Iterator[Fact]:
    """The memory meter sees what is allocated, and what was given back."""
    size = 2**26
    with PeakMeter(device) as meter:
        meter.restart()
        block = torch.zeros(size, dtype=torch.uint8, device=device)
        first = meter.peak()
        del block
        meter.restart()
        second = meter.peak()
    yield Fact("the memory meter: 64 MiB are seen, relative error", abs(first / size - 1), 0.01)
    yield Fact("the memory meter: and gone again, share left", second / size, 0.01)


def norm_facts(device: torch.device) -> Iterator[Fact]:
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
    yield Fact("GroupNorm in strips, bf16: rms error from float64's", _rms(ours, truth), 5e-3)
    assert moments.mean is not None
    mean = half.double().mean((0, 2, 3))
    yield Fact("its mean by channel: largest error", (moments.mean.to(device) - mean).abs().max().item(), 1e-4)


def strip_facts(device: torch.device) -> Iterator[Fact]:
    """Strips are the plain pass (in true float32), and take what is estimated, and a tenth for kernels, at most."""
    with true_float32():
        model = random_autoencoder(AUTOENCODERS["F16, bundled"]).to(device)
        latent = uneven(1, 16, 12, 8).to(device)
        for mode in MEMORY_MODES:
            ours = model.decode_strips(latent, strips=StripSettings(16, mode))
            error = (ours - model.decode_pixels(latent)).abs().max().item()
            yield Fact(f"strips, {mode}, against the plain pass: largest error", error, 1e-4)
    yield from peak_facts(device)


def peak_facts(device: torch.device) -> Iterator[Fact]:
    """Peaks over their forecasts, in bf16; at full width and 2048 px where there is a GPU."""
    name, side = ("F16, bundled", 512) if device.type == "cpu" else ("F16, full width", 2048)
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
            yield Fact(f"{stage}, {mode}, {name}, {side} px: peak over forecast", peak / estimated, 1 + WORKSPACE)


def parity_facts(device: torch.device) -> Iterator[Fact]:
    """The bundled models draw the same picture here as on the CPU, in grey levels of 255."""
    image, target = photo(64, torch.device("cpu")), OneStepOptions(Target(scale=4))

    def picture(place: torch.device, dtype: torch.dtype) -> Tensor:
        models = (load(file, device=place, dtype=dtype) for load, file in _BUNDLED)
        flux, vae = models
        return upscale(image.to(place), flux, vae, target).cpu()  # pyright: ignore[reportArgumentType]

    truth = picture(torch.device("cpu"), torch.float32)
    with true_float32():
        error = (picture(device, torch.float32) - truth).abs().max().item()
        yield Fact("the bundled models, float32: largest difference from the CPU, in levels", 255 * error, 0.1)
    error = _rms(picture(device, torch.bfloat16), truth)
    yield Fact("the bundled models, bf16: rms difference from the CPU's float32, in levels", 255 * error, 2.0)


_BUNDLED: tuple[tuple[Any, Path], ...] = ((load_flux, BUNDLED_FLUX), (load_autoencoder, BUNDLED_AUTOENCODER))


def memory_facts(device: torch.device) -> Iterator[Fact]:
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
    yield Fact("out of memory: tries that it took, at least 2 (as 2 / tries)", 2 / len(tries), 1.0)
    yield Fact("out of memory: largest difference of the picture", (result - whole).abs().max().item(), 1e-4)


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


def fp8_facts(device: torch.device) -> Iterator[Fact]:
    """A plain fp8 file loads (cast up), and 8-bit products are the products of the rounded numbers."""
    shape = GEOMETRIES["small"]
    with tempfile.TemporaryDirectory() as folder:
        _, half, small = write_random(Path(folder), "small", shape, ("bf16", "fp8"), torch.device("cpu"))
        models = [load_flux(path, device=device, dtype=torch.bfloat16) for path in (half, small)]
    latent = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0)).to(device, torch.bfloat16)
    with torch.no_grad():
        sigma = torch.full((1,), 0.5, device=device)
        whole, rounded = (model(latent, sigma, *model.prompt(1)) for model in models)
    yield Fact("an fp8 file through the core: relative difference from bf16's", _relative(rounded, whole), 0.15)
    if not has_scaled_mm(device):
        raise OptionError("fp8: this device has no products of 8-bit floats; take fp8-cast")
    a, b = (torch.randn(n, 256, generator=torch.Generator().manual_seed(n)).to(device) for n in (40, 96))
    (a, of_a), (b, of_b) = scaled_to_fp8(a), scaled_to_fp8(b)
    product = scaled_mm(a, b.t(), of_a, of_b, torch.bfloat16)
    exact = (a.double() @ b.double().t()) * (of_a.double() * of_b.double())
    yield Fact("torch._scaled_mm: relative difference from float64's", _relative(product, exact), 4e-3)


#: What is asked, by name, in order: the quick and telling ones first.
QUESTIONS: dict[str, Callable[[torch.device], Iterator[Fact]]] = {
    "memory meter": meter_facts,
    "norms": norm_facts,
    "fp8": fp8_facts,
    "parity": parity_facts,
    "strips": strip_facts,
    "out of memory": memory_facts,
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
