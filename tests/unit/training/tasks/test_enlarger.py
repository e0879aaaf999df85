"""The learned enlarger: sizes, strips, its file, its pairs, and that its training learns and goes on bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from op4ksr_core import OptionError, UnsupportedCheckpointError, load_autoencoder
from op4ksr_core.bundled import BUNDLED_AUTOENCODER
from op4ksr_core.images.io import to_8_bit
from op4ksr_core.images.resize import resize
from op4ksr_core.models.enlarger import Enlarger, EnlargerParams, bicubic
from op4ksr_core.training.config_file import parse_config, read_config
from op4ksr_core.training.config_sections import EnlargerConfig
from op4ksr_core.training.data.degradation import CLEAN, Degradation
from op4ksr_core.training.data.enlarger_pairs import after_shrinking, enlarger_pairs, milder, small
from op4ksr_core.training.data.sources import open_source
from op4ksr_core.training.optimization import rate_at
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.enlarger import deepened
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.weights.enlarger import load_enlarger, save_enlarger
from op4ksr_core.weights.header import read_header, read_tensors
from op4ksr_core.weights.inspect import inspect_file

ROOT = Path(__file__).resolve().parents[4]


@pytest.fixture
def model() -> Enlarger:
    """Small, with weights that are random everywhere."""
    torch.manual_seed(1)
    return Enlarger(EnlargerParams(width=8, blocks=2)).eval().requires_grad_(False)


def config(folder: Path, run: str = "run", **sections: str) -> str:
    text = {
        "enlarger": "width = 8\nblocks = 1\n",
        "data": "pictures = 4\npicture_side = 128\ncrop = 96\n",
        "degradation": "clean = 0.5\n",
        "loss": "frequency = 0.1\nperiodicity = 0.1\nlatent = 0.0\n",
        "train": "steps = 6\nbatch = 2\nwarmup = 2\nprecision = 'fp32'\ndevice = 'cpu'\n",
        "output": "log_every = 1\nsave_every = 3\nsample_every = 6\nsamples = 1\nsample_side = 64\ndtype = 'fp32'\n",
    }
    for name, more in sections.items():
        text[name] = text.get(name, "") + more
    tables = "".join(f"[{name}]\n{body}" for name, body in text.items())
    return f'kind = "enlarger"\nrun = "{(folder / run).as_posix()}"\n{tables}'


def train(text: str, resume: bool = False) -> Path:
    return Trainer(parse_config(text), text, resume).run()


# --- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_picture_becomes_factor_times_as_large(model: Enlarger, factor: int) -> None:
    low = torch.rand(2, 3, 7, 11)
    assert model(low, factor).shape == (2, 3, 7 * factor, 11 * factor)


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_a_new_one_is_bicubic_without_a_mesh(factor: int) -> None:
    new = Enlarger(EnlargerParams(width=8, blocks=2))
    new.begin()
    low = torch.rand(1, 3, 9, 10)
    assert torch.equal(new(low, factor, 0.7), bicubic(low, factor))


def test_a_deepened_one_is_the_same_until_it_learns(model: Enlarger) -> None:
    deeper = deepened(model, 5)
    low = torch.rand(1, 3, 9, 10)
    assert deeper.params == EnlargerParams(width=8, blocks=5)
    assert all(torch.equal(deeper(low, factor, 0.3), model(low, factor, 0.3)) for factor in (2, 3, 4))
    assert all(block.conv1.weight.abs().max() > 0 for block in deeper.body)  # pyright: ignore
    assert deepened(model, 2) is model and deepened(model, 1) is model


@pytest.mark.parametrize("factor", [2, 3, 4])
def test_even_heads_draw_no_mesh_and_still_draw_edges(model: Enlarger, factor: int) -> None:
    def mesh(low: torch.Tensor) -> float:
        """Deviation within the mean tile, the outer pixels, which see the border's zeros, left out."""
        edge = model.reach * factor
        inside = (model(low, factor) - bicubic(low, factor))[..., edge:-edge, edge:-edge]
        tile = torch.nn.functional.pixel_unshuffle(inside, factor).mean((2, 3)).unflatten(1, (3, -1))
        return float(tile.std(-1).max())

    flat = torch.tensor([0.2, 0.5, 0.7])[None, :, None, None].expand(1, 3, 24, 24)
    assert mesh(flat) > 1e-3
    model.even()
    assert mesh(flat) < 1e-6
    once = model.heads[str(factor)].weight.clone()
    model.even()
    assert torch.allclose(model.heads[str(factor)].weight, once, atol=1e-7)
    edge = flat.clone()
    edge[..., 12:] = 0
    assert mesh(edge) > 1e-3


