"""One upscale with the geometry's random weights: seconds, work and peak by stage, beside the plan's estimate.

From the picture on the device to the picture on the device, colour fix and back-projection included; saving is a row
of its own. Random weights show time and memory, never quality.
"""

from __future__ import annotations

import sys
from typing import Literal, get_args

import torch

from op4ksr_core.cli.options import parse_device
from op4ksr_core.errors import OptionError
from op4ksr_core.machine import release_memory
from op4ksr_core.planning.geometries import GEOMETRIES

from ..pipeline import PipelineSettings, Tables, upscale_tables
from ..random_models import random_autoencoder_on, random_flux, weights_bytes
from ..stage_times import TOGETHER
from ..tables import FACTOR, Row
from .fp8 import has_scaled_mm, store_in_fp8
from .step import SHRINK, StepReport, step_parser

#: How the blocks' weights are held and multiplied.
Weights = Literal["bf16", "fp8"]

#: Sides of the matrices whose products are the ceiling, with the small geometry.
SMALL_CEILING = (256,)


def measure_upscale(
    geometry: str, side: int, weights: Weights, device: torch.device, repeats: int = 3
) -> tuple[str, Tables]:
    """The answer in a few words, and the tables. side: of the output, px. Raises OptionError: no 8-bit products."""
    shape, half = GEOMETRIES[geometry], torch.bfloat16
    if weights == "fp8" and not has_scaled_mm(device):
        raise OptionError(f"fp8: torch._scaled_mm does not run on {device}; take --weights bf16")
    flux, autoencoder = random_flux(shape, device, half), random_autoencoder_on(shape, device, half)
    if weights == "fp8":
        store_in_fp8(flux)
        release_memory()
    ceiling = SMALL_CEILING if geometry == "small" else None
    settings = PipelineSettings(max(1, side // FACTOR), side, repeats=repeats, compare=(), ceiling=ceiling)
    tables, _ = upscale_tables(flux, autoencoder, settings)
    held = weights_bytes(flux, autoencoder)
    tables["Settings"] += [
        {"setting": "weights", "value": f"random (seeded), {geometry}, blocks in {weights}: {held / 1e9:.2f} GB"}
    ]
    return _answer(tables["Stages of one upscale"], held), tables


def _answer(stages: list[Row], held: int) -> str:
    whole = next(row for row in stages if row["stage"] == TOGETHER)
    peak, estimate = (1e9 * whole[name] + held for name in ("GB", "estimated GB"))
    return (
        f"{whole['s']:.3g} s, {whole['of the ceiling']:.0%} of the bf16 ceiling; peak {peak / 1e9:.2f} GB with "
        f"weights, {peak / estimate:.3f} of the plan's {estimate / 1e9:.2f} GB"
    )


def main() -> int:
    """The step's command line."""
    parser = step_parser("one upscale with random weights")
    parser.add_argument("--side", type=int, default=4096, metavar="PX", help="of the output; default: 4096")
    parser.add_argument("--weights", choices=get_args(Weights), default="bf16", help="of the blocks; default: bf16")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="after one warm-up; default: 3")
    options = parser.parse_args()
    side = options.side // SHRINK[options.geometry]
    report = StepReport(options.output)
    answer, report.tables = measure_upscale(
        options.geometry, side, options.weights, parse_device(options.device), options.repeats
    )
    report.conclude(answer)
    return 0


if __name__ == "__main__":
    sys.exit(main())
