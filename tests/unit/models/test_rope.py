"""Positions: bit for bit the host's where nothing is rescaled, and each policy's own law."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from op4ksr_core import OptionError
from op4ksr_core.models.latent import position_ids
from op4ksr_core.models.rope import (
    Policy,
    RescaledEmbedND,
    Rfr,
    apply_rotation,
    fit_theta,
    ntk_theta,
    parse_theta,
    plain_omega,
    rescale,
    resolve,
    rotation_table,
    turns_per_pair,
)

AXES = (16, 56, 56)
THETA = 10000.0
ULTRAFLUX = json.loads((Path(__file__).parents[2] / "data" / "ultraflux_rope.json").read_text("utf-8"))["axes"]


def comfy_rope(pos: Tensor, dim: int, theta: float) -> Tensor:
    """ComfyUI's comfy.ldm.flux.math.rope, written out."""
    scale = torch.linspace(0, (dim - 2) / dim, steps=dim // 2, dtype=torch.float64)
    omega = 1.0 / (theta**scale)
    out = torch.einsum("...n,d->...nd", pos.to(torch.float32), omega)
    out = torch.stack([torch.cos(out), -torch.sin(out), torch.sin(out), torch.cos(out)], dim=-1)
    return out.reshape(*out.shape[:-1], 2, 2).to(torch.float32)


def comfy_table(ids: Tensor, thetas: tuple[float, float, float] = (THETA, THETA, THETA)) -> Tensor:
    """ComfyUI's EmbedND, with a theta per axis."""
    parts = [comfy_rope(ids[..., i], AXES[i], thetas[i]) for i in range(3)]
    return torch.cat(parts, dim=-3).unsqueeze(1)


def image_rotations(rfr: Rfr, grid: tuple[int, int], theta: tuple[float, float] = (THETA, THETA)) -> list[Any]:
    return rescale(rfr, theta, (56, 56), grid)


# --- nothing rescaled -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rfr",
    [
        Rfr(),
        Rfr("theta", theta=(THETA, THETA)),
        Rfr("ntk", train_tokens=64),
        Rfr("ntk", train_tokens=100),
        Rfr("interpolate", train_tokens=64),
        Rfr("parts", train_tokens=64),
        Rfr("parts", train_tokens=70, sigma=0.5),
        Rfr("ultraflux"),
    ],
    ids=lambda rfr: f"{rfr.policy}-{rfr.train_tokens}",
)
def test_a_policy_that_amounts_to_the_own_theta_is_the_hosts_table_bit_for_bit(rfr: Rfr) -> None:
    ids = position_ids(5, 40, 64)
    assert torch.equal(RescaledEmbedND(AXES, THETA, rfr)(ids), comfy_table(ids))


@pytest.mark.parametrize("theta", [2.5, 46.74, 256.0, 10000.0, 1e6])
@pytest.mark.parametrize("dim", [14, 16, 56])
def test_plain_table_is_the_hosts_for_any_theta(theta: float, dim: int) -> None:
    positions = torch.arange(300.0)[None]
    omega = plain_omega(theta, dim)
    assert omega.dtype == torch.float64
    rotation = rescale(Rfr(), (theta, theta), (dim, dim), (300, 300))[0]
    assert torch.equal(rotation_table(positions, rotation), comfy_rope(positions, dim, theta))


def test_table_is_float32_for_bf16_ids() -> None:
    ids = position_ids(2, 8, 8).to(torch.bfloat16)
    table = RescaledEmbedND(AXES, THETA)(ids)
    assert table.dtype == torch.float32
    assert table.shape == (1, 1, 66, 64, 2, 2)
    assert torch.equal(table, comfy_table(ids.float()))


def test_table_of_a_batch_of_ids() -> None:
    ids = torch.cat([position_ids(2, 4, 6), position_ids(2, 6, 4)])
    assert torch.equal(RescaledEmbedND(AXES, THETA)(ids), comfy_table(ids))


# --- what is rescaled, and what never is ------------------------------------------------------


