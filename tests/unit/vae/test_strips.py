"""In strips or whole: the same picture, to rounding, at any strip height and mode."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Conv2d, GroupNorm
from torch.nn import functional as F

from op4ksr_core import AutoEncoder
from op4ksr_core.vae import strip_maps
from op4ksr_core.vae.strip_maps import Affine, Moments, fold_upsampling
from op4ksr_core.vae.strips import MEMORY_MODES, MemoryMode, StripSettings

Make = Callable[..., AutoEncoder]

GEOMETRIES = [{"stride": 1}, {"stride": 2}, {"stride": 2, "shift": 1}]


def near(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> bool:
    """Largest difference within ``tolerance`` of the reference's largest value."""
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() <= tolerance * reference.abs().max()).item() is True


def model_with(make: Make, rows: int, mode: MemoryMode, **params: Any) -> AutoEncoder:
    """An autoencoder that runs with these settings without being asked each time."""
    model, settings = make(**params), StripSettings(rows, mode)
    for name in ("encode", "encode_strips", "decode", "decode_strips"):
        setattr(model, name, partial(getattr(model, name), strips=settings))
    return model


# --- the same as the plain pass ---------------------------------------------------------------


@pytest.mark.parametrize("mode", MEMORY_MODES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("params", GEOMETRIES, ids=str)
def test_decode_is_the_plain_decode(
    make_autoencoder: Make, generator: torch.Generator, params: dict[str, int], rows: int, mode: MemoryMode
) -> None:
    model = model_with(make_autoencoder, rows, mode, **params)
    latent = torch.randn(1, 16, 5, 3, generator=generator)
    assert near(model.decode_strips(latent), model.decode_pixels(latent))


@pytest.mark.parametrize("mode", MEMORY_MODES)
@pytest.mark.parametrize("rows", [1, 2, 3, 5, 8, 64])
@pytest.mark.parametrize("params", GEOMETRIES, ids=str)
def test_encode_is_the_plain_encode(
    make_autoencoder: Make, generator: torch.Generator, params: dict[str, int], rows: int, mode: MemoryMode
) -> None:
    model = model_with(make_autoencoder, rows, mode, **params)
    pixels = torch.rand(1, 3, 80, 48, generator=generator) * 2 - 1
    assert near(model.encode_strips(pixels), model.encode_pixels(pixels))


@pytest.mark.parametrize("mode", MEMORY_MODES)
@pytest.mark.parametrize(
    "params",
    [
        {"widths": (8, 8, 8, 8)},
        {"widths": (32, 16, 8), "layers_per_block": 2},
        {"widths": (8, 16, 32), "layers_per_block": 2, "mid_attention": False},
        {"widths": (16,)},
    ],
    ids=str,
)
def test_any_widths(
    make_autoencoder: Make, generator: torch.Generator, params: dict[str, Any], mode: MemoryMode
) -> None:
    """Growing, shrinking and equal: with and without a shortcut, in the source's memory and not."""
    model = model_with(make_autoencoder, 3, mode, **params)
    pixels = torch.rand(1, 3, 48, 64, generator=generator) * 2 - 1
    latent = model.encode_pixels(pixels)
    assert near(model.encode_strips(pixels), latent)
    assert near(model.decode_strips(latent), model.decode_pixels(latent))


@pytest.mark.parametrize("size", [(47, 33), (33, 95), (16, 17), (50, 34)], ids=str)
@pytest.mark.parametrize("stride", [1, 2])
def test_odd_sides(make_autoencoder: Make, generator: torch.Generator, size: tuple[int, int], stride: int) -> None:
    model = model_with(make_autoencoder, 4, "fast", stride=stride)
    pixels = torch.rand(1, 3, *size, generator=generator) * 2 - 1
    assert near(model.encode_strips(pixels), model.encode_pixels(pixels))


def test_batches_are_their_pictures(make_autoencoder: Make, generator: torch.Generator) -> None:
    model = model_with(make_autoencoder, 4, "lean")
    pixels = torch.rand(3, 3, 32, 48, generator=generator) * 2 - 1
    latent = model.encode_pixels(pixels)
    assert near(model.encode_strips(pixels), latent)
    assert near(model.decode_strips(latent), model.decode_pixels(latent))


@pytest.mark.parametrize("mode", MEMORY_MODES)
def test_bf16_is_as_near_to_fp32_as_the_plain_pass(
    make_autoencoder: Make, generator: torch.Generator, mode: MemoryMode
) -> None:
    exact = make_autoencoder()
    model = model_with(make_autoencoder, 8, mode).to(torch.bfloat16)
    latent = torch.randn(1, 16, 4, 6, generator=generator).to(torch.bfloat16)
    reference = exact.decode_pixels(latent.float())

    def rms(output: Tensor) -> float:
        return (output.float() - reference).square().mean().sqrt().item()

    assert 0 < rms(model.decode_strips(latent)) < 1.5 * rms(model.decode_pixels(latent))


@pytest.mark.parametrize("mode", MEMORY_MODES)
def test_the_input_and_the_weights_are_left_alone(
    make_autoencoder: Make, generator: torch.Generator, mode: MemoryMode
) -> None:
    """Maps are overwritten in place, but only our own."""
    model = model_with(make_autoencoder, 4, mode)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pixels, latent = torch.rand(1, 3, 32, 32, generator=generator), torch.randn(1, 16, 2, 2, generator=generator)
    before = pixels.clone(), latent.clone()
    for _ in range(2):
        model.encode_strips(pixels)
        model.decode_strips(latent)
    assert torch.equal(pixels, before[0]) and torch.equal(latent, before[1])
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())


