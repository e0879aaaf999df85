"""Detail upon a base, end to end: begins as the base, is finished as by ``upscale``, learns, and becomes two files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from op4ksr_core import OneStepOptions, OptionError, OutOfMemoryError, Target, load_autoencoder, load_flux, upscale
from op4ksr_core.base import Learned
from op4ksr_core.bundled import SAMPLE_PHOTO
from op4ksr_core.images.color import back_project, color_fix
from op4ksr_core.images.io import load_image
from op4ksr_core.images.resize import resize
from op4ksr_core.models.enlarger import Enlarger, EnlargerParams
from op4ksr_core.models.latent import process_in
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.needs import check_needs
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.detail import DetailTask, common_to_tokens, finished
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.weights.enlarger import load_enlarger, save_enlarger
from op4ksr_core.weights.header import read_header, read_tensors


@pytest.fixture
def enlarger(tmp_path: Path) -> Path:
    """The file of a small one with random weights."""
    torch.manual_seed(4)
    model = Enlarger(EnlargerParams(width=8, blocks=1)).requires_grad_(False)
    for head in model.heads.values():
        head.weight.mul_(0.1)
    save_enlarger(tmp_path / "enlarger.safetensors", model, dtype=torch.float32)
    return tmp_path / "enlarger.safetensors"


def config(folder: Path, enlarger: Path, run: str = "run", **sections: str) -> str:
    text = {
        "model": f'autoencoder = ""\nenlarger = "{enlarger.as_posix()}"\nwidths = [8, 8, 8, 8]\nnorm_groups = 1\n'
        "layers_per_block = 1\nhidden_size = 64\nnum_heads = 1\ndepth_single_blocks = 1\nsigma = 0.25\n"
        "sigma_repair = 0.75\n",
        "data": "pictures = 4\npicture_side = 128\ncrop = 128\n",
        "degradation": "clean = 0.5\n",
        "loss": "frequency = 0.1\nlatent = 0.0\n",
        "train": "steps = 6\nbatch = 2\nwarmup = 2\nfinal = 1.0\nprecision = 'fp32'\ndevice = 'cpu'\n",
        "output": "log_every = 1\nsave_every = 2\nsample_every = 6\nsamples = 1\nsample_side = 64\nkeep = 0\n"
        "dtype = 'fp32'\n",
    }
    for name, more in sections.items():
        text[name] = text.get(name, "") + more
    tables = "".join(f"[{name}]\n{body}" for name, body in text.items())
    return f'kind = "detail"\nrun = "{(folder / run).as_posix()}"\n{tables}'


def task_of(text: str) -> DetailTask:
    task = make_task(parse_config(text))
    assert isinstance(task, DetailTask)
    return task


def train(text: str, resume: bool = False) -> Path:
    return Trainer(parse_config(text), text, resume).run()


def batch(factor: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Sharp pictures, and small ones with their strengths 0 and 0.5."""
    generator = torch.Generator().manual_seed(factor)
    high = torch.rand(2, 3, 32 * factor, 32 * factor, generator=generator)
    low = resize(high, 32, 32).clamp(0, 1)
    strength = torch.tensor([0.0, 0.5])[:, None, None, None].expand(2, 1, 32, 32)
    return high, torch.cat([low, strength], 1)


def test_a_new_transformer_adds_nothing(tmp_path: Path, enlarger: Path) -> None:
    task = task_of(config(tmp_path, enlarger))
    for factor in (2, 3, 4):
        high, low = batch(factor)
        output = task(high, low, 0, (0, 0, 0)).output
        alone = finished(task.base(low, factor), torch.zeros_like(high), low[:, :3], torch.tensor([1.0, 0.0]))
        assert output is not None and torch.allclose((output + 1) / 2, alone, atol=1e-6)


def test_a_picture_is_finished_as_upscale_finishes_it() -> None:
    torch.manual_seed(0)
    base, detail, low = torch.rand(1, 3, 64, 80), torch.rand(1, 3, 64, 80) - 0.5, torch.rand(1, 3, 16, 20)
    for fidelity in (0.0, 0.4, 1.0):
        fixed = color_fix(base + detail, base, "wavelet", 4.0)
        assert torch.allclose(
            finished(base, detail, low, torch.tensor([fidelity])), back_project(fixed, low, fidelity), atol=1e-5
        )


