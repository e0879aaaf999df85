"""Which geometry the round trips speak for, and when a file's is doubted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import op4ksr_core.weights.probe as probing
from op4ksr_core import (
    BUNDLED_AUTOENCODER,
    AutoEncoder,
    AutoEncoderParams,
    ImageError,
    load_autoencoder,
    save_autoencoder,
)
from op4ksr_core.images.metrics import psnr
from op4ksr_core.images.resize import resize
from op4ksr_core.weights.description import describe_autoencoder
from op4ksr_core.weights.probe import STRIDES_AND_SHIFTS, Fit, doubt, probe, sample_picture, set_geometry, verdict

Make = Callable[..., AutoEncoder]


class Trained(AutoEncoder):
    """Stands in for trained weights: perfect at one geometry, blurred at the other stride, moved at the other shift."""

    def __init__(self, true: tuple[int, int], **assumed: int) -> None:
        super().__init__(AutoEncoderParams((8,), 1, norm_groups=4, **assumed), device="meta")
        self.true = true
        self.seen: list[tuple[int, ...]] = []

    def encode(self, image: Tensor) -> Tensor:
        self.seen.append(tuple(image.shape))
        return image

    def decode(self, latent: Tensor) -> Tensor:
        height, width = latent.shape[-2:]
        if self.params.stride != self.true[0]:
            return resize(resize(latent, height // 8, width // 8), height, width)
        return latent if self.params.shift == self.true[1] else latent.roll((1, 1), (-2, -1))


# --- geometry ---------------------------------------------------------------------------------


@pytest.mark.parametrize("geometry", STRIDES_AND_SHIFTS)
def test_set_geometry_is_the_model_of_that_geometry(
    make_autoencoder: Make, generator: torch.Generator, geometry: tuple[int, int]
) -> None:
    stride, shift = geometry
    other, built = make_autoencoder(stride=3 - stride), make_autoencoder(stride=stride, shift=shift)
    set_geometry(other, stride, shift)
    assert other.params == built.params and other.params.ratio == 8 * stride
    image = torch.rand(1, 3, 32, 48, generator=generator)
    assert torch.equal(other.decode(other.encode(image)), built.decode(built.encode(image)))


def test_probe_measures_every_geometry_as_a_round_trip(make_autoencoder: Make, natural: Callable[..., Tensor]) -> None:
    image = natural(64, 96)
    fits = probe(make_autoencoder(), image)
    assert [(fit.stride, fit.shift) for fit in fits] == [(2, 0), (2, 1), (1, 0)]
    for fit in fits:
        model = make_autoencoder(stride=fit.stride, shift=fit.shift)
        assert fit.psnr == psnr(model.decode(model.encode(image)), image)
        assert -1 <= fit.detail <= 1
    assert len({fit.psnr for fit in fits}) == 3


def test_probe_leaves_the_model_as_it_was(make_autoencoder: Make, natural: Callable[..., Tensor]) -> None:
    model = make_autoencoder(shift=1)
    probe(model, natural(32, 32))
    assert (model.params.stride, model.params.shift, model.decoder.stride, model.decoder.shift) == (2, 1, 2, 1)
    assert model.encoder.conv_in.stride == (2, 2)


def test_probe_leaves_the_model_as_it_was_when_it_fails(
    make_autoencoder: Make, natural: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_autoencoder(shift=1)

    def fail(*args: Any) -> float:
        raise RuntimeError("out of memory")

    monkeypatch.setattr(probing, "psnr", fail)
    with pytest.raises(RuntimeError):
        probe(model, natural(32, 32))
    assert (model.params.stride, model.params.shift, model.encoder.conv_in.stride) == (2, 1, (2, 2))


@pytest.mark.parametrize(
    ("size", "probed"), [((600, 700), (512, 512)), ((100, 2000), (96, 512)), ((33, 64), (32, 64)), ((32, 32), (32, 32))]
)
def test_only_the_middle_in_whole_tokens_is_probed(size: tuple[int, int], probed: tuple[int, int]) -> None:
    model = Trained((2, 0))
    image = torch.zeros(1, 3, *size)
    top, left = (size[0] - probed[0]) // 2, (size[1] - probed[1]) // 2
    image[..., top : top + probed[0], left : left + probed[1]] = 0.5  # a border would cost PSNR at shift 1
    assert [fit.psnr for fit in probe(model, image)][:2] == [float("inf")] * 2
    assert set(model.seen) == {(1, 3, *probed)}


@pytest.mark.parametrize("size", [(31, 64), (64, 1), (20, 20)])
def test_a_picture_too_small_to_probe_is_refused(make_autoencoder: Make, size: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="at least 32x32"):
        probe(make_autoencoder(), torch.zeros(1, 3, *size))


# --- verdict ----------------------------------------------------------------------------------


@pytest.mark.parametrize("assumed", [(2, 0), (2, 1), (1, 0)])
@pytest.mark.parametrize("true", STRIDES_AND_SHIFTS)
def test_the_verdict_is_the_geometry_trained_for(true: tuple[int, int], assumed: tuple[int, int]) -> None:
    fit = verdict(probe(Trained(true, stride=assumed[0], shift=assumed[1]), sample_picture()))
    assert fit is not None and (fit.stride, fit.shift) == true


def test_no_detail_at_any_geometry_is_no_verdict() -> None:
    assert verdict([Fit(2, 0, 30.0, 0.01), Fit(2, 1, 29.0, 0.04), Fit(1, 0, 31.0, 0.1)]) is None


def test_better_psnr_at_stride_1_alone_does_not_make_an_8x_model() -> None:
    fit = verdict([Fit(2, 0, 24.0, 0.2), Fit(2, 1, 22.0, 0.05), Fit(1, 0, 26.0, 0.6)])
    assert fit == Fit(2, 0, 24.0, 0.2)


def test_random_weights_tell_nothing(make_autoencoder: Make) -> None:
    assert verdict(probe(make_autoencoder(), sample_picture())) is None


def test_the_sample_picture_is_a_photo() -> None:
    picture = sample_picture(64)
    assert picture.shape == (1, 3, 64, 64) and 0 <= picture.min() < picture.max() <= 1
    assert picture.std() > 0.05


# --- doubt ------------------------------------------------------------------------------------


@pytest.fixture
def silent_file(tmp_path: Path, make_autoencoder: Make) -> Path:
    """A file that says nothing of its stride."""
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, make_autoencoder(widths=(32, 32), norm_groups=32))
    save_file(load_file(path), path)
    return path


def test_an_8x_model_taken_for_16x_is_doubted(silent_file: Path) -> None:
    sentence = doubt(describe_autoencoder(silent_file), Trained((1, 0), stride=2))
    assert sentence is not None and "looks like an 8x VAE" in sentence


def test_a_model_that_fits_is_not_doubted(silent_file: Path) -> None:
    assert doubt(describe_autoencoder(silent_file), Trained((2, 0), stride=2)) is None
    assert doubt(describe_autoencoder(silent_file), Trained((2, 1), stride=2)) is None


@pytest.mark.slow
def test_random_weights_are_not_doubted(silent_file: Path) -> None:
    assert doubt(describe_autoencoder(silent_file), load_autoencoder(silent_file)) is None


def test_a_stated_stride_is_never_doubted_nor_probed(silent_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any) -> None:
        raise AssertionError("probed")

    monkeypatch.setattr(probing, "probe", fail)
    assert doubt(describe_autoencoder(silent_file, stride=2), Trained((1, 0), stride=2)) is None
    found = describe_autoencoder(silent_file)
    with pytest.raises(AssertionError, match="probed"):
        doubt(found, Trained((1, 0), stride=2))
    assert doubt(replace(found, assumed=()), Trained((1, 0), stride=2)) is None


@pytest.mark.skipif(not BUNDLED_AUTOENCODER.exists(), reason="the bundled weights are not here")
def test_the_bundled_weights_are_known_for_what_they_are() -> None:
    model = load_autoencoder(BUNDLED_AUTOENCODER)
    fit = verdict(probe(model, sample_picture()))
    assert fit is not None and (fit.stride, fit.shift) == (model.params.stride, model.params.shift) == (2, 0)
