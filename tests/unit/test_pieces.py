"""The transformer in pieces: where windows lie, what they weigh, and parity with the published tiling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import published_tiling as published
import pytest
import torch
from torch import Tensor, nn

from op4ksr_core import AutoEncoder, Flux, OneStepOptions, OptionError, Target, upscale
from op4ksr_core.models.flux import OnProgress
from op4ksr_core.models.latent import LATENT_SCALE, LATENT_SHIFT
from op4ksr_core.one_step import CoreStages, run
from op4ksr_core.pieces import Pieces, Window, in_pieces, window_weights, windows

F8 = 8
#: Of the largest magnitude.
TOLERANCE = 1e-4


def quiet(done: int, total: int) -> None:
    """No progress."""


# --- where they lie ---------------------------------------------------------------------------


def test_4096_px_on_f8_are_49_windows_of_64_tokens() -> None:
    found = windows((256, 256), Pieces(), F8)
    assert len(found) == 49 and {(w.rows, w.columns) for w in found} == {(64, 64)}
    assert sorted({w.top for w in found}) == [0, 32, 64, 96, 128, 160, 192] == sorted({w.left for w in found})


@pytest.mark.parametrize("overlap", [0, 16, 32, 48, 96, 112])
@pytest.mark.parametrize("grid", [(9, 33), (8, 16), (17, 8), (64, 9)], ids=str)
def test_places_are_the_published_ones_and_cover_the_grid(grid: tuple[int, int], overlap: int) -> None:
    found = windows(grid, Pieces(128, overlap), F8)
    expected = [published.starts(side, 8, overlap // 16) for side in grid]
    assert [(w.top, w.left) for w in found] == [(top, left) for top in expected[0] for left in expected[1]]
    covered = torch.zeros(grid)
    for window in found:
        covered[window.top : window.top + window.rows, window.left : window.left + window.columns] += 1
    assert covered.min() >= 1 and {(w.rows, w.columns) for w in found} == {(8, 8)}


def test_a_side_no_longer_than_a_window_is_one_window() -> None:
    pieces = Pieces(128, 64)
    assert windows((5, 8), pieces, F8) == [Window(0, 0, 5, 8)]
    assert windows((5, 20), pieces, F8) == [Window(0, left, 5, 8) for left in (0, 4, 8, 12)]
    assert windows((4, 4), Pieces(128, 64), 16) == [Window(0, 0, 4, 4)]


@pytest.mark.parametrize(("height", "width"), [(16, 16), (6, 16), (16, 10)], ids=str)
def test_weights_are_the_published_bell(height: int, width: int) -> None:
    """Its middle is (width - 1) / 2 along a row, but height / 2 along a column; variance 0.01 of the side squared."""

    def bell(position: int, middle: float, side: int) -> float:
        return math.exp(-((position - middle) ** 2) / side**2 / (2 * 0.01)) / math.sqrt(2 * math.pi * 0.01)

    expected = np.outer(
        [bell(y, height / 2, height) for y in range(height)], [bell(x, (width - 1) / 2, width) for x in range(width)]
    )
    found = window_weights(height, width)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)
    assert not torch.allclose(found, found.flip(0)) and torch.equal(found, found.flip(1))


def test_blending_results_is_blending_velocities(generator: torch.Generator) -> None:
    """Each window's ``z - sigma v``, raw, against velocities that are blended before the step."""
    raw = torch.randn(1, 16, 24, 40, generator=generator)
    pieces, sigma = Pieces(128, 64), 0.4
    latent = (raw - LATENT_SHIFT) * LATENT_SCALE

    def velocity(window: Tensor) -> Tensor:
        return window.tanh().cumsum(-1)

    def transform(part: Tensor, _: OnProgress) -> Tensor:
        part = (part - LATENT_SHIFT) * LATENT_SCALE
        return (part - sigma * velocity(part)) / LATENT_SCALE + LATENT_SHIFT

    total, weight = torch.zeros_like(raw).double(), torch.zeros(24, 40).double()
    for window in windows((12, 20), pieces, F8):
        rows = slice(2 * window.top, 2 * (window.top + window.rows))
        columns = slice(2 * window.left, 2 * (window.left + window.columns))
        bell = window_weights(16, 16).double()
        total[..., rows, columns] += velocity(latent[..., rows, columns]).double() * bell
        weight[rows, columns] += bell
    expected = (latent - sigma * total / weight) / LATENT_SCALE + LATENT_SHIFT
    found = in_pieces(raw, transform, pieces, F8, quiet)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# --- parity with the published inference, on diffusers' own transformer ------------------------


