"""The command line, run in this process with tiny models."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import weakref
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from handmade_png import chunk
from PIL import Image
from safetensors.torch import load_file, save_file

import op4ksr_core
from op4ksr_core import AutoEncoder, Flux, OneStepSettings, save_autoencoder, save_flux, upscale
from op4ksr_core.cli import main as cli
from op4ksr_core.cli import options as cli_options
from op4ksr_core.cli import plan as cli_plan
from op4ksr_core.cli import upscale as cli_upscale
from op4ksr_core.images.io import Picture, load_image, save_image
from op4ksr_core.one_step import upscale_alpha
from op4ksr_core.vae import bounded
from op4ksr_core.vae.strips import StripSettings
from op4ksr_core.weights import description

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def models(
    tmp_path_factory: pytest.TempPathFactory,
    make_autoencoder: Callable[..., AutoEncoder],
    make_flux: Callable[..., Flux],
) -> tuple[Path, Path]:
    """Tiny models, loud enough that every option shows in 8 bits."""
    folder = tmp_path_factory.mktemp("models")
    save_autoencoder(folder / "vae.safetensors", make_autoencoder(loud=True))
    settings = OneStepSettings(sigma=0.4, guidance=2.0, txt=torch.ones(3, 24), train_tokens=8)
    flux = make_flux(settings=settings, theta=(46.7, 80.0))
    flux.final_layer.linear.weight.mul_(8)
    save_flux(folder / "flux.safetensors", flux)
    return folder / "vae.safetensors", folder / "flux.safetensors"


@pytest.fixture
def run(models: tuple[Path, Path]) -> Callable[..., int]:
    """run("upscale", input, ...) with the tiny models, on the CPU."""

    def call(*arguments: Any) -> int:
        options = ["--vae", models[0], "--model", models[1], "--device", "cpu"] if arguments[0] == "upscale" else []
        return cli.main([str(argument) for argument in (*arguments, *options)])

    return call


@pytest.fixture
def no_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is run."""

    def fail(*args: Any, **kw: Any) -> None:
        raise AssertionError("computed")

    monkeypatch.setattr(cli_upscale, "upscale", fail)


def photo(path: Path, width: int = 12, height: int = 10, mode: str = "RGB") -> Path:
    generator = torch.Generator().manual_seed(len(path.stem))
    alpha = torch.rand(1, 1, height, width, generator=generator) if mode == "RGBA" else None
    save_image(path, Picture(torch.rand(1, 3, height, width, generator=generator), alpha))
    return path


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as picture:
        return picture.size


