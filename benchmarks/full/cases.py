"""``benchmark full``: a geometry with random weights through the one pipeline there is, case by case.

A case is a side, a dtype, and torch.compile of the blocks or not. One that runs out of memory, or for which no
time is left, is a row and not the end; whoever runs it is told after each.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from op4ksr_core.errors import Op4ksrError, OptionError, OutOfMemoryError
from op4ksr_core.images.resize import Target, framed_size
from op4ksr_core.machine import is_out_of_memory, release_memory
from op4ksr_core.models.flux import Flux
from op4ksr_core.models.latent import MARGIN, PATCH
from op4ksr_core.one_step import CoreStages, OneStepOptions, run
from op4ksr_core.planning.cost import autoencoder_flops, flux_flops, image_tokens
from op4ksr_core.vae.strips import StripSettings

from ..ceiling import fp8_ceiling, matmul_ceiling
from ..pipeline import meanings, photo
from ..random_models import GEOMETRIES, Geometry, random_autoencoder_on, random_flux, weights_bytes
from ..stage_clock import StageClock
from ..stage_times import Way, core_way, measure, plan_of
from ..tables import FACTOR
from .fp8 import Product, has_scaled_mm
from .kernels import Kernel, preferring
from .tables import DTYPES, FAILED, PAPER_SIDE, Case, Dtype, Findings, Record

log = logging.getLogger(__name__)

#: What a case is expected to take, where --minutes asks: runs at this share of the ceiling, and so many seconds
#: for torch.compile. Guesses until a GPU has been seen.
EXPECTED_SHARE, EXPECTED_COMPILE = 0.35, 90.0


@dataclass(frozen=True)
class FullSettings:
    """What to run, in this order: dtypes, then eager or compiled, then sides."""

    geometry: str = "flux"
    sides: tuple[int, ...] = (2048, 4096, 8192)
    dtypes: tuple[Dtype, ...] = DTYPES
    compiled: tuple[bool, ...] = (False, True)
    repeats: int = 3
    #: How the VAE runs; None: by the free memory.
    strips: StripSettings | None = None
    attention: Kernel = "auto"
    #: torch.compile's.
    backend: str = "inductor"
    #: Sides of the matrices whose product is the ceiling; None: by the device.
    ceiling: tuple[int, ...] | None = None
    #: No case is begun that is expected to end later than this; None: all are.
    minutes: float | None = None
    #: GB that this process may take on a CUDA device, as a card of that size has them; None: all there are.
    limit: float | None = None

    def __post_init__(self) -> None:
        for side in self.sides:
            if side < FACTOR:
                raise OptionError(
                    f"benchmark full: expected sides from {FACTOR} px up, got {side}; name the output's sides"
                )

    def cases(self) -> list[Case]:
        """In the order in which they are run."""
        return [Case(side, d, c) for d in self.dtypes for c in self.compiled for side in self.sides]

    @property
    def shape(self) -> Geometry:
        return GEOMETRIES[self.geometry]


def setup_of(settings: FullSettings, device: torch.device) -> dict[str, str]:
    """What the figures of one report have in common, and what they mean."""
    params, vae, strips = settings.shape.flux, settings.shape.autoencoder, settings.strips
    return {
        "weights": "random (seeded): time and memory, never quality",
        "transformer": f"{params.depth} + {params.depth_single_blocks} blocks, hidden {params.hidden_size}; "
        f"{settings.shape.text_tokens} text tokens",
        "VAE": f"{vae.ratio}x, widths {', '.join(map(str, vae.widths))}; bf16",
        "picture": f"x{FACTOR} to the side named, as a square, colour fix and back-projection included, saving not",
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else f"none ({device.type})",
        "torch": torch.__version__,
        "attention": settings.attention,
        "strips": "by the free memory" if strips is None else f"{strips.mode}, {strips.rows} rows",
        "repeats": str(settings.repeats),
        "limit": "none" if settings.limit is None else f"{settings.limit:g} GB, by PyTorch's allocator",
        "torch.compile": f"each block by itself, {settings.backend}, fixed shapes",
        "fp8": "the blocks' weights in e4m3, one scale per matrix; fp8: torch._scaled_mm with the input's own scale "
        "(one row: cast); fp8-cast: weights cast up at the call. Attention and the VAE stay in bf16",
        "first s": "the very first run, compiling included; it is in no median",
        **meanings(device, settings.repeats),
        "s": "seconds, median of the runs after the first and the one for the memory; min and max of them",
    }


# --- the cases --------------------------------------------------------------------------------


def full(
    settings: FullSettings,
    device: torch.device,
    found: Findings,
    tell: Callable[[dict[Case, str]], None] = lambda left: None,
) -> None:
    """Measure what ``found`` does not hold yet, into it; ``tell(left)`` after each step, with what is still missing."""
    began = time.monotonic()
    _ceilings(settings, device, found)
    if settings.limit is not None:
        limit_memory(device, settings.limit)
    left = {case: "not run yet" for case in settings.cases() if found.of(case) is None}
    tell(left)
    for dtype in settings.dtypes:
        _run_dtype([case for case in left if case.dtype == dtype], settings, device, found, left, began, tell)
    tell(left)


def limit_memory(device: torch.device, limit: float) -> None:
    """Let this process take so many GB of a CUDA device, from now on. Raises OptionError for another device."""
    if device.type != "cuda":
        raise OptionError(f"--limit: PyTorch limits the memory of CUDA devices only, this is {device}; leave it away")
    index = torch.empty(0, device=device).get_device()  # the setter wants a number
    share = limit * 1e9 / torch.cuda.get_device_properties(index).total_memory
    torch.cuda.set_per_process_memory_fraction(min(1.0, share), index)


def _late(case: Case, settings: FullSettings, found: Findings, began: float) -> bool:
    if settings.minutes is None:
        return False
    return time.monotonic() - began + expected_seconds(case, settings, found) > settings.minutes * 60


def expected_seconds(case: Case, settings: FullSettings, found: Findings) -> float:
    """A guess, for a case's first, metered and timed runs together."""
    work, top = work_of(settings.shape, case.side), found.top(case.dtype) or found.top("bf16") or 1.0
    runs = (settings.repeats + 2) * work / 1e12 / (EXPECTED_SHARE * top)
    return runs + (EXPECTED_COMPILE if case.compiled else 0.0)