@pytest.fixture(scope="module")
def pair(make_diffusers_flux: Callable[..., nn.Module], tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Flux]:
    return published.strong_pair(make_diffusers_flux, tmp_path_factory.mktemp("pieces"))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.abs().max())


@pytest.mark.parametrize("grid", [(16, 16), (12, 28), (18, 10)], ids=str)
def test_latents_in_pieces_are_the_published_ones(
    pair: tuple[Any, Flux], make_autoencoder: Callable[..., AutoEncoder], grid: tuple[int, int]
) -> None:
    theirs, ours = pair
    raw = torch.randn(1, 16, 2 * grid[0], 2 * grid[1], generator=torch.Generator().manual_seed(2))
    stages = CoreStages(ours, make_autoencoder(stride=1))
    found = in_pieces(raw, stages.transform, Pieces(128, 64), stages.ratio, quiet)
    expected = published.in_tiles(theirs, raw, ours.settings, 16, 8)
    assert relative(found, expected) <= TOLERANCE
    whole = stages.transform(raw, quiet)
    assert relative(whole, expected) > 100 * TOLERANCE  # pieces show
    assert relative(in_pieces(raw, stages.transform, Pieces(128, 32), F8, quiet), expected) > 10 * TOLERANCE


def test_a_picture_no_larger_than_a_window_is_the_published_whole(
    pair: tuple[Any, Flux], make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    theirs, ours = pair
    raw = torch.randn(1, 16, 12, 16, generator=torch.Generator().manual_seed(3))
    stages = CoreStages(ours, make_autoencoder(stride=1))
    latent = (raw - 0.1159) * 0.3611
    step = latent - ours.settings.sigma * published.velocity(theirs, latent, ours.settings)
    found = in_pieces(raw, stages.transform, Pieces(128, 64), F8, quiet)
    assert torch.equal(found, stages.transform(raw, quiet))
    assert relative(found, step / 0.3611 + 0.1159) <= TOLERANCE


# --- in a run ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def models(make_flux: Callable[..., Flux], make_autoencoder: Callable[..., AutoEncoder]) -> tuple[Flux, AutoEncoder]:
    flux, autoencoder = make_flux(seed=1), make_autoencoder(loud=True, stride=1)
    flux.final_layer.linear.weight.mul_(8)
    return flux, autoencoder


def picture(height: int, width: int, count: int = 1) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1))


def options(pieces: Pieces | None, **changes: Any) -> OneStepOptions:
    return OneStepOptions(Target(scale=2), color="none", fidelity=0.0, pieces=pieces, **changes)


def test_pieces_no_smaller_than_the_picture_are_the_whole_to_the_bit(models: tuple[Flux, AutoEncoder]) -> None:
    low = picture(40, 60)
    whole = upscale(low, *models, options(None))
    assert torch.equal(upscale(low, *models, options(Pieces(128, 0))), whole)
    cut = upscale(low, *models, options(Pieces(64, 32)))
    assert cut.shape == whole.shape and (cut - whole).abs().max() > 0.01


def test_a_picture_shorter_than_a_window(models: tuple[Flux, AutoEncoder]) -> None:
    assert upscale(picture(10, 60), *models, options(Pieces(48, 16))).shape == (1, 3, 20, 120)


