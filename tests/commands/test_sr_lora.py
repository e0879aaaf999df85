"""The command line with public one-step LoRAs: --lora, --seed, convert --sr-lora, prompts in .pth files."""

from __future__ import annotations

import json
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Embedding, Parameter

from op4ksr_core import load_autoencoder, load_flux, upscale
from op4ksr_core.cli.main import main
from op4ksr_core.images.io import load_image
from op4ksr_core.images.resize import Target
from op4ksr_core.one_step import OneStepOptions
from op4ksr_core.weights.header import read_header, read_tensors
from op4ksr_core.weights.sr_lora import describe_sr_lora

pytest.importorskip("diffusers")
pytest.importorskip("peft")
import one_step_weights as public

Capture = pytest.CaptureFixture[str]


def run(*words: object) -> int:
    return main([str(word) for word in words])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, omgsr/, fluxsr/, prompt.safetensors, one.safetensors (OMGSR with the prompt), in.png of 24 x 20 px."""
    folder = tmp_path_factory.mktemp("weights")
    public.save_base(folder / "base")
    public.save_omgsr(folder / "omgsr")
    public.save_fluxsr(folder / "fluxsr")
    prompt = public.save_prompt(folder / "prompt.safetensors")
    one = folder / "one.safetensors"
    assert run("convert", "--sr-lora", folder / "omgsr", "--prompt-embedding", prompt, "-o", one) == 0
    pixels = torch.randint(0, 256, (20, 24, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(folder / "in.png")
    return folder


@pytest.fixture
def upscaled(folder: Path, tmp_path: Path) -> Callable[..., Tensor]:
    """upscaled(*options) -> what the command makes of in.png, twice the size, (1, 3, 40, 48)."""

    def enlarge(*options: object) -> Tensor:
        output = tmp_path / "out.png"
        output.unlink(missing_ok=True)
        models = ("--model", folder / "base" / "transformer", "--vae", folder / "base" / "vae")
        assert run("upscale", folder / "in.png", "-o", output, "--scale", 2, *models, *options) == 0
        return load_image(output).image

    return enlarge


def refused(capsys: Capture, *words: object) -> str:
    """The one sentence that the command says on the way to exit code 1."""
    capsys.readouterr()
    assert run(*words) == 1
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.mark.slow
def test_upscale_is_the_librarys(folder: Path, upscaled: Callable[..., Tensor]) -> None:
    one = describe_sr_lora(folder / "one.safetensors")
    flux = load_flux(folder / "base" / "transformer", lora=one, strength=0.5)
    vae = load_autoencoder(folder / "base" / "vae", lora=one, strength=0.5)
    options = OneStepOptions(target=Target(scale=2), seed=3)
    expected = upscale(load_image(folder / "in.png").image, flux, vae, options)
    got = upscaled("--lora", f"{folder / 'one.safetensors'}:0.5", "--seed", 3)
    assert (got - expected).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.slow
def test_every_part_of_it_shows(folder: Path, upscaled: Callable[..., Tensor]) -> None:
    lora = ("--lora", folder / "one.safetensors")
    pictures = [
        upscaled(*lora),
        upscaled(*lora, "--seed", 1),
        upscaled(*lora, "--sigma", 0.2),
        upscaled("--lora", f"{folder / 'one.safetensors'}:0.5"),
        upscaled(*lora, "--vae-only"),
        upscaled(),
    ]
    assert torch.equal(upscaled(*lora, "--seed", 0), pictures[0])
    for i, one in enumerate(pictures):
        assert all((one - other).abs().max() > 0.02 for other in pictures[:i]), i


def test_a_picture_of_a_batch_takes_the_next_seed(folder: Path) -> None:
    one = describe_sr_lora(folder / "one.safetensors")
    models = load_flux(folder / "base" / "transformer", lora=one), load_autoencoder(folder / "base" / "vae", lora=one)
    image = load_image(folder / "in.png").image

    def made(count: int, seed: int) -> Tensor:
        return upscale(image.expand(count, -1, -1, -1), *models, OneStepOptions(target=Target(scale=2), seed=seed))

    batch = made(2, 5)
    assert torch.equal(batch[:1], made(1, 5)) and torch.equal(batch[1:], made(1, 6))
    assert (batch[0] - batch[1]).abs().max() > 0.02


def test_a_merged_lora_is_the_same_as_one_beside_the_model(
    folder: Path, upscaled: Callable[..., Tensor], tmp_path: Path
) -> None:
    """FluxSR changes the transformer alone, so that both ways must agree."""
    one, merged = tmp_path / "fluxsr.safetensors", tmp_path / "merged.safetensors"
    assert run("convert", "--sr-lora", folder / "fluxsr", "-o", one) == 0
    assert run("convert", folder / "base" / "transformer", "--merge-lora", one, "-o", merged) == 0
    assert torch.equal(upscaled("--lora", one), upscaled("--model", merged))


def test_plan_counts_the_lora_s_prompt(folder: Path, capsys: Capture) -> None:
    models = ("--model", folder / "base" / "transformer", "--vae", folder / "base" / "vae")
    reports = []
    for lora in ((), ("--lora", folder / "one.safetensors"), ("--lora", folder / "omgsr")):
        assert run("plan", "64x48", *models, *lora, "--json") == 0
        reports.append(json.loads(capsys.readouterr().out))
    assert len({json.dumps(report, sort_keys=True) for report in reports}) == 3  # 1, 5 and, without one, 512 tokens


def test_json_names_the_lora(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    models = ("--model", folder / "base" / "transformer", "--vae", folder / "base" / "vae")
    lora = f"{folder / 'one.safetensors'}:0.5"
    assert run("upscale", folder / "in.png", "-o", tmp_path / "o.png", *models, "--lora", lora, "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["lora"] == lora and report["model"]["encode"] == "sample" and report["model"]["guidance"] == 1.0


def test_what_cannot_run_is_one_sentence(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    base = ("--model", folder / "base" / "transformer", "--vae", folder / "base" / "vae")
    one, out = folder / "one.safetensors", tmp_path / "out.png"
    cases: list[tuple[tuple[object, ...], str]] = [
        ((*base, "--lora", folder / "omgsr"), "carries no prompt embedding: save one in ComfyUI (CLIP Text Encode"),
        ((*base, "--lora", folder / "fluxsr"), "its .pth files are read once, by 'convert --sr-lora FOLDER"),
        ((*base, "--lora", one, "--lora", one), "--lora: expected one one-step LoRA, got 2"),
        ((*base, "--lora", f"{one}:nan"), "expected a number"),
        ((*base, "--lora", folder / "base" / "vae"), "holds no LoRA"),
        ((*base, "--lora", tmp_path / "none"), "no such file"),
        (("--lora", one), "modules are none of this VAE's encoder"),
        (("--vae", folder / "base" / "vae", "--lora", one), "carries another model's prompt embedding"),
    ]
    for options, words in cases:
        text = refused(capsys, "upscale", folder / "in.png", "-o", out, *options)
        assert words in text, words
        assert not out.exists()


def test_convert_says_what_it_cannot(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    out, omgsr = tmp_path / "out.safetensors", folder / "omgsr"
    half = omgsr / "flux_adapter" / "adapter_model.safetensors"
    cases: list[tuple[tuple[object, ...], str]] = [
        (("-o", out), "names nothing to convert"),
        ((half, "--sr-lora", omgsr, "-o", out), "--sr-lora: stands alone, without IN"),
        (("--sr-lora", omgsr, "--layout", "bfl", "-o", out), "without --layout"),
        (("--sr-lora", omgsr, "-o", tmp_path / "out.bin"), "ends in .safetensors"),
        (("--sr-lora", omgsr, "-o", half), "is one of the inputs"),
        (("--sr-lora", omgsr, "-o", out, "--set", "op4ksr.vae_stride=1"), "is nothing that a lora file carries"),
        (("--sr-lora", omgsr, "-o", out, "--set", "op4ksr.sigma=2"), "--set: its metadata is wrong: sigma"),
        (("--sr-lora", omgsr, "-o", out, "--set", "op4ksr.encode=mode"), "expected mean or sample, got mode"),
        (("--sr-lora", omgsr, "-o", out, "--prompt-embedding", half), "expected a prompt embedding"),
        (("--sr-lora", folder / "base", "-o", out), "expected flux_adapter and vae_encoder_adapter (OMGSR-F) or"),
        (("--sr-lora", omgsr, "-o", out, "--set", "op4ksr.sigma=2"), "got 2.0; correct it\n"),
        ((folder / "base" / "vae", "-o", out, "--set", "op4ksr.vae_stride=7"), "correct it\n"),
        (("--sr-lora", folder / "prompt.safetensors", "-o", out), "expected a LoRA, got a prompt embedding alone"),
        ((folder / "prompt.safetensors", "-o", out), "got a prompt embedding alone; put it into a LoRA or model"),
    ]
    base = folder / "base" / "transformer"
    for published in (folder / "omgsr", folder / "fluxsr"):
        cases.append(((published, "-o", out), "make one file of it with 'convert --sr-lora FOLDER"))
        cases.append(((base, "--merge-lora", published, "-o", out), "'convert --sr-lora FOLDER -o FILE.safetensors'"))
    fluxsr = folder / "fluxsr" / "pytorch_lora_weights.safetensors"
    cases.append(((base, "--merge-lora", f"{fluxsr}:0.5", "-o", out), "is a one-step LoRA as it is published"))
    before = half.read_bytes()
    for words, expected in cases:
        assert expected in refused(capsys, "convert", *words), expected
        assert not out.exists()
    assert half.read_bytes() == before


def test_what_is_set_is_in_place_of_the_published(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    out = tmp_path / "out.safetensors"
    options = ("--set", "op4ksr.sigma=0.5696", "--set", "op4ksr.encode=mean", "--set", "op4ksr.rope_theta=46")
    assert run("convert", "--sr-lora", folder / "omgsr", "-o", out, *options) == 0
    assert "op4ksr.sigma: 0.5696\n" in capsys.readouterr().out
    found = describe_sr_lora(out)
    assert (found.settings.sigma, found.settings.encode, found.theta) == (0.5696, "mean", (46.0, 46.0))


def test_a_copy_says_its_origin_once(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    capsys.readouterr()
    assert run("convert", "--sr-lora", folder / "one.safetensors", "-o", tmp_path / "out.safetensors") == 0
    assert capsys.readouterr().out.count("which states no licence") == 1


@pytest.mark.parametrize("lora", ["one.safetensors", "omgsr", "fluxsr"])
def test_a_published_lora_on_a_16x_vae_is_warned_of(folder: Path, caplog: pytest.LogCaptureFixture, lora: str) -> None:
    models = ("--model", folder / "base" / "transformer", "--vae", folder / "base" / "vae", "--lora", folder / lora)
    assert run("plan", "64x48", *models, "--stride", 2) == 0
    assert "was trained with Flux's own 8x VAE, and vae is taken for 16x" in caplog.text
    caplog.clear()
    assert run("plan", "64x48", *models, "--stride", 1) == 0
    assert "8x VAE" not in caplog.text


@pytest.mark.parametrize("lora", ["one.safetensors", "fluxsr"])
def test_a_published_lora_on_a_model_without_guidance_is_warned_of(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, lora: str
) -> None:
    """FLUX.1-schnell has the shapes of FLUX.1-dev."""
    public.small_flux(guidance_embeds=False).save_pretrained(tmp_path / "schnell")
    models = ("--vae", folder / "base" / "vae", "--lora", folder / lora, "--model")
    assert run("plan", "64x48", *models, tmp_path / "schnell") == 0
    assert "was trained on FLUX.1-dev, and schnell has no guidance" in caplog.text
    caplog.clear()
    assert run("plan", "64x48", *models, folder / "base" / "transformer") == 0
    assert "guidance" not in caplog.text


def test_the_names_of_one_file_are_its_transformers(folder: Path, capsys: Capture) -> None:
    assert run("inspect", folder / "one.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["layout"] == "diffusers"
    for lora in ("one.safetensors", "omgsr", "fluxsr"):
        said = refused(capsys, "inspect", folder / lora, "--probe", folder / "in.png")
        assert "is of kind lora; only a VAE can be probed" in said


# --- prompts in pickles -----------------------------------------------------------------------


class Runs:
    """What would run if its pickle were opened as pickles are."""

    def __reduce__(self) -> Any:
        return (exec, ("raise SystemExit('it ran')",))


def prompts(txt: object, vec: object | None = None) -> Callable[[Path], Path]:
    """Write FluxSR's folder again with these as its two .pth files."""

    def write(folder: Path) -> Path:
        public.save_fluxsr(folder)
        torch.save(txt, folder / "t5_embedding.pth")
        if vec is not None:
            torch.save(vec, folder / "clip_embedding.pth")
        return folder

    return write