def _run_dtype(
    cases: list[Case],
    settings: FullSettings,
    device: torch.device,
    found: Findings,
    left: dict[Case, str],
    began: float,
    tell: Callable[[dict[Case, str]], None],
) -> None:
    """All cases of one dtype: the models are made once."""
    models: list[CoreStages] = []
    for case in cases:
        if _late(case, settings, found, began):
            left[case] = "no time left"
            continue
        log.info("full: %s, about %.0f s", case, expected_seconds(case, settings, found))

        def measured(case: Case = case) -> Record:
            if not models:
                models.append(_models(settings.shape, device, case.dtype))
            return measure_case(models[0], case, settings)

        found.records.append(outcome(case, measured))
        del left[case]
        gc.collect()
        release_memory()
        tell(left)


def _ceilings(settings: FullSettings, device: torch.device, found: Findings) -> None:
    if "bf16" not in found.ceilings:
        found.ceilings["bf16"] = matmul_ceiling(device, torch.bfloat16, settings.ceiling)
    if "fp8" in settings.dtypes and "fp8" not in found.ceilings and has_scaled_mm(device):
        found.ceilings["fp8"] = fp8_ceiling(device, settings.ceiling)
    release_memory()


def _models(shape: Geometry, device: torch.device, dtype: Dtype) -> CoreStages:
    product: Product | None = {"bf16": None, "fp8": "scaled", "fp8-cast": "cast"}[dtype]  # pyright: ignore
    if product == "scaled" and not has_scaled_mm(device):
        raise OptionError("fp8: this device has no products of 8-bit floats; take fp8-cast")
    half = torch.bfloat16
    return CoreStages(random_flux(shape, device, half, product), random_autoencoder_on(shape, device, half))