def test_the_oracle_is_the_sharp_picture_s_own_latent(tmp_path: Path, enlarger: Path) -> None:
    task = task_of(config(tmp_path, enlarger, train="oracle_steps = 2\n", loss="reconstruction = 0.1\n"))
    high, low = batch()
    base = task.base(low, 4)
    detail, decoded = task.difference(task.encoded(high), task.encoded(base))
    expected = finished(base, detail, low[:, :3], torch.tensor([1.0, 0.0]))
    first, later = (task(high, low, step, (0, step, 0)) for step in (1, 2))
    assert first.output is not None and torch.allclose((first.output + 1) / 2, expected, atol=1e-6)
    assert later.output is not None and not torch.allclose(first.output, later.output, atol=1e-4)
    assert torch.allclose(first.terms["reconstruction"], 0.1 * (decoded - (base * 2 - 1)).abs().mean())


def test_the_latent_term_is_the_way_to_the_sharp_picture_s_latent(tmp_path: Path, enlarger: Path) -> None:
    text = config(tmp_path, enlarger).replace("latent = 0.0", "latent = 0.3")
    task = task_of(text)
    high, low = batch()
    found = task(high, low, 0, (0, 0, 0)).terms["latent"]
    start, goal = (process_in(task.encoded(picture)) for picture in (task.base(low, 4), high))
    assert torch.allclose(found, 0.3 * (start - goal).abs().mean()) and "latent" in task.term_names()


def test_what_is_common_to_all_tokens() -> None:
    """A tile of 2 x 2 latent pixels everywhere is all of it; what sums to nothing over the tokens is none of it."""
    tile = torch.randn(2, 4, 2, 2, generator=torch.Generator().manual_seed(1))[:1]
    signs = torch.tensor([1.0, -1.0]).repeat_interleave(2).repeat(3)
    assert torch.allclose(common_to_tokens(tile.repeat(2, 1, 6, 6)), tile.square().mean().sqrt())
    assert common_to_tokens(tile.repeat(2, 1, 6, 6) * signs) < 1e-4


def test_the_common_term_takes_a_mesh_away(tmp_path: Path, enlarger: Path) -> None:
    """A transformer whose last bias is the same everywhere has the term, and its gradient pulls the bias back."""
    task = task_of(config(tmp_path, enlarger, loss="common = 0.5\n"))
    with torch.no_grad():
        task.flux.final_layer.linear.bias.fill_(0.1)
    terms = task(torch.rand(2, 3, 128, 128), torch.rand(2, 4, 32, 32), 0, (0, 0)).terms
    sigma = task.flux.settings.sigma
    assert 0.5 * 0.1 * sigma * 0.99 <= terms["common"] and "common" in task.term_names()
    terms["common"].backward()
    gradient = task.flux.final_layer.linear.bias.grad
    assert gradient is not None and bool((gradient > 0).all())


def test_the_file_names_every_term_that_has_a_weight(tmp_path: Path, enlarger: Path) -> None:
    """Its own among them; what is no term of ``loss`` has none."""
    more = {"loss": "common = 0.5\nreconstruction = 0.25\n", "train": "grid_every = 2\n"}
    text = config(tmp_path, enlarger, **more)
    told = Trainer(parse_config(text), text).line()
    losses = "losses pixel 1, gradient 0.5, frequency 0.1, common 0.5, reconstruction 0.25, seed 0"
    assert told.endswith(losses) and "grid" in task_of(text).term_names()


def test_the_strength_is_the_sigma(tmp_path: Path, enlarger: Path) -> None:
    """Velocity 1 everywhere moves each latent by its own sigma."""
    task = task_of(config(tmp_path, enlarger))
    torch.nn.init.ones_(task.flux.final_layer.linear.bias)
    moved = task.predict(torch.zeros(3, 16, 4, 4), torch.tensor([0.0, 0.5, 1.0]))
    assert torch.allclose(moved[:, 0, 0, 0], torch.tensor([-0.25, -0.5, -0.75]))