# --- output, cancelling -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decode_writes_into_the_given_tensor(
    make_autoencoder: Make, generator: torch.Generator, dtype: torch.dtype
) -> None:
    model = model_with(make_autoencoder, 4, "fast")
    latent = torch.randn(2, 16, 2, 3, generator=generator)
    out = torch.full((2, 3, 32, 48), float("nan"), dtype=dtype)
    result = model.decode_strips(latent, out=out)
    assert result.data_ptr() == out.data_ptr()
    assert torch.equal(out, model.decode_strips(latent).to(dtype))


def test_public_encode_and_decode_run_in_strips(make_autoencoder: Make, generator: torch.Generator) -> None:
    strips: list[int] = []
    few, many = (model_with(make_autoencoder, rows, "fast") for rows in (64, 4))
    image = torch.rand(1, 3, 64, 64, generator=generator)
    counts: list[int] = []
    for model in (few, many):
        strips.clear()
        latent = model.encode(image, lambda done, total: strips.append(total))
        encoded = len(strips)
        model.decode(latent, lambda done, total: strips.append(total))
        counts += [encoded, len(strips) - encoded]
    assert counts[2] > 2 * counts[0] > 0 and counts[3] > 2 * counts[1] > 0


@pytest.mark.parametrize("mode", MEMORY_MODES)
@pytest.mark.parametrize("rows", [1, 5, 8, 64])
@pytest.mark.parametrize("params", [{}, {"mid_attention": False, "stride": 1}, {"widths": (32, 16, 8)}], ids=str)
def test_progress_counts_every_strip(
    make_autoencoder: Make, params: dict[str, Any], rows: int, mode: MemoryMode
) -> None:
    model = model_with(make_autoencoder, rows, mode, **params)
    for run in (
        lambda tell: model.encode_strips(torch.zeros(1, 3, 64, 48), tell),
        lambda tell: model.decode_strips(torch.zeros(1, 16, 8, 4), tell),
    ):
        told: list[tuple[int, int]] = []
        run(lambda done, total, told=told: told.append((done, total)))
        assert told == [(done, len(told)) for done in range(len(told))]


@pytest.mark.parametrize("at", [1, 7, 20])
def test_raising_before_a_strip_cancels(make_autoencoder: Make, at: int) -> None:
    class CancelError(Exception):
        pass

    seen: list[int] = []

    def cancel(done: int, total: int) -> None:
        seen.append(0)
        if len(seen) == at:
            raise CancelError

    model = model_with(make_autoencoder, 4, "tiny")
    with pytest.raises(CancelError):
        model.decode(torch.zeros(1, 16, 4, 4), cancel)
    assert len(seen) == at
    seen.clear()
    with pytest.raises(CancelError):
        model.encode(torch.zeros(1, 3, 64, 64), cancel)
    assert len(seen) == at