def torn(folder: Path) -> Path:
    public.save_fluxsr(folder)
    path = folder / "t5_embedding.pth"
    path.write_bytes(path.read_bytes()[:400])
    return folder


def bomb(folder: Path) -> Path:
    """200 MB of zeros in some 200 kB, as a zip may hold them."""
    public.save_fluxsr(folder)
    with zipfile.ZipFile(folder / "t5_embedding.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    return folder


def without_clip(folder: Path) -> Path:
    public.save_fluxsr(folder)
    (folder / "clip_embedding.pth").unlink()
    return folder


TXT, VEC = public.small_prompt()


def holding(content: bytes) -> Callable[[Path], Path]:
    """Write FluxSR's folder again with these bytes as one of its .pth files."""

    def write(folder: Path) -> Path:
        public.save_fluxsr(folder)
        (folder / "t5_embedding.pth").write_bytes(content)
        return folder

    return write


def nested(folder: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return prompts(torch.nested.nested_tensor([TXT, TXT]))(folder)


def scripted(folder: Path) -> Path:
    public.save_fluxsr(folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.script(Embedding(3, 24)), folder / "t5_embedding.pth")
    return folder


NO_FILE_OF_TORCH = "it is no file of torch.save's"
ODD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "a program": (
        prompts(Runs()),
        "exec, which is code and no tensor",
    ),
    "a layer, as trainers save a table of words": (
        prompts(Embedding(50, 24)),
        "it holds torch.nn.modules.sparse.Embedding",
    ),
    "a table of words": (prompts(torch.zeros(32128, 24)), "has 32,128 rows, more than a prompt has tokens"),
    "no tensor": (prompts([1, 2]), "holds no tensor (list)"),
    "nothing": (prompts({}), "got nothing"),
    "several": (prompts({"a": TXT, "b": TXT}), "expected a prompt embedding (op4ksr.txt or prompt_embeds"),
    "two prompts": (prompts(torch.zeros(2, 5, 24)), "expected 2 axes, got the shape (2, 5, 24)"),
    "integers": (prompts(torch.zeros(5, 24, dtype=torch.int64)), "expected a dense tensor of floats"),
    "sparse": (prompts(TXT.to_sparse()), "expected a dense tensor of floats"),
    "more than it takes": (prompts(torch.zeros(1, 1).expand(4000, 500_000)), "at most 100,000,000 bytes"),
    "nan": (prompts(TXT * torch.nan), "holds NaN or infinite numbers"),
    "an empty one": (prompts(TXT[:0]), "got the shape (0, 24)"),
    "a pooled one of two axes": (prompts(TXT, torch.zeros(3, 12)), "expected 1 axis, got the shape (3, 12)"),
    "a nested tensor": (nested, "holds a nested tensor"),
    "a web page": (holding(b"<!DOCTYPE html><html>"), NO_FILE_OF_TORCH),
    "a text": (holding(b"hello"), NO_FILE_OF_TORCH),
    "no bytes": (holding(b""), NO_FILE_OF_TORCH),
    "a bare pickle": (holding(pickle.dumps([1])), NO_FILE_OF_TORCH),
    "a bare program": (holding(pickle.dumps(Runs(), protocol=2)), "cannot be read as tensors alone"),
    "a scripted module": (scripted, "TorchScript"),
    "cut short": (torn, "cannot be read as tensors alone"),
    "a bomb": (bomb, "has 200,000,000 bytes"),
    "one alone": (without_clip, "holds t5_embedding.pth without clip_embedding.pth"),
}


@pytest.mark.parametrize("case", ODD)
def test_an_odd_pickle_is_one_sentence(tmp_path: Path, capsys: Capture, case: str) -> None:
    write, words = ODD[case]
    folder, out = write(tmp_path / "fluxsr"), tmp_path / "out.safetensors"
    said = refused(capsys, "convert", "--sr-lora", folder, "-o", out)
    assert words in said and "trusted source" not in said and "`False`" not in said  # no advice to open it unsafely
    assert not list(tmp_path.glob("*.safetensors")) and not list(tmp_path.glob(".op4ksr*"))
    prompt = public.save_prompt(tmp_path / "prompt.st.safetensors")  # the way out, with none of them opened
    assert run("convert", "--sr-lora", folder, "--prompt-embedding", prompt, "-o", out) == 0


@pytest.mark.parametrize(
    ("txt", "vec"),
    [
        (TXT, VEC),
        (TXT[None].bfloat16(), VEC[None].half()),
        ({"prompt_embeds": TXT[None], "text_ids": torch.zeros(5, 3)}, {"anything": VEC, "note": "of the empty prompt"}),
        (Parameter(TXT), Parameter(VEC)),
    ],
    ids=["tensors", "batches in halves", "dicts", "parameters"],
)
def test_what_a_pickle_may_be(tmp_path: Path, txt: Any, vec: Any) -> None:
    folder, out = prompts(txt, vec)(tmp_path / "fluxsr"), tmp_path / "out.safetensors"
    assert run("convert", "--sr-lora", folder, "-o", out) == 0
    tensors = read_tensors(read_header(out), {"op4ksr.txt", "op4ksr.vec"})
    assert torch.allclose(tensors["op4ksr.txt"].float(), TXT, atol=0.02) and tensors["op4ksr.txt"].shape == TXT.shape
    assert torch.allclose(tensors["op4ksr.vec"].float(), VEC, atol=0.02) and tensors["op4ksr.vec"].shape == VEC.shape


def test_a_trainers_own_file_of_both_is_taken(folder: Path, capsys: Capture, tmp_path: Path) -> None:
    """As OMGSR-F's trainer keeps its fixed prompt."""
    path, out = tmp_path / "fixed_prompt.pt", tmp_path / "out.safetensors"
    content = {"prompt_embeds": TXT[None], "pooled_prompt_embeds": VEC[None], "text_ids": torch.zeros(5, 3)}
    torch.save(content, path)
    assert run("convert", "--sr-lora", folder / "omgsr", "--prompt-embedding", path, "-o", out) == 0
    assert describe_sr_lora(out).has_prompt
    words = ("convert", "--sr-lora", folder / "omgsr", "-o", out, "--prompt-embedding")
    torch.save(TXT, tmp_path / "alone.pt")
    assert "alone.pt: holds one tensor without a name" in refused(capsys, *words, tmp_path / "alone.pt")
    assert "none.pt: no such file" in refused(capsys, *words, tmp_path / "none.pt")
    (tmp_path / "folder.pt").mkdir()
    assert "folder.pt: is a folder" in refused(capsys, *words, tmp_path / "folder.pt")


def test_our_own_file_gets_its_prompt_by_convert(folder: Path, tmp_path: Path) -> None:
    bare, out = tmp_path / "bare.safetensors", tmp_path / "out.safetensors"
    assert run("convert", "--sr-lora", folder / "omgsr", "-o", bare) == 0
    for how in ((bare,), ("--sr-lora", bare)):
        assert run("convert", *how, "--prompt-embedding", folder / "prompt.safetensors", "-o", out) == 0
        whole, one = read_header(out), read_header(folder / "one.safetensors")
        assert whole.shapes == one.shapes and whole.metadata == one.metadata
        for name, tensor in read_tensors(one).items():
            assert torch.equal(read_tensors(whole, {name})[name], tensor), name


def test_text_encoders_changes_are_kept_in_the_file(folder: Path, tmp_path: Path) -> None:
    """Nothing is lost on the way into one file, whatever we make no use of."""
    other = tmp_path / "fluxsr"
    public.save_fluxsr(other)
    path = other / "pytorch_lora_weights.safetensors"
    tensors = read_tensors(read_header(path))
    extra = {f"text_encoder.text_model.encoder.layers.0.mlp.fc1.lora_{x}.weight": torch.ones(4, 4) for x in "AB"}
    save_file({**tensors, **extra}, path)
    out = tmp_path / "out.safetensors"
    assert run("convert", "--sr-lora", other, "-o", out) == 0
    assert extra.keys() <= read_header(out).shapes.keys()
