"""Any autoencoder of LDM's layout in strips: what is read off it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import Conv2d

from op4ksr_core import AutoEncoder, AutoEncoderParams, ImageError, OptionError
from op4ksr_core.vae.bounded import BoundedAutoEncoder, read_params
from op4ksr_core.vae.strips import StripSettings

Make = Callable[..., AutoEncoder]


@pytest.mark.parametrize(
    "params",
    [{}, {"stride": 1}, {"shift": 1}, {"widths": (8, 16), "mid_attention": False}, {"layers_per_block": 2}],
    ids=str,
)
def test_the_geometry_is_read_off_the_modules(make_autoencoder: Make, params: dict[str, Any]) -> None:
    model = make_autoencoder(**params)
    assert read_params(model.encoder, model.decoder) == model.params


def spoilt(model: AutoEncoder) -> dict[str, Callable[[], Any]]:
    """Ways in which a VAE looks like ours and is not."""
    block, decoder = model.decoder.up[0].block[0], model.decoder  # pyright: ignore
    return {
        "attention between its blocks": lambda: setattr(decoder.up[1], "attn", nn.ModuleList([nn.Identity()])),
        "3x3 shortcuts": lambda: setattr(block, "conv_shortcut", nn.Identity()),
        "other convolutions": lambda: setattr(block, "conv1", Conv2d(16, 8, 5, padding=2)),
        "other norms": lambda: setattr(block, "norm2", nn.BatchNorm2d(8)),
        "a tanh": lambda: setattr(decoder, "tanh_out", True),
        "16x by another node pack": lambda: setattr(model.encoder.conv_in, "stride", (1, 1)),
        "changed by another node pack": lambda: decoder.conv_out.register_forward_pre_hook(lambda *_: None),
        "an encoder unlike its decoder": lambda: delattr(model.encoder.down, "1"),
        "other layers": lambda: delattr(decoder, "mid"),
        "parts of another kind .time_stack": lambda: block.add_module("time_stack", nn.Identity()),
        "by another node pack .its padding": lambda: setattr(decoder.up[1].upsample.conv, "padding_mode", "circular"),
        "pack, so it": lambda: setattr(block.conv2, "_conv_forward", lambda *_: None),
        "node pack, so it": lambda: setattr(decoder.norm_out, "weight_function", [abs]),
        "another node pack, so it": lambda: block.register_forward_hook(lambda *_: None),
    }


CASES = ["attention between its blocks", "3x3 shortcuts", "other convolutions", "other norms", "a tanh"]
CASES += ["16x by another node pack", "changed by another node pack", "an encoder unlike its decoder", "other layers"]
CASES += ["parts of another kind .time_stack", "by another node pack .its padding"]
CASES += ["pack, so it", "node pack, so it", "another node pack, so it"]


@pytest.mark.parametrize("case", CASES)
def test_what_strips_would_get_wrong_is_refused(make_autoencoder: Make, case: str) -> None:
    model = make_autoencoder()
    spoilt(model)[case]()
    with pytest.raises(OptionError, match=case) as error:
        BoundedAutoEncoder(model.encoder, model.decoder)
    assert "choose a Flux-type picture VAE" in str(error.value) and "\n" not in str(error.value)


def test_a_host_reads_the_weights_that_it_changes_as_it_casts_them(make_autoencoder: Make) -> None:
    """Norms and upsampling convolutions are not called in strips: their weights are what the host says they are."""
    model, latent = make_autoencoder(), torch.randn(1, 16, 3, 4, generator=torch.Generator().manual_seed(1))
    pixels = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(2)) * 2 - 1
    called = [half.mid.attn_1.norm for half in (model.encoder, model.decoder)]
    modules = [m for m in model.modules() if isinstance(m, nn.GroupNorm) and m not in called]
    modules.append(model.decoder.conv_out)
    modules += [level.upsample.conv for level in model.decoder.up if hasattr(level, "upsample")]

    def doubled(module: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return module.weight * 2, module.bias + 0.25

    def encode(bounded: BoundedAutoEncoder) -> torch.Tensor:
        return bounded.encode(pixels, lambda strip: strip, torch.device("cpu"), torch.float32)

    setattr(modules[0], "weight_function", [abs])  # noqa: B010
    bounded = BoundedAutoEncoder(model.encoder, model.decoder, read_weights=doubled)
    found = encode(bounded), bounded.decode(latent)
    delattr(modules[0], "weight_function")
    plain = BoundedAutoEncoder(model.encoder, model.decoder)
    before = encode(plain), plain.decode(latent)
    with torch.no_grad():
        for module in modules:
            module.weight.mul_(2)
            module.bias.add_(0.25)
    after = encode(plain), plain.decode(latent)
    for ours, wanted, unchanged in zip(found, after, before, strict=True):
        assert torch.equal(ours, wanted) and not torch.allclose(ours, unchanged, atol=1e-2)


def test_a_change_after_the_start_is_seen(make_autoencoder: Make) -> None:
    model = make_autoencoder()
    bounded = BoundedAutoEncoder(model.encoder, model.decoder)
    bounded.decode(torch.zeros(1, 16, 2, 2))
    model.decoder.conv_in.padding_mode = "circular"
    with pytest.raises(OptionError, match="its padding"):
        bounded.decode(torch.zeros(1, 16, 2, 2))
    with pytest.raises(OptionError, match="its padding"):
        bounded.encode(torch.zeros(1, 3, 32, 32), lambda x: x, torch.device("cpu"), torch.float32)


def test_each_half_has_its_own_widths(make_autoencoder: Make) -> None:
    model, narrow = make_autoencoder(), make_autoencoder(widths=(8, 8, 8, 8))
    bounded = BoundedAutoEncoder(model.encoder, narrow.decoder)
    assert bounded.params_of("encode").widths == (8, 16, 16, 16)
    assert bounded.params_of("decode").widths == (8, 8, 8, 8)


def test_a_picture_below_one_latent_pixel_is_refused_in_words(make_autoencoder: Make) -> None:
    model = make_autoencoder()
    with pytest.raises(ImageError, match="4x40 px is smaller than one latent pixel"):
        model.encode_strips(torch.zeros(1, 3, 40, 4))


def test_no_gradients_are_kept(make_autoencoder: Make) -> None:
    model = make_autoencoder().requires_grad_(True)
    latent = model.encode_strips(torch.zeros(1, 3, 32, 32))
    assert not latent.requires_grad and not model.decode_strips(latent).requires_grad


def test_no_modules_at_all_are_refused() -> None:
    with pytest.raises(OptionError, match="exact strips"):
        BoundedAutoEncoder(None, None)


def test_pixels_are_prepared_strip_by_strip(make_autoencoder: Make) -> None:
    """No whole copy of the picture in the computing dtype."""
    model = make_autoencoder()
    heights: list[int] = []

    def prepare(strip: torch.Tensor) -> torch.Tensor:
        heights.append(strip.shape[2])
        return strip

    place = torch.device("cpu"), torch.float32
    model.bounded.encode(torch.zeros(1, 3, 128, 32), prepare, *place, strips=StripSettings(8))
    assert max(heights) < 40 < sum(heights)


def test_params_may_be_given(make_autoencoder: Make) -> None:
    model = make_autoencoder()
    params = AutoEncoderParams(widths=(8, 16, 16, 16), layers_per_block=1, norm_groups=4)
    assert BoundedAutoEncoder(model.encoder, model.decoder, params).params is params
