"""The frozen base in one byte a number: against the plain layer, in a LoRA's run, and without torchao."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lora_merge import merge
from torch import autocast, nn
from torch.nn import Linear
from unit.training.test_trainer import config, folder, load, rows, train  # noqa: F401 - folder is a fixture

from op4ksr_core import OptionError, load_flux
from op4ksr_core.cli.main import main
from op4ksr_core.machine import AllocationTracker
from op4ksr_core.training.config_file import parse_config
from op4ksr_core.training.tasks import frozen
from op4ksr_core.training.tasks.choose import make_task
from op4ksr_core.training.tasks.frozen import DTYPES, FrozenLinear, freeze_blocks, quantized, shapes_of
from op4ksr_core.training.tasks.lora import attach
from op4ksr_core.training.tasks.one_step import LoraTask

#: Root mean square error of a product over its own, seeded normal or uniform weights: measured 2.6 % and 0.4 to 0.8 %.
TOLERANCE = {"fp8": 0.03, "int8": 0.01}


def by_hand(linear: nn.Linear, base: str) -> FrozenLinear:
    """What torchao is asked for, in five lines: symmetric, a scale for each row."""
    top = {"fp8": 448.0, "int8": 127.0}[base]
    weight = linear.weight.detach().float()
    scale = weight.abs().amax(1) / top
    steps = weight / scale[:, None]
    stored = (steps.round() if base == "int8" else steps).to(DTYPES[base])
    return FrozenLinear(stored, scale, linear.bias)


@pytest.fixture(params=["torchao", "by hand"])
def quantizer(request, monkeypatch: pytest.MonkeyPatch):
    """torchao, where it is installed; and the same without it, so that all else is tested everywhere."""
    if request.param == "torchao":
        pytest.importorskip("torchao")
        return quantized
    monkeypatch.setattr(frozen, "quantized", by_hand)
    return by_hand


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("base", ["fp8", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_and_gradients_are_near_the_plain_layers(quantizer, base, dtype) -> None:
    torch.manual_seed(0)
    plain = Linear(256, 512).to(dtype).requires_grad_(False)
    stored = quantizer(plain, base)
    x = torch.randn(2, 9, 256).to(dtype).requires_grad_(True)
    weight = torch.randn(2, 9, 512).to(dtype)
    expected, got = plain(x), stored(x)
    assert got.dtype == dtype and 0 < distance(got, expected) < TOLERANCE[base]
    gradients = [torch.autograd.grad(y, x, weight)[0] for y in (got, expected)]
    assert gradients[0].dtype == dtype and distance(*gradients) < TOLERANCE[base]


@pytest.mark.parametrize("base", ["fp8", "int8"])
def test_the_gradient_is_that_of_the_stored_weight(quantizer, base) -> None:
    torch.manual_seed(0)
    stored = quantizer(Linear(8, 6).requires_grad_(False), base)
    wide = (stored.weight.double() * stored.scale.double()[:, None]).detach()
    x = torch.randn(3, 8, requires_grad=True)
    assert torch.allclose(stored(x).double(), x.double() @ wide.T + stored.bias, atol=1e-6)
    gradient = torch.autograd.grad(stored(x).sum(), x)[0]
    assert torch.allclose(gradient.double(), wide.sum(0).expand(3, -1), atol=1e-6)


def test_autocast_decides_what_is_computed_in(quantizer) -> None:
    stored = quantizer(Linear(8, 6).requires_grad_(False), "int8")
    with autocast("cpu", torch.bfloat16):
        assert stored(torch.randn(3, 8)).dtype == torch.bfloat16
    assert stored(torch.randn(3, 8)).dtype == torch.float32


@pytest.mark.parametrize("base", ["fp8", "int8"])
def test_a_number_takes_one_byte_and_the_way_back_keeps_nothing(quantizer, base) -> None:
    plain = Linear(256, 512, bias=False).requires_grad_(False)
    stored, counted = quantizer(plain, base), shapes_of(plain, base)
    sizes = [sum(t.untyped_storage().nbytes() for t in m.state_dict().values()) for m in (stored, counted)]
    assert sizes == [256 * 512 + 4 * 512] * 2
    assert [t.dtype for t in stored.state_dict().values()] == [t.dtype for t in counted.state_dict().values()]
    x = torch.randn(1, 256, requires_grad=True)
    with AllocationTracker() as tracker:
        result = stored(x)
        assert tracker.live <= 2 * result.numel() * 4


def test_the_blocks_linear_layers_alone_are_stored_so(quantizer, make_flux) -> None:
    model = make_flux()
    count = freeze_blocks(model, "int8")
    stored = {name for name, module in model.named_modules() if isinstance(module, FrozenLinear)}
    assert count == len(stored) == 10 + 2 * 3
    assert all(name.startswith(("double_blocks.", "single_blocks.")) for name in stored)
    assert freeze_blocks(make_flux(), "plain") == 0
    assert len(attach(model, 4, 4.0, ("qkv", "linear1"))) == 4 and model.dtype == torch.float32


@pytest.mark.parametrize("base", ["fp8", "int8"])
def test_a_loras_step_is_the_plain_ones_but_for_rounding(quantizer, folder: Path, base) -> None:  # noqa: F811
    def step(base: str) -> tuple[float, torch.Tensor]:
        told = parse_config(config(folder, "lora", train=f'base = "{base}"\n'))
        task = make_task(told)
        assert isinstance(task, LoraTask)
        for name, parameter in task.trained().items():
            if name.endswith("up"):
                torch.manual_seed(1)
                parameter.data.normal_(0, 0.02)
        generator = torch.Generator().manual_seed(0)
        high, low = (torch.rand(2, 3, 64, 64, generator=generator) for _ in range(2))
        loss = torch.stack(list(task(high, low, 0, (0, 0, 0)).terms.values())).sum()
        loss.backward()
        return loss.item(), torch.cat([p.grad.flatten() for p in task.trained().values() if p.grad is not None])

    (plain, plain_gradient), (loss, gradient) = step("plain"), step(base)
    assert loss == pytest.approx(plain, rel=TOLERANCE[base]) and loss != plain
    assert distance(gradient, plain_gradient) < 4 * TOLERANCE[base]


@pytest.mark.parametrize("base", ["fp8", "int8"])
def test_a_lora_on_it_learns_and_its_base_stays(quantizer, folder: Path, base) -> None:  # noqa: F811
    """The steps look at a single picture, so that the loss must fall."""
    more = {"data": "shrunk = 0.0\n", "train": f'base = "{base}"\n'}
    told = parse_config(config(folder, "lora", **more))
    task = make_task(replace(told, train=replace(told.train, checkpointing=True)))
    before = {name: t.clone() for name, t in task.state_dict().items()}
    optimizer = torch.optim.AdamW(task.trained().values(), 2e-2)
    high = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    losses: list[float] = []
    for _ in range(12):
        loss = torch.stack(list(task(high, high * 0.5, 0, (0, 0, 0)).terms.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.98 * losses[0]
    after = task.state_dict()
    changed = {name for name in before if not torch.equal(before[name].float(), after[name].float())}
    assert changed and all(name.endswith((".up", ".down")) for name in changed)


def test_the_file_is_an_ordinary_lora(quantizer, folder: Path) -> None:  # noqa: F811
    plain = train(config(folder, "lora", "plain"))
    stored = train(config(folder, "lora", "stored", train='base = "int8"\n'))
    a, b = load(plain), load(stored)
    assert a.keys() == b.keys() and all(a[name].dtype == b[name].dtype for name in a)
    assert merge(load_flux(folder / "flux.safetensors"), stored) == len(a) // 2
    losses = [float(rows(folder / name)[-1]["loss"]) for name in ("plain", "stored")]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)


@pytest.mark.slow
def test_a_run_on_it_goes_on_bit_for_bit(quantizer, folder: Path) -> None:  # noqa: F811
    from unit.training.test_trainer import StoppedError, Trainer, killed_at, same_file

    more = {"train": 'base = "fp8"\n'}
    whole = train(config(folder, "lora", "whole", **more))
    text = config(folder, "lora", "killed", **more)
    with pytest.raises(StoppedError):
        Trainer(parse_config(text), text, False, killed_at(5)).run()
    assert same_file(train(text, resume=True), whole)


def test_without_torchao_the_command_is_told(
    folder: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setitem(sys.modules, "torchao", None)
    (folder / "lora.toml").write_text(config(folder, "lora", train='base = "fp8"\n'))
    assert main(["train", str(folder / "lora.toml")]) == 1
    told = capsys.readouterr().err
    assert 'train.base: "fp8" needs torchao' in told and "pip install -U torchao" in told


def test_weights_that_are_trained_are_not_stored_so(folder: Path) -> None:  # noqa: F811
    with pytest.raises(OptionError, match='kind "one_step" trains every weight'):
        parse_config(config(folder, train='base = "int8"\n'))
