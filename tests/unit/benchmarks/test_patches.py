"""Overlapping patches: the same models, blended as tiles are, and how far that is from one pass."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from benchmarks.patches import Cut, PatchStages, difference, seams
from benchmarks.stage_clock import StageClock, TimedStages
from benchmarks.tiles import one_pass, places
from op4ksr_core import AutoEncoder, Flux, OneStepOptions, OneStepSettings, OptionError, Target, upscale
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.one_step import CoreStages, Frame, Stages, run


def quiet(done: int, total: int) -> None:
    """Tells nobody."""


class Still(Stages):
    """Stages that hand the picture through, so that only cutting and blending are left."""

    ratio = 1

    def encode(self, image: Tensor, tell: OnProgress) -> Tensor:
        return image

    transform = decode = encode


def patched(image: Tensor, stages: object, cut: Cut, options: OneStepOptions, vae_only: bool = False) -> Tensor:
    size = options.target.size(*image.shape[-2:])
    chosen = OneStepOptions(options.target, options.color, options.fidelity, vae_only=True)
    return run(image, PatchStages(stages, cut, size, vae_only), chosen)  # pyright: ignore


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("vae_only", [False, True])
@pytest.mark.parametrize("scale", [2, 1.9])
def test_one_patch_over_all_is_the_patch_free_run(
    image: Tensor,
    make_flux: Callable[..., Flux],
    make_autoencoder: Callable[..., AutoEncoder],
    scale: float,
    vae_only: bool,
) -> None:
    flux, autoencoder = make_flux(), make_autoencoder()
    options = OneStepOptions(Target(scale=scale), vae_only=vae_only)
    expected = upscale(image, flux, autoencoder, options)
    result = patched(image, CoreStages(flux, autoencoder), Cut(80, 16), options, vae_only)
    torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)


def test_patches_are_cut_from_what_the_models_own_base_enlarges(
    image: Tensor, make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    """Of a model that adds detail: its patches add that to the whole picture's base, and differ by the detail alone."""
    core = CoreStages(make_flux(settings=OneStepSettings(output="detail")), make_autoencoder())
    options = OneStepOptions(Target(scale=2), color="none", fidelity=0)
    frame = Frame(48, 80, 32, 32)
    for stages in (core, TimedStages(core, StageClock(image.device))):
        cut = PatchStages(stages, Cut(80, 16), options.target.size(24, 40))
        assert torch.equal(cut.enlarge(image, frame, quiet), core.enlarge(image, frame, quiet))
    assert not torch.equal(core.enlarge(image, frame, quiet), Still().enlarge(image, frame, quiet))


def test_several_patches_are_not(
    image: Tensor, make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    core, options = (
        CoreStages(make_flux(), make_autoencoder()),
        OneStepOptions(Target(scale=2), color="none", fidelity=0),
    )
    assert (patched(image, core, Cut(32, 8), options) - run(image, core, options)).abs().max() > 1e-4


@pytest.mark.parametrize("cut", [Cut(16, 0), Cut(16, 4), Cut(17, 5), Cut(30, 29)], ids=str)
def test_the_blending_weights_sum_to_one(image: Tensor, cut: Cut) -> None:
    ones = one_pass(torch.rand(1, 3, 50, 33), torch.ones_like, (cut.side, cut.side), cut.overlap, 1)
    torch.testing.assert_close(ones, torch.ones(1, 3, 50, 33))
    options = OneStepOptions(Target(scale=1.3))
    torch.testing.assert_close(patched(image, Still(), cut, options), run(image, Still(), options))


def test_places_cover_the_picture_once_less_the_overlap() -> None:
    assert places((5, 10), (5, 4), 1) == [(0, 0, 5, 4), (0, 3, 5, 4), (0, 6, 5, 4)]
    assert Cut().sizes((4096, 4096)) == {(1024, 1024): 16, (1024, 512): 4, (512, 1024): 4, (512, 512): 1}
    assert Cut(64, 8).sizes((40, 64)) == {(40, 64): 1}


def test_seams_are_where_patches_begin_and_end() -> None:
    assert seams((5, 10), Cut(6, 2)) == ([], [4, 6])


def test_a_step_is_found_at_its_seam_and_nowhere_else() -> None:
    reference = torch.rand(1, 3, 20, 24, generator=torch.Generator().manual_seed(0)) / 2
    stepped = reference.clone()
    stepped[..., 12:] += 10 / 255
    found = difference(stepped, reference, Cut(12, 0))
    assert found["largest step at seams"] == pytest.approx(10, rel=1e-4)
    assert found["largest step elsewhere"] < 1e-3
    assert found["RMS"] == pytest.approx(10 / 2**0.5, rel=1e-4) and found["largest"] == pytest.approx(10, rel=1e-4)
    elsewhere = difference(stepped, reference, Cut(10, 0))
    assert elsewhere["largest step at seams"] < 1e-3 and elsewhere["largest step elsewhere"] > 9
    assert difference(stepped, reference, Cut(64, 0))["RMS step at seams"] == 0


@pytest.mark.parametrize("overlap", [-1, 16, 40])
def test_an_overlap_that_leaves_no_step_is_refused(overlap: int) -> None:
    with pytest.raises(OptionError, match=f"from 0 to less than the side of 16 px, got {overlap}"):
        Cut(16, overlap)
