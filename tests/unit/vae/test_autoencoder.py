"""The autoencoder against diffusers', as F8, as F16, and with the published 1 px shift."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Conv2d, GroupNorm
from torch.nn import functional as F

from op4ksr_core import AutoEncoder, AutoEncoderParams, ImageError, load_autoencoder

Make = Callable[..., AutoEncoder]


def near(ours: Tensor, reference: Tensor, tolerance: float = 1e-5) -> bool:
    """Largest difference within ``tolerance`` of the reference's largest value."""
    assert ours.shape == reference.shape
    return ((ours - reference).abs().max() <= tolerance * reference.abs().max()).item() is True


# --- parity with diffusers --------------------------------------------------------------------


class UpsampledConvOut(nn.Module):
    """F16's last step, as published: nearest 2x, then conv_out; shift pads all at the top and left."""

    def __init__(self, conv: nn.Conv2d, shift: int) -> None:
        super().__init__()
        self.conv, self.shift = conv, shift

    def forward(self, h: Tensor) -> Tensor:
        h = h.repeat_interleave(2, -2).repeat_interleave(2, -1)
        pad = (2, 0, 2, 0) if self.shift else (1, 1, 1, 1)
        return F.conv2d(F.pad(h, pad), self.conv.weight, self.conv.bias)


def save_diffusers(model: Any, folder: Path, **config: Any) -> None:
    """diffusers' own folder, with ``config`` added to its config.json."""
    model.save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **config}), "utf-8")


@pytest.mark.parametrize(("stride", "shift"), [(1, 0), (2, 0), (2, 1)])
def test_encode_and_decode_equal_diffusers(
    tmp_path: Path, make_diffusers_autoencoder: Callable[..., Any], generator: torch.Generator, stride: int, shift: int
) -> None:
    reference = make_diffusers_autoencoder(1)
    save_diffusers(reference, tmp_path, **({"stride": 2} if stride == 2 else {}))
    if stride == 2:
        reference.encoder.conv_in.stride = (2, 2)
        reference.decoder.conv_out = UpsampledConvOut(reference.decoder.conv_out, shift)
    ours = load_autoencoder(tmp_path, shift=shift)
    assert (ours.params.stride, ours.params.shift, ours.params.norm_groups) == (stride, shift, 8)

    ratio = 8 * stride
    image = torch.rand(2, 3, 6 * ratio, 4 * ratio, generator=generator)
    latent = torch.randn(2, 16, 6, 4, generator=generator)
    encoded = reference.encode(image * 2 - 1).latent_dist
    assert near(ours.encode(image), encoded.mean)
    assert near(ours.encode_pixels(image * 2 - 1), encoded.mean)
    assert not near(ours.encode(image), encoded.mode() + encoded.std)
    decoded = reference.decode(latent).sample
    assert decoded.shape == (2, 3, 6 * ratio, 4 * ratio)
    assert near(ours.decode_pixels(latent), decoded)
    assert near(ours.decode_strips(latent), decoded)
    assert near(ours.decode(latent), ((decoded + 1) / 2).clamp(0, 1))


def test_without_attention_in_the_middle_equals_diffusers(
    tmp_path: Path, make_diffusers_autoencoder: Callable[..., Any], generator: torch.Generator
) -> None:
    reference = make_diffusers_autoencoder(1, mid_block_add_attention=False)
    save_diffusers(reference, tmp_path)
    ours = load_autoencoder(tmp_path)
    assert not ours.params.mid_attention and ours.params.stride == 1
    latent = torch.randn(1, 16, 4, 4, generator=generator)
    assert near(ours.decode_pixels(latent), reference.decode(latent).sample)


def test_the_two_f16_shifts_and_f8_do_differ(make_autoencoder: Make, generator: torch.Generator) -> None:
    """Or else the parity above would not tell them apart."""
    latent = torch.randn(1, 16, 3, 3, generator=generator)
    plain, shifted = (make_autoencoder(shift=shift).decode_pixels(latent) for shift in (0, 1))
    assert not near(plain, shifted, 1e-2)


# --- F16 --------------------------------------------------------------------------------------


def test_shift_moves_the_decoded_picture_one_pixel_down_and_right(
    make_autoencoder: Make, generator: torch.Generator
) -> None:
    latent = torch.randn(2, 16, 3, 4, generator=generator)
    plain, shifted = (make_autoencoder(shift=shift).decode_pixels(latent) for shift in (0, 1))
    assert shifted.shape == plain.shape == (2, 3, 48, 64)
    torch.testing.assert_close(shifted[..., 1:, 1:], plain[..., :-1, :-1], rtol=0, atol=1e-6)


