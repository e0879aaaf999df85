"""Attention diversification: the formula, its gradient, and the term in runs of every kind that has it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from unit.training.tasks.test_frozen import by_hand as rounded
from unit.training.test_step_plan import NEAR, real_step
from unit.training.test_trainer import (  # noqa: F401 - folder is a fixture
    StoppedError,
    config,
    folder,
    killed_at,
    rows,
    same_file,
    short,
    train,
)

from op4ksr_core import OptionError, save_flux
from op4ksr_core.models.latent import PATCH
from op4ksr_core.training.config import LossConfig
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.step_plan import geometry_of, plan_step
from op4ksr_core.training.tasks import frozen
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.diversity import likeness
from op4ksr_core.training.tasks.objectives import Objective
from op4ksr_core.training.tasks.one_step import OneStepTask
from op4ksr_core.training.trainer import Trainer
from op4ksr_core.weights.header import read_header

WEIGHT = "diversity = 0.5\n"


def by_hand(features: Tensor) -> float:
    """FluxSR's equation 22 as written: the mean of cos(f_n, mean of f), one token after the other."""
    cosines: list[float] = []
    for tokens in features.double():
        middle = sum(tokens) / len(tokens)
        for token in tokens:
            lengths = (sum(x * x for x in token.tolist()) * sum(x * x for x in middle.tolist())) ** 0.5
            cosines.append(sum(a * b for a, b in zip(token.tolist(), middle.tolist(), strict=True)) / lengths)
    return sum(cosines) / len(cosines)


def test_likeness_is_the_published_formula(generator: torch.Generator) -> None:
    features = torch.randn(2, 5, 7, generator=generator) + 0.3
    assert float(likeness(features)) == pytest.approx(by_hand(features), abs=1e-6)
    same = features[:, :1].expand(2, 5, 7)
    assert float(likeness(same)) == pytest.approx(1, abs=1e-6)
    opposed = torch.cat([same, same, -same], 1)  # two thirds along the mean, a third against it
    assert float(likeness(opposed)) == pytest.approx(1 / 3, abs=1e-6)


def test_likeness_has_the_gradient_of_finite_differences(generator: torch.Generator) -> None:
    features = torch.randn(2, 5, 4, dtype=torch.float64, generator=generator, requires_grad=True)
    assert torch.autograd.gradcheck(likeness, features)


def test_tokens_of_zeros_and_half_precision_are_finite() -> None:
    features = torch.zeros(1, 3, 4, requires_grad=True)
    likeness(features).backward()
    assert features.grad is not None and bool(torch.isfinite(features.grad).all())
    half = torch.full((1, 1024, 64), 200.0, dtype=torch.bfloat16)
    assert likeness(half).dtype == torch.float32 and float(likeness(half)) == pytest.approx(1, abs=1e-5)


def test_the_term_is_the_mean_over_layers_times_its_weight() -> None:
    objective = Objective(LossConfig(diversity=3.0))
    assert float(objective.attention([torch.tensor(0.2), torch.tensor(0.6)])["diversity"]) == pytest.approx(1.2)
    assert "diversity" in objective.names(latent=True) and "diversity" not in objective.names(latent=False)
    assert "diversity" not in Objective(LossConfig()).names(latent=True)


