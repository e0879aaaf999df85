"""Rotary positions, and RFR: rescaling the base frequency theta of the two image axes.

One truth for the trainer, the core model and the patch on the host's models. Pair i of an axis with
d channels turns by ``p * omega_i`` at position p, plainly with omega_i = theta^(-2i/d). Frequencies
are float64, tables float32, never bf16. The axes are (text, rows, columns); RFR never touches the
first, on which everything sits at position 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from ..errors import OptionError
from ..plain_text import plain

Policy = Literal["checkpoint", "theta", "fit", "ntk", "ultraflux", "interpolate", "parts"]
POLICIES: tuple[Policy, ...] = get_args(Policy)
#: Those that look at the grid at hand, and leave one that is no larger than the trained one as it is.
GRID_POLICIES: tuple[Policy, ...] = ("ntk", "interpolate", "parts", "ultraflux")
#: Those whose frequencies are no powers of one theta.
_WITHOUT_THETA: tuple[Policy, ...] = ("interpolate", "parts", "ultraflux")

FLUX_THETA = 10000.0

#: Devices that are known to have float64.
_WITH_FLOAT64 = ("cpu", "cuda", "meta")

#: Tokens per side that FLUX.1 saw in training (1024 px at 16 px a token).
FLUX_TRAIN_TOKENS = 64

# UltraFlux's published constants (W2GenAI-Lab/UltraFlux after 2025-12-17).
_ULTRAFLUX_TRAIN_TOKENS = 64

# NTK-by-parts' published constants, in turns over the trained grid: between the first two it passes from the ntk
# frequencies to the interpolated ones, between the other two from the model's own to those.
_BETA = (1.25, 0.75)
_GAMMA = (16.0, 2.0)


@dataclass(frozen=True)
class Rfr:
    """How the image axes' frequencies are chosen.

    ``checkpoint``: the model's own theta. ``theta``: the given one. ``fit``: the slowest pair makes
    ``turns`` turns over ``tokens``. ``ntk``: the model's theta times s^(d/(d-2)), s = grid /
    ``train_tokens`` of each axis, at least 1. ``interpolate``: positions are squeezed into the trained range
    (position interpolation): every frequency divided by s. ``parts``: NTK-by-parts as DyPE has it at one ``sigma``
    in (0, 1]; 1: without DyPE's dependence on it. ``ultraflux``: the public UltraFlux weights' positions.
    theta and tokens may differ per axis: (rows, columns).
    """

    policy: Policy = "checkpoint"
    theta: tuple[float, float] | None = None
    turns: float = 0.5
    tokens: tuple[int, int] = (128, 128)
    train_tokens: int = FLUX_TRAIN_TOKENS
    sigma: float = 1.0

    def __post_init__(self) -> None:
        if self.policy not in POLICIES:
            raise OptionError(f"RFR policy: expected one of {', '.join(POLICIES)}; got {self.policy!r}")
        if self.policy == "theta" and self.theta is None:
            raise OptionError("RFR policy 'theta' needs a theta, one number or one per axis")
        for value in self.theta or ():
            if not (math.isfinite(value) and value > 1):
                raise OptionError(f"theta: expected a number above 1, got {value}")
        if not (math.isfinite(self.turns) and self.turns > 0):
            raise OptionError(f"turns: expected a number above 0, got {self.turns}")
        if min(*self.tokens, self.train_tokens) < 1:
            raise OptionError(f"tokens: expected at least 1, got {self.tokens} and {self.train_tokens}")
        if not 0 < self.sigma <= 1:
            raise OptionError(f"sigma: expected above 0 and at most 1, got {self.sigma}")


@dataclass(frozen=True)
class AxisRotation:
    """Angles per token of an axis's pairs (d/2,), float64, and a factor on its cos and sin."""

    omega: Tensor
    magnitude: float = 1.0


