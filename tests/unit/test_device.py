"""Everything that is meant to run on a GPU, on a pretended one: the same numbers, in the right place, and few waits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from pretend_cuda import pretending
from safetensors.torch import load_file
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, save_autoencoder, save_flux, upscale
from op4ksr_core.images.color import COLOR_FIXES, back_project, color_fix
from op4ksr_core.images.io import Picture, to_pil
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.machine import release_memory, wait_for
from op4ksr_core.models.rope import POLICIES, Rfr
from op4ksr_core.one_step import OneStepOptions
from op4ksr_core.periodicity.loss import PeriodicityLoss
from op4ksr_core.periodicity.meter import measure_periodicity
from op4ksr_core.periodicity.suppress import suppress_with_report
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.data.degradation import Degradation, degrade
from op4ksr_core.training.tasks.frozen import DTYPES, Base, FrozenLinear, freeze_blocks
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.vae.estimate import StripPlan
from op4ksr_core.vae.strips import MEMORY_MODES, StripSettings
from op4ksr_core.weights.probe import probe

Send = Callable[[Any], Any]

CARD = "cuda:0"


@dataclass(frozen=True)
class Models:
    autoencoder: Callable[[], AutoEncoder]
    flux: Callable[[], Flux]
    image: Tensor
    large: Tensor


@pytest.fixture(scope="module")
def models(make_autoencoder: Any, make_flux: Any, natural: Any) -> Models:
    return Models(make_autoencoder, make_flux, natural(16, 24), natural(96, 128))


def stay(thing: Any) -> Any:
    return thing


def both(run: Callable[[Send], Any]) -> tuple[Any, Any, dict[str, int]]:
    """What ``run`` gives on the CPU and on the pretended device, and how often the latter was waited for."""
    expected = run(stay)
    with pretending() as waits:
        found = run(lambda thing: thing.to(CARD))
        if isinstance(found, Tensor):
            assert found.device.type == "cuda"
            waits["from device"] -= 1
            found = found.cpu()
    return expected, found, dict(waits)


def rounded(linear: torch.nn.Linear, base: Base) -> FrozenLinear:
    """The weight rounded as it is, without torchao."""
    ones = torch.ones(linear.out_features, device=linear.weight.device)
    return FrozenLinear(linear.weight.detach().to(DTYPES[base]), ones, linear.bias)


def of_upscale(
    models: Models, send: Send, home: bool = True, rows: Any = None, fp8: bool = False, **how: Any
) -> Tensor:
    flux, autoencoder = send(models.flux()), send(models.autoencoder())
    if fp8:
        freeze_blocks(flux, "fp8", rounded)
    strips: StripPlan = {"encode": rows, "decode": rows} if rows else {}
    rfr, image = how.pop("rfr", None), send(models.image) if home else models.image
    return upscale(image, flux, autoencoder, OneStepOptions(Target(scale=4), **how), rfr=rfr, strips=strips)


UPSCALES: dict[str, dict[str, Any]] = {
    **{f"colour {kind}": {"color": kind} for kind in COLOR_FIXES},
    **{f"strips {mode}": {"rows": StripSettings(16, mode)} for mode in MEMORY_MODES},
    **{f"rfr {kind}": {"rfr": Rfr(kind, (300.0, 200.0) if kind == "theta" else None)} for kind in POLICIES},
    "fp8 weights": {"fp8": True},
}


@pytest.mark.parametrize("case", UPSCALES)
def test_an_upscale(models: Models, case: str) -> None:
    expected, found, _ = both(lambda send: of_upscale(models, send, **UPSCALES[case]))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("case", ["colour lab", "strips tiny", "rfr ntk", "rfr ultraflux"])
def test_an_upscale_without_float64(models: Models, case: str) -> None:
    """As on Intel's cards and Apple's: what needs it is done on the CPU; a strip is normalised in another way."""
    expected = of_upscale(models, stay, **UPSCALES[case])
    with pretending("xpu"):
        found = of_upscale(models, lambda thing: thing.to("xpu:0"), **UPSCALES[case])
        assert found.device.type == "xpu"
        found = found.cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_a_picture_of_the_cpus_comes_back_to_it(models: Models) -> None:
    expected = of_upscale(models, stay)
    with pretending():
        found = of_upscale(models, lambda thing: thing.to(CARD), home=False)
    assert found.device.type == "cpu" and torch.equal(expected, found)


def test_strips_are_never_waited_for(models: Models) -> None:
    """A wait for each would leave the device idle as often."""
    few, many = (
        both(lambda send, rows=rows: of_upscale(models, send, rows=StripSettings(rows)))[2] for rows in (64, 8)
    )
    assert few == many


def test_bands_of_colours_are_not_waited_for_one_by_one(models: Models) -> None:
    """In CIELAB: the statistics of a picture's bands are brought to the CPU at once."""

    def fix(height: int) -> Callable[[Send], Tensor]:
        image, reference = torch.rand(1, 3, height, 8), torch.rand(1, 3, height, 8)
        return lambda send: color_fix(send(image), send(reference), "lab", 4)

    low, high = both(fix(256))[2], both(fix(1024))[2]
    assert low["from device"] == high["from device"]