@pytest.mark.slow
@pytest.mark.parametrize(("part", "moves"), [("all", "both"), ("decoder", "decoder"), ("none", "neither")])
def test_the_part_of_the_autoencoder_that_learns(tmp_path: Path, enlarger: Path, part: str, moves: str) -> None:
    start = train(config(tmp_path, enlarger))
    beside = start.with_name(start.name.replace("flux", "vae")).as_posix()
    text = config(tmp_path, enlarger, "again", model=f'part = "{part}"\nstart = "{start.as_posix()}"\n')
    task = task_of(text.replace('autoencoder = ""', f'autoencoder = "{beside}"'))
    names = {name.split(".")[1] for name in task.trained() if name.startswith("autoencoder.")}
    assert names == {"both": {"encoder", "decoder"}, "decoder": {"decoder"}, "neither": set[str]()}[moves]
    assert not any(name.startswith("enlarger.") for name in task.trained())
    assert any(name.startswith("flux.") for name in task.trained())


@pytest.mark.slow
def test_a_run_is_gone_on_with_bit_for_bit_and_its_files_are_a_users(tmp_path: Path, enlarger: Path) -> None:
    grids = "grid_every = 3\ngrid_tokens = [8]\n"
    whole = train(config(tmp_path, enlarger, "whole", train=grids, loss="reconstruction = 0.2\n"))
    parts = config(tmp_path, enlarger, "parts", train=grids, loss="reconstruction = 0.2\n")
    train(parts.replace("steps = 6", "steps = 4"))
    again = train(parts, resume=True)
    for name in ("flux", "vae"):
        first, second = (read_tensors(read_header(p.with_name(p.name.replace("flux", name)))) for p in (whole, again))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert len(list(whole.parent.glob(f"{name}_*.safetensors"))) == 1  # the others are pruned
    flux, vae = load_flux(whole), load_autoencoder(whole.with_name(whole.name.replace("flux", "vae")))
    settings = flux.settings
    assert (settings.output, settings.sigma, settings.sigma_repair) == ("detail", 0.25, 0.75)
    assert vae.params.widths == (8, 8, 8, 8) and vae.params.ratio == 16


