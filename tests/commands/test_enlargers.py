"""--enlarger, --detail and --repair: words, our file, others' files by spandrel, the report, the plan, and refusals."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from spandrel_support import import_spandrel, state_of, tiny_esrgan

from op4ksr_core import AutoEncoder, Flux, OneStepOptions, OneStepSettings, Target, save_autoencoder, save_flux
from op4ksr_core import upscale as library_upscale
from op4ksr_core.base import Base, Bicubic, Foreign, Learned
from op4ksr_core.bundled import BUNDLED_ENLARGER
from op4ksr_core.cli import main as cli
from op4ksr_core.images.io import Picture, load_image, save_image
from op4ksr_core.models.enlarger import Enlarger, EnlargerParams
from op4ksr_core.weights.checkpoint import load_autoencoder, load_flux
from op4ksr_core.weights.enlarger import choose_base, load_enlarger, save_enlarger
from op4ksr_core.weights.header import read_header, read_tensors

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., AutoEncoder],
    make_flux: Callable[..., Flux],
) -> Path:
    """Tiny models, one for pictures and one for detail, an enlarger of ours, and a picture of 40 x 24 px."""
    folder = tmp_path_factory.mktemp("files")
    save_autoencoder(folder / "vae.safetensors", make_autoencoder(loud=True))
    for name, settings in {
        "picture": OneStepSettings(sigma=0.5),
        "detail": OneStepSettings(sigma=0.5, output="detail", repair=0.25, sigma_repair=0.9),
    }.items():
        flux = make_flux(settings=settings)
        flux.final_layer.linear.weight.mul_(8)
        save_flux(folder / f"{name}.safetensors", flux)
    torch.manual_seed(3)
    save_enlarger(folder / "own.safetensors", Enlarger(EnlargerParams(width=8, blocks=1, factors=(2,))))
    image = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    save_image(folder / "in.png", Picture(image, None))
    return folder


def command(name: str, folder: Path, *given: Any, model: str = "detail") -> int:
    models = ["--vae", folder / "vae.safetensors", "--model", folder / f"{model}.safetensors", "--device", "cpu"]
    return cli.main([str(argument) for argument in (name, folder / "in.png", *models, "--scale", 2, *given)])


def enlarged(folder: Path, output: Path, *given: Any, model: str = "detail") -> torch.Tensor:
    assert command("upscale", folder, "-o", output, "--bits", 16, *given, model=model) == 0
    return load_image(output).image


def by_library(folder: Path, base: Base | None, model: str = "detail", **given: Any) -> torch.Tensor:
    models = load_flux(folder / f"{model}.safetensors"), load_autoencoder(folder / "vae.safetensors")
    options = OneStepOptions(Target(scale=2), **given)
    return library_upscale(load_image(folder / "in.png").image, *models, options, base=base)


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return found.shape == expected.shape and bool((found - expected).abs().max() <= 2 / 65535)


def test_words_and_our_own_file(folder: Path, tmp_path: Path) -> None:
    bundled = choose_base("bundled", "detail")
    own = Learned(load_enlarger(folder / "own.safetensors"), "own")
    for word, model, base in (
        ("auto", "detail", bundled),
        ("auto", "picture", Bicubic()),
        ("bundled", "picture", bundled),
        ("bicubic", "detail", Bicubic()),
        (folder / "own.safetensors", "detail", own),
        (BUNDLED_ENLARGER, "picture", bundled),
    ):
        found = enlarged(folder, tmp_path / "out.png", "--enlarger", word, model=model)
        assert same(found, by_library(folder, base, model)), (word, model)
    assert same(enlarged(folder, tmp_path / "out.png"), by_library(folder, None))
    assert not same(by_library(folder, bundled), by_library(folder, Bicubic()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".PTH", ".ckpt"])
@pytest.mark.parametrize("factor", [1, 2, 4])
def test_others_files(folder: Path, tmp_path: Path, suffix: str, factor: int) -> None:
    """As they are published: tensors by name, or some dicts further in."""
    state = state_of(model := tiny_esrgan(factor))
    path = tmp_path / f"x{suffix}"
    if suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state if suffix == ".pth" else {"params_ema": state, "step": 3}, path)
    base = Foreign(lambda low: model(low), factor, path.name)
    found = enlarged(folder, tmp_path / "out.png", "--enlarger", path, "--detail", 0.5)
    assert same(found, by_library(folder, base, detail=0.5))


def test_a_model_of_brightness_alone(folder: Path, tmp_path: Path) -> None:
    save_file(state_of(model := tiny_esrgan(2, channels=1)), tmp_path / "grey.safetensors")
    base = Foreign(lambda low: model(low), 2, "grey", channels=1)
    found = enlarged(folder, tmp_path / "out.png", "--enlarger", tmp_path / "grey.safetensors", "--detail", 0)
    assert same(found, by_library(folder, base, detail=0))


def test_detail_and_repair(folder: Path, tmp_path: Path) -> None:
    for detail, repair in ((0.0, None), (0.5, 1.0), (2.0, 0.0)):
        given = ["--detail", detail, *(["--repair", repair] if repair is not None else [])]
        found = enlarged(folder, tmp_path / "out.png", *given)
        assert same(found, by_library(folder, None, detail=detail, repair=repair)), (detail, repair)
    asked = enlarged(folder, tmp_path / "out.png", "--sigma", 0.5, "--repair", 1, "--enlarger", "bicubic")
    other = enlarged(
        folder, tmp_path / "out.png", "--sigma", 0.5, "--repair", 0, "--enlarger", "bicubic", "--fidelity", 0
    )
    assert same(asked, other)  # an explicit sigma wins, and nothing is projected at repair 1


def test_without_the_transformer_its_file_still_says_what_is_repaired(folder: Path, tmp_path: Path) -> None:
    own, asked, other = (
        enlarged(folder, tmp_path / "out.png", "--vae-only", "--fidelity", 0, *given)
        for given in ((), ("--repair", 0.25), ("--repair", 0))
    )
    assert torch.equal(own, asked) and not same(own, other)


def test_a_model_that_cannot_be_read_is_told_where_it_is_not_needed(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    command("upscale", folder, "-o", tmp_path / "out.png", "--vae-only", model="gone")
    told = caplog.text
    assert "gone.safetensors" in told and "--vae-only goes on as for a model that says nothing" in told


def test_a_damaged_enlarger_is_called_one(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    """By its label, where its tensors' names say nothing; spandrel would not read it either."""
    tensors = {name.replace("body.0", "body.7"): t for name, t in read_tensors(read_header(BUNDLED_ENLARGER)).items()}
    path = tmp_path / "gap.safetensors"
    save_file(tensors, path, {"op4ksr.kind": "enlarger"})
    assert command("upscale", folder, "-o", tmp_path / "out.png", "--enlarger", path) == 1
    assert "spandrel" not in (told := capsys.readouterr().err) and "gap.safetensors" in told
    assert cli.main(["inspect", str(path)]) == 1 and "VAE" not in capsys.readouterr().err


