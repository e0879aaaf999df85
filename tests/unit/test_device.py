"""Everything that is meant to run on a GPU, on a pretended one: the same numbers, in the right place, and few waits."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pretend_cuda import pretending
from safetensors.torch import load_file
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, load_autoencoder, load_flux, machine, save_autoencoder, save_flux, upscale
from op4ksr_core.cli.main import build_parser
from op4ksr_core.cli.plan import Planner
from op4ksr_core.images.color import COLOR_FIXES, back_project, color_fix
from op4ksr_core.images.io import Picture, to_pil
from op4ksr_core.images.resize import Target, resize
from op4ksr_core.machine import default_dtype, free_memory, give_back_memory, release_memory, system_memory
from op4ksr_core.models import attention
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
@pytest.mark.slow
def test_an_upscale(models: Models, case: str) -> None:
    expected, found, _ = both(lambda send: of_upscale(models, send, **UPSCALES[case]))
    assert torch.equal(expected, found)


@pytest.mark.parametrize("kind", ["xpu", "mps"])
@pytest.mark.parametrize("case", ["colour lab", "strips tiny", "rfr ntk", "rfr ultraflux"])
@pytest.mark.slow
def test_an_upscale_without_float64(models: Models, monkeypatch: pytest.MonkeyPatch, case: str, kind: str) -> None:
    """As on Intel's cards and Apple's: what needs it is done on the CPU; a strip is normalised in another way.

    Apple's lack antialiased bicubic before PyTorch 2.7, and a kernel for attention that stores no matrix.
    """
    expected = of_upscale(models, stay, **UPSCALES[case])
    monkeypatch.setattr(attention, "QUERY_CHUNK", 3)
    with pretending(kind):
        found = of_upscale(models, lambda thing: thing.to(f"{kind}:0"), **UPSCALES[case])
        assert found.device.type == kind
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


#: The transformer's kinds take seconds each; one of them stands for all in ``make test``.
_TASKS = [pytest.param(case, marks=[pytest.mark.slow] if case in ("grid", "cached", "lora") else []) for case in TASKS]


@pytest.mark.slow
@pytest.mark.parametrize("case", _TASKS)
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
def test_freed_memory_is_given_back(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    done: list[str] = []
    for name, module in (("cuda", torch.cuda), ("mps", torch.mps), ("xpu", torch.xpu)):
        home = torch.backends.mps if name == "mps" else module
        monkeypatch.setattr(home, "is_available", lambda name=name: name == kind)
        monkeypatch.setattr(module, "empty_cache", lambda name=name: done.append(f"empty {name}"))
    release_memory()
    assert done == [f"empty {kind}"]


@pytest.mark.parametrize("large", [False, True])
def test_a_resize_that_the_device_lacks_is_done_on_the_cpu(models: Models, large: bool) -> None:
    size = (200, 300) if large else (20, 30)
    expected = resize(models.large, *size)
    with pretending("mps"):
        found = resize(models.large.to("mps"), *size)
        assert found.device.type == "mps"
        assert torch.equal(found.cpu(), expected)


# --- dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("capability", "transformer", "vae"),
    [
        ((7, 0), torch.float16, torch.float32),
        ((7, 5), torch.float16, torch.float32),
        ((8, 0), torch.bfloat16, torch.bfloat16),
        ((8, 9), torch.bfloat16, torch.bfloat16),
        ((12, 0), torch.bfloat16, torch.bfloat16),
    ],
)
def test_cards_that_only_emulate_bfloat16_do_not_get_it(
    tmp_path: Path, models: Models, capability: tuple[int, int], transformer: torch.dtype, vae: torch.dtype
) -> None:
    """By default, for the library and the command line alike."""
    save_autoencoder(tmp_path / "vae.safetensors", models.autoencoder())
    save_flux(tmp_path / "flux.safetensors", models.flux())
    given = ["--vae", str(tmp_path / "vae.safetensors"), "--model", str(tmp_path / "flux.safetensors")]
    with pretending(capability=capability):
        assert load_flux(tmp_path / "flux.safetensors", device=CARD).dtype == transformer
        assert load_autoencoder(tmp_path / "vae.safetensors", device=CARD).dtype == vae
        assert load_flux(tmp_path / "flux.safetensors", device=CARD, dtype=torch.bfloat16).dtype == torch.bfloat16
        options = build_parser().parse_args(["upscale", "in.png", "-o", "out.png", "--device", CARD, *given])
        planner = Planner(options)
        loaded = planner.load()
        assert [model.dtype for model in loaded if model is not None] == [vae, transformer]
        assert planner.machine.dtype == vae and planner.models.transformer_dtype == transformer
        held = [sum(p.numel() * p.element_size() for p in model.parameters()) for model in loaded if model is not None]
        assert [weights.size for weights in planner.models.weights] == held
        planner.machine = replace(planner.machine, free=sum(held) + 1000)
        plan = planner.plan((64, 64))
        assert plan.fits is False and "bfloat16" not in plan.verdict() and "run on the CPU" in plan.verdict()


@pytest.mark.parametrize("kind", ["cpu", "mps", "xpu", "rocm"])
def test_other_devices_dtypes(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    if kind == "rocm":
        monkeypatch.setattr(torch.version, "hip", "6.2")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    found = default_dtype(torch.device("cuda" if kind == "rocm" else kind))
    assert found == (torch.float32 if kind == "cpu" else torch.bfloat16)


def test_float16_does_not_end_in_infinity(models: Models) -> None:
    """Flux's text stream grows beyond float16's largest number, 65504."""
    flux = models.flux().half()
    for block in flux.double_blocks:
        block.txt_mlp[2].bias.fill_(6e4)
        block.txt_attn.proj.bias.fill_(6e4)
        block.txt_mod.lin.bias.fill_(3.0)
    for block in flux.single_blocks:
        block.linear2.bias.fill_(6e4)
        block.modulation.lin.bias.fill_(3.0)
    txt, vec = flux.prompt(1)
    velocity = flux(torch.zeros(1, 16, 4, 4).half(), torch.ones(1), txt, vec)
    assert velocity.isfinite().all()


# --- free memory ------------------------------------------------------------------------------

GB = 1024**3


def fake_root(folder: Path, files: dict[str, str]) -> Path:
    """A tree of /proc and /sys with 8 GB available, and what is given."""
    files = {"proc/meminfo": f"MemTotal: {16 * GB // 1024} kB\nMemAvailable: {8 * GB // 1024} kB\n", **files}
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return folder


def v2(folder: str, limit: int | str, used: int, cached: int | str = 0) -> dict[str, str]:
    place = f"sys/fs/cgroup/{folder}".rstrip("/")
    stat = f"anon 1\ninactive_file {cached}\nactive_file 5\n"
    return {f"{place}/memory.max": f"{limit}\n", f"{place}/memory.current": f"{used}\n", f"{place}/memory.stat": stat}


def v1(folder: str, limit: int, used: int, cached: int = 0) -> dict[str, str]:
    place = f"sys/fs/cgroup/memory/{folder}".rstrip("/")
    return {
        f"{place}/memory.limit_in_bytes": f"{limit}\n",
        f"{place}/memory.usage_in_bytes": f"{used}\n",
        f"{place}/memory.stat": f"inactive_file 7\ntotal_inactive_file {cached}\n",
    }


V2, V1 = {"proc/self/cgroup": "0::/a/b\n"}, {"proc/self/cgroup": "12:cpu,cpuacct:/\n4:memory:/docker/1\n0::/a\n"}
FREE = {
    "no limits": ({}, 8 * GB),
    "v2": ({**V2, **v2("a/b", 4 * GB, GB)}, 3 * GB),
    "v2, files are given up": ({**V2, **v2("a/b", 4 * GB, 3 * GB, 2 * GB)}, 3 * GB),
    "v2, more room than there is memory": ({**V2, **v2("a/b", 64 * GB, GB)}, 8 * GB),
    "v2, max": ({**V2, **v2("a/b", "max", GB)}, 8 * GB),
    "v2, the parent's": ({**V2, **v2("a/b", "max", GB), **v2("a", 3 * GB, GB)}, 2 * GB),
    "v2, the tightest": ({**V2, **v2("a/b", 6 * GB, GB), **v2("a", 3 * GB, GB)}, 2 * GB),
    "v2, a container that sees its own group as the top": ({**V2, **v2("", 2 * GB, GB)}, GB),
    "v2, moved from outside": ({"proc/self/cgroup": "0::/../x\n", **v2("", 2 * GB, GB)}, GB),
    "v2, beyond the limit": ({**V2, **v2("a/b", GB, 2 * GB)}, 0),
    "v1": ({**V1, **v1("docker/1", 4 * GB, 2 * GB, GB)}, 3 * GB),
    "v1, its own group is the top": ({**V1, **v1("", 4 * GB, 2 * GB)}, 2 * GB),
    "v1, no limit": ({**V1, **v1("docker/1", 9223372036854771712, GB)}, 8 * GB),
    "v2, a path with a NUL": ({"proc/self/cgroup": "0::/a\0b\n", **v2("", 2 * GB, GB)}, GB),
    "v2, more digits than a number has": ({**V2, **v2("a/b", "9" * 5000, GB)}, 8 * GB),
    "v2, odd statistics": ({**V2, **v2("a/b", 4 * GB, GB, "max")}, 3 * GB),
    "odd memory": ({"proc/meminfo": "MemAvailable:\n", **V2, **v2("a/b", 4 * GB, GB)}, None),
    "a group without files": ({"proc/self/cgroup": "0::/a\nodd\n"}, 8 * GB),
}


@pytest.mark.parametrize("case", FREE)
def test_free_memory_knows_a_containers_limit(tmp_path: Path, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("op4ksr_core.machine._psutil_available", lambda: None)
    files, expected = FREE[case]
    assert system_memory(fake_root(tmp_path, files)) == expected


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="Linux alone has it")
def test_free_memory_of_this_computer() -> None:
    free = free_memory(torch.device("cpu"))
    assert free is not None and 0 < free < 1 << 50


def test_without_proc_psutil_is_asked_and_then_windows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither is required: where both are missing the answer is unknown."""
    monkeypatch.setitem(
        sys.modules, "psutil", SimpleNamespace(virtual_memory=lambda: SimpleNamespace(available=5 * GB))
    )
    assert system_memory(tmp_path) == 5 * GB
    monkeypatch.setitem(sys.modules, "psutil", None)
    assert os.name == "nt" or system_memory(tmp_path) is None

    def status(given: Any) -> int:
        size_and_load, total, available, *_ = given._obj
        assert size_and_load == 64 and total == 0
        given._obj[2] = 3 * GB
        return 1

    windows = SimpleNamespace(kernel32=SimpleNamespace(GlobalMemoryStatusEx=status))
    monkeypatch.setattr(ctypes, "windll", windows, raising=False)
    assert system_memory(tmp_path) == 3 * GB


def test_apples_gpus_share_the_computers_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "system_memory", lambda: 8 * GB)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 3 * GB)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 2 * GB)
    assert free_memory(torch.device("mps")) == 9 * GB


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the kernel's own count of the process's memory")
def test_memory_that_is_free_again_goes_back_to_the_system() -> None:
    """64 MB of small blocks, every eighth of which stays: the C library itself gives back none of them."""
    if not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library cannot be asked")

    def resident() -> int:
        (line,) = [text for text in Path("/proc/self/status").read_text("ascii").splitlines() if "VmRSS" in text]
        return int(line.split()[1]) * 1024

    blocks = [torch.ones(8192) for _ in range(2048)]
    kept = blocks[7::8]
    del blocks
    before = resident()
    give_back_memory()
    assert before - resident() > 30_000_000 and len(kept) == 256