def test_the_halo_is_as_wide_as_the_network_looks_and_no_wider() -> None:
    """In float64, so that nothing is lost on the way: rows further away change nothing, the last one within does."""
    torch.manual_seed(2)
    model = Enlarger(EnlargerParams(width=8, blocks=2), dtype=torch.float64)
    row, reach = 20, model.reach
    low = torch.rand(1, 3, 41, 12, dtype=torch.float64)
    for distance, same in ((reach + 1, True), (reach, False)):
        other = low.clone()
        other[..., row + distance, :] = 0
        rows = slice(4 * row, 4 * (row + 1))
        assert torch.equal(model(low, 4)[..., rows, :], model(other, 4)[..., rows, :]) == same


def test_strength_is_felt_and_may_differ_from_picture_to_picture(model: Enlarger) -> None:
    low = torch.rand(2, 3, 8, 8)
    planes = torch.tensor([0.0, 1.0])[:, None, None, None].expand(2, 1, 8, 8)
    both = model(low, 2, planes)
    assert torch.allclose(both[:1], model(low[:1], 2, 0.0), atol=1e-6)
    assert torch.allclose(both[1:], model(low[1:], 2, 1.0), atol=1e-6)
    assert not torch.allclose(both[1:], model(low[1:], 2, 0.0), atol=1e-3)


def test_what_it_refuses(model: Enlarger) -> None:
    low = torch.rand(1, 3, 8, 8)
    with pytest.raises(OptionError, match="expected a factor of 2, 3, 4, got 5; choose one"):
        model(low, 5)
    for wrong in ({"width": 0}, {"factors": ()}, {"factors": (1, 2)}, {"factors": (4, 2)}):
        with pytest.raises(ValueError, match="must be"):
            EnlargerParams(**wrong)


# --- its file ---------------------------------------------------------------------------------


def test_a_saved_one_is_loaded_as_it_was(model: Enlarger, tmp_path: Path) -> None:
    path = tmp_path / "enlarger.safetensors"
    save_enlarger(path, model, training="a test")
    loaded = load_enlarger(path)
    assert loaded.params == model.params
    low = torch.rand(1, 3, 9, 8)
    assert torch.equal(loaded(low, 3, 0.2), model(low, 3, 0.2))
    metadata = read_header(path).metadata
    assert metadata["op4ksr.kind"] == "enlarger" and metadata["op4ksr.format"] == "1"
    assert metadata["op4ksr.factors"] == "2,3,4" and metadata["op4ksr.training"] == "a test"
    save_enlarger(path, model, dtype=torch.float16)
    assert torch.allclose(load_enlarger(path)(low, 4), model(low, 4), atol=1e-2)