# --- the parts --------------------------------------------------------------------------------


@pytest.mark.parametrize(("mean", "tolerance"), [(0.0, 1e-6), (10.0, 1e-4)])
def test_moments_are_those_of_the_whole(generator: torch.Generator, mean: float, tolerance: float) -> None:
    """The variance loses (mean / deviation)^2 roundings of fp32."""
    whole = torch.randn(1, 4, 50, 7, generator=generator) + mean
    moments = Moments()
    for top, bottom in ((0, 1), (1, 20), (20, 50)):
        moments.add(whole[:, :, top:bottom])
    exact = whole.double()
    assert moments.mean is not None and moments.m2 is not None
    assert moments.count == 350
    torch.testing.assert_close(moments.mean, exact.mean((0, 2, 3)), rtol=1e-6, atol=1e-6)
    variance = exact.var((0, 2, 3), correction=0)
    torch.testing.assert_close(moments.m2 / moments.count, variance, rtol=tolerance, atol=0)


def test_moments_in_bfloat16_are_those_of_the_given_numbers(generator: torch.Generator) -> None:
    """The pivot is a rounded mean there: what it is off by must not count as variance."""
    whole = (torch.randn(1, 4, 50, 64, generator=generator) * 0.05 + 1.003).to(torch.bfloat16)
    moments = Moments()
    for strip in whole.split(20, dim=2):
        moments.add(strip)
    assert moments.m2 is not None
    variance = whole.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(moments.m2 / moments.count, variance, rtol=1e-3, atol=0)


def test_affine_is_group_norm_and_silu(generator: torch.Generator) -> None:
    norm = GroupNorm(2, 8, eps=1e-6)
    with torch.no_grad():
        norm.weight.uniform_(0.5, 2, generator=generator)
        norm.bias.uniform_(-1, 1, generator=generator)
    whole = torch.randn(1, 8, 12, 9, generator=generator) * 3 + 1
    moments = Moments()
    for strip in whole.split(5, dim=2):
        moments.add(strip)
    affine = Affine(norm, moments)
    joined = torch.cat([affine(strip) for strip in whole.split(4, dim=2)], dim=2)
    assert near(joined, F.silu(norm(whole)).detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_devices_without_float64_give_the_same(
    make_autoencoder: Make, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """MPS and XPU have none; here the CPU is taken for one of them."""
    model = model_with(make_autoencoder, 8, "tiny").to(dtype)
    latent = torch.randn(1, 16, 4, 6, generator=generator).to(dtype)
    usual = model.decode_strips(latent)
    batch_norm, halves = F.batch_norm, []
    monkeypatch.setattr(strip_maps, "_FULL_DEVICES", ())
    monkeypatch.setattr(F, "batch_norm", lambda x, *rest: (halves.append(x.dtype), batch_norm(x, *rest))[1])
    other = model.decode_strips(latent)
    assert set(halves) == {torch.float32} and near(
        other.float(), usual.float(), 1e-5 if dtype == torch.float32 else 0.05
    )


def test_folded_upsampling_is_nearest_then_convolution(generator: torch.Generator) -> None:
    conv = Conv2d(5, 3, 3, padding=1).requires_grad_(False)
    x = torch.randn(1, 5, 6, 7, generator=generator)
    weight, bias = fold_upsampling(conv, x)
    assert weight.shape == (12, 5, 2, 2)
    parts = F.conv2d(F.pad(x, (1, 1, 1, 1)), weight, bias).chunk(4, dim=1)
    plain = conv(x.repeat_interleave(2, 2).repeat_interleave(2, 3))
    for index, part in enumerate(parts):
        p, q = divmod(index, 2)
        assert near(part[:, :, p : p + 6, q : q + 7], plain[:, :, p::2, q::2])


@pytest.mark.parametrize("wrong", [{"rows": 0}, {"rows": -4}, {"mode": "greedy"}], ids=str)
def test_impossible_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="strips need"):
        StripSettings(**wrong)