def parse_theta(text: str | float | Sequence[float]) -> tuple[float, float]:
    """``10000``, ``"10000"``, ``"46.7,80"`` or a pair -> theta of (rows, columns). OptionError if neither."""
    try:
        parts = [float(p) for p in text.split(",")] if isinstance(text, str) else text
        values = [float(parts)] if isinstance(parts, (int, float)) else [float(p) for p in parts]
    except (TypeError, ValueError, OverflowError) as error:
        raise OptionError(f"theta: expected a number or two, like 10000 or 46.7,80; got '{plain(text)}'") from error
    if len(values) not in (1, 2) or not all(math.isfinite(v) and v > 1 for v in values):
        raise OptionError(f"theta: expected one or two numbers above 1, got '{plain(text)}'")
    return values[0], values[-1]


def fit_theta(tokens: int, turns: float, dim: int) -> float:
    """The theta at which the slowest of dim/2 pairs makes ``turns`` turns over ``tokens``.

    tokens * theta^(-(d-2)/d) = 2 pi turns. Never below 1.0001, where all pairs turn alike.
    """
    return max(1.0001, (tokens / (2 * math.pi * turns)) ** (dim / (dim - 2)))


def plain_omega(theta: float, dim: int) -> Tensor:
    """theta^(-2i/d), i = 0 .. d/2-1, float64, in the host's own order of operations (bit for bit)."""
    exponents = torch.linspace(0, (dim - 2) / dim, steps=dim // 2, dtype=torch.float64)
    return 1.0 / (theta**exponents)


def turns_per_pair(rotation: AxisRotation, tokens: int) -> Tensor:
    """Full turns that each pair makes over a grid of ``tokens``, (d/2,) float64."""
    return rotation.omega * tokens / (2 * math.pi)


def rescale(rfr: Rfr, theta: tuple[float, float], dims: tuple[int, int], grid: tuple[int, int]) -> list[AxisRotation]:
    """RFR: the rotations of the two image axes.

    theta: the model's own, per axis. dims: channels per axis. grid: tokens per axis of the picture
    at hand (used by ``GRID_POLICIES``). ``checkpoint``, or any policy that amounts to the
    model's own theta, gives its frequencies bit for bit.
    """
    return [_rescale_axis(rfr, axis, theta[axis], dims[axis], grid[axis]) for axis in (0, 1)]


def _rescale_axis(rfr: Rfr, axis: int, theta: float, dim: int, tokens: int) -> AxisRotation:
    if rfr.policy == "ultraflux":
        return _ultraflux(theta, dim, tokens)
    if rfr.policy in ("interpolate", "parts") and tokens > rfr.train_tokens:
        scale = tokens / rfr.train_tokens
        if rfr.policy == "interpolate":
            return AxisRotation(plain_omega(theta, dim) / scale)
        return _parts(theta, dim, scale, rfr)
    if rfr.policy == "theta" and rfr.theta is not None:
        theta = rfr.theta[axis]
    elif rfr.policy == "fit":
        theta = fit_theta(rfr.tokens[axis], rfr.turns, dim)
    elif rfr.policy == "ntk":
        theta = ntk_theta(theta, dim, tokens / rfr.train_tokens)
    return AxisRotation(plain_omega(theta, dim))


def ntk_theta(theta: float, dim: int, scale: float) -> float:
    """theta * s^(d/(d-2)) for s > 1; theta itself otherwise."""
    return theta * scale ** (dim / (dim - 2)) if scale > 1 else theta


def resolve(rfr: Rfr, theta: tuple[float, float], dims: tuple[int, int], grid: tuple[int, int]) -> tuple[float, float]:
    """The policy's theta per axis as numbers, to be written into a trained file.

    Raises OptionError for ``ultraflux``, ``interpolate`` and ``parts``, which are no theta.
    """
    if rfr.policy in _WITHOUT_THETA:
        raise OptionError(
            f"RFR policy '{rfr.policy}' sets frequencies one by one and has no theta; choose another to train"
        )
    if rfr.policy == "theta" and rfr.theta is not None:
        return rfr.theta
    if rfr.policy == "fit":
        return fit_theta(rfr.tokens[0], rfr.turns, dims[0]), fit_theta(rfr.tokens[1], rfr.turns, dims[1])
    if rfr.policy == "ntk":
        scales = [tokens / rfr.train_tokens for tokens in grid]
        return ntk_theta(theta[0], dims[0], scales[0]), ntk_theta(theta[1], dims[1], scales[1])
    return theta


def _parts(theta: float, dim: int, scale: float, rfr: Rfr) -> AxisRotation:
    """NTK by parts, as DyPE (guyyariv/DyPE, its Flux with "yarn") has it at the time ``rfr.sigma`` of the flow.

    Theirs: the three kinds of frequencies, the turns between which they pass, multiplied by sigma^2, and the factor
    0.1 ln s + 1 on cos and sin. Ours: one sigma for the run, where they follow the step; each axis has its own s; and
    a ramp that would lie beyond the last pair (sigma below about 0.03) is left out, where theirs turns round.
    """
    own, ntk = plain_omega(theta, dim), plain_omega(ntk_theta(theta, dim, scale), dim)
    return _by_parts(own, own / scale, ntk, scale, (theta, dim, rfr.train_tokens), max(rfr.sigma**2, 1e-9))


def _ultraflux(theta: float, dim: int, tokens: int) -> AxisRotation:
    """UltraFlux's positions: frequencies rounded to whole turns, then NTK by parts as in YaRN."""
    base = plain_omega(theta, dim)
    trained = _ULTRAFLUX_TRAIN_TOKENS
    if tokens <= trained:
        return AxisRotation(base)
    scale = tokens / trained
    turns = base * trained / (2 * math.pi)
    aligned = torch.where(turns >= 1, turns.round().clamp(min=1) * (2 * math.pi / trained), base)
    exponents = -aligned.log() / math.log(theta)
    ntk = ntk_theta(theta, dim, scale) ** -exponents
    return _by_parts(aligned, aligned / scale, ntk, scale, (theta, dim, trained), 1.0)


def _by_parts(
    own: Tensor, linear: Tensor, ntk: Tensor, scale: float, trained: tuple[float, int, int], kappa: float
) -> AxisRotation:
    """Fast pairs keep their ``own`` frequency, slow ones get the ``linear`` one, those between the ``ntk`` one.

    trained: theta, channels and tokens of the axis. kappa: a factor on the turns that part them.
    """
    mixed = torch.lerp(linear, ntk, _faster_than(_BETA, kappa, trained))
    omega = torch.lerp(mixed, own, _faster_than(_GAMMA, kappa, trained))
    return AxisRotation(omega, magnitude=0.1 * math.log(scale) + 1.0)


def _faster_than(turns: tuple[float, float], kappa: float, trained: tuple[float, int, int]) -> Tensor:
    """1 for the pairs that make more than kappa turns[0] turns over the trained grid, 0 below kappa turns[1]."""
    theta, dim, tokens = trained

    def pair(count: float) -> float:  # the pair, as a real number, that makes this many turns
        return dim * math.log(tokens / (count * kappa * 2 * math.pi)) / (2 * math.log(theta))

    low = max(0, math.floor(pair(turns[0])))
    high = min(math.ceil(pair(turns[1])), dim - 1, dim // 2)
    ramp = (torch.arange(dim // 2, dtype=torch.float64) - low) / max(high - low, 0.001)
    return 1 - ramp.clamp(0, 1)


def rotation_table(positions: Tensor, rotation: AxisRotation) -> Tensor:
    """positions (..., N) -> (..., N, d/2, 2, 2) float32: [[cos, -sin], [sin, cos]] per pair.

    Computed in float64, on the CPU where the device may have none (MPS, XPU, DirectML), like the host's ``rope``.
    """
    device = positions.device if positions.device.type in _WITH_FLOAT64 else torch.device("cpu")
    angles = torch.einsum("...n,d->...nd", positions.to(device, torch.float32), rotation.omega.to(device))
    cos, sin = angles.cos() * rotation.magnitude, angles.sin() * rotation.magnitude
    table = torch.stack([cos, -sin, sin, cos], dim=-1)
    return table.unflatten(-1, (2, 2)).to(positions.device, torch.float32)


class RescaledEmbedND(nn.Module):
    """Drop-in for Flux's ``pe_embedder`` (BFL's EmbedND): ids (B, N, axes) -> (B, 1, N, sum(axes_dim)/2, 2, 2).

    No parameters, no state-dict keys. ``theta`` is the model's own: one number, or (rows, columns).
    Axes 1 and 2 are the image's rows and columns, whatever other axes there are. The grid that
    ``GRID_POLICIES`` need is read off the ids (their span, per axis).
    """

    def __init__(self, axes_dim: Sequence[int], theta: float | tuple[float, float], rfr: Rfr | None = None) -> None:
        super().__init__()
        if len(axes_dim) < 3:
            raise OptionError(f"axes_dim: expected at least 3 axes (text, rows, columns), got {list(axes_dim)}")
        self.axes_dim = list(axes_dim)
        self.dim = sum(axes_dim)
        self.thetas = theta if isinstance(theta, tuple) else (theta, theta)
        #: What a reader of the host's EmbedND expects under this name.
        self.theta = self.thetas[0]
        self.rfr = rfr or Rfr()

    def with_rfr(self, rfr: Rfr) -> RescaledEmbedND:
        """The same model's positions under another policy."""
        return RescaledEmbedND(self.axes_dim, self.thetas, rfr)

    def resolved(self) -> tuple[float, float]:
        """The policy's theta of (rows, columns), for the policies that do not depend on the grid."""
        return resolve(self.rfr, self.thetas, (self.axes_dim[1], self.axes_dim[2]), (1, 1))

    def rotations(self, grid: tuple[int, int]) -> list[AxisRotation]:
        """Rotations of every axis for a grid of (rows, columns) tokens."""
        plain = [AxisRotation(plain_omega(self.thetas[0], dim)) for dim in self.axes_dim]
        plain[1:3] = rescale(self.rfr, self.thetas, (self.axes_dim[1], self.axes_dim[2]), grid)
        return plain

    def forward(self, ids: Tensor) -> Tensor:
        """ids (B, N, axes), any number dtype -> (B, 1, N, sum(axes_dim) / 2, 2, 2), float32, on their device."""
        rotations = self.rotations(self._grid(ids))
        tables = [rotation_table(ids[..., axis], rotation) for axis, rotation in enumerate(rotations)]
        return torch.cat(tables, dim=-3).unsqueeze(1)

    def _grid(self, ids: Tensor) -> tuple[int, int]:
        """Tokens per image axis; not read (it would wait for the device) where no policy asks for it."""
        if self.rfr.policy not in GRID_POLICIES:
            return 1, 1
        spans = [int((ids[..., axis].amax() - ids[..., axis].amin()).item()) + 1 for axis in (1, 2)]
        return spans[0], spans[1]


def apply_rotation(x: Tensor, table: Tensor) -> Tensor:
    """Rotate the channel pairs of x (B, heads, N, d) by ``table`` (B, 1, N, d/2, 2, 2); fp32 inside.

    A quarter of the heads at a time, so that the fp32 copies stay small.
    """
    parts: list[Tensor] = []
    for part in x.chunk(4, dim=1):
        pairs = part.float().unflatten(-1, (-1, 1, 2))
        turned = table[..., 0] * pairs[..., 0] + table[..., 1] * pairs[..., 1]
        parts.append(turned.flatten(-2).to(x.dtype))
    return torch.cat(parts, dim=1)