def test_another_file_is_refused_in_a_sentence(model: Enlarger, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedCheckpointError, match='expected an enlarger .* got "vae"; choose'):
        load_enlarger(BUNDLED_AUTOENCODER)
    path = tmp_path / "cut.safetensors"
    save_enlarger(path, model, dtype=torch.int32)
    with pytest.raises(UnsupportedCheckpointError, match="expected one of the dtypes .* got I32"):
        load_enlarger(path)
    model.heads["3"].weight = torch.nn.Parameter(model.heads["3"].weight[:20])
    save_enlarger(path, model)
    with pytest.raises(UnsupportedCheckpointError, match="do not fit the model: 1 of another shape"):
        load_enlarger(path)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *[(f"body.{n}.conv1.weight", (1,)) for n in ("100000000", "02", "\u0663", "9" * 5000)],
        *[(f"heads.{n}.weight", (1,)) for n in ("100000000", "3000000000", "\u0663", "9" * 5000)],
        *[("conv_in.weight", (width, 4, 0, 3)) for width in (10**9, 10**18)],
    ],
    ids=lambda value: ascii(value)[:24],
)
def test_names_and_shapes_that_promise_more_than_it_holds(
    model: Enlarger, tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    """Nothing is built of them: on the meta device sizes overflow before any tensor is compared."""
    path = tmp_path / "enlarger.safetensors"
    save_file({**model.state_dict(), name: torch.empty(shape)}, path)
    with pytest.raises(UnsupportedCheckpointError, match="fetch it again") as caught:
        load_enlarger(path)
    assert len(str(caught.value)) < 400


def test_inspect_tells_what_it_is(model: Enlarger, tmp_path: Path) -> None:
    path = tmp_path / "enlarger.safetensors"
    save_enlarger(path, model)
    report = inspect_file(path)
    assert report["kind"] == "enlarger" and "upscale --enlarger" in report["usable"]
    assert report["dims"] == {"width": 8, "blocks": 2, "factors": (2, 3, 4)}
    with pytest.raises(OptionError, match="is of kind enlarger; only a VAE can be probed"):
        inspect_file(path, path)
    with pytest.raises(UnsupportedCheckpointError, match="expected a Flux-type VAE, got an enlarger; choose a Flux"):
        load_autoencoder(path)


# --- its pairs --------------------------------------------------------------------------------


def test_a_clean_pair_is_the_benchmarks() -> None:
    high = torch.rand(1, 3, 48, 48)
    for factor in (2, 3, 4):
        low = small(high, factor, EnlargerConfig(), CLEAN, (1, 2))
        assert torch.equal(low[:, :3], to_8_bit(resize(high, 48 // factor, 48 // factor)))
        assert not low[:, 3].any()


def test_the_strength_commands_the_damage() -> None:
    full = Degradation()
    none = milder(full, 0.0)
    assert none.noise_level == ((0.0, 0.0),) * 2 and none.resize_range == ((1.0, 1.0),) * 2
    assert none.jpeg_quality == ((95.0, 95.0),) * 2 and none.final_sinc == 0
    worst = milder(full, 1.0)
    for name in ("blur_deviation", "resize_range", "noise_level", "jpeg_quality"):
        for found, wanted in zip(getattr(worst, name), getattr(full, name), strict=True):
            assert found == pytest.approx(wanted)
    assert worst.sinc_cutoff == pytest.approx(full.sinc_cutoff)
    once = after_shrinking(milder(full, 0.5))
    assert once.order == 1 and once.factor == (1.0, 1.0) and once.noise_level == ((0.5, 7.5),)


def test_damage_grows_with_the_strength() -> None:
    """Over many draws: the strong half of the damaged pictures is further from the clean ones than the mild half."""
    grey = torch.rand(1, 1, 6, 6, generator=torch.Generator().manual_seed(0)).expand(1, 3, 6, 6)
    high = resize(grey, 96, 96).clamp(0, 1)
    clean = to_8_bit(resize(high, 24, 24))
    found = []
    for i in range(40):
        low = small(high, 4, EnlargerConfig(), Degradation(), (3, i))
        assert low.shape == (1, 4, 24, 24) and 0 < low[0, 3, 0, 0] < 1
        found.append((float(low[0, 3, 0, 0]), float((low[:, :3] - clean).abs().mean())))
    mild, strong = ([d for s, d in found if (s > 0.5) == above] for above in (False, True))
    assert sum(strong) / len(strong) > 1.5 * sum(mild) / len(mild)


def test_batches_have_one_factor_each_and_small_pictures_of_one_side() -> None:
    high = torch.rand(2, 3, 96, 96)
    factors = []
    for i in range(60):
        sharp, low = enlarger_pairs(high, EnlargerConfig(), CLEAN, (0, i))
        assert low.shape == (2, 4, 24, 24) and sharp.shape[-1] % 24 == 0
        factors.append(sharp.shape[-1] // 24)
        if i == 0:
            again = enlarger_pairs(high, EnlargerConfig(), CLEAN, (0, i))
            assert torch.equal(sharp, again[0]) and torch.equal(low, again[1])
    assert set(factors) == {2, 3, 4} and factors.count(4) > 25


# --- its training -----------------------------------------------------------------------------


@pytest.mark.slow
def test_a_few_steps_learn(tmp_path: Path) -> None:
    """On one batch: below bicubic's loss, which is where it begins."""
    parsed = parse_config(config(tmp_path))
    task = make_task(parsed)
    high = open_source(parsed.data, 0, tmp_path).crops((0,), 4, 96)
    sharp, low = enlarger_pairs(high, parsed.enlarger, CLEAN, (0, 0))
    optimizer = torch.optim.AdamW(task.trained().values(), 3e-3)
    losses = []
    for step in range(60):
        loss = torch.stack(list(task(sharp, low, step, (0,)).terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    factor = sharp.shape[-1] // low.shape[-1]
    begin = (bicubic(low[:, :3], factor) * 2 - sharp * 2).abs().mean()
    assert losses[0] >= float(begin)
    assert losses[-1] < 0.97 * losses[0]


@pytest.mark.slow
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = train(config(tmp_path, "whole"))
    text = config(tmp_path, "stopped")

    def stop(done: int, total: int, line: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Trainer(parse_config(text), text, False, stop).run()
    again = train(text, resume=True)
    a, b = (read_tensors(read_header(path)) for path in (whole, again))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    saved = load_enlarger(again)
    assert saved.params == EnlargerParams(8, 1)
    assert float(saved.heads["4"].weight.mean((2, 3)).unflatten(0, (3, -1)).std(1).max()) < 1e-7
    assert (tmp_path / "whole" / "samples" / "step_0000006_0.png").exists()


def test_a_run_may_start_from_a_file(model: Enlarger, tmp_path: Path) -> None:
    path = tmp_path / "start.safetensors"
    save_enlarger(path, model)
    task = make_task(parse_config(config(tmp_path, model=f'start = "{path.as_posix()}"\n')))
    assert torch.equal(task.trained()["model.conv_in.weight"], model.conv_in.weight)


def test_the_rate_is_held_and_falls_at_the_end(tmp_path: Path) -> None:
    parsed = parse_config(config(tmp_path, train="decay_steps = 100\n").replace("steps = 6\n", "steps = 1000\n", 1))
    rates = [rate_at(step, parsed) for step in range(1000)]
    assert rates[0] == pytest.approx(5e-4) and set(rates[2:901]) == {1e-3}
    assert all(a > b for a, b in zip(rates[900:], rates[901:], strict=False))
    assert rates[-1] < 2e-5


@pytest.mark.parametrize(
    ("section", "line", "says"),
    [
        ("enlarger", "factors = [2, 3]\n", r"enlarger.often: expected a weight for each of the factors \(2, 3\)"),
        ("enlarger", "factors = [4, 2, 3]\n", "enlarger.factors: factors must be ascending"),
        ("enlarger", "simple = 2\n", "enlarger.simple: expected at most 1, got 2"),
        ("enlarger", "factors = [1, 2, 3]\n", "enlarger.factors: expected at least 2, got 1"),
        ("enlarger", "depth = 2\n", "unknown key 'enlarger.depth'"),
        ("enlarger", "factors = [2, 5]\noften = [1, 1]\n", "data.crop: expected a multiple of 5 px"),
        ("loss", "projected = 0.5\n", 'loss.projected: kind "enlarger" has factors of its own, got 0.5'),
        ("train", "accelerate = true\n", 'train.accelerate: kind "enlarger" works in one process only'),
        ("loss", "pixel = 0.0\ngradient = 0.0\n", ""),
        ("data", "cached = 10\n", 'data.cached: is for kinds "one_step" and "lora"'),
    ],
)
def test_a_wrong_config_is_refused_in_a_sentence(tmp_path: Path, section: str, line: str, says: str) -> None:
    text = config(tmp_path, **{section: line})
    if not says:
        text = text.replace("frequency = 0.1\nperiodicity = 0.1\n", "")
        says = 'no term that kind "enlarger" has in every step is above 0'
    with pytest.raises(OptionError, match=says):
        parse_config(text)


def test_later_crops_are_checked_where_there_are_any(tmp_path: Path) -> None:
    text = config(tmp_path, enlarger="factors = [2, 3]\noften = [1, 1]\n", data="late_crop = 160\n")
    assert parse_config(text).enlarger.factors == (2, 3)
    with pytest.raises(OptionError, match="data.late_crop: expected a multiple of 3 px"):
        parse_config(text, changes=["data.late_from=0.5"])


def test_the_recipe_is_valid_and_small() -> None:
    parsed = read_config(ROOT / "configs" / "enlarger_cpu.toml")
    size = sum(p.numel() for p in make_task(parsed).trained().values())
    assert 200_000 < size < 500_000


def test_saving_evens_the_file_and_not_the_weights(tmp_path: Path) -> None:
    """Else a run that is stopped and saved once more would go on with other bits."""
    task = make_task(parse_config(config(tmp_path)))
    for head in task.model.heads.values():
        torch.nn.init.normal_(head.weight)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    task.save(tmp_path / "saved.safetensors", "")
    assert all(torch.equal(before[name], value) for name, value in task.model.state_dict().items())
    saved = load_enlarger(tmp_path / "saved.safetensors")
    assert any(not torch.equal(before[name], value) for name, value in saved.state_dict().items())