def test_pictures_and_losses(models: Models) -> None:
    image, other = models.large, models.large.flip(-1)
    small = resize(image, 24, 32)

    def gradient(send: Send) -> Tensor:
        given = send(image).detach().requires_grad_(True)
        PeriodicityLoss()(given, send(other)).backward()
        assert given.grad is not None
        return given.grad

    runs: dict[str, Callable[[Send], Tensor]] = {
        **{
            f"degraded {seed}": lambda send, seed=seed: degrade(send(image), Degradation(), (seed,)).low
            for seed in (0, 1)
        },
        "back-projected": lambda send: back_project(send(other), send(small), 1.0),
        "shrunk beyond CUDA's filter": lambda send: resize(send(image), 2, 2),
        "loss": lambda send: PeriodicityLoss()(send(image), send(other)),
        "its gradient": gradient,
        "cleaned": lambda send: suppress_with_report(send(image), send(small), 0.5, period=(16.0, 16.0)).image,
    }
    for name, run in runs.items():
        expected, found, _ = both(run)
        assert torch.equal(expected, found), name


def test_what_is_told_of_a_picture(models: Models) -> None:
    image = models.large
    runs: dict[str, Callable[[Send], Any]] = {
        "score": lambda send: measure_periodicity(send(image)).score,
        "8 bits": lambda send: to_pil(Picture(send(image), image[:, :1])).tobytes(),
        "probe": lambda send: probe(send(models.autoencoder()), send(image)),
    }
    for name, run in runs.items():
        expected, found, _ = both(run)
        assert expected == found, name


# --- training ---------------------------------------------------------------------------------

TINY = "hidden_size = 64\nnum_heads = 2\ndepth = 1\ndepth_single_blocks = 1\ncontext_in_dim = 8\nvec_in_dim = 8\n"
TASKS = {
    "autoencoder": ("autoencoder", "linear_steps = 1\n", "adversarial = 0.1\nadversarial_from = 0.0\n"),
    "one_step": ("one_step", "checkpointing = true\naccumulate = 2\n", "latent = 0.5\nprojected = 0.5\n"),
    "grid": ("one_step", "grid_every = 2\nlatent_steps = 1\ngrid_pictures = 2\n", ""),
    "cached": ("one_step", "", ""),
    "lora": ("lora", "precision = 'bf16'\n", "adversarial = 0.1\n"),
}


def of_training(folder: Path, case: str, device: str) -> dict[str, Tensor]:
    kind, train, loss = TASKS[case]
    vae, start = (f'"{(folder / f"{name}.safetensors").as_posix()}"' for name in ("vae", "flux"))
    model = {
        "autoencoder": "widths = [8, 16, 16, 16]\nnorm_groups = 2\nlayers_per_block = 1\n",
        "one_step": f"{TINY}autoencoder = {vae}\n",
        "lora": f"start = {start}\nlora_rank = 4\nautoencoder = {vae}\n",
    }[kind]
    data = "pictures = 2\npicture_side = 128\ncrop = 64\nworkers = 0\n" + ("cached = 4\n" if case == "cached" else "")
    train += f"steps = 2\nbatch = 1\nwarmup = 1\ndevice = '{device}'\n" + (
        "" if "bf16" in train else "precision = 'fp32'\n"
    )
    output = "log_every = 1\nsave_every = 2\nsample_every = 2\nsamples = 1\nsample_side = 64\ndtype = 'fp32'\n"
    run = (folder / f"{case}_{device[:4]}").as_posix()
    text = f'kind = "{kind}"\nrun = "{run}"\n[model]\n{model}[data]\n{data}'
    text += f"[loss]\nfrequency = 0.1\nperiodicity = 0.1\n{loss}[train]\n{train}[output]\n{output}"
    return load_file(Trainer(parse_config(text), text).run())


@pytest.mark.parametrize("case", TASKS)
def test_training(tmp_path: Path, models: Models, case: str) -> None:
    """Samples, running means and files included; as near as AdamW, by another loop on a GPU, leaves it."""
    save_autoencoder(tmp_path / "vae.safetensors", models.autoencoder())
    save_flux(tmp_path / "flux.safetensors", models.flux())
    expected = of_training(tmp_path, case, "cpu")
    with pretending():
        found = of_training(tmp_path, case, "cuda:0")
    assert expected.keys() == found.keys()
    assert all((expected[name] - found[name]).abs().max() < 0.1 for name in expected)


# --- other devices ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["cuda", "mps", "xpu"])
def test_freed_memory_is_given_back_and_clocks_wait(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    done: list[str] = []
    for name, module in (("cuda", torch.cuda), ("mps", torch.mps), ("xpu", torch.xpu)):
        home = torch.backends.mps if name == "mps" else module
        monkeypatch.setattr(home, "is_available", lambda name=name: name == kind)
        monkeypatch.setattr(module, "empty_cache", lambda name=name: done.append(f"empty {name}"))
        monkeypatch.setattr(module, "synchronize", lambda *_, name=name: done.append(f"wait {name}"))
    release_memory()
    wait_for(torch.device(kind))
    assert done == [f"empty {kind}", f"wait {kind}"]