def test_the_report_names_them(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    def report(*given: Any, model: str = "detail") -> dict[str, Any]:
        assert command("upscale", folder, "-o", tmp_path / "out.png", "--json", *given, model=model) == 0
        return json.loads(capsys.readouterr().out)

    found = report()
    assert (found["enlarger"], found["detail"], found["repair"]) == ("bundled", 1.0, 0.25)
    assert found["model"]["sigma"] == pytest.approx(0.6) and found["model"]["output"] == "detail"
    found = report("--enlarger", folder / "own.safetensors", "--detail", "0.5", "--repair", 1)
    assert (found["enlarger"], found["detail"], found["repair"]) == ("own.safetensors", 0.5, 1.0)
    assert found["model"]["sigma"] == pytest.approx(0.9)
    found = report(model="picture")
    assert (found["enlarger"], found["repair"], found["model"]["sigma"]) == ("bicubic", 0.0, 0.5)
    found = report("--vae-only")
    assert (found["enlarger"], found["repair"]) == ("bundled", 0.25)


def test_the_plan_counts_them(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    def plan(*given: Any, model: str = "detail") -> dict[str, Any]:
        assert command("plan", folder, "--json", *given, model=model) == 0
        found = json.loads(capsys.readouterr().out)
        return {stage["name"]: stage for stage in found["stages"]} | {"weights": found["weights"]}

    whole, detail = plan(model="picture"), plan()
    assert "enlarge" not in whole and detail["enlarge"]["flops"] > 0 and detail["enlarge"]["path"] == "bundled"
    assert detail["decode"]["flops"] == 2 * whole["decode"]["flops"]
    assert [weights["name"] for weights in detail["weights"]][-1] == "bundled" and len(whole["weights"]) == 2
    assert set(plan("--detail", 0)) == {"enlarge", "finish", "weights"}
    save_file(state_of(tiny_esrgan(4)), tmp_path / "x.safetensors")
    foreign = plan("--enlarger", tmp_path / "x.safetensors", model="picture")
    assert foreign["enlarge"]["flops"] > 0 and foreign["enlarge"]["peak_bytes"] > 0
    assert foreign["weights"][-1]["name"] == "x.safetensors"


def test_inspect_and_convert_know_the_settings(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    def run(*given: Any) -> int:
        return cli.main([str(argument) for argument in given])

    out = tmp_path / "made.safetensors"
    settings = {"output": "detail", "repair": "0.3", "sigma_repair": "0.7"}
    sets = [part for key, value in settings.items() for part in ("--set", f"op4ksr.{key}={value}")]
    assert run("convert", folder / "picture.safetensors", "-o", out, *sets) == 0
    capsys.readouterr()
    assert run("inspect", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["output"], found["repair"], found["sigma_repair"]) == ("detail", 0.3, 0.7)
    assert found["why"]["output"] == found["why"]["repair"] == found["why"]["sigma_repair"] == "the file's metadata"
    loaded = load_flux(out).settings
    assert (loaded.output, loaded.repair, loaded.sigma_repair) == ("detail", 0.3, 0.7)
    assert load_flux(out, sigma=0.2).settings.sigma_repair is None
    assert load_flux(folder / "picture.safetensors").settings.output == "picture"
    for wrong, words in (("output=both", "picture or detail"), ("repair=2", "0 to 1"), ("sigma_repair=0", "above 0"),
                         ("repair=much", "no number")):  # fmt: skip
        bad = ["--set", f"op4ksr.{wrong}"]
        assert run("convert", folder / "picture.safetensors", "-o", tmp_path / "bad.safetensors", *bad) == 1
        error = capsys.readouterr().err
        assert words in error and "Traceback" not in error and error.count("\n") == 1
        assert error.count("correct it") == 1


REFUSED = {
    "missing.safetensors": "missing.safetensors: no such file",
    "missing.pth": "missing.pth: no such file",
    "best": "--enlarger best: expected auto, bicubic, bundled or a file that ends in one of .safetensors, .pth",
    "vae.safetensors": "vae.safetensors: expected an enlarger or an upscale model, got a vae",
    "nothing.pth": "nothing.pth: cannot be read as tensors alone",
    "code.pth": "code.pth: cannot be read as tensors alone",
    "list.pth": "list.pth: expected an upscale model's tensors by name, got list",
    "unknown.safetensors": "unknown.safetensors: expected an upscale model that spandrel knows",
    "unknown.pth": "unknown.pth: expected an upscale model that spandrel knows",
    "odd.safetensors": "odd.safetensors: expected a model that makes a picture of a picture, got",
    "large.safetensors": "large.safetensors: has 2,100,000,",
    "large.pth": "large.pth: its tensors have 40,000,000,000,000 bytes, more than an upscale model's file",
    "sparse.pth": "sparse.pth: a: expected a dense tensor, got torch.sparse_coo",
    "whole.safetensors": "whole.safetensors: model.0.weight: expected floating-point weights, got torch.int8",
    "part.safetensors": "part.safetensors: expected an upscale model that spandrel knows, and it takes it for none "
    '(Error(s) in loading state_dict for RRDBNet: Missing key(s) in state_dict: "model.0.bias"',
    "headless.safetensors": "headless.safetensors: an enlarger without its input layer, blocks or heads",
    "damaged.safetensors": "damaged.safetensors: conv_in.bias holds NaN or infinite numbers",
    "four.safetensors": "four.safetensors: expected an upscale model of a whole factor from 1 up that takes 3",
}


def odd_files(folder: Path) -> None:
    head = json.dumps({"a": {"dtype": "U8", "shape": [2_100_000_000], "data_offsets": [0, 2_100_000_000]}}).encode()
    with (folder / "large.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        file.truncate(8 + len(head) + 2_100_000_000)
    torch.save({"params": {"a": torch.zeros(1).expand(10**7, 10**6)}}, folder / "large.pth")
    torch.save({"params": {"a": torch.ones(2, 2).to_sparse()}}, folder / "sparse.pth")
    state = state_of(tiny_esrgan(4))
    save_file({name: tensor.to(torch.int8) for name, tensor in state.items()}, folder / "whole.safetensors")
    del state["model.0.bias"]
    save_file(state, folder / "part.safetensors")
    save_file(state_of(tiny_esrgan(2, channels=4)), folder / "four.safetensors")
    ours = {name: tensor for name, tensor in load_file(BUNDLED_ENLARGER).items() if not name.startswith("heads")}
    save_file(ours, folder / "headless.safetensors", metadata={"op4ksr.kind": "enlarger"})
    ours = load_file(BUNDLED_ENLARGER)
    ours["conv_in.bias"][0] = float("nan")
    save_file(ours, folder / "damaged.safetensors", metadata={"op4ksr.kind": "enlarger"})


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_refuses(folder: Path, tmp_path: Path, capsys: Capture, name: str) -> None:
    import_spandrel()
    (tmp_path / "nothing.pth").write_bytes(b"nothing")
    torch.save({"a": REFUSED.get}, tmp_path / "code.pth")
    torch.save([torch.ones(1)], tmp_path / "list.pth")
    torch.save({"a": torch.ones(2)}, tmp_path / "unknown.pth")
    save_file({"a": torch.ones(2)}, tmp_path / "unknown.safetensors")
    odd = state_of(tiny_esrgan(4))
    odd["model.0.weight"] = odd["model.0.weight"].repeat(1, 2, 1, 1)[:, :4].contiguous()
    save_file(odd, tmp_path / "odd.safetensors")
    odd_files(tmp_path)
    path = folder / name if name == "vae.safetensors" else name if name == "best" else tmp_path / name
    for command_name, given in (("upscale", ["-o", tmp_path / "out.png"]), ("plan", [])):
        assert command(command_name, folder, *given, "--enlarger", path) == 1
        error = capsys.readouterr().err
        assert REFUSED[name] in error and "Traceback" not in error and len(error.strip().splitlines()) == 1, error
    assert not (tmp_path / "out.png").exists()


def test_what_is_not_finite_is_told_with_its_file(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    state = state_of(tiny_esrgan(4))
    state["model.0.weight"][0] = float("nan")
    save_file(state, tmp_path / "nan.safetensors")
    given = ["-o", tmp_path / "out.png", "--enlarger", tmp_path / "nan.safetensors"]
    assert command("upscale", folder, *given) == 1
    assert "error: nan.safetensors: the enlarger's output is not finite (NaN)" in capsys.readouterr().err


def test_without_spandrel_it_says_what_to_install(
    folder: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "spandrel", None)
    save_file({"a": torch.ones(2)}, tmp_path / "x.safetensors")
    assert command("upscale", folder, "-o", tmp_path / "out.png", "--enlarger", tmp_path / "x.safetensors") == 1
    error = capsys.readouterr().err
    assert (
        "needs spandrel" in error and "pip install op4ksr[spandrel]" in error and len(error.strip().splitlines()) == 1
    )


@pytest.mark.parametrize("command_name", ["upscale", "plan"])
@pytest.mark.parametrize(
    ("given", "words"), [(("--detail", "3"), "detail: expected 0 to 2"), (("--repair", "2"), "repair: expected 0 to 1")]
)
def test_numbers_out_of_range(
    folder: Path, tmp_path: Path, capsys: Capture, command_name: str, given: tuple[str, ...], words: str
) -> None:
    output = ["-o", tmp_path / "out.png"] if command_name == "upscale" else []
    assert command(command_name, folder, *output, *given) == 1
    assert words in capsys.readouterr().err