@pytest.mark.slow
def test_it_learns_a_picture_by_heart(tmp_path: Path, enlarger: Path) -> None:
    """Through the bundled autoencoder the finished picture comes nearer to the sharp one than the base alone is."""
    task = task_of(config(tmp_path, enlarger).replace('autoencoder = ""', 'autoencoder = "bundled"'))
    high = resize(load_image(SAMPLE_PHOTO).image[..., :512, :512], 256, 256)[..., 64:192, 64:192].clamp(0, 1)
    low = torch.cat([resize(high, 32, 32).clamp(0, 1), torch.zeros(1, 1, 32, 32)], 1)
    optimizer = torch.optim.Adam(task.trained().values(), 1e-3)
    losses: list[float] = []
    for _ in range(40):
        loss = torch.stack(list(task(high, low, 0, (0, 0, 0)).terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(
    ("section", "line", "told"),
    [
        ("data", "crop = 96\n", "data.crop: expected whole tokens of 32 px at each of enlarger.factors, got 96"),
        ("data", "crop = 64\n", "data.crop: expected whole tokens of 32 px at each of enlarger.factors, got 64"),
        ("data", "late_from = 0.5\nlate_crop = 96\n", "data.late_crop: expected whole tokens of 32 px at each"),
        ("model", 'part = "none"\n', 'model.part: "none" keeps an existing encoder; name its file'),
        ("model", "stride = 1\n", "model.stride: is for an existing file, got 1"),
        ("model", "widths = [8, 8, 8, 8, 8]\n", "data.crop: expected whole tokens of 64 px"),
        ("train", "oracle_steps = 6\n", "train.oracle_steps: expected fewer than all 6 steps, got 6"),
        ("train", "latent_steps = 2\n", 'train.latent_steps: kind "detail" has none, got 2'),
        ("train", "grid_every = 2\ngrid_tokens = [3]\n", "train.grid_tokens: 3 tokens of 32 px are no whole number of"),
        ("train", "grid_every = 2\ngrid_tokens = [5]\n", "train.grid_tokens: 5 tokens of 32 px are no whole number of"),
        ("loss", "diversity = 0.1\n", 'loss.diversity: is of kinds "one_step" and "lora", and kind is "detail"'),
        ("loss", "projected = 0.5\n", 'loss.projected: kind "detail" has factors of its own'),
        ("train", "accelerate = true\n", 'train.accelerate: kind "detail" works in one process only'),
    ],
)
def test_a_config_that_cannot_be(tmp_path: Path, enlarger: Path, section: str, line: str, told: str) -> None:
    text = config(tmp_path, enlarger)
    key = line.split(" =")[0] + " ="
    kept = "\n".join(row for row in text.splitlines() if not row.startswith(key)) + "\n"
    with pytest.raises(OptionError, match=told):
        task_of(kept.replace(f"[{section}]\n", f"[{section}]\n{line}"))


def test_an_oracle_needs_an_autoencoder_that_trains(tmp_path: Path, enlarger: Path) -> None:
    text = config(tmp_path, enlarger, model='part = "none"\n', train="oracle_steps = 2\n")
    with pytest.raises(OptionError, match="train.oracle_steps: these train the autoencoder alone"):
        parse_config(text.replace('autoencoder = ""', 'autoencoder = "bundled"'))


@pytest.mark.parametrize("kind", ["autoencoder", "enlarger", "one_step", "lora"])
@pytest.mark.parametrize(
    "change", ["loss.common=0.1", "loss.reconstruction=0.1", "train.oracle_steps=2", "model.sigma_repair=0.7"]
)
def test_what_is_of_kind_detail_alone(kind: str, change: str) -> None:
    with pytest.raises(OptionError, match=f'{change.split("=")[0]}: is of kind "detail" alone, and kind is "{kind}"'):
        parse_config(f'kind = "{kind}"\nrun = "run"\n[model]\nstart = "bundled"\n', changes=[change])


def test_an_enlarger_without_a_head_for_a_factor_is_refused_at_once(tmp_path: Path) -> None:
    """Not at the first batch that has it."""
    path = tmp_path / "two.safetensors"
    save_enlarger(path, Enlarger(EnlargerParams(width=8, blocks=1, factors=(2, 4))))
    told = r"enlarger.factors: expected some of 2, 4, as .*two.safetensors \(model.{}\) has, got 3"
    with pytest.raises(OptionError, match=told.format("enlarger")):
        task_of(config(tmp_path, path))
    with pytest.raises(OptionError, match=told.format("start")):
        make_task(parse_config(f'kind = "enlarger"\nrun = "r"\n[model]\nstart = "{path.as_posix()}"\n'))


def test_needs_are_counted_beforehand(tmp_path: Path, enlarger: Path) -> None:
    for more, told in (
        ({"train": "grid_every = 2\ngrid_tokens = [16384]\n"}, "train.grid_tokens 16384: needs"),
        ({"model": 'start = "bundled"\n'}, "the new autoencoder, by its sizes in the config,: needs"),
    ):
        text = config(tmp_path, enlarger, **more).replace("widths = [8,", "widths = [65536,")
        with pytest.raises(OutOfMemoryError, match=told):
            check_needs(parse_config(text))


@pytest.mark.parametrize("kind", ["detail", "enlarger"])
def test_samples_that_are_no_multiple_of_the_factor(tmp_path: Path, enlarger: Path, kind: str) -> None:
    text = config(tmp_path, enlarger).replace("crop = 128", "crop = 96")
    text += "[enlarger]\nfactors = [2, 3]\noften = [1, 1]\n"
    if kind == "enlarger":
        text = text.replace('kind = "detail"', 'kind = "enlarger"').replace('autoencoder = ""\n', "")
        text = text.replace("sigma_repair = 0.75\n", "")
    train(text.replace("steps = 6", "steps = 1"))
    assert load_image(tmp_path / "run" / "samples" / "step_0000000_0.png").size == (63, 3 * 63)


def test_samples_are_what_upscale_makes(tmp_path: Path, enlarger: Path) -> None:
    task = task_of(config(tmp_path, enlarger))
    high = torch.rand(1, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    _, output, low = task.show(high, 0)
    base = Learned(load_enlarger(enlarger, dtype=torch.float32), "")
    expected = upscale(low, task.flux, task.autoencoder, OneStepOptions(Target(scale=4)), base=base)
    assert low.shape[-2:] == (16, 24) and torch.allclose(output, expected, atol=1e-6)