@pytest.mark.parametrize(("stride", "ratio"), [(1, 8), (2, 16)])
def test_ratio(make_autoencoder: Make, generator: torch.Generator, stride: int, ratio: int) -> None:
    model = make_autoencoder(stride=stride)
    assert model.params.ratio == ratio
    latent = model.encode(torch.rand(1, 3, 64, 96, generator=generator))
    assert latent.shape == (1, 16, 64 // ratio, 96 // ratio)
    assert model.decode(latent).shape == (1, 3, 64, 96)


def test_no_tensor_tells_f16_from_f8() -> None:
    """memory.md: 244 tensors, 83,819,683 parameters, the same keys and shapes."""
    f16, f8 = (AutoEncoder(AutoEncoderParams(stride=stride), device="meta").state_dict() for stride in (2, 1))
    assert {k: v.shape for k, v in f16.items()} == {k: v.shape for k, v in f8.items()}
    assert len(f16) == 244
    assert sum(tensor.numel() for tensor in f16.values()) == 83_819_683
    assert f16["decoder.up.3.block.0.conv1.weight"].shape == (512, 512, 3, 3)
    assert f16["encoder.mid.attn_1.q.weight"].shape == (512, 512, 1, 1)


# --- the public methods -----------------------------------------------------------------------


def test_other_sides_are_rounded_as_the_convolutions_have_it(
    make_autoencoder: Make, generator: torch.Generator
) -> None:
    """First up (conv_in), then down (the three downsamplings): why ``upscale`` pads."""
    latent = make_autoencoder().encode(torch.rand(1, 3, 47, 33, generator=generator))
    assert latent.shape[-2:] == (3, 2)


def test_decode_clamps_and_decode_pixels_does_not(make_autoencoder: Make, generator: torch.Generator) -> None:
    model = make_autoencoder()
    model.decoder.conv_out.weight.mul_(100)
    latent = torch.randn(1, 16, 2, 2, generator=generator)
    pixels, image = model.decode_pixels(latent), model.decode(latent)
    assert pixels.min() < -1 and pixels.max() > 1
    assert image.min() == 0 and image.max() == 1


def test_batch_equals_one_by_one(make_autoencoder: Make, generator: torch.Generator) -> None:
    model = make_autoencoder()
    images = torch.rand(3, 3, 32, 48, generator=generator)
    assert near(model.encode(images), torch.cat([model.encode(image[None]) for image in images]))
    latents = torch.randn(3, 16, 2, 3, generator=generator)
    assert near(model.decode_pixels(latents), torch.cat([model.decode_pixels(z[None]) for z in latents]))


def test_other_dtypes_of_input_are_cast_to_the_weights(make_autoencoder: Make, generator: torch.Generator) -> None:
    model = make_autoencoder()
    image = torch.rand(1, 3, 32, 32, generator=generator).to(torch.float64)
    assert model.encode(image).dtype == torch.float32 == model.dtype
    assert torch.equal(model.encode(image), model.encode(image.float()))
    half = make_autoencoder().to(torch.bfloat16)
    assert half.encode(image).dtype == torch.bfloat16
    exact = model.encode(image)
    assert not torch.equal(half.encode(image).float(), exact)
    assert near(half.encode(image).float(), exact, 0.05)


def test_half_precision_rounds_pictures_once(make_autoencoder: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled in float32 on both ways: in bfloat16, bright tones would lose up to half a grey level each time."""
    half, image = make_autoencoder().to(torch.bfloat16), torch.linspace(0, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    given: list[Tensor] = []
    monkeypatch.setattr(half.bounded, "encode", lambda pixels, prepare, *_: given.append(prepare(pixels)) or pixels)
    half.encode(image)
    assert torch.equal(given[0], (image * 2 - 1).to(torch.bfloat16))
    half.decoder.conv_out.weight.zero_()
    half.decoder.conv_out.bias.fill_(0.30078125)
    assert set(half.decode(torch.zeros(1, 16, 2, 2, dtype=torch.bfloat16)).flatten().tolist()) == {0.650390625}


def test_methods_keep_no_graph(make_autoencoder: Make, generator: torch.Generator) -> None:
    model = make_autoencoder().requires_grad_(True)
    latent = model.encode(torch.rand(1, 3, 32, 32, generator=generator))
    assert not latent.requires_grad and not model.decode(latent).requires_grad
    assert model.encode_pixels(torch.zeros(1, 3, 32, 32)).requires_grad  # training needs it


def test_operations_are_injected(make_autoencoder: Make) -> None:
    made: list[str] = []

    class Counting:
        @staticmethod
        def Conv2d(*args: Any, **kw: Any) -> nn.Module:  # noqa: N802
            made.append("conv")
            return Conv2d(*args, **kw)

        @staticmethod
        def GroupNorm(*args: Any, **kw: Any) -> nn.Module:  # noqa: N802
            made.append("norm")
            return GroupNorm(*args, **kw)

    model = AutoEncoder(make_autoencoder().params, operations=Counting, device="meta", dtype=torch.bfloat16)
    leaves = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.GroupNorm))]
    assert len(made) == len(leaves) > 20
    assert all(p.is_meta and p.dtype == torch.bfloat16 for p in model.parameters())


# --- wrong input ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 1, 32, 32), (1, 32, 32, 3)], ids=str)
def test_encode_refuses_another_shape(make_autoencoder: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"expected \(B, 3, H, W\)"):
        make_autoencoder().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(1, 3, 15, 64), (1, 3, 64, 1)], ids=str)
def test_encode_refuses_less_than_a_latent_pixel(make_autoencoder: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="16 px"):
        make_autoencoder().encode(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(16, 4, 4), (1, 4, 4, 4), (1, 64, 4, 4)], ids=str)
def test_decode_refuses_another_shape(make_autoencoder: Make, shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"expected \(B, 16, h, w\)"):
        make_autoencoder().decode(torch.zeros(shape))


@pytest.mark.parametrize("wrong", [{"stride": 0}, {"stride": 3}, {"shift": 2}, {"norm_groups": 7}], ids=str)
def test_impossible_geometry_is_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=name):
        replace(AutoEncoderParams(), **wrong)