@pytest.mark.parametrize(
    "rfr",
    [Rfr("theta", theta=(50.0, 80.0)), Rfr("fit"), Rfr("ultraflux")]
    + [Rfr(policy, train_tokens=16) for policy in ("ntk", "interpolate", "parts")],
    ids=lambda rfr: rfr.policy,
)
def test_text_axis_is_untouched(rfr: Rfr) -> None:
    ids = position_ids(3, 66, 70)
    ids[..., 0] = torch.arange(ids.shape[1]) % 11  # so that a changed text axis would show
    plain, ours = comfy_table(ids), RescaledEmbedND(AXES, THETA, rfr)(ids)
    assert torch.equal(ours[..., :8, :, :], plain[..., :8, :, :])
    for axis in (slice(8, 36), slice(36, 64)):
        assert not torch.equal(ours[..., axis, :, :], plain[..., axis, :, :])


def test_theta_per_axis_is_rows_then_columns() -> None:
    ids = position_ids(2, 20, 30)
    expected = comfy_table(ids, (THETA, 50.0, 80.0))
    assert torch.equal(RescaledEmbedND(AXES, THETA, Rfr("theta", theta=(50.0, 80.0)))(ids), expected)
    assert torch.equal(RescaledEmbedND(AXES, (50.0, 80.0))(ids), expected)


def test_checkpoint_policy_keeps_a_theta_of_the_files_own() -> None:
    rotations = image_rotations(Rfr(), (200, 300), (46.7, 80.0))
    assert torch.equal(rotations[0].omega, plain_omega(46.7, 56))
    assert torch.equal(rotations[1].omega, plain_omega(80.0, 56))
    assert [rotation.magnitude for rotation in rotations] == [1.0, 1.0]


# --- fit --------------------------------------------------------------------------------------


def test_fit_to_128_tokens_and_half_a_turn_is_46_74() -> None:
    assert fit_theta(128, 0.5, 56) == pytest.approx(46.74, abs=0.005)
    assert fit_theta(128, 0.5, 56) == pytest.approx((128 / math.pi) ** (56 / 54), rel=1e-12)


@pytest.mark.parametrize("tokens", [(64, 64), (128, 96), (256, 300)])
@pytest.mark.parametrize("turns", [0.25, 0.5, 1.0, 2.0])
def test_fit_turns_the_slowest_pair_exactly_so_often(tokens: tuple[int, int], turns: float) -> None:
    rotations = image_rotations(Rfr("fit", turns=turns, tokens=tokens), (10, 10))
    for rotation, count in zip(rotations, tokens, strict=True):
        per_pair = turns_per_pair(rotation, count)
        assert per_pair[-1].item() == pytest.approx(turns, rel=1e-12)
        assert (per_pair.diff() < 0).all()


def test_fit_never_reverses_the_order_of_the_pairs() -> None:
    assert fit_theta(4, 100.0, 56) > 1


def test_fluxs_own_theta_turns_as_the_method_says() -> None:
    """Of 28 pairs 10 make a full turn on 128 tokens, 4 more make 0.28 to 0.76."""
    turns = turns_per_pair(image_rotations(Rfr(), (128, 128))[0], 128)
    assert (turns >= 1).sum().item() == 10
    assert turns[10].item() == pytest.approx(0.76, abs=0.005)
    assert turns[13].item() == pytest.approx(0.28, abs=0.005)
    assert turns[14].item() < 0.21


# --- ntk --------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.5, 2.0, 4.0])
def test_ntk_slows_the_slowest_pair_by_the_scale_and_leaves_the_fastest(scale: float) -> None:
    assert ntk_theta(THETA, 56, scale) == THETA * scale ** (56 / 54)
    tokens = int(64 * scale)
    rotation = image_rotations(Rfr("ntk"), (tokens, 64))[0]
    own = plain_omega(THETA, 56)
    assert rotation.omega[0] == own[0] == 1
    assert (own[-1] / rotation.omega[-1]).item() == pytest.approx(scale, rel=1e-12)


def test_ntk_scales_each_axis_by_its_own_grid() -> None:
    rows, columns = image_rotations(Rfr("ntk"), (128, 64))
    assert not torch.equal(rows.omega, plain_omega(THETA, 56))
    assert torch.equal(columns.omega, plain_omega(THETA, 56))