def heard(task: OneStepTask, latent: Tensor) -> list[Tensor]:
    """What the double blocks' last projections give to image tokens, by hooks of the test's own."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda m, a, output: found.append(output.detach()))
        for name, module in task.flux.named_modules()
        if name.startswith("double_blocks.") and name.endswith(".img_attn.proj")
    ]
    with torch.no_grad():
        task.predict(latent)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("kind", ["one_step", "lora"])
@pytest.mark.parametrize("checkpointing", ["false", "true"])
def test_a_step_hears_every_double_block_and_its_image_tokens_alone(
    folder: Path,  # noqa: F811
    make_flux,
    kind: str,
    checkpointing: str,
) -> None:
    save_flux(folder / "flux.safetensors", make_flux(depth=3))
    more = {"model": "depth = 3\n"} if kind == "one_step" else {}
    text = config(folder, kind, loss=WEIGHT, train=f"checkpointing = {checkpointing}\n", **more)
    task = make_task(parse_config(text.replace("depth = 1\n", "")))
    assert isinstance(task, OneStepTask)
    high, low = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2))
    judged = task(high, low, 0, (0, 0, 0))
    outputs = heard(task, task.encode(low))
    assert [tuple(o.shape[:2]) for o in outputs] == [(2, (64 // 16 // PATCH) ** 2)] * 3
    expected = 0.5 * sum(by_hand(o) for o in outputs) / 3
    assert float(judged.terms["diversity"].detach()) == pytest.approx(expected, abs=1e-5)

    def term(value: float) -> float:
        with torch.no_grad():
            parameter.view(-1)[place] = value
        return float(task(high, low, 0, (0, 0, 0)).terms["diversity"].detach())

    judged.terms["diversity"].backward()
    name = "img_attn.qkv.down" if kind == "lora" else "img_attn.qkv.weight"
    parameter = task.trained()[f"flux.double_blocks.0.{name.replace('down', 'up')}"]
    assert parameter.grad is not None
    place = int(parameter.grad.abs().argmax())
    slope, value = float(parameter.grad.view(-1)[place]), float(parameter.detach().view(-1)[place])
    step = 0.02
    assert (term(value + step) - term(value - step)) / (2 * step) == pytest.approx(slope, rel=0.02)


def test_without_a_weight_nothing_listens(folder: Path) -> None:  # noqa: F811
    task = make_task(parse_config(config(folder)))
    assert isinstance(task, OneStepTask) and task.alike is None
    assert not any(module._forward_hooks for module in task.flux.modules())


def test_checkpointing_changes_no_step_and_keeps_no_tokens(folder: Path) -> None:  # noqa: F811
    kept: dict[str, int] = {}
    grads: dict[str, Tensor] = {}
    for checkpointing in ("false", "true"):
        task = make_task(parse_config(config(folder, loss=WEIGHT, train=f"checkpointing = {checkpointing}\n")))
        sizes: list[int] = []
        high, low = (torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(2))
        with torch.autograd.graph.saved_tensors_hooks(lambda t, to=sizes: to.append(t.numel()) or t, lambda t: t):
            terms = task(high, low, 0, (0, 0, 0)).terms
        kept[checkpointing] = sum(sizes)
        torch.stack(list(terms.values())).sum().backward()
        grads[checkpointing] = torch.cat([p.grad.flatten() for p in task.trained().values() if p.grad is not None])
    torch.testing.assert_close(grads["true"], grads["false"], rtol=1e-4, atol=1e-7)
    assert kept["true"] < kept["false"] / 2


@pytest.mark.parametrize("kind", ["one_step", "lora"])
@pytest.mark.slow
def test_a_killed_run_with_the_term_goes_on_bit_for_bit(folder: Path, kind: str) -> None:  # noqa: F811
    """On pictures, on latents alone, on a grid, with batches added up, recomputed blocks and a running mean."""
    more = {
        "loss": WEIGHT,
        "train": "accumulate = 2\ngrid_every = 4\ngrid_tokens = [8]\ngrid_pictures = 2\nlatent_steps = 2\n"
        "checkpointing = true\n",
    }
    whole = train(config(folder, kind, "whole", **more))
    text = config(folder, kind, "killed", **more)
    with contextlib.suppress(StoppedError):
        Trainer(parse_config(text), text, False, killed_at(5)).run()
    assert same_file(train(text, resume=True), whole)
    done = [row for row in rows(folder / "whole") if row["loss"]]
    assert len(done) == 6 and all(0 < float(row["diversity"]) < 0.5 for row in done)
    assert "diversity 0.5" in read_header(whole).metadata["op4ksr.training"]


@pytest.mark.slow
def test_the_term_makes_tokens_less_alike(folder: Path) -> None:  # noqa: F811
    last: dict[str, float] = {}
    for weight in ("0.0001", "10.0"):
        text = config(folder, "lora", f"run{weight}", loss=f"diversity = {weight}\n", train="rate = 0.02\n")
        train(text.replace("steps = 6", "steps = 12"))
        last[weight] = float(rows(folder / f"run{weight}")[-1]["diversity"]) / float(weight)
    assert last["10.0"] < last["0.0001"] - 0.05


@pytest.mark.parametrize("base", ["plain", "int8"])
def test_a_lora_on_a_frozen_base_has_the_term(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    base: str,
) -> None:
    """Rounded as torchao would, which need not be there."""
    monkeypatch.setattr(frozen, "quantized", rounded)
    train(short(config(folder, "lora", loss=WEIGHT, train=f"base = '{base}'\n")))
    assert float(rows(folder / "run")[-1]["diversity"]) > 0


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_the_plan_counts_it(folder: Path, checkpointing: bool) -> None:  # noqa: F811
    found = parse_config(config(folder, "lora", loss="diversity = 1.0\n"))
    data = replace(found.data, crop=128)
    found = replace(found, data=data, train=replace(found.train, checkpointing=checkpointing))
    plan = plan_step(found, geometry_of(found), "cpu")
    assert "diversity" not in plan.uncounted
    assert plan.peak == pytest.approx(real_step(found)[0]["peak"], rel=NEAR)


def test_where_it_has_no_say_it_is_refused(folder: Path) -> None:  # noqa: F811
    with pytest.raises(OptionError) as caught:
        parse_config(config(folder, "autoencoder", loss=WEIGHT))
    assert str(caught.value) == (
        'config: loss.diversity: looks at a transformer, which kind "autoencoder" has none of; set it to 0'
    )
    with pytest.raises(OptionError) as caught:
        make_task(parse_config(config(folder, "lora", loss=WEIGHT, model='lora_targets = ["linear1", "linear2"]\n')))
    assert str(caught.value) == (
        "loss.diversity: looks at the double blocks, and model.lora_targets name none of their layers; add one, as "
        "qkv or proj, or set it to 0"
    )
    with pytest.raises(OptionError, match="^config: loss: no term that kind"):
        parse_config(config(folder, loss=WEIGHT + "pixel = 0\ngradient = 0\nlatent = 0\n").replace("= 0.1", "= 0"))