def test_vae_only_has_no_pieces(models: tuple[Flux, AutoEncoder]) -> None:
    low = picture(20, 60)
    cut = upscale(low, *models, options(Pieces(32, 16), vae_only=True))
    assert torch.equal(cut, upscale(low, *models, options(None, vae_only=True)))


def test_every_picture_of_a_batch_is_cut(models: tuple[Flux, AutoEncoder]) -> None:
    both = picture(20, 30, 2)
    found = upscale(both, *models, options(Pieces(32, 16)))
    for index in range(2):
        assert torch.equal(found[index], upscale(both[index : index + 1], *models, options(Pieces(32, 16)))[0])


def test_progress_runs_over_the_windows_and_never_back(models: tuple[Flux, AutoEncoder]) -> None:
    heard: list[tuple[int, int]] = []
    upscale(picture(40, 60), *models, options(Pieces(64, 32)), on_progress=lambda *now: heard.append(now))
    shares = [done / total for done, total in heard]
    assert shares == sorted(shares) and shares[-1] == 1
    own: list[tuple[int, int]] = []
    stages = CoreStages(*models)
    raw = torch.randn(1, 16, 8, 16, generator=torch.Generator().manual_seed(1))
    in_pieces(raw, stages.transform, Pieces(64, 32), F8, lambda *now: own.append(now))
    assert own[:4] == [(0, 3), (1, 9), (2, 9), (3, 9)] and own[-1] == (9, 9)  # three windows of three blocks


@pytest.mark.parametrize("last", [(1, 3), (5, 9)], ids=["between windows", "inside one"])
def test_pieces_are_cancelled(models: tuple[Flux, AutoEncoder], last: tuple[int, int]) -> None:
    class CancelledError(Exception):
        pass

    def tell(*now: int) -> None:
        heard.append(now)
        if now == last:
            raise CancelledError

    heard: list[tuple[int, ...]] = []
    raw = torch.randn(1, 16, 8, 16, generator=torch.Generator().manual_seed(1))
    with pytest.raises(CancelledError):
        in_pieces(raw, CoreStages(*models).transform, Pieces(64, 32), F8, tell)
    assert heard[-1] == last


def test_bfloat16_is_summed_in_float32() -> None:
    raw = torch.full((1, 16, 8, 40), 3.0, dtype=torch.bfloat16)
    found = in_pieces(raw, lambda part, _: part, Pieces(64, 48), F8, quiet)
    assert found.dtype == torch.float32 and (found - 3).abs().max() < 1e-6


# --- what is refused --------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "overlap"), [(0, 0), (-16, 0), (64, 64), (64, 80), (64, -16)])
def test_sizes_that_are_none(size: int, overlap: int) -> None:
    with pytest.raises(OptionError, match=f"got a size of {size} and an overlap of {overlap}; take half"):
        Pieces(size, overlap)


@pytest.mark.parametrize(
    ("given", "ratio", "take"),
    [((1000, 512), 8, "take 992 and 512"), ((1024, 500), 8, "take 1024 and 496")]
    + [((1040, 520), 16, "take 1024 and 512"), ((20, 16), 16, "take 32 and 0"), ((8, 0), 8, "take 16 and 0")],
    ids=str,
)
def test_pieces_are_whole_tokens(given: tuple[int, int], ratio: int, take: str) -> None:
    with pytest.raises(OptionError, match=f"multiples of {2 * ratio} px.* {take}$"):
        windows((99, 99), Pieces(*given), ratio)
    size, overlap = (int(word) for word in take.split()[1::2])
    assert windows((99, 99), Pieces(size, overlap), ratio)


def test_pieces_of_no_whole_tokens_are_refused_before_anything_is_computed(models: tuple[Flux, AutoEncoder]) -> None:
    class Untouched(CoreStages):
        def enlarge(self, *given: Any) -> Tensor:
            raise AssertionError("computed")

    with pytest.raises(OptionError, match="multiples of 16 px"):
        run(picture(20, 30), Untouched(*models), options(Pieces(40, 8)))