def test_the_grid_is_read_off_the_ids_wherever_they_start() -> None:
    embedder = RescaledEmbedND(AXES, THETA, Rfr("ntk"))
    ids = position_ids(0, 128, 64)
    moved = ids + torch.tensor([0.0, 7.0, 9.0])
    expected = comfy_table(moved, (THETA, ntk_theta(THETA, 56, 2.0), THETA))
    assert torch.equal(embedder(moved), expected)


# --- interpolate ------------------------------------------------------------------------------


@pytest.mark.parametrize("theta", [THETA, 46.74])
def test_interpolated_positions_are_the_trained_ones_s_times_closer(theta: float) -> None:
    """Position p has the table of p / s: 256 tokens lie where 64 did."""
    embedder = RescaledEmbedND(AXES, theta, Rfr("interpolate", train_tokens=64))
    ids = position_ids(3, 256, 100)
    squeezed = ids * torch.tensor([1.0, 64 / 256, 64 / 100])
    torch.testing.assert_close(embedder(ids), comfy_table(squeezed, (theta,) * 3), rtol=0, atol=1e-4)
    rows, columns = image_rotations(Rfr("interpolate"), (256, 64), (theta, theta))
    assert torch.equal(rows.omega, plain_omega(theta, 56) / 4) and rows.magnitude == 1
    assert torch.equal(columns.omega, plain_omega(theta, 56))


# --- parts ------------------------------------------------------------------------------------


