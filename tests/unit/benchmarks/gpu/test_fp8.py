"""8-bit products: near the layer that they stand for, exact for the rounded numbers, and bytes that are halved."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import Linear

from benchmarks.gpu.fp8 import FP8, ScaledLinear, by_rows, has_scaled_mm, store_in_fp8
from benchmarks.random_models import random_flux, weights_bytes
from op4ksr_core import Flux
from op4ksr_core.planning.geometries import GEOMETRIES

CPU = torch.device("cpu")
needs_scaled_mm = pytest.mark.skipif(not has_scaled_mm(CPU), reason="this PyTorch's CPU has no torch._scaled_mm")


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a.double() - b.double()).norm() / b.double().norm()).item()


@pytest.fixture
def layer(generator: torch.Generator) -> Linear:
    linear = Linear(64, 96).requires_grad_(False)
    linear.weight.normal_(0, 0.02, generator=generator)
    linear.bias.normal_(0, 0.02, generator=generator)
    return linear


def test_a_rows_largest_value_becomes_the_largest_of_fp8() -> None:
    small, scale = by_rows(torch.tensor([[0.5, -2.0, 0.0], [0.0, 0.0, 0.0]]))
    assert small.dtype == FP8 and small.float().tolist() == [[112, -448, 0], [0, 0, 0]]
    assert scale[0].item() == pytest.approx(2 / 448) and scale[1] > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_rounding_to_fp8_makes_nothing_larger_or_smaller_as_a_whole(
    generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Of a largest value whose scale bfloat16 rounds by 0.3 %."""
    values = ((torch.rand(512, 512, generator=generator) * 2 - 1) * 1.7578125).to(dtype)
    values[:, 0] = 1.7578125
    small, scale = by_rows(values)
    back, values = small.double() * scale.double(), values.double()
    assert abs(float((back * values).sum() / values.square().sum()) - 1) < 1e-3


@needs_scaled_mm
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_product_is_that_of_the_rounded_numbers(
    layer: Linear, generator: torch.Generator, dtype: torch.dtype
) -> None:
    """Against float64, so that only the last rounding is left; then as near to the layer as e4m3's 3 bits allow."""
    layer, x = layer.to(dtype), torch.randn(2, 20, 64, generator=generator).to(dtype)
    small = ScaledLinear.of(layer)
    rows, scale = by_rows(x.flatten(0, 1))
    weight = small.weight.double() * small.scale.double()[:, None]
    exact = (rows.double() * scale.double()) @ weight.t() + layer.bias.double()
    result = small(x)
    assert result.shape == (2, 20, 96) and result.dtype == dtype
    assert relative(result.flatten(0, 1), exact) < (1e-6 if dtype == torch.float32 else 5e-3)
    assert 0 < relative(result, layer(x)) < 0.06


def test_few_rows_are_cast(layer: Linear, generator: torch.Generator) -> None:
    """The weights alone are rounded."""
    x, small = torch.randn(1, 64, generator=generator), ScaledLinear.of(layer)
    weight = small.weight.double() * small.scale.double()[:, None]
    assert relative(small(x), x.double() @ weight.t() + layer.bias.double()) < 1e-6


@needs_scaled_mm
def test_a_transformer_in_fp8_is_near_to_itself(make_flux: Callable[..., Flux]) -> None:
    whole, small = make_flux(), make_flux()
    store_in_fp8(small)
    assert small.dtype == torch.float32
    assert small.state_dict()["single_blocks.0.linear1.weight"].dtype == FP8
    latent = torch.randn(1, 16, 8, 8, generator=torch.Generator().manual_seed(1))
    given = (latent, torch.tensor([0.5]), *whole.prompt(1))
    with torch.no_grad():
        assert 0 < relative(small(*given), whole(*given)) < 0.1


def test_fp8_halves_the_blocks_bytes() -> None:
    half, eighth = (random_flux(GEOMETRIES["small"], CPU, torch.bfloat16) for _ in range(2))
    store_in_fp8(eighth)
    ours, theirs = (weights_bytes(m.double_blocks, m.single_blocks) for m in (eighth, half))
    assert 0.5 < ours / theirs < 0.52


def test_a_device_without_such_products_says_so() -> None:
    assert not has_scaled_mm(torch.device("meta"))


def test_products_of_the_full_geometry_have_sides_that_fp8_takes() -> None:
    """``_scaled_mm`` wants multiples of 16."""
    flux = Flux(GEOMETRIES["flux"].flux, device="meta", dtype=torch.bfloat16)
    blocks = (flux.double_blocks, flux.single_blocks)
    layers = [module for block in blocks for module in block.modules() if isinstance(module, Linear)]
    assert len(layers) == 19 * 10 + 38 * 3
    assert all(side % 16 == 0 for layer in layers for side in layer.weight.shape)
