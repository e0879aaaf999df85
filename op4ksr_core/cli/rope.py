"""``rope``: how often each pair of channels turns over a grid of tokens, before and after RFR."""

from __future__ import annotations

import argparse
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import OptionError
from ..models.flux import FluxParams
from ..models.rope import FLUX_THETA, FLUX_TRAIN_TOKENS, POLICIES, Rfr, parse_theta, rescale, turns_per_pair
from ..plain_text import plain
from ..weights.description import describe_flux
from ..weights.header import read_header
from ..weights.lora import describe_lora
from .console import say, say_json
from .options import number, whole

#: Flux's channels per image axis.
_FLUX_DIM = 56

#: Below this many turns a pair tells near from far tokens only by a small angle; our choice for the summary.
_SLOW = 0.25


@dataclass(frozen=True)
class AxisTurns:
    """One image axis: turns of each pair over ``tokens``, and the factor on cos and sin (ultraflux, parts)."""

    axis: str
    tokens: int
    theta_before: float
    turns_before: list[float]
    turns_after: list[float]
    magnitude: float


def add_rope(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.set_defaults(command=run_rope)
    parser.add_argument("file", nargs="?", type=Path, metavar="FILE", help="transformer or LoRA whose theta is meant")
    parser.add_argument("--grid", default="128", metavar="ROWS[xCOLUMNS]", help="tokens (default 128: 4096 px at 16x)")
    change = parser.add_mutually_exclusive_group()
    change.add_argument("--theta", help="RFR to this theta, one number or ROWS,COLUMNS")
    change.add_argument("--policy", choices=POLICIES, help="RFR by this policy")
    parser.add_argument("--turns", type=number, default=0.5, help="policy fit: turns of the slowest pair (default 0.5)")
    parser.add_argument(
        "--train-tokens",
        type=whole,
        default=FLUX_TRAIN_TOKENS,
        help="policies ntk, interpolate and parts: tokens per side seen in training (default 64)",
    )
    parser.add_argument(
        "--sigma", type=number, default=1.0, help="policy parts: the model's sigma (default 1: DyPE's first step)"
    )
    parser.add_argument("--json", action="store_true")


def run_rope(options: argparse.Namespace) -> int:
    """Print the turns of both axes, once where they are alike. Returns the exit status, 0."""
    axes = axis_turns(options)
    if options.json:
        say_json([asdict(axis) for axis in axes])
        return 0
    alike = axes[0].turns_before == axes[1].turns_before and axes[0].turns_after == axes[1].turns_after
    for axis in axes[:1] if alike else axes:
        say(table(axis, "rows and columns" if alike else axis.axis))
    return 0


def axis_turns(options: argparse.Namespace) -> list[AxisTurns]:
    """Both image axes. Without --theta and --policy, a file's theta is compared with Flux's own."""
    own, dims = _theta_of(options.file)
    grid = parse_grid(options.grid)
    unchanged = not options.theta and not options.policy
    before = (FLUX_THETA, FLUX_THETA) if unchanged else own
    if options.theta:
        rfr = Rfr("theta", theta=parse_theta(options.theta))
    elif options.policy == "theta":
        raise OptionError("--policy theta: needs a number; say --theta 46.7 instead")
    else:
        rfr = Rfr(options.policy or "checkpoint", None, options.turns, grid, options.train_tokens, options.sigma)
    first, second = rescale(Rfr(), before, dims, grid), rescale(rfr, own, dims, grid)
    return [
        AxisTurns(
            name,
            grid[i],
            before[i],
            turns_per_pair(first[i], grid[i]).tolist(),
            turns_per_pair(second[i], grid[i]).tolist(),
            second[i].magnitude,
        )
        for i, name in enumerate(("rows", "columns"))
    ]


def _theta_of(file: Path | None) -> tuple[tuple[float, float], tuple[int, int]]:
    """theta and channels per image axis of a file; Flux's without one (a LoRA has Flux's channels)."""
    if file is None:
        return (FLUX_THETA, FLUX_THETA), (_FLUX_DIM, _FLUX_DIM)
    header = read_header(file)
    if header.kind == "lora":
        return describe_lora(header).theta or (FLUX_THETA, FLUX_THETA), (_FLUX_DIM, _FLUX_DIM)
    params = describe_flux(header).params
    assert isinstance(params, FluxParams)
    return params.theta, (params.axes_dim[1], params.axes_dim[2])


def parse_grid(text: str) -> tuple[int, int]:
    """``128`` or ``128x96`` -> tokens of (rows, columns). OptionError for anything else."""
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(re.fullmatch("[0-9]{1,9}", part) and 0 < int(part) <= 4096 for part in parts):
        raise OptionError(f"--grid {plain(text)}: expected tokens from 1 to 4096, like 128 or 128x96 (px / 32 at 16x)")
    return int(parts[0]), int(parts[-1])


def table(axis: AxisTurns, name: str) -> str:
    """One line per pair, fastest first, and a summary."""
    lines = [f"{name}: turns over {axis.tokens} tokens, theta {axis.theta_before:g} before"]
    lines.append("pair     before      after   after / before")
    for i, (before, after) in enumerate(zip(axis.turns_before, axis.turns_after, strict=True)):
        lines.append(f"{i:4d} {before:10.4f} {after:10.4f} {after / before:16.3f}")
    both = (axis.turns_before, axis.turns_after)
    fast = [sum(turn >= 1 for turn in turns) for turns in both]
    slow = [sum(turn < _SLOW for turn in turns) for turns in both]
    lines.append(f"at least one turn: {fast[0]} of {len(both[0])} pairs before, {fast[1]} after")
    lines.append(f"less than a quarter turn: {slow[0]} before, {slow[1]} after")
    if axis.magnitude != 1:
        lines.append(f"cos and sin are multiplied by {axis.magnitude:.4f}")
    return "\n".join(lines)