def outcome(case: Case, measured: Callable[[], Record]) -> Record:
    """The record; or one that says what went wrong, without the tensors that the error holds on to."""
    try:
        return measured()
    except OutOfMemoryError:
        return Record(case, "out of memory")
    except (RuntimeError, MemoryError, Op4ksrError) as error:  # torch.compile's own errors among them
        if is_out_of_memory(error):
            return Record(case, "out of memory")
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160].replace("|", "/")
        log.warning("full: %s failed: %s", case, error)
        return Record(case, f"{FAILED}: {reason}")


def measure_case(core: CoreStages, case: Case, settings: FullSettings) -> Record:
    """A first run, timed by itself; one for the memory; ``repeats`` for the seconds."""
    flux, vae = core.flux, core.autoencoder
    assert flux is not None
    device, target, low = vae.device, Target(long_edge=case.side), max(1, case.side // FACTOR)
    wish = {} if settings.strips is None else {"encode": settings.strips, "decode": settings.strips}
    plan = plan_of((low, low), target, core, wish)  # pyright: ignore[reportArgumentType]
    vae.bounded.wish = plan.strips()
    way, image = core_way(core, OneStepOptions(target), plan), photo(low, device)
    record = Record(case, flops=dict(way.flops), weights=weights_bytes(flux, vae))
    record.strips = ", ".join(f"{stage} {s.mode}:{s.rows}" for stage, s in plan.strips().items())
    with preferring(settings.attention), blocks_compiled(flux, case.compiled, settings.backend) as graphs:
        record.first = _first(way, image, device)
        record.graphs = graphs()
        own = measure({"": way}, image, settings.repeats)[""]
        record.later_graphs = graphs() - record.graphs
    record.turns = own.turns
    if device.type == "cuda" or not case.compiled:  # compiled code's allocations are not seen elsewhere
        record.peaks = own.peaks
    return record


def _first(way: Way, image: torch.Tensor, device: torch.device) -> float:
    began = time.perf_counter()
    clock = StageClock(device)
    run(image, way.stages(clock), way.options, clock.on_progress)
    clock.end()
    return time.perf_counter() - began


@contextmanager
def blocks_compiled(flux: Flux, wanted: bool, backend: str) -> Generator[Callable[[], int], None, None]:
    """Inside, each block is compiled by itself (equal ones share one graph); gives how many graphs there are so far.

    Block by block, because the whole forward would be unrolled into 57 of them, and progress is told in between.
    """
    if not wanted:
        yield lambda: 0
        return
    import torch._dynamo.utils as dynamo  # seconds, where nobody compiles

    plain = flux.double_blocks, flux.single_blocks
    compiler: Any = torch.compile
    torch.compiler.reset()
    before = dynamo.counters["stats"]["unique_graphs"]
    try:
        flux.double_blocks, flux.single_blocks = (
            nn.ModuleList(compiler(block, dynamic=False, backend=backend) for block in blocks) for blocks in plain
        )
        yield lambda: dynamo.counters["stats"]["unique_graphs"] - before
    finally:
        flux.double_blocks, flux.single_blocks = plain
        torch.compiler.reset()


# --- work -------------------------------------------------------------------------------------


def work_of(shape: Geometry, side: int = PAPER_SIDE) -> float:
    """FLOPs of one run to ``side`` px, by cost.py: the VAE in strips with its margin, and the transformer."""
    params = shape.autoencoder
    step = params.ratio * PATCH
    rows, columns = image_tokens(params, *framed_size(side, side, step))
    framed = framed_size(side, side, step, params.ratio * MARGIN)
    vae = autoencoder_flops(params, "encode", *framed, StripSettings())
    vae += autoencoder_flops(params, "decode", *framed, StripSettings())
    return vae + flux_flops(shape.flux, rows * columns, shape.text_tokens)
