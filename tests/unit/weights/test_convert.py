"""convert: layouts there and back bit for bit, LoRA merged, metadata and prompt embedding, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from op4ksr_core import AutoEncoder, Flux, OneStepSettings, load_autoencoder, load_flux, save_autoencoder, save_flux
from op4ksr_core.cli.main import main
from op4ksr_core.models.latent import pack, position_ids
from op4ksr_core.weights.inspect import inspect_file

MakeFlux = Callable[..., Flux]
Tensors = dict[str, Tensor]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def same(a: Tensors, b: Tensors) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) and a[n].dtype == b[n].dtype for n in a)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        return opened.metadata()


def run(*arguments: str | Path) -> int:
    return main(["convert", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    assert run(*arguments) == 1
    text = capsys.readouterr().err
    assert text.startswith("error: ") and text.count("\n") == 1 and len(text) < 500
    return text


@pytest.fixture
def flux_file(tmp_path: Path, make_flux: MakeFlux) -> Path:
    path = tmp_path / "flux.safetensors"
    settings = OneStepSettings(sigma=0.3, guidance=2.0, txt=noise(3, 24), vec=noise(12), train_tokens=64)
    save_flux(path, make_flux(settings=settings, theta=(46.7, 300.0)))
    return path


@pytest.fixture
def diffusers_flux(tmp_path: Path, make_diffusers_flux: Callable[..., Any]) -> Path:
    path = tmp_path / "theirs.safetensors"
    state = make_diffusers_flux(1, guidance_embeds=True).state_dict()
    save_file({name: tensor.to(torch.bfloat16) for name, tensor in state.items()}, path)
    return path


@pytest.fixture
def diffusers_vae(tmp_path: Path, make_diffusers_autoencoder: Callable[..., Any]) -> Path:
    path = tmp_path / "vae" / "diffusion_pytorch_model.safetensors"
    path.parent.mkdir()
    model = make_diffusers_autoencoder(2, norm_num_groups=32)
    save_file(dict(model.state_dict()), path)
    config = {**model.config, "_class_name": "AutoencoderKL", "stride": 2}
    (path.parent / "config.json").write_text(json.dumps(config))
    return path


# --- layouts ----------------------------------------------------------------------------------


def test_a_diffusers_flux_goes_there_and_back_bit_for_bit(tmp_path: Path, diffusers_flux: Path) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    assert run(diffusers_flux, "-o", ours, "--layout", "bfl") == 0
    assert "double_blocks.0.img_attn.qkv.weight" in load_file(ours)
    assert run(ours, "-o", back, "--layout", "diffusers") == 0
    assert same(load_file(back), load_file(diffusers_flux))
    state = load_flux(diffusers_flux).state_dict()
    assert same(dict(load_flux(ours).state_dict()), dict(state))


def test_our_flux_goes_there_and_back_with_all_it_carries(tmp_path: Path, flux_file: Path) -> None:
    theirs, back = tmp_path / "theirs.safetensors", tmp_path / "back.safetensors"
    assert run(flux_file, "-o", theirs, "--layout", "diffusers") == 0
    assert run(theirs, "-o", back, "--layout", "bfl") == 0
    assert same(load_file(back), load_file(flux_file))
    assert metadata_of(back) == metadata_of(flux_file)


def test_diffusers_takes_what_is_written_for_it(
    tmp_path: Path, make_flux: MakeFlux, make_diffusers_flux: Callable[..., Any]
) -> None:
    """Its own class loads the names, and computes the same velocity."""
    file, plain = tmp_path / "theirs.safetensors", tmp_path / "plain.safetensors"
    save_flux(plain, make_flux())
    assert run(plain, "-o", file, "--layout", "diffusers") == 0
    model = make_diffusers_flux(num_layers=1)
    model.load_state_dict(load_file(file), strict=True)
    flux, latent, sigma = load_flux(plain), noise(1, 16, 6, 10), torch.tensor([0.4])
    txt, vec, ids = noise(1, 3, 24, seed=1), noise(1, 12, seed=2), position_ids(3, 3, 5)[0]
    with torch.no_grad():
        theirs = model(pack(latent), txt, vec, sigma, ids[3:], ids[:3], return_dict=False)[0]
    ours = pack(flux(latent, sigma, txt, vec))
    assert float((ours - theirs).abs().max()) < 1e-4 * float(theirs.abs().max())


def test_a_diffusers_vae_goes_there_and_back_bit_for_bit(tmp_path: Path, diffusers_vae: Path) -> None:
    ours, back = tmp_path / "ours.safetensors", tmp_path / "back.safetensors"
    assert run(diffusers_vae, "-o", ours, "--layout", "bfl") == 0
    assert load_file(ours)["encoder.mid.attn_1.q.weight"].shape == (64, 64, 1, 1)
    assert run(ours, "-o", back, "--layout", "diffusers") == 0
    assert same(load_file(back), load_file(diffusers_vae))
    assert same(dict(load_autoencoder(ours).state_dict()), dict(load_autoencoder(diffusers_vae).state_dict()))


def test_what_config_json_knew_is_in_the_new_file(tmp_path: Path, diffusers_vae: Path) -> None:
    ours = tmp_path / "ours.safetensors"
    assert run(diffusers_vae, "-o", ours, "--layout", "bfl") == 0
    assert metadata_of(ours)["op4ksr.vae_stride"] == "2" and metadata_of(ours)["op4ksr.norm_groups"] == "32"
    assert load_autoencoder(ours).params.stride == 2


@pytest.mark.slow
def test_a_stride_that_nobody_states_is_not_made_up(
    tmp_path: Path, diffusers_vae: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (diffusers_vae.parent / "config.json").unlink()
    ours = tmp_path / "ours.safetensors"
    assert run(diffusers_vae, "-o", ours, "--layout", "bfl") == 0
    assert "op4ksr.vae_stride" not in metadata_of(ours)
    assert "--set op4ksr.vae_stride=2" in capsys.readouterr().out
    assert run(diffusers_vae, "-o", ours, "--layout", "bfl", "--set", "op4ksr.vae_stride=1") == 0
    assert metadata_of(ours)["op4ksr.vae_stride"] == "1" and "--set" not in capsys.readouterr().out


def test_shards_become_one_file(tmp_path: Path, diffusers_flux: Path) -> None:
    tensors = load_file(diffusers_flux)
    folder = tmp_path / "transformer"
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for i in range(3):
        name = f"diffusion_pytorch_model-{i + 1:05d}-of-00003.safetensors"
        part = dict(sorted(tensors.items())[i::3])
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / "diffusion_pytorch_model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    one, ours = tmp_path / "one.safetensors", tmp_path / "ours.safetensors"
    assert run(folder, "-o", one) == 0 and same(load_file(one), tensors)
    assert run(index, "-o", ours, "--layout", "bfl") == 0
    assert same(dict(load_flux(ours).state_dict()), dict(load_flux(diffusers_flux).state_dict()))


# --- LoRA -------------------------------------------------------------------------------------


def lora_file(path: Path, tensors: Tensors, **metadata: str) -> Path:
    save_file(tensors, path, {f"op4ksr.{key}": value for key, value in metadata.items()})
    return path


def test_a_merged_lora_is_the_sum_by_hand(tmp_path: Path, flux_file: Path) -> None:
    """A part of a fused projection, a whole one with alpha, and the swapped halves of norm_out; strength 0.5."""
    names = {
        "transformer.transformer_blocks.0.attn.to_k": (64, 64),
        "transformer.single_transformer_blocks.1.proj_mlp": (256, 64),
        "transformer.norm_out.linear": (128, 64),
        "lora_unet_double_blocks_0_txt_mlp_2": (64, 256),
    }
    lora: Tensors = {}
    product: Tensors = {}
    for i, (name, (rows, columns)) in enumerate(names.items()):
        down, up = ("lora_down", "lora_up") if name.startswith("lora_unet") else ("lora_A", "lora_B")
        lora[f"{name}.{down}.weight"], lora[f"{name}.{up}.weight"] = (
            noise(4, columns, seed=i),
            noise(rows, 4, seed=9 + i),
        )
        product[name] = lora[f"{name}.{up}.weight"] @ lora[f"{name}.{down}.weight"]
    lora["lora_unet_double_blocks_0_txt_mlp_2.alpha"] = torch.tensor(2.0)
    path = lora_file(tmp_path / "lora.safetensors", lora)
    out = tmp_path / "merged.safetensors"
    assert run(flux_file, "-o", out, "--merge-lora", f"{path}:0.5") == 0
    expected = load_file(flux_file)
    k, mlp, norm, txt = product.values()
    expected["double_blocks.0.img_attn.qkv.weight"][64:128] += 0.5 * k
    expected["single_blocks.1.linear1.weight"][192:] += 0.5 * mlp
    expected["final_layer.adaLN_modulation.1.weight"] += 0.5 * torch.cat([norm[64:], norm[:64]])
    expected["double_blocks.0.txt_mlp.2.weight"] += 0.5 * 0.5 * txt
    found = load_file(out)
    assert found.keys() == expected.keys()
    assert max(float((found[n] - expected[n]).abs().max()) for n in found) < 1e-5
    assert not torch.equal(
        found["double_blocks.0.img_attn.qkv.weight"], load_file(flux_file)["double_blocks.0.img_attn.qkv.weight"]
    )


def test_merging_and_changing_the_layout_at_once(tmp_path: Path, flux_file: Path) -> None:
    lora = {
        "double_blocks.0.img_attn.qkv.lora_A.weight": noise(4, 64),
        "double_blocks.0.img_attn.qkv.lora_B.weight": noise(192, 4),
    }
    path = lora_file(tmp_path / "lora.safetensors", lora)
    ours, theirs = tmp_path / "ours.safetensors", tmp_path / "theirs.safetensors"
    assert run(flux_file, "-o", ours, "--merge-lora", path) == 0
    assert run(flux_file, "-o", theirs, "--layout", "diffusers", "--merge-lora", path) == 0
    assert same(dict(load_flux(ours).state_dict()), dict(load_flux(theirs).state_dict()))


def test_half_weights_are_summed_in_float32_and_rounded_once(tmp_path: Path, flux_file: Path) -> None:
    half, out = tmp_path / "half.safetensors", tmp_path / "out.safetensors"
    save_file({name: tensor.bfloat16() for name, tensor in load_file(flux_file).items()}, half)
    base, loras, total = "single_blocks.0.linear2", [], load_file(half)["single_blocks.0.linear2.weight"].float()
    for i in range(3):
        down, up = 0.05 * noise(4, 320, seed=i), 0.05 * noise(64, 4, seed=9 + i)
        path = tmp_path / f"l{i}.safetensors"
        loras += ["--merge-lora", lora_file(path, {f"{base}.lora_A.weight": down, f"{base}.lora_B.weight": up})]
        total += up @ down
    assert run(half, "-o", out, *loras) == 0
    assert torch.equal(load_file(out)[f"{base}.weight"], total.bfloat16())


def test_two_loras_add_up_and_a_strength_of_0_changes_nothing(tmp_path: Path, flux_file: Path) -> None:
    base = "diffusion_model.single_blocks.0.linear2"
    lora = {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    path = lora_file(tmp_path / "lora.safetensors", lora)
    out = tmp_path / "out.safetensors"
    assert run(flux_file, "-o", out, "--merge-lora", path, "--merge-lora", f"{path}:-1") == 0
    before, after = load_file(flux_file), load_file(out)
    assert max(float((after[n] - before[n]).abs().max()) for n in after) < 1e-5
    assert run(flux_file, "-o", out, "--merge-lora", f"{path}:0") == 0
    assert same(load_file(out), before)


def test_a_one_step_lora_brings_its_constants(tmp_path: Path, flux_file: Path) -> None:
    base = "diffusion_model.single_blocks.0.linear2"
    lora = {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    lora |= {"op4ksr.txt": noise(5, 24, seed=3), "op4ksr.vec": noise(12, seed=4)}
    path = lora_file(tmp_path / "lora.safetensors", lora, kind="lora", rope_theta="80,200", sigma="0.7")
    out = tmp_path / "out.safetensors"
    assert run(flux_file, "-o", out, "--merge-lora", path, "--set", "op4ksr.guidance=9") == 0
    flux = load_flux(out)
    assert flux.params.theta == (80.0, 200.0) and flux.settings.sigma == 0.7 and flux.settings.guidance == 9.0
    assert flux.settings.txt is not None and torch.equal(flux.settings.txt, lora["op4ksr.txt"])
    assert metadata_of(out)["op4ksr.kind"] == "transformer"


# --- metadata and prompt ----------------------------------------------------------------------


@pytest.mark.parametrize("names", [("op4ksr.txt", "op4ksr.vec"), ("prompt_embeds", "pooled_prompt_embeds")])
def test_a_prompt_embedding_and_numbers_are_written(
    tmp_path: Path, make_flux: MakeFlux, names: tuple[str, str]
) -> None:
    plain, prompt, out = (tmp_path / f"{name}.safetensors" for name in ("plain", "prompt", "out"))
    save_flux(plain, make_flux())
    save_file({names[0]: noise(1, 7, 24), names[1]: noise(1, 12, seed=1)}, prompt)
    assert run(plain, "-o", out, "--prompt-embedding", prompt, "--set", "op4ksr.sigma=0.25") == 0
    settings = load_flux(out).settings
    assert settings.sigma == 0.25 and settings.txt is not None and settings.vec is not None
    assert torch.equal(settings.txt, noise(1, 7, 24)[0]) and torch.equal(settings.vec, noise(1, 12, seed=1)[0])


def test_a_lora_becomes_a_one_step_lora(tmp_path: Path) -> None:
    lora = {"a.lora_A.weight": noise(4, 8).bfloat16(), "a.lora_B.weight": noise(8, 4).bfloat16()}
    path = lora_file(tmp_path / "lora.safetensors", lora)
    prompt, out = tmp_path / "prompt.safetensors", tmp_path / "out.safetensors"
    save_file({"op4ksr.txt": noise(3, 24), "op4ksr.vec": noise(12)}, prompt)
    assert run(path, "-o", out, "--prompt-embedding", prompt, "--set", "op4ksr.rope_theta=46.7") == 0
    assert same(load_file(out), {**lora, **load_file(prompt)})
    assert metadata_of(out)["op4ksr.kind"] == "lora" and metadata_of(out)["op4ksr.rope_theta"] == "46.7"
    text = inspect_file(out)
    assert text["theta"] == [46.7, 46.7] and text["prompt_embedding"] and "Load SR LoRA" in text["usable"]


def test_json_reports_what_was_written(tmp_path: Path, flux_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out.safetensors"
    assert run(flux_file, "-o", out, "--layout", "diffusers", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["layout"], report["prompt_embedding"]) == ("transformer", "diffusers", True)
    assert report["tensors"] == len(load_file(out))
    assert report["bytes"] == sum(t.nbytes for t in load_file(out).values())


def test_every_dtype_is_written_as_the_library_writes_it(tmp_path: Path) -> None:
    """Odd sizes, scalars and empty tensors too; the library reads the same numbers back."""
    lora: Tensors = {"x.lora_A.weight": noise(3, 5)}
    for dtype in (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64):
        lora[f"{dtype}"] = noise(3, 5).to(dtype)
    lora |= {
        "scalar": torch.tensor(2.0),
        "empty": torch.zeros(0, 4),
        "x.alpha": torch.tensor(4),
    }
    path, out = lora_file(tmp_path / "lora.safetensors", lora), tmp_path / "out.safetensors"
    assert run(path, "-o", out) == 0
    found = load_file(out)
    assert found.keys() == lora.keys()
    for name, tensor in lora.items():
        assert found[name].dtype == tensor.dtype and found[name].shape == tensor.shape
        assert torch.equal(found[name].flatten().view(torch.uint8), tensor.flatten().view(torch.uint8))


# --- refusals ---------------------------------------------------------------------------------


def test_no_input_is_overwritten(tmp_path: Path, flux_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = flux_file.read_bytes()
    base = "diffusion_model.single_blocks.0.linear2"
    lora = lora_file(
        tmp_path / "l.safetensors", {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    )
    assert "one of the inputs" in refused(capsys, flux_file, "-o", flux_file)
    assert "one of the inputs" in refused(capsys, flux_file, "-o", lora, "--merge-lora", lora)
    other_name = tmp_path / "other.safetensors"  # as on a disk that ignores case
    other_name.hardlink_to(flux_file)
    assert "one of the inputs" in refused(capsys, flux_file, "-o", other_name)
    assert flux_file.read_bytes() == before


def test_a_failed_write_leaves_nothing(tmp_path: Path, flux_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("op4ksr_core.weights.streamed._content", fail)
    out = tmp_path / "out.safetensors"
    assert run(flux_file, "-o", out) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == [flux_file.name]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--set", "op4ksr.thetas=5"), ("op4ksr.thetas", "known are op4ksr.rope_theta")),
        (("--set", "op4ksr.vae_stride=2"), ("nothing that a transformer", "op4ksr.sigma")),
        (("--set", "sigma"), ("expected op4ksr.KEY=VALUE",)),
        (("--set", "op4ksr.sigma=2"), ("--set", "sigma", "above 0")),
        (("--set", "op4ksr.rope_theta=flat"), ("--set", "rope_theta")),
        (("--merge-lora", "missing.safetensors"), ("missing.safetensors", "no such file")),
        (("--prompt-embedding", "missing.safetensors"), ("missing.safetensors", "no such file")),
    ],
)
def test_wrong_options(
    tmp_path: Path,
    flux_file: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    words: tuple[str, ...],
) -> None:
    text = refused(capsys, flux_file, "-o", tmp_path / "out.safetensors", *arguments)
    for word in words:
        assert word in text
    assert not (tmp_path / "out.safetensors").exists()


def test_wrong_files(
    tmp_path: Path, flux_file: Path, make_autoencoder: Callable[..., AutoEncoder], capsys: pytest.CaptureFixture[str]
) -> None:
    out, vae = tmp_path / "out.safetensors", tmp_path / "vae.safetensors"
    save_autoencoder(vae, make_autoencoder())
    base = "diffusion_model.single_blocks.0.linear2"
    lora = lora_file(
        tmp_path / "l.safetensors", {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    )
    wide = lora_file(
        tmp_path / "w.safetensors", {f"{base}.lora_A.weight": noise(4, 32), f"{base}.lora_B.weight": noise(64, 4)}
    )
    other = lora_file(
        tmp_path / "o.safetensors",
        {"lora_unet_input.lora_down.weight": noise(4, 3), "lora_unet_input.lora_up.weight": noise(3, 4)},
    )
    prompt = tmp_path / "p.safetensors"
    save_file({"op4ksr.txt": noise(3, 99), "op4ksr.vec": noise(12)}, prompt)
    assert "another model's prompt embedding" in refused(capsys, flux_file, "-o", out, "--prompt-embedding", prompt)
    assert "VAE carries none" in refused(capsys, vae, "-o", out, "--prompt-embedding", prompt)
    assert "this is a VAE" in refused(capsys, vae, "-o", out, "--merge-lora", lora)
    assert "holds no LoRA" in refused(capsys, flux_file, "-o", out, "--merge-lora", vae)
    assert "model of another size" in refused(capsys, flux_file, "-o", out, "--merge-lora", wide)
    assert "fit nothing in this transformer" in refused(capsys, flux_file, "-o", out, "--merge-lora", other)
    assert "is a LoRA" in refused(capsys, lora, "-o", out, "--merge-lora", lora)
    assert "left as they are" in refused(capsys, lora, "-o", out, "--layout", "bfl")
    flat = {f"{base}.lora_A.weight": noise(320), f"{base}.lora_B.weight": noise(64, 4)}
    flat_lora = lora_file(tmp_path / "f.safetensors", flat)
    assert "do not fit together" in refused(capsys, flux_file, "-o", out, "--merge-lora", flat_lora)
    pair = {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    odd = lora_file(tmp_path / "a.safetensors", {**pair, f"{base}.alpha": noise(3)})
    text = refused(capsys, flux_file, "-o", out, "--merge-lora", odd)
    assert f"{base}.alpha: expected a single number, got the shape (3,)" in text
    save_file({"txt": noise(2, 7, 24), "vec": noise(2, 12)}, prompt)
    text = refused(capsys, flux_file, "-o", out, "--prompt-embedding", prompt)
    assert f"{prompt}: txt: expected 2 axes, got the shape (2, 7, 24); save one prompt's embedding" in text
    assert "expected a prompt embedding" in refused(capsys, flux_file, "-o", out, "--prompt-embedding", lora)
    assert ".safetensors" in refused(capsys, flux_file, "-o", tmp_path / "out.ckpt")
    assert "no such folder" in refused(capsys, flux_file, "-o", tmp_path / "no" / "out.safetensors")
    assert not out.exists()


def test_quantized_and_mixed_files_are_refused(
    tmp_path: Path, flux_file: Path, diffusers_flux: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scaled, mixed, out = (tmp_path / f"{name}.safetensors" for name in ("scaled", "mixed", "out"))
    save_file({**load_file(flux_file), "double_blocks.0.img_attn.qkv.scale_weight": torch.ones(1)}, scaled)
    assert "is quantized with scales" in refused(capsys, scaled, "-o", out, "--layout", "diffusers")
    tensors = load_file(diffusers_flux)
    name = "transformer_blocks.0.attn.to_k.weight"
    save_file({**tensors, name: tensors[name].float()}, mixed)
    assert "have different dtypes (BF16, F32)" in refused(capsys, mixed, "-o", out, "--layout", "bfl")
    assert run(mixed, "-o", out) == 0, "as it is, nothing is fused"


def test_only_constants_come_along_with_a_lora_and_its_prompt_is_not_overwritten(
    tmp_path: Path, flux_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, prompt, out = "single_blocks.0.linear2", tmp_path / "p.safetensors", tmp_path / "out.safetensors"
    lora = {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    save_file(lora, tmp_path / "l.safetensors", {"op4ksr.sigma": "0.7", "training": "mine", "ss_epoch": "3"})
    assert run(flux_file, "-o", out, "--merge-lora", tmp_path / "l.safetensors") == 0
    assert metadata_of(out) == {**metadata_of(flux_file), "op4ksr.sigma": "0.7"}
    save_file({"txt": noise(3, 24), "vec": noise(12)}, prompt)
    assert "one of the inputs" in refused(capsys, flux_file, "-o", prompt, "--prompt-embedding", prompt)


def test_fp8_is_not_merged_into(tmp_path: Path, flux_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = tmp_path / "fp8.safetensors"
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in load_file(flux_file).items()}, small)
    base = "diffusion_model.single_blocks.0.linear2"
    lora = lora_file(
        tmp_path / "l.safetensors", {f"{base}.lora_A.weight": noise(4, 320), f"{base}.lora_B.weight": noise(64, 4)}
    )
    assert "fp8" in refused(capsys, small, "-o", tmp_path / "out.safetensors", "--merge-lora", lora)
    assert run(small, "-o", tmp_path / "out.safetensors", "--layout", "diffusers") == 0
