"""8-bit weights: near the layer they stand for, both ways of multiplying, and bytes that are halved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Linear

from benchmarks.full.fp8 import FP8, PRODUCTS, Fp8Linear, Product, has_scaled_mm, scaled_to_fp8, store_in_fp8
from benchmarks.random_models import random_flux, weights_bytes
from op4ksr_core import Flux
from op4ksr_core.planning.geometries import GEOMETRIES

CPU = torch.device("cpu")
needs_scaled_mm = pytest.mark.skipif(not has_scaled_mm(CPU), reason="this PyTorch's CPU has no torch._scaled_mm")


def relative(a: Tensor, b: Tensor) -> float:
    return ((a.float() - b.float()).norm() / b.float().norm()).item()


@pytest.fixture
def layer(generator: torch.Generator) -> Linear:
    linear = Linear(64, 96).requires_grad_(False)
    linear.weight.normal_(0, 0.02, generator=generator)
    linear.bias.normal_(0, 0.02, generator=generator)
    return linear


def of(layer: Linear, product: Product) -> Fp8Linear:
    small = Fp8Linear(layer, product)
    small.take(layer.weight)
    return small


def test_the_largest_value_becomes_the_largest_of_fp8() -> None:
    small, scale = scaled_to_fp8(torch.tensor([0.5, -2.0, 0.0]))
    assert small.dtype == FP8 and small.float().tolist() == [112, -448, 0]
    assert scale.item() == pytest.approx(2 / 448)
    assert scaled_to_fp8(torch.zeros(3))[0].float().tolist() == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_to_fp8_makes_nothing_larger_or_smaller_as_a_whole(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Of a largest value whose scale bfloat16 rounds by 0.3 %; and nothing but zeros is no reason for NaN."""
    values = ((torch.rand(512, 512, generator=generator) * 2 - 1) * 1.7578125).to(dtype)
    values[0, 0] = 1.7578125
    small, scale = scaled_to_fp8(values)
    back, values = small.double() * scale.double(), values.double()
    assert abs(float((back * values).sum() / values.square().sum()) - 1) < 1e-3
    zeros, scale = scaled_to_fp8(torch.zeros(16, 16, dtype=dtype))
    assert scale > 0 and not zeros.float().any()


@needs_scaled_mm
def test_a_float32_product_gets_its_bias_afterwards(
    layer: Linear, generator: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA's product refuses it."""
    multiply = torch._scaled_mm

    def strict(*args: Tensor, bias: Tensor | None, out_dtype: torch.dtype, **how: object) -> Tensor:
        assert bias is None or out_dtype != torch.float32
        return multiply(*args, bias=bias, out_dtype=out_dtype, **how)

    monkeypatch.setattr(torch, "_scaled_mm", strict)
    x, small = torch.randn(20, 64, generator=generator), of(layer, "scaled")
    assert relative(small(x), layer(x)) < 0.06


@needs_scaled_mm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_scaled_product_is_the_product_of_the_rounded_numbers(
    layer: Linear, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Against float64, so that only the last rounding is left; then as near to the layer as e4m3's 3 bits allow."""
    layer, x = layer.to(dtype), torch.randn(2, 20, 64, generator=generator).to(dtype)
    small = of(layer, "scaled")
    rows, scale = scaled_to_fp8(x.flatten(0, 1))
    exact = (rows.double() @ small.weight.double().t()) * (scale.double() * small.scale.double()) + layer.bias.double()
    result = small(x)
    assert result.shape == (2, 20, 96) and result.dtype == dtype
    assert relative(result.flatten(0, 1), exact) < (1e-6 if dtype == torch.float32 else 4e-3)
    assert 0 < relative(result, layer(x)) < 0.06


def test_a_cast_product_rounds_the_weights_alone(layer: Linear, generator: torch.Generator) -> None:
    x, small = torch.randn(3, 64, generator=generator), of(layer, "cast")
    exact = x.double() @ (small.weight.double() * small.scale.double()).t() + layer.bias.double()
    assert relative(small(x), exact) < 1e-6
    assert 0 < relative(small(x), layer(x)) < 0.04


def test_few_rows_are_cast(layer: Linear, generator: torch.Generator) -> None:
    x = torch.randn(1, 64, generator=generator)
    assert torch.equal(of(layer, "scaled")(x), of(layer, "cast")(x))


@pytest.mark.parametrize("product", PRODUCTS)
def test_a_transformer_in_fp8_is_near_to_itself(make_flux: Callable[..., Flux], product: Product) -> None:
    if product == "scaled" and not has_scaled_mm(CPU):
        pytest.skip("this PyTorch's CPU has no torch._scaled_mm")
    whole, small = make_flux(), make_flux()
    store_in_fp8(small, product)
    assert small.dtype == torch.float32 and small.single_blocks[0].linear1.weight.dtype == FP8
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    given = (latent, torch.tensor([0.5]), *whole.prompt(1))
    with torch.no_grad():
        assert 0 < relative(small(*given), whole(*given)) < 0.1


def test_fp8_halves_the_blocks_bytes() -> None:
    half, eighth = (random_flux(GEOMETRIES["small"], CPU, torch.bfloat16, p) for p in (None, "cast"))
    ours, theirs = (weights_bytes(m.double_blocks, m.single_blocks) for m in (eighth, half))
    assert 0.5 < ours / theirs < 0.52
    assert (
        relative(
            eighth.single_blocks[1].linear2.weight.float() * eighth.single_blocks[1].linear2.scale,
            half.single_blocks[1].linear2.weight,
        )
        < 0.04
    )


def test_a_device_without_such_products_says_so() -> None:
    assert not has_scaled_mm(torch.device("meta"))


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_full_geometry_takes_fp8(product: Product) -> None:
    """Shapes alone, at 4096 px: ``_scaled_mm`` wants multiples of 16 everywhere."""
    shape = GEOMETRIES["flux"]
    flux = Flux(shape.flux, device="meta", dtype=torch.bfloat16)
    store_in_fp8(flux, product)
    assert 11.8e9 < weights_bytes(flux) < 12.1e9
    txt = torch.empty(1, shape.text_tokens, 4096, dtype=torch.bfloat16, device="meta")
    latent, sigma = txt.new_empty(1, 16, 256, 256), torch.empty(1, device="meta")
    with torch.no_grad():
        assert flux(latent, sigma, txt, txt.new_empty(1, 768)).shape == latent.shape
