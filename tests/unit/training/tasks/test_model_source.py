"""Flux's own 8x VAE in a run: no tensor tells it from a 16x one, so the config says it, or the run asks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import save_file
from unit.training.test_trainer import TINY_FLUX, config, folder, short, train  # noqa: F401 - folder is a fixture

from op4ksr_core import OptionError, load_flux, save_autoencoder, save_flux
from op4ksr_core.errors import UnsupportedCheckpointError
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.data.latent_cache import LatentCache
from op4ksr_core.training.sigma import suggest_sigma
from op4ksr_core.training.step_plan import geometry_of
from op4ksr_core.training.tasks import model_source
from op4ksr_core.training.tasks.autoencoder import AutoencoderTask
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.one_step import OneStepTask

DOUBT = "a test picture keeps its finest detail at stride 1 only (correlation 0.40): this looks like an 8x VAE"


@pytest.fixture
def bare(folder: Path, make_autoencoder) -> Path:  # noqa: F811
    """``vae.safetensors`` of that folder says nothing of itself, as Flux's ``ae.safetensors``."""
    model = make_autoencoder(widths=(32, 32, 32, 32), norm_groups=32, stride=1)
    save_file(model.state_dict(), folder / "vae.safetensors")
    return folder


def starting(kind: str, folder: Path, more: str) -> str:  # noqa: F811
    start = f'start = "{(folder / "vae.safetensors").as_posix()}"\n' if kind == "autoencoder" else ""
    return config(folder, kind, model=start + more)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["one_step", "lora", "autoencoder"])
def test_the_config_says_how_much_a_silent_file_compresses(bare: Path, kind: str) -> None:
    for stride, ratio in ((0, 16), (1, 8), (2, 16)):
        task = make_task(parse_config(starting(kind, bare, f"stride = {stride}\n")))
        assert isinstance(task, OneStepTask | AutoencoderTask)
        model = task.autoencoder if isinstance(task, OneStepTask) else task.model
        assert model.params.ratio == ratio


@pytest.mark.parametrize("kind", ["one_step", "lora", "autoencoder"])
def test_a_file_that_looks_like_8x_is_not_taken_for_16x(bare: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(model_source, "doubt", lambda found, model: DOUBT if "stride" in found.assumed else None)
    found = parse_config(starting(kind, bare, ""))
    for attempt in (make_task, *([] if kind == "autoencoder" else [suggest_sigma])):
        with pytest.raises(UnsupportedCheckpointError) as caught:
            attempt(found)
        assert str(caught.value) == (
            f"{bare / 'vae.safetensors'}: {DOUBT}; say which with model.stride, 1 for 8x or 2 for 16x"
        )
    for stride in (1, 2):
        make_task(parse_config(starting(kind, bare, f"stride = {stride}\n")))


def test_a_run_on_8x_trains_and_is_planned_at_8x(bare: Path) -> None:
    text = config(bare, model="stride = 1\n", train="grid_every = 2\ngrid_tokens = [8]\ngrid_pictures = 2\n")
    assert load_flux(train(short(text))).settings.txt is not None
    assert geometry_of(parse_config(text)).autoencoder.ratio == 8
    assert suggest_sigma(parse_config(text), 2).errors != suggest_sigma(parse_config(config(bare)), 2).errors


def test_what_the_config_says_wins_over_the_file(folder: Path, make_autoencoder) -> None:  # noqa: F811
    save_autoencoder(folder / "vae.safetensors", make_autoencoder(stride=1))
    for stride, ratio in ((0, 8), (2, 16)):
        task = make_task(parse_config(config(folder, model=f"stride = {stride}\n")))
        assert isinstance(task, OneStepTask) and task.autoencoder.params.ratio == ratio


def test_encoded_crops_are_not_shared_between_strides(bare: Path) -> None:
    text = config(bare, data="cached = 2\n")
    names = {
        LatentCache(parse_config(text, changes=[f"model.stride = {stride}"]), bare / "vae.safetensors").name
        for stride in (0, 1, 2)
    }
    assert len(names) == 3


def test_a_grid_of_no_whole_pictures_is_told_with_the_autoencoder_at_hand(bare: Path) -> None:
    """4 tokens of a 16x VAE are a picture of 128 px; of an 8x one they are 64 px."""
    text = config(bare, train="grid_every = 2\ngrid_tokens = [4]\ngrid_pictures = 1\n")
    make_task(parse_config(text))
    with pytest.raises(OptionError) as caught:
        make_task(parse_config(text, changes=["model.stride = 1"]))
    assert str(caught.value) == (
        "train.grid_tokens: 4 tokens are no whole number of pictures of 128 px with this 8x autoencoder; change one of "
        "the two"
    )


def test_a_stride_that_says_nothing_is_refused(folder: Path) -> None:  # noqa: F811
    with pytest.raises(OptionError) as caught:
        parse_config(config(folder, "autoencoder", model="stride = 1\n"))
    assert str(caught.value) == (
        "config: model.stride: is for an existing file, got 1, and a new autoencoder compresses 16x; set it to 0"
    )
    with pytest.raises(OptionError, match="^config: model.stride: expected one of 0, 1 or 2, got 3; choose one$"):
        parse_config(config(folder, model="stride = 3\n"))


@pytest.mark.parametrize("kind", ["one_step", "lora"])
def test_a_model_that_adds_detail_is_not_trained_as_one_that_makes_pictures(folder: Path, kind: str) -> None:  # noqa: F811
    start = folder / "flux.safetensors"
    flux = load_flux(start)
    more = f'start = "{start.as_posix()}"\n' if kind == "one_step" else ""
    text = config(folder, kind, model=more).replace(TINY_FLUX, "")
    make_task(parse_config(text))
    flux.settings = replace(flux.settings, output="detail")
    save_flux(start, flux)
    for attempt in (make_task, geometry_of):
        with pytest.raises(UnsupportedCheckpointError) as caught:
            attempt(parse_config(text))
        assert str(caught.value) == (
            f'{start}: adds detail to an enlarged picture (op4ksr.output), and kinds "one_step" and "lora" train '
            'models that make the picture itself; set kind to "detail", or model.start to another file'
        )