def by_parts(dim: int, theta: float, tokens: int, trained: int, sigma: float) -> tuple[list[float], float]:
    """NTK by parts as DyPE states it, pair by pair in Python's floats: its bounds in turns, times sigma squared."""
    scale, kappa, found = tokens / trained, sigma**2, []

    def ramp(pair: int, many: float, few: float) -> float:
        first = math.floor(dim * math.log(trained / (many * kappa * 2 * math.pi)) / (2 * math.log(theta)))
        last = math.ceil(dim * math.log(trained / (few * kappa * 2 * math.pi)) / (2 * math.log(theta)))
        first, last = max(first, 0), min(last, dim - 1, dim // 2)
        return 1 - min(max((pair - first) / (last - first if last != first else 0.001), 0), 1)

    for pair in range(dim // 2):
        own = theta ** (-2 * pair / dim)
        ntk = (theta * scale ** (dim / (dim - 2))) ** (-2 * pair / dim)
        low, high = ramp(pair, 1.25, 0.75), ramp(pair, 16, 2)
        slow = own / scale * (1 - low) + ntk * low
        found.append(slow * (1 - high) + own * high)
    return found, 0.1 * math.log(scale) + 1


@pytest.mark.parametrize("sigma", [1.0, 0.5051, 0.25])
@pytest.mark.parametrize("theta", [THETA, 300.0])
@pytest.mark.parametrize(("tokens", "trained"), [(256, 64), (65, 64), (200, 128), (4096, 64)])
def test_parts_are_the_published_formula(tokens: int, trained: int, theta: float, sigma: float) -> None:
    rotation, other = image_rotations(
        Rfr("parts", train_tokens=trained, sigma=sigma), (tokens, trained), (theta, theta)
    )
    expected, magnitude = by_parts(56, theta, tokens, trained, sigma)
    assert rotation.omega.dtype == torch.float64
    assert rotation.omega.tolist() == pytest.approx(expected, rel=1e-12)
    assert rotation.magnitude == pytest.approx(magnitude, rel=1e-12)
    assert torch.equal(other.omega, plain_omega(theta, 56)) and other.magnitude == 1


def test_parts_are_the_trained_frequencies_at_both_ends_of_the_flow() -> None:
    """At the noisy end slow pairs are interpolated; towards the clean one all keep their own."""
    own = plain_omega(THETA, 56)
    noisy, half, clean = (
        image_rotations(Rfr("parts", sigma=sigma), (256, 256))[0].omega for sigma in (1.0, 0.5, 1e-200)
    )
    assert torch.equal(noisy[0], own[0]) and torch.equal(noisy[-1], own[-1] / 4)
    assert (noisy <= half + 1e-15).all() and not torch.equal(noisy, half)
    assert torch.equal(clean, own)


def test_parts_are_ultrafluxs_where_its_frequencies_are_not_rounded() -> None:
    parts, ultraflux = (image_rotations(Rfr(name), (256, 64))[0] for name in ("parts", "ultraflux"))
    slow = turns_per_pair(image_rotations(Rfr(), (64, 64))[0], 64) < 1
    torch.testing.assert_close(parts.omega[slow], ultraflux.omega[slow], rtol=1e-12, atol=0)
    assert not torch.equal(parts.omega, ultraflux.omega) and parts.magnitude == ultraflux.magnitude


# --- ultraflux --------------------------------------------------------------------------------


@pytest.mark.parametrize("published", ULTRAFLUX, ids=lambda axis: str(axis["tokens"]))
def test_ultraflux_is_the_published_positions(published: dict[str, Any]) -> None:
    expected = torch.tensor(published["omega"], dtype=torch.float64)
    for axis in (0, 1):
        grid = (published["tokens"], 64) if axis == 0 else (64, published["tokens"])
        rotations = image_rotations(Rfr("ultraflux"), grid)
        assert rotations[axis].omega.shape == (28,)
        assert ((rotations[axis].omega - expected).abs() / expected).max() <= 1e-6
        assert rotations[axis].magnitude == pytest.approx(published["mscale"], abs=1e-6)
        assert torch.equal(rotations[1 - axis].omega, plain_omega(THETA, 56))
        assert rotations[1 - axis].magnitude == 1.0


def test_ultraflux_scales_cos_and_sin_of_every_id_of_a_long_axis() -> None:
    table = RescaledEmbedND(AXES, THETA, Rfr("ultraflux"))(position_ids(4, 128, 64))[0, 0]
    text = table[:4]
    assert torch.equal(text[:, :8], torch.eye(2).expand(4, 8, 2, 2))
    mscale = 0.1 * math.log(2) + 1
    torch.testing.assert_close(text[:, 8:36], (mscale * torch.eye(2)).expand(4, 28, 2, 2), rtol=1e-7, atol=0)
    assert torch.equal(text[:, 36:], torch.eye(2).expand(4, 28, 2, 2))
    norms = table[:, 8:36, 0].square().sum(-1).sqrt()
    torch.testing.assert_close(norms, torch.full_like(norms, mscale), rtol=1e-6, atol=0)


# --- resolving to numbers ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "rfr",
    [Rfr(), Rfr("theta", theta=(50.0, 80.0)), Rfr("fit", tokens=(128, 96)), Rfr("ntk")],
    ids=lambda rfr: rfr.policy,
)
def test_resolved_theta_as_a_number_gives_the_policys_frequencies(rfr: Rfr) -> None:
    grid, own = (128, 96), (THETA, 5000.0)
    theta = resolve(rfr, own, (56, 56), grid)
    for axis, rotation in enumerate(rescale(rfr, own, (56, 56), grid)):
        assert torch.equal(rotation.omega, plain_omega(theta[axis], 56))


@pytest.mark.parametrize("policy", ["ultraflux", "interpolate", "parts"])
def test_policies_of_single_frequencies_resolve_to_no_theta(policy: Policy) -> None:
    with pytest.raises(OptionError, match=f"'{policy}' .* has no theta; choose another to train"):
        resolve(Rfr(policy), (THETA, THETA), (56, 56), (128, 128))


def test_embedder_resolves_with_its_own_axes() -> None:
    embedder = RescaledEmbedND((4, 14, 14), (100.0, 200.0))
    assert embedder.resolved() == (100.0, 200.0)
    assert embedder.with_rfr(Rfr("fit")).resolved() == (fit_theta(128, 0.5, 14),) * 2


# --- the module and the rotation --------------------------------------------------------------


def test_with_rfr_leaves_the_original_and_holds_no_weights() -> None:
    own = RescaledEmbedND(AXES, (46.7, 80.0))
    other = own.with_rfr(Rfr("theta", theta=(9.0, 9.0)))
    assert own.rfr == Rfr() and other.rfr.policy == "theta"
    assert other.thetas == own.thetas == (46.7, 80.0)
    assert not own.state_dict()
    assert (own.dim, own.axes_dim) == (128, [16, 56, 56])


def test_rotation_keeps_lengths_and_depends_on_distance_alone(generator: torch.Generator) -> None:
    q, k = (torch.randn(1, 2, 1, 56, generator=generator) for _ in range(2))
    rotation = image_rotations(Rfr("fit"), (1, 1))[0]

    def at(x: Tensor, position: int) -> Tensor:
        return apply_rotation(x, rotation_table(torch.tensor([[float(position)]]), rotation)[:, None])

    torch.testing.assert_close(at(q, 90).norm(), q.norm())
    torch.testing.assert_close((at(q, 90) * at(k, 70)).sum(), (at(q, 25) * at(k, 5)).sum(), rtol=1e-4, atol=1e-4)
    assert not torch.allclose((at(q, 90) * at(k, 70)).sum(), (at(q, 90) * at(k, 60)).sum(), rtol=1e-3)


def test_rotation_pairs_neighbouring_channels_as_the_host_does(generator: torch.Generator) -> None:
    x = torch.randn(2, 3, 6, 128, generator=generator)
    table = comfy_table(position_ids(0, 2, 3))
    pairs = x.reshape(*x.shape[:-1], -1, 1, 2)
    host = (table[..., 0] * pairs[..., 0] + table[..., 1] * pairs[..., 1]).reshape(x.shape)
    assert torch.equal(apply_rotation(x, table), host)


def test_rotation_of_bf16_is_computed_in_float32(generator: torch.Generator) -> None:
    x = torch.randn(1, 1, 6, 128, generator=generator).to(torch.bfloat16)
    table = comfy_table(position_ids(0, 2, 3))
    turned = apply_rotation(x, table)
    assert turned.dtype == torch.bfloat16
    assert torch.equal(turned, apply_rotation(x.float(), table).to(torch.bfloat16))


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        {"policy": "yarn"},
        {"policy": "theta"},
        {"policy": "theta", "theta": (1.0, 10.0)},
        {"policy": "theta", "theta": (10.0, -5.0)},
        {"policy": "theta", "theta": (math.nan, 10.0)},
        {"policy": "theta", "theta": (10.0, math.inf)},
        {"policy": "fit", "turns": 0.0},
        {"policy": "fit", "turns": -1.0},
        {"policy": "fit", "turns": math.nan},
        {"policy": "fit", "turns": math.inf},
        {"policy": "fit", "tokens": (0, 128)},
        {"policy": "fit", "tokens": (128, -1)},
        {"policy": "ntk", "train_tokens": 0},
        {"policy": "parts", "sigma": 0.0},
        {"policy": "parts", "sigma": 1.5},
        {"policy": "parts", "sigma": math.nan},
    ],
    ids=str,
)
def test_wrong_policies_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Rfr(**wrong)


def test_too_few_axes_are_refused() -> None:
    with pytest.raises(OptionError, match="3 axes"):
        RescaledEmbedND((64, 64), THETA)


@pytest.mark.parametrize(
    ("text", "theta"),
    [
        (10000, (10000.0, 10000.0)),
        (46.7, (46.7, 46.7)),
        ("10000", (10000.0, 10000.0)),
        ("46.7, 80", (46.7, 80.0)),
        ((46.7, 80), (46.7, 80.0)),
        ([80.0], (80.0, 80.0)),
    ],
    ids=str,
)
def test_theta_is_read(text: Any, theta: tuple[float, float]) -> None:
    assert parse_theta(text) == theta


@pytest.mark.parametrize(
    "text", ["", "ten", "1,2,3", "46.7,", "1", "0", "-5", "nan", "inf", (), None, (2, "x")], ids=repr
)
def test_no_theta_is_refused(text: Any) -> None:
    with pytest.raises(OptionError, match="theta"):
        parse_theta(text)