def one_error(capture: Capture) -> str:
    """The one line on stderr; nothing on stdout."""
    out, err = capture.readouterr()
    assert out == ""
    assert err.startswith("error: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err.removeprefix("error: ").strip()


# --- upscale: what is written -----------------------------------------------------------------


def test_one_picture_is_what_upscale_makes(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    source, output = photo(tmp_path / "in.png"), tmp_path / "out.png"
    assert run("upscale", source, "-o", output) == 0
    out, err = capsys.readouterr()
    assert f"{output}: 48x40 px in " in out and err == ""
    vae, flux = op4ksr_core.load_autoencoder(models[0]), op4ksr_core.load_flux(models[1])
    expected = tmp_path / "expected.png"
    save_image(expected, Picture(upscale(load_image(source).image, flux, vae)))
    assert output.read_bytes() == expected.read_bytes()


def test_a_folder_becomes_a_folder(tmp_path: Path, run: Callable[..., int]) -> None:
    (tmp_path / "in").mkdir()
    for name in ("b.png", "a.JPG", "c.webp"):
        photo(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture", "utf-8")
    assert run("upscale", tmp_path / "in", "-o", tmp_path / "new" / "out", "--scale", 2) == 0
    written = sorted((tmp_path / "new" / "out").iterdir())
    assert [path.name for path in written] == ["a.png", "b.png", "c.png"]
    assert {size_of(path) for path in written} == {(24, 20)}


@pytest.mark.parametrize("ahead", [0, 1])
def test_pictures_written_beside_the_next_ones_computation(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """As on a GPU: all are written, reported in order, and a picture that fails (broken, no place) costs no other."""
    monkeypatch.setattr(cli_upscale, "_pictures_ahead", lambda device: ahead)
    sources = [photo(tmp_path / f"{name}.png") for name in "abcde"]
    sources[1].write_bytes(b"no picture")
    out = tmp_path / "out"
    (out / "d.png").mkdir(parents=True)  # where a file cannot be put
    assert run("upscale", *sources, "-o", out, "--scale", 1, "--json") == 1
    reports = json.loads(capsys.readouterr().out)["pictures"]
    assert [Path(picture["input"]).stem for picture in reports] == list("abcde")
    assert ["error" in picture for picture in reports] == [False, True, False, True, False]
    assert {path.name for path in out.iterdir() if path.is_file()} == {"a.png", "c.png", "e.png"}


@pytest.mark.parametrize("ahead", [0, 1])
@pytest.mark.slow
def test_no_more_pictures_wait_to_be_written_than_said(
    tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch, ahead: int
) -> None:
    """Or a slow disk would fill the memory: before each computation, those computed and not yet written."""
    waiting, written, compute, save = [], [], cli_upscale.upscale, cli_upscale.save_image

    def computing(*args: Any, **kwargs: Any) -> Any:
        waiting.append(len(waiting) - len(written))
        return compute(*args, **kwargs)

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        save(*args)
        written.append(args[0])

    monkeypatch.setattr(cli_upscale, "_pictures_ahead", lambda device: ahead)
    monkeypatch.setattr(cli_upscale, "upscale", computing)
    monkeypatch.setattr(cli_upscale, "save_image", slow)
    sources = [photo(tmp_path / f"{name}.png") for name in "abcd"]
    assert run("upscale", *sources, "-o", tmp_path / "out", "--scale", 1) == 0
    assert len(written) == 4 and max(waiting) == ahead


def test_a_picture_that_failed_leaves_its_memory_to_the_next(
    tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its error waits to be reported while the next picture is computed; what the device held for it must not."""
    held, alive, compute = [], [], cli_upscale.upscale

    def computing(*args: Any, **kwargs: Any) -> Any:
        alive.extend(tensor() is not None for tensor in held)
        if held:
            return compute(*args, **kwargs)
        activations = torch.zeros(8)
        held.append(weakref.ref(activations))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(cli_upscale, "_pictures_ahead", lambda device: 1)
    monkeypatch.setattr(cli_upscale, "upscale", computing)
    sources = [photo(tmp_path / f"{name}.png") for name in "ab"]
    assert run("upscale", *sources, "-o", tmp_path / "out", "--scale", 1) == 1
    assert alive == [False]


def test_several_inputs_files_and_folders_become_a_folder(tmp_path: Path, run: Callable[..., int]) -> None:
    (tmp_path / "in").mkdir()
    inputs = [photo(tmp_path / "x.png"), tmp_path / "in", photo(tmp_path / "y.bmp")]
    photo(tmp_path / "in" / "z.png")
    assert run("upscale", *inputs, "-o", tmp_path / "out", "--scale", 1) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.png", "y.png", "z.png"]


def test_one_input_into_an_existing_folder(tmp_path: Path, run: Callable[..., int]) -> None:
    (tmp_path / "out.d").mkdir()
    assert run("upscale", photo(tmp_path / "x.jpg"), "-o", tmp_path / "out.d", "--scale", 1) == 0
    assert size_of(tmp_path / "out.d" / "x.png") == (12, 10)


def test_one_broken_picture_does_not_cost_the_others(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    inputs = [photo(tmp_path / "a.png"), tmp_path / "b.png", photo(tmp_path / "c.png"), tmp_path / "gone.png"]
    inputs[1].write_bytes(b"no picture")
    assert run("upscale", *inputs, "-o", tmp_path / "out", "--scale", 1) == 1
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.png", "c.png"]
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 3 and errors[2] == "2 of 4 pictures failed"
    assert errors[0].startswith(f"error: {inputs[1]}: is no picture")
    assert errors[1].startswith(f"error: {inputs[3]}: no such file")


def test_transparency_is_enlarged_beside_the_model(tmp_path: Path, run: Callable[..., int]) -> None:
    source, output = photo(tmp_path / "in.png", mode="RGBA"), tmp_path / "out.png"
    assert run("upscale", source, "-o", output) == 0
    alpha, large = load_image(source).alpha, load_image(output).alpha
    assert alpha is not None and large is not None
    assert (large - upscale_alpha(alpha, 40, 48)).abs().max() <= 0.5 / 255 + 1e-6


def test_vae_only_needs_no_model(tmp_path: Path, models: tuple[Path, Path]) -> None:
    source, output = photo(tmp_path / "in.png"), tmp_path / "out.png"
    gone = tmp_path / "gone.safetensors"
    arguments = ["upscale", source, "-o", output, "--vae", models[0], "--model", gone, "--device", "cpu"]
    assert cli.main([str(argument) for argument in arguments]) == 1
    assert cli.main([str(argument) for argument in (*arguments, "--vae-only")]) == 0
    assert output.exists()


def test_headers_are_read_once(tmp_path: Path, run: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    read, seen = description.read_header, []

    def counted(path: Path) -> Any:
        seen.append(path.name)
        return read(path)

    monkeypatch.setattr(description, "read_header", counted)
    assert run("upscale", photo(tmp_path / "a.png"), "-o", tmp_path / "b.png", "--scale", 1) == 0
    assert sorted(seen) == ["flux.safetensors", "vae.safetensors"]


# --- upscale: flags ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ((), (48, 40)),
        (("--scale", 2.5), (30, 25)),
        (("--long-edge", 31), (31, 26)),
        (("--short-edge", 31), (37, 31)),
        (("--megapixels", 0.01), (112, 93)),
    ],
    ids=str,
)
def test_targets(tmp_path: Path, run: Callable[..., int], flags: tuple[Any, ...], size: tuple[int, int]) -> None:
    assert run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png", *flags) == 0
    assert size_of(tmp_path / "out.png") == size


@pytest.mark.parametrize(
    "flags",
    [
        ("--fidelity", "0"),
        ("--color", "adain"),
        ("--color", "none", "--fidelity", "0"),
        ("--vae-only",),
        ("--sigma", "0.9"),
        ("--theta", "10000"),
        ("--theta", "80,46.7"),
        ("--stride", "1"),
        ("--shift", "1"),
        ("--dtype", "bfloat16"),
    ],
    ids=" ".join,
)
def test_every_flag_reaches_the_picture(tmp_path: Path, run: Callable[..., int], flags: tuple[str, ...]) -> None:
    source = photo(tmp_path / "in.png", 40, 40)
    assert run("upscale", source, "-o", tmp_path / "plain.tif", "--scale", 2) == 0
    assert run("upscale", source, "-o", tmp_path / "other.tif", "--scale", 2, *flags) == 0
    plain, other = (load_image(tmp_path / name).image for name in ("plain.tif", "other.tif"))
    assert plain.shape == other.shape == (1, 3, 80, 80)
    assert not torch.equal(plain, other)


def test_json_tells_what_was_done(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    source, output = photo(tmp_path / "in.png", mode="RGBA"), tmp_path / "out.png"
    assert run("upscale", source, "-o", output, "--json", "--fidelity", 0.5) == 0
    out, err = capsys.readouterr()
    assert err == ""
    report = json.loads(out)
    (picture,) = report.pop("pictures")
    assert picture.pop("seconds") > 0 and picture.pop("save_seconds") >= 0
    peak = picture.pop("peak_memory_bytes")
    assert peak is None or peak > 1_000_000
    assert picture.pop("predicted_peak_bytes") > 100_000
    assert picture == {
        "input": str(source),
        "output": str(output),
        "input_size": [12, 10],
        "output_size": [48, 40],
        "alpha": True,
    }
    assert report == {
        "vae": {"file": str(models[0]), "stride": 2, "shift": 0},
        "model": {
            "file": str(models[1]),
            "theta": [46.7, 80.0],
            "sigma": 0.4,
            "guidance": 2.0,
            "encode": "mean",
            "output": "picture",
        },
        "lora": None,
        "enlarger": "bicubic",
        "detail": 1.0,
        "repair": 0.0,
        "color": "wavelet",
        "fidelity": 0.5,
        "vae_only": False,
        "seed": None,
        "pieces": None,
        "rfr": "checkpoint",
        "device": "cpu",
        "dtype": "float32",
        "version": op4ksr_core.__version__,
    }


def test_json_holds_the_errors_too(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    inputs = [photo(tmp_path / "a.png"), tmp_path / "gone.png"]
    assert run("upscale", *inputs, "-o", tmp_path / "out", "--scale", 1, "--json", "--vae-only") == 1
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["model"] is None and report["vae_only"] is True
    assert report["pictures"][0]["output"] == str(tmp_path / "out" / "a.png")
    first, last = err.splitlines()
    assert report["pictures"][1] == {"input": str(inputs[1]), "error": first.removeprefix("error: ")}
    assert last == "1 of 2 pictures failed"


def test_theta_and_sigma_are_told_as_they_were(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    flags = ("--theta", "50,60", "--sigma", "0.75", "--dtype", "bfloat16", "--json")
    assert run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png", *flags) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"]["theta"], report["model"]["sigma"]) == ([50.0, 60.0], 0.75)
    assert report["dtype"] == "bfloat16"


# --- upscale: refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--scale", 0), "scale: expected a number above 0"),
        (("--scale", 1000), "ceiling"),
        (("--scale", 4, "--max-megapixels", 0.0001), "above the ceiling of 0.0001 MP"),
        (("--fidelity", 2), "fidelity: expected 0 to 1"),
        (("--sigma", 7), "sigma: expected"),
        (("--theta", "ten"), "theta: expected"),
        (("--device", "toaster"), "--device toaster: not available here"),
        (("--vae", "gone.safetensors"), "gone.safetensors: no such file"),
    ],
    ids=str,
)
def test_a_wrong_option_is_one_sentence(
    tmp_path: Path, models: tuple[Path, Path], capsys: Capture, flags: tuple[Any, ...], words: str
) -> None:
    arguments = ["upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png"]
    arguments += ["--vae", models[0], "--model", models[1], "--device", "cpu", *flags]
    assert cli.main([str(argument) for argument in arguments]) == 1
    assert words in one_error(capsys)
    assert not (tmp_path / "out.png").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there(tmp_path: Path, models: tuple[Path, Path], capsys: Capture) -> None:
    arguments = ["upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png", "--device", "cuda"]
    assert cli.main([str(argument) for argument in arguments]) == 1
    assert "--device cuda: not available here" in one_error(capsys)


@pytest.mark.parametrize("flags", [(), ("--json",)], ids=["plain", "json"])
@pytest.mark.parametrize("content", [None, b"", b"hello"], ids=["missing", "empty", "text"])
def test_a_single_wrong_picture(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, content: bytes | None, flags: tuple[str, ...]
) -> None:
    if content is not None:
        (tmp_path / "in.png").write_bytes(content)
    assert run("upscale", tmp_path / "in.png", "-o", tmp_path / "out.png", *flags) == 1
    assert one_error(capsys).startswith(f"{tmp_path / 'in.png'}: ")
    assert not (tmp_path / "out.png").exists()


def test_a_folder_without_pictures(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    (tmp_path / "in").mkdir()
    assert run("upscale", tmp_path / "in", "-o", tmp_path / "out") == 1
    assert "no pictures in this folder" in one_error(capsys)


def test_both_models_the_wrong_way_round(tmp_path: Path, models: tuple[Path, Path], capsys: Capture) -> None:
    arguments = ["upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png"]
    arguments += ["--vae", models[1], "--model", models[0], "--device", "cpu"]
    assert cli.main([str(argument) for argument in arguments]) == 1
    assert "got a Flux transformer; choose it as the model" in one_error(capsys)


def test_a_doubtful_stride_is_not_run(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, monkeypatch: pytest.MonkeyPatch, no_compute: None
) -> None:
    monkeypatch.setattr(cli_options, "doubt", lambda found, model: "this looks like an 8x VAE")
    assert run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png") == 1
    error = one_error(capsys)
    assert "this looks like an 8x VAE" in error and "--stride 1 or --stride 2" in error


def unwritable(tmp_path: Path) -> dict[str, tuple[list[Path], Path, str]]:
    """Case -> inputs, output, words of the error."""
    a, b = photo(tmp_path / "a.png"), photo(tmp_path / "b.png")
    (tmp_path / "other").mkdir()
    same = photo(tmp_path / "other" / "a.jpg")
    file = tmp_path / "file"
    file.write_bytes(b"x")
    return {
        "no folder": ([a], tmp_path / "gone" / "out.png", "no such folder; create it first"),
        "unknown ending": ([a], tmp_path / "out.xyz", "unknown picture format '.xyz'"),
        "a file for several": ([a, b], file, "is the name of one file, but 2 pictures need a folder"),
        "a folder under a file": ([a, b], file / "out", "cannot be created"),
        "two of one name": ([a, same], tmp_path / "out", "would both become a.png; rename one"),
        "no place for files": ([a], Path("/proc/out.png"), "cannot be written"),
        "no place for a folder": ([a, b], Path("/proc/out"), "cannot be created"),
        "no place in a folder": ([a, b], Path("/proc"), "cannot be written"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "no folder",
        "unknown ending",
        "a file for several",
        "a folder under a file",
        "two of one name",
        *(("no place for files", "no place for a folder", "no place in a folder") if sys.platform == "linux" else ()),
    ],
)
def test_an_output_that_cannot_be_is_found_before_computing(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, no_compute: None, case: str
) -> None:
    inputs, output, words = unwritable(tmp_path)[case]
    assert run("upscale", *inputs, "-o", output) == 1
    assert words in one_error(capsys)


def test_ctrl_c_says_so_and_leaves_nothing(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: Any, **kw: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli_upscale, "upscale", interrupt)
    assert run("upscale", photo(tmp_path / "in.png"), "-o", tmp_path / "out.png") == 130
    assert "cancelled" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["in.png"]


@pytest.mark.parametrize(
    "arguments",
    [[], ["upscale"], ["upscale", "a.png"], ["upscale", "a", "-o", "b", "--scale", "2", "--long-edge", "9"], ["bake"]],
    ids=str,
)
def test_a_wrong_command_line_shows_its_use(arguments: list[str], capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


@pytest.mark.parametrize("given", ["thick", "fast:many", "tiny:0"])
def test_strips_that_cannot_be_are_refused_with_what_can(given: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        cli.main(["upscale", "a.png", "-o", "b.png", "--strips", given])
    errors = capsys.readouterr().err
    assert f"argument --strips: expected fast, lean, tiny, with :ROWS or without; got {given}\n" in errors


# --- inspect ----------------------------------------------------------------------------------


def inspected(run: Callable[..., int], capture: Capture, path: Path, *flags: Any) -> dict[str, Any]:
    assert run("inspect", path, "--json", *flags) == 0
    out, err = capture.readouterr()
    assert err == ""
    return json.loads(out)


def test_inspect_a_vae(run: Callable[..., int], models: tuple[Path, Path], capsys: Capture) -> None:
    report = inspected(run, capsys, models[0])
    assert report["kind"] == "vae" and report["layout"] == "bfl" and report["dtype"] == "F32"
    assert report["file"] == str(models[0]) and report["shards"] == []
    assert report["tensors"] == len(load_file(models[0]))
    assert report["metadata"]["op4ksr.vae_stride"] == "2"
    assert report["dims"] == {
        "widths": [8, 16, 16, 16],
        "layers_per_block": 1,
        "latent_channels": 16,
        "norm_groups": 4,
        "mid_attention": True,
        "stride": 2,
        "shift": 0,
    }
    assert report["ratio"] == 16
    assert report["why"]["stride"] == "the file's metadata" and report["assumed"] == []
    assert report["usable"] == "yes"
    assert "probe" not in report


def test_inspect_a_transformer(run: Callable[..., int], models: tuple[Path, Path], capsys: Capture) -> None:
    report = inspected(run, capsys, models[1])
    assert report["kind"] == "transformer" and report["usable"] == "yes"
    assert report["dims"]["theta"] == [46.7, 80.0] and report["dims"]["axes_dim"] == [4, 14, 14]
    assert (report["sigma"], report["guidance"], report["train_tokens"]) == (0.4, 2.0, 8)
    assert report["prompt_embedding"] is True and report["encode"] == "mean"
    assert report["why"].pop("encode") == "default: the posterior's mean, as the file names none"
    assert report["output"] == "picture"
    assert report["why"].pop("output") == "default: a whole picture, as the file names none"
    assert report["why"] == {key: "the file's metadata" for key in ("theta", "sigma", "guidance")}


def test_inspect_tells_what_was_assumed(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, make_autoencoder: Callable[..., AutoEncoder]
) -> None:
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, make_autoencoder(widths=(32, 32), norm_groups=32))
    save_file(load_file(path), path)
    report = inspected(run, capsys, path)
    assert report["assumed"] == ["stride"] and report["why"]["stride"].startswith("assumed")


def test_inspect_a_lora(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    path = tmp_path / "lora.safetensors"
    name = "lora_unet_double_blocks_0_img_attn_proj"
    save_file({f"{name}.lora_down.weight": torch.zeros(4, 8), f"{name}.lora_up.weight": torch.zeros(8, 4)}, path)
    report = inspected(run, capsys, path)
    assert report["kind"] == "lora" and report["usable"].startswith("yes: with a LoRA loader")


def test_inspect_a_quantized_transformer(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    path = tmp_path / "fp8.safetensors"
    save_file({**load_file(models[1]), "img_in.scale_weight": torch.ones(1)}, path)
    report = inspected(run, capsys, path)
    assert report["kind"] == "transformer" and "ComfyUI alone" in report["usable"]


def test_inspect_shards(tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture) -> None:
    tensors = load_file(models[1])
    names = sorted(tensors)
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::2]}, tmp_path / file)
    weight_map = {name: files[i % 2] for i, name in enumerate(names)}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}), "utf-8")
    report = inspected(run, capsys, tmp_path)
    assert report["shards"] == files and report["tensors"] == len(names)


def test_inspect_another_file_says_what_it_is(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"conditioner.a": torch.zeros(1)}, path)
    for flags in ((), ("--json",)):
        assert run("inspect", path, *flags) == 1
        assert "something else (conditioner.a)" in one_error(capsys)


def test_inspect_refuses_a_file_that_would_not_load(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    path = tmp_path / "vae.safetensors"
    shutil.copy(models[0], path)
    path.write_bytes(path.read_bytes()[:-10])
    assert run("inspect", path) == 1
    assert "cut short" in one_error(capsys)
    tensors = load_file(models[1])
    del tensors["single_blocks.0.linear2.bias"]
    save_file(tensors, path)
    assert run("inspect", path) == 1
    assert "1 missing (single_blocks.0.linear2.bias)" in one_error(capsys)


def test_inspect_with_a_photo_measures_every_geometry(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    picture = photo(tmp_path / "photo.png", 70, 40)
    report = inspected(run, capsys, models[0], "--probe", picture)
    assert [(fit["stride"], fit["shift"]) for fit in report["probe"]] == [(2, 0), (2, 1), (1, 0)]
    assert all(0 < fit["psnr"] < 60 and -1 <= fit["detail"] <= 1 for fit in report["probe"])
    assert report["probe_says"] is None  # random weights keep no detail
    assert run("inspect", models[0], "--probe", picture) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("probe: stride ") for line in lines) == 3
    assert any(line.startswith("probe_says: cannot tell") for line in lines)


def test_inspect_with_a_photo_too_small(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    assert run("inspect", models[0], "--probe", photo(tmp_path / "photo.png", 20, 40)) == 1
    assert "at least 32x32" in one_error(capsys)


def test_inspect_probes_vaes_alone(
    tmp_path: Path, run: Callable[..., int], models: tuple[Path, Path], capsys: Capture
) -> None:
    assert run("inspect", models[1], "--probe", photo(tmp_path / "photo.png", 70, 40)) == 1
    assert one_error(capsys) == f"--probe: {models[1]} is of kind transformer; only a VAE can be probed with a photo"


def test_inspect_in_plain_lines(run: Callable[..., int], models: tuple[Path, Path], capsys: Capture) -> None:
    assert run("inspect", models[1]) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        "kind: transformer",
        "dims.hidden_size: 64",
        "sigma: 0.4",
        "why.theta: the file's metadata",
        "usable: yes",
    ):
        assert line in lines
    assert "metadata.op4ksr.rope_theta: 46.7,80.0" in lines


# --- the module -------------------------------------------------------------------------------


@pytest.mark.slow
def test_python_dash_m_and_the_console_script_run_it(tmp_path: Path) -> None:
    """From another folder, which nothing depends on; the script does what installers generate for an entry point."""
    root, gone = Path(op4ksr_core.__file__).parent.parent, tmp_path / "gone.safetensors"
    script = "import sys; from op4ksr_core.cli.main import main; sys.exit(main())"
    for start in (["-m", "op4ksr_core"], ["-c", script]):
        command = [sys.executable, *start, "inspect", str(gone)]
        surroundings = {**os.environ, "PYTHONPATH": str(root)}
        failed = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=120, env=surroundings)
        assert failed.returncode == 1 and failed.stdout == ""
        assert failed.stderr == f"error: {gone}: no such file; check the name and the folder\n"


def test_version(capsys: Capture) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"{op4ksr_core.__version__}\n"


# --- what a newcomer tried --------------------------------------------------------------------


def test_several_pictures_do_not_become_a_folder_named_like_a_picture(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, no_compute: None
) -> None:
    inputs = [photo(tmp_path / "a.png"), photo(tmp_path / "b.png")]
    assert run("upscale", *inputs, "-o", tmp_path / "two.png") == 1
    assert "2 pictures need a folder" in one_error(capsys)
    assert not (tmp_path / "two.png").exists()


def test_names_that_collide_leave_no_empty_folder(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, no_compute: None
) -> None:
    inputs = [photo(tmp_path / "a.png"), photo(tmp_path / "a.jpg")]
    assert run("upscale", *inputs, "-o", tmp_path / "out") == 1
    assert "would both become" in one_error(capsys)
    assert not (tmp_path / "out").exists()


def test_a_picture_is_not_written_over_itself(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, no_compute: None
) -> None:
    source = photo(tmp_path / "a.png")
    before = source.read_bytes()
    for output in (source, tmp_path):
        assert run("upscale", source, "-o", output) == 1
        assert "is the input itself" in one_error(capsys)
    assert source.read_bytes() == before


def test_a_folder_named_like_a_picture_is_no_picture(tmp_path: Path, run: Callable[..., int]) -> None:
    (tmp_path / "in").mkdir()
    photo(tmp_path / "in" / "a.png")
    (tmp_path / "in" / "x.png").mkdir()
    assert run("upscale", tmp_path / "in", "-o", tmp_path / "out") == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]


def test_lost_transparency_is_said(tmp_path: Path, run: Callable[..., int], capsys: Capture) -> None:
    source = photo(tmp_path / "a.png", mode="RGBA")
    assert run("upscale", source, "-o", tmp_path / "out.jpg", "--json") == 0
    captured = capsys.readouterr()
    assert "holds no transparency" in captured.err
    assert json.loads(captured.out)["pictures"][0]["alpha"] is False


def test_out_of_memory_in_one_picture_does_not_cost_the_others(
    tmp_path: Path, run: Callable[..., int], capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def scarce(image: torch.Tensor, *args: Any, **kw: Any) -> torch.Tensor:
        if image.shape[-1] == 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return upscale(image, *args, **kw)

    monkeypatch.setattr(cli_upscale, "upscale", scarce)
    inputs = [photo(tmp_path / "large.png", 16, 16), photo(tmp_path / "small.png")]
    assert run("upscale", *inputs, "-o", tmp_path / "out") == 1
    assert "large.png: out of memory" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.png"]


def test_a_demo_into_a_file_is_refused(tmp_path: Path, capsys: Capture) -> None:
    place = photo(tmp_path / "a.png")
    assert cli.main(["demo", "-o", str(place)]) == 1
    assert "choose another folder" in one_error(capsys)


@pytest.mark.parametrize("free", [0.006, 0.004, 10.0])
def test_the_plan_that_is_logged_is_the_one_that_runs(
    run: Callable[..., int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    free: float,
) -> None:
    """Whatever memory is free later: the autoencoder does not choose once more."""
    ran: dict[str, StripSettings] = {}
    for stage in ("encode", "decode"):
        works = getattr(bounded, f"{stage}_picture")

        def recorded(*given: Any, stage: str = stage, works: Any = works) -> Any:
            ran[stage] = next(value for value in given if isinstance(value, StripSettings))
            return works(*given)

        monkeypatch.setattr(bounded, f"{stage}_picture", recorded)
    monkeypatch.setattr(cli_plan, "free_memory", lambda device: int(free * 1e9))
    monkeypatch.setattr(bounded, "choose_strips", lambda *given: pytest.fail("chosen once more"))
    caplog.set_level("INFO")
    assert run("upscale", photo(tmp_path / "in.png", 64, 48), "-o", tmp_path / "out.png", "--vae-only", "--anyway") == 0
    text = "\n".join(record.getMessage() for record in caplog.records)
    logged = dict(re.findall(r"^(encode|decode) .*  (strips of \d+ rows, \w+)", text, re.MULTILINE))
    assert logged == {stage: f"strips of {s.rows} rows, {s.mode}" for stage, s in ran.items()}
    assert (logged["decode"] == "strips of 64 rows, fast") is (free > 1)


# --- plan -------------------------------------------------------------------------------------


@pytest.fixture
def plan(models: tuple[Path, Path]) -> Callable[..., int]:
    def call(*arguments: Any) -> int:
        options = ["--vae", models[0], "--model", models[1], "--device", "cpu"]
        return cli.main(["plan", *(str(argument) for argument in (*arguments, *options))])

    return call


@pytest.mark.parametrize("given", ["12x10", "picture"])
def test_plan_of_a_size_or_a_picture(
    tmp_path: Path, plan: Callable[..., int], capsys: Capture, no_compute: None, given: str
) -> None:
    source = photo(tmp_path / "in.png") if given == "picture" else given
    assert plan(source, "--scale", 10) == 0
    text = capsys.readouterr().out
    assert text.startswith("12x10 -> 120x100 px, 192x192 with its margin; latent 12x12, 4 x 4 = 16 tokens")
    assert "fits" in text and "TFLOP" in text and "vae.safetensors: cpu, float32" in text


def test_plan_as_json_and_a_grid_beyond_training(plan: Callable[..., int], capsys: Capture) -> None:
    assert plan("300x100", "--scale", 1, "--json", "--strips", "tiny:16") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["framed_size"] == [384, 192] and report["tokens"] == {"rows": 4, "columns": 10, "train_tokens": 8}
    assert "more than the 8 per side this model was trained on" in report["warnings"][0]
    assert [stage["strips"] for stage in report["stages"] if stage["strips"]] == 2 * [{"rows": 16, "mode": "tiny"}]


def test_plan_that_will_not_fit_says_what_to_do(plan: Callable[..., int], capsys: Capture) -> None:
    assert plan("1024x1024", "--free", 0.05) == 1
    text = capsys.readouterr().out
    assert "this will not fit; ask for a long edge of at most " in text
    edge = text.split("at most ")[1].split()[0]
    assert plan("1024x1024", "--free", 0.05, "--long-edge", edge) == 0
    assert plan("1024x1024", "--free", 0.05, "--long-edge", int(edge) + 32) == 1


@pytest.mark.parametrize("free", ["nan", "inf", "-1", "0", "much"])
def test_plan_takes_gigabytes_that_can_be(plan: Callable[..., int], capsys: Capture, free: str) -> None:
    with pytest.raises(SystemExit):
        plan("64x64", "--free", free)
    assert "--free" in capsys.readouterr().err


@pytest.mark.parametrize("wrong", [("--theta", "nonsense"), ("--sigma", "99")])
def test_plan_checks_what_upscale_would(plan: Callable[..., int], capsys: Capture, wrong: tuple[str, str]) -> None:
    assert plan("64x64", *wrong) == 1
    assert wrong[0].removeprefix("--") in one_error(capsys)


@pytest.mark.parametrize(("given", "words"), [("0x4", "above 0"), ("gone.png", "gone.png"), ("4096x4096", "ceiling")])
def test_plan_refuses(plan: Callable[..., int], capsys: Capture, given: str, words: str) -> None:
    assert plan(given) == 1
    assert words in one_error(capsys)


def test_upscale_refuses_before_computing_what_cannot_fit(
    tmp_path: Path,
    run: Callable[..., int],
    models: tuple[Path, Path],
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source, output = photo(tmp_path / "in.png"), tmp_path / "out.png"
    weights = sum(parameter.nbytes for model in models for parameter in load_file(model).values())
    monkeypatch.setattr(cli_plan, "free_memory", lambda device: weights + 20_000)
    assert run("upscale", source, "-o", output) == 1
    assert "this will not fit" in one_error(capsys) and not output.exists()
    assert run("upscale", source, "-o", output, "--anyway") == 0
    capsys.readouterr()
    monkeypatch.setattr(cli_plan, "free_memory", lambda device: 100_000)
    assert run("upscale", source, "-o", output) == 1
    assert "weights alone" in one_error(capsys)


def test_strips_are_a_choice_and_of_no_consequence(tmp_path: Path, run: Callable[..., int]) -> None:
    source = photo(tmp_path / "in.png")
    pictures = []
    for strips in ("fast", "lean:8", "tiny:2"):
        assert run("upscale", source, "-o", tmp_path / "out.png", "--scale", 12, "--strips", strips) == 0
        pictures.append(load_image(tmp_path / "out.png").image)
    assert (pictures[0] - pictures[1]).abs().max() < 1.5 / 255
    assert (pictures[0] - pictures[2]).abs().max() < 1.5 / 255


# --- what is decided by a picture's header ---------------------------------------------------------


def huge(side: int) -> bytes:
    """A PNG of a few hundred bytes that claims to be huge."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.fixture
def no_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a picture is decoded."""

    def fail(*args: Any, **kw: Any) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", fail)


@pytest.mark.usefixtures("no_compute", "no_pixels")
def test_the_ceiling_is_judged_by_the_header(run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(huge(13000))
    assert run("upscale", tmp_path / "a.png", "-o", tmp_path / "b.png") == 1
    assert "13000x13000 px x 4 is 52000x52000 px" in capsys.readouterr().err


@pytest.mark.usefixtures("no_compute", "no_pixels")
@pytest.mark.parametrize(
    ("name", "limit"), [("b.webp", "WebP holds at most 16383"), ("b.jpg", "JPEG holds at most 65500")]
)
def test_what_a_format_cannot_hold_is_told_before_computing(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, limit: str
) -> None:
    Image.new("RGB", (16400, 2)).save(tmp_path / "a.bmp")
    assert run("upscale", tmp_path / "a.bmp", "-o", tmp_path / name) == 1
    assert f"{limit} px on a side; end the name in .png" in capsys.readouterr().err
    assert not (tmp_path / name).exists()


@pytest.mark.usefixtures("no_pixels")
def test_suppress_knows_the_limits_before_it_reads(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.new("RGB", (16400, 2)).save(tmp_path / "a.bmp")
    assert run("suppress", tmp_path / "a.bmp", "-o", tmp_path / "b.webp") == 1
    assert "WebP holds at most 16383 px on a side" in capsys.readouterr().err


@pytest.mark.usefixtures("no_compute", "no_pixels")
def test_the_memory_that_reading_takes_is_judged_by_the_header(
    run: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(huge(13000))
    monkeypatch.setattr("op4ksr_core.images.read.system_memory", lambda: 10**9)
    for command in (["suppress"], ["upscale", "--long-edge", "64"]):
        assert run(command[0], tmp_path / "a.png", "-o", tmp_path / "b.png", *command[1:]) == 1
        assert "13000x13000 px take about 5.41 GB of memory to be read" in capsys.readouterr().err


@pytest.mark.usefixtures("no_pixels")
def test_a_plan_decodes_nothing(plan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.png").write_bytes(huge(1000))
    assert plan(tmp_path / "a.png", "--scale", "1") in (0, 1)
    assert "1000x1000" in capsys.readouterr().out


def test_an_input_larger_than_its_output_is_counted(
    plan: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.png").write_bytes(huge(8000))
    assert plan(tmp_path / "a.png", "--long-edge", "64", "--free", "0.5") == 1
    assert plan("80x80", "--long-edge", "64", "--free", "0.5") == 0


def test_hidden_colours_do_not_reach_the_file(run: Any, tmp_path: Path) -> None:
    rgba = np.zeros((32, 32, 4), np.uint8)
    rgba[8:24, 8:24] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for scale in (0.5, 1, 2):
        out = tmp_path / f"b{scale}.png"
        assert run("upscale", tmp_path / "a.png", "-o", out, "--scale", scale, "--vae-only") == 0
        rgba[rgba[..., 3] == 0, :3] = 128
        Image.fromarray(rgba).save(tmp_path / "c.png")
        assert run("upscale", tmp_path / "c.png", "-o", tmp_path / "d.png", "--scale", scale, "--vae-only") == 0
        assert out.read_bytes() == (tmp_path / "d.png").read_bytes()
