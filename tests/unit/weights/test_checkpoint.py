"""Weights files: what is read off them, what is written, and every way in which one can be wrong."""

from __future__ import annotations

import io
import re
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

import op4ksr_core.weights.checkpoint as checkpoint
from op4ksr_core import (
    AutoEncoder,
    Flux,
    OneStepSettings,
    OptionError,
    OutputError,
    UnsupportedCheckpointError,
    load_autoencoder,
    load_flux,
    save_autoencoder,
    save_flux,
)
from op4ksr_core.weights.description import axes_of_head, describe_autoencoder, describe_flux
from op4ksr_core.weights.header import read_header
from op4ksr_core.weights.layouts import common_prefix

MakeAutoEncoder = Callable[..., AutoEncoder]
MakeFlux = Callable[..., Flux]
Tensors = dict[str, Tensor]

REMEDY = re.compile(
    r"choose|check|convert|fetch|take another|take the|pass a|name one|load |use |write metadata|correct it"
)


def same_weights(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, framework="pt") as opened:
        return opened.metadata() or {}


def refusal(load: Callable[[Path], Any], path: Path, culprit: Path | None = None) -> str:
    """The sentence that refuses ``path``; it names the file at fault and a remedy."""
    with pytest.raises(UnsupportedCheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(f"{culprit or path}: ")
    assert REMEDY.search(text), text
    assert "\n" not in text
    return text


@pytest.fixture
def vae_file(tmp_path: Path, make_autoencoder: MakeAutoEncoder) -> Path:
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, make_autoencoder())
    return path


@pytest.fixture
def flux_file(tmp_path: Path, make_flux: MakeFlux) -> Path:
    path = tmp_path / "flux.safetensors"
    save_flux(path, make_flux())
    return path


def rewrite(path: Path, change: Callable[[Tensors], Any] = lambda tensors: None, **metadata: str | None) -> Path:
    """The same file with other tensors, or other metadata (``vae_stride="x"``; None removes)."""
    tensors, old = load_file(path), metadata_of(path)
    change(tensors)
    old |= {f"op4ksr.{key}": value for key, value in metadata.items() if value is not None}
    for key in (key for key, value in metadata.items() if value is None):
        old.pop(f"op4ksr.{key}", None)
    save_file(tensors, path, old)
    return path


def bare(path: Path) -> Path:
    """The same weights without any metadata."""
    save_file(load_file(path), path)
    return path


# --- round trips ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"stride": 1},
        {"shift": 1},
        {"mid_attention": False},
        {"layers_per_block": 2},
        {"widths": (8, 16), "norm_groups": 8},
        {"widths": (12, 24, 48), "norm_groups": 3},
    ],
    ids=str,
)
def test_a_saved_autoencoder_comes_back_bit_for_bit(
    tmp_path: Path, make_autoencoder: MakeAutoEncoder, params: dict[str, Any]
) -> None:
    model = make_autoencoder(**params)
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, model, training="a line")
    loaded = load_autoencoder(path)
    assert loaded.params == model.params
    assert same_weights(loaded, model)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded.decode(loaded.encode(image)), model.decode(model.encode(image)))
    metadata = metadata_of(path)
    assert metadata["op4ksr.format"] == "1" and metadata["op4ksr.kind"] == "vae"
    assert metadata["op4ksr.vae_stride"] == str(model.params.stride)
    assert metadata["op4ksr.vae_shift"] == str(model.params.shift)
    assert metadata["op4ksr.norm_groups"] == str(model.params.norm_groups)
    assert metadata["op4ksr.training"] == "a line"


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"guidance_embed": True},
        {"theta": (46.73891234, 46.73891234)},
        {"theta": (46.7, 80.25)},
        {"depth": 3, "depth_single_blocks": 0},
        {"hidden_size": 128, "num_heads": 1, "axes_dim": (16, 56, 56)},
        {"in_channels": 4, "mlp_ratio": 2.5},
        {"hidden_size": 352, "num_heads": 11, "mlp_ratio": 480 / 352},
    ],
    ids=str,
)
def test_a_saved_flux_comes_back_bit_for_bit(tmp_path: Path, make_flux: MakeFlux, params: dict[str, Any]) -> None:
    model = make_flux(**params)
    path = tmp_path / "flux.safetensors"
    save_flux(path, model)
    loaded = load_flux(path)
    assert loaded.params == model.params
    assert same_weights(loaded, model)
    assert loaded.pe_embedder.thetas == model.params.theta


def test_the_constants_and_the_prompt_travel_with_the_flux(
    tmp_path: Path, make_flux: MakeFlux, generator: torch.Generator
) -> None:
    settings = OneStepSettings(
        sigma=0.123456789,
        guidance=2.5,
        txt=torch.randn(5, 24, generator=generator),
        vec=torch.randn(12, generator=generator),
        train_tokens=128,
    )
    path = tmp_path / "flux.safetensors"
    save_flux(path, make_flux(settings=settings), training="a line")
    loaded = load_flux(path).settings
    assert (loaded.sigma, loaded.guidance, loaded.train_tokens) == (0.123456789, 2.5, 128)
    assert loaded.txt is not None and loaded.vec is not None
    assert torch.equal(loaded.txt, settings.txt) and torch.equal(loaded.vec, settings.vec)
    metadata = metadata_of(path)
    assert metadata["op4ksr.kind"] == "transformer" and metadata["op4ksr.training"] == "a line"
    assert {"op4ksr.txt", "op4ksr.vec"} <= set(load_file(path))


def test_without_a_prompt_none_is_written(flux_file: Path) -> None:
    settings = load_flux(flux_file).settings
    assert settings.txt is None and settings.vec is None and settings.train_tokens is None
    assert not any(name.startswith("op4ksr.") for name in load_file(flux_file))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_smaller_dtype_is_written_and_read_as_asked(
    tmp_path: Path, make_autoencoder: MakeAutoEncoder, dtype: torch.dtype
) -> None:
    model, path = make_autoencoder(), tmp_path / "vae.safetensors"
    save_autoencoder(path, model, dtype=dtype)
    assert {tensor.dtype for tensor in load_file(path).values()} == {dtype}
    assert read_header(path).dtype == {torch.float16: "F16", torch.bfloat16: "BF16"}[dtype]
    loaded, small = load_autoencoder(path), load_autoencoder(path, dtype=dtype)
    assert loaded.dtype == torch.float32 and small.dtype == dtype
    assert same_weights(small, make_autoencoder().to(dtype))
    assert same_weights(loaded.to(dtype), small)


def test_a_loaded_model_is_frozen_and_in_eval_mode(vae_file: Path, flux_file: Path) -> None:
    for model in (load_autoencoder(vae_file), load_flux(flux_file)):
        assert not model.training
        assert not any(p.requires_grad or p.is_meta for p in model.parameters())


def test_fp8_weights_are_read(flux_file: Path) -> None:
    def shrink(tensors: Tensors) -> None:
        tensors |= {name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}

    exact = load_flux(flux_file)
    rewrite(flux_file, shrink)
    assert read_header(flux_file).dtype == "F8_E4M3"
    loaded = load_flux(flux_file)
    assert loaded.dtype == torch.float32
    expected = exact.img_in.weight.to(torch.float8_e4m3fn).float()
    assert torch.equal(loaded.img_in.weight, expected)


# --- prefixes and layouts ---------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "diffusion_model.", "transformer."])
def test_a_prefixed_flux_is_read(tmp_path: Path, make_flux: MakeFlux, generator: torch.Generator, prefix: str) -> None:
    model = make_flux(settings=OneStepSettings(sigma=0.3, txt=torch.randn(2, 24, generator=generator)))
    path = tmp_path / "flux.safetensors"
    save_flux(path, model)

    def wrap(tensors: Tensors) -> None:
        for name in [name for name in tensors if not name.startswith("op4ksr.")]:
            tensors[prefix + name] = tensors.pop(name)

    loaded = load_flux(rewrite(path, wrap))
    assert same_weights(loaded, model)
    assert loaded.settings.sigma == 0.3
    assert loaded.settings.txt is not None and torch.equal(loaded.settings.txt, model.settings.txt)


@pytest.mark.parametrize("prefix", ["first_stage_model.", "vae."])
def test_a_prefixed_autoencoder_is_read(vae_file: Path, make_autoencoder: MakeAutoEncoder, prefix: str) -> None:
    def wrap(tensors: Tensors) -> None:
        for name in list(tensors):
            tensors[prefix + name] = tensors.pop(name)

    assert same_weights(load_autoencoder(rewrite(vae_file, wrap)), make_autoencoder())


def test_only_a_prefix_of_every_name_is_one() -> None:
    assert common_prefix(["vae.a", "vae.b"]) == "vae."
    assert common_prefix(["vae.a", "b"]) == ""
    assert common_prefix([]) == ""


def test_qk_norms_named_weight_are_read(flux_file: Path, make_flux: MakeFlux) -> None:
    def rename(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.endswith("_norm.scale")]:
            tensors[name.removesuffix("scale") + "weight"] = tensors.pop(name)

    assert same_weights(load_flux(rewrite(flux_file, rename)), make_flux())


def test_attention_as_linear_weights_is_read_in_diffusers_layout_only(vae_file: Path) -> None:
    def flatten(tensors: Tensors) -> None:
        name = "encoder.mid.attn_1.q.weight"
        tensors[name] = tensors[name][:, :, 0, 0].contiguous()

    text = refusal(load_autoencoder, rewrite(vae_file, flatten))
    assert "encoder.mid.attn_1.q.weight: expected (16, 16, 1, 1), got (16, 16)" in text


# --- what the file says, and what is assumed --------------------------------------------------


def test_metadata_is_believed_and_a_keyword_wins(tmp_path: Path, make_autoencoder: MakeAutoEncoder) -> None:
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, make_autoencoder(stride=2, shift=1))
    found = describe_autoencoder(path)
    assert found.why == {key: "the file's metadata" for key in ("stride", "shift", "norm_groups")}
    assert found.assumed == ()
    asked = describe_autoencoder(path, stride=1, shift=0)
    assert (asked.params.stride, asked.params.shift) == (1, 0)
    assert asked.why["stride"] == asked.why["shift"] == "as requested"
    loaded = load_autoencoder(path, stride=1, shift=0)
    assert (loaded.params.stride, loaded.params.shift) == (1, 0)
    assert loaded.encoder.conv_in.stride == (1, 1) and loaded.decoder.stride == 1


def test_a_file_that_says_nothing_is_taken_for_f16_and_that_is_logged(
    tmp_path: Path, make_autoencoder: MakeAutoEncoder, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "vae.safetensors"
    save_autoencoder(path, make_autoencoder(widths=(32, 32, 32, 32), norm_groups=32, stride=1))
    bare(path)
    found = describe_autoencoder(path)
    assert (found.params.stride, found.params.shift, found.params.norm_groups) == (2, 0, 32)
    assert found.assumed == ("stride",)
    with caplog.at_level("INFO", "op4ksr_core.weights.checkpoint"):
        load_autoencoder(path)
    assert "vae.safetensors: stride 2 (assumed: nothing in the file says so" in caplog.text
    assert "norm_groups 32 (default: Flux's 32)" in caplog.text


def public_width_header(path: Path, **metadata: str) -> Path:
    """A header of the public F16 VAE's tensors, with no bytes behind it worth reading: 1 byte each."""
    state = AutoEncoder(checkpoint.AutoEncoderParams(), device="meta").state_dict()
    save_file(
        {name: torch.zeros(t.shape, dtype=torch.uint8).view(torch.float8_e4m3fn) for name, t in state.items()},
        path,
        metadata,
    )
    return path


def test_the_shift_of_the_public_f16_is_assumed_for_its_widths_alone(tmp_path: Path) -> None:
    public = public_width_header(tmp_path / "public.safetensors")
    found = describe_autoencoder(public)
    assert (found.params.stride, found.params.shift) == (2, 1)
    assert "assumed" in found.why["shift"]
    assert describe_autoencoder(public, shift=0).params.shift == 0
    assert describe_autoencoder(public, stride=1).params.shift == 0
    ours = public_width_header(tmp_path / "ours.safetensors", **{"op4ksr.format": "1"})
    assert describe_autoencoder(ours).params.shift == 0


def test_norm_groups_that_no_one_states_and_no_default_fits_are_asked_for(vae_file: Path) -> None:
    text = refusal(load_autoencoder, rewrite(vae_file, norm_groups=None))
    assert "(8, 16, 16, 16)" in text and "op4ksr.norm_groups" in text


def test_a_flux_that_says_nothing_gets_named_defaults(flux_file: Path, caplog: pytest.LogCaptureFixture) -> None:
    bare(flux_file)
    with caplog.at_level("INFO", "op4ksr_core.weights.checkpoint"):
        loaded = load_flux(flux_file)
    assert loaded.params.theta == (10000.0, 10000.0)
    assert (loaded.settings.sigma, loaded.settings.guidance) == (0.5, 3.5)
    for fact in ("theta (10000.0, 10000.0) (default", "sigma 0.5 (default", "guidance 3.5 (default"):
        assert fact in caplog.text


@pytest.mark.parametrize("theta", [80, "80", (80.0, 80.0)], ids=repr)
def test_theta_and_sigma_can_be_asked_for(flux_file: Path, theta: Any) -> None:
    loaded = load_flux(flux_file, theta=theta, sigma=0.9)
    assert loaded.params.theta == loaded.pe_embedder.thetas == (80.0, 80.0)
    assert loaded.settings.sigma == 0.9
    assert describe_flux(flux_file, theta=theta, sigma=0.9).why["theta"] == "as requested"


@pytest.mark.parametrize("options", [{"theta": "ten"}, {"theta": 0.5}, {"sigma": 0.0}, {"sigma": 7.0}], ids=str)
def test_an_impossible_option_is_the_callers_fault(flux_file: Path, options: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        load_flux(flux_file, **options)


@pytest.mark.parametrize(
    ("head", "axes"), [(128, (16, 56, 56)), (64, (8, 28, 28)), (32, (4, 14, 14)), (96, (12, 42, 42))]
)
def test_axes_of_a_head(head: int, axes: tuple[int, int, int]) -> None:
    assert axes_of_head(Path("x"), head) == axes


@pytest.mark.parametrize("head", [16, 48, 80, 100, 1])
def test_heads_that_do_not_divide_into_axes_are_refused(head: int) -> None:
    assert str(head) in refusal(lambda path: axes_of_head(path, head), Path("x"))


# --- files that are no safetensors ------------------------------------------------------------


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer)
    return buffer.getvalue()


def pickled_as_of_old() -> bytes:
    buffer = io.BytesIO()
    torch.save({"a": torch.zeros(3)}, buffer, _use_new_zipfile_serialization=False)
    return buffer.getvalue()


@pytest.mark.parametrize("load", [load_autoencoder, load_flux])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello", "is no safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "is a Git LFS pointer"),
        (b"\n<!DOCTYPE html><html></html>", "is a web page"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "is a web page"),
        (b'{"error": "Invalid username or password."}', "is JSON text"),
        (pickled(), "PyTorch pickle"),
        (pickled_as_of_old(), "PyTorch pickle"),
        (b"GGUF" + struct.pack("<IQQ", 3, 100, 20) + bytes(64), "GGUF"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0x7B, 20) + bytes(64), "GGUF"),  # 0x7b is "{"
        (struct.pack("<Q", 1000) + b"{" + b" " * 100, "cut short"),
        (struct.pack("<Q", 2) + b"{}", "holds no tensors"),
        (struct.pack("<Q", 8) + b'{"a": 1}', "cannot be read as safetensors"),
        (struct.pack("<Q", 8) + b'{"a": [}', "header: not JSON"),
        (struct.pack("<Q", 2**40) + b"{" + b" " * 100, "cut short"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_other_files_are_refused_by_what_they_are(
    tmp_path: Path, load: Callable[[Path], Any], content: bytes, words: str
) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(content)
    assert words in refusal(load, path)


@pytest.mark.parametrize("load", [load_autoencoder, load_flux])
def test_a_file_without_permission_says_so(
    vae_file: Path, load: Callable[[Path], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(self: Path, *_: Any, **__: Any) -> None:  # root may open all, so that a mode would not do
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(load, vae_file) == f"{vae_file}: cannot be opened (Permission denied); check its permissions"


@pytest.mark.parametrize("length", [0x80, 0x280, 0x4B50, 0x8A0280])
def test_a_header_whose_length_looks_like_a_pickle_is_read(tmp_path: Path, length: int) -> None:
    """Every 32nd safetensors file begins with 0x80, some with PK: the low bytes of its header's length."""
    path = tmp_path / "file.safetensors"
    header = b'{"__metadata__":{"op4ksr.training":"'
    tail = b'"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'
    filled = header + b"x" * (length - len(header) - len(tail)) + tail
    assert len(filled) == length
    path.write_bytes(struct.pack("<Q", length) + filled + struct.pack("<f", 1.0))
    assert read_header(path).shapes == {"a": (1,)}


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    for load in (load_autoencoder, load_flux):
        assert "no such file" in refusal(load, tmp_path / "gone.safetensors")


@pytest.mark.parametrize("share", [0.05, 0.5, 0.999])
def test_a_truncated_file_is_refused(vae_file: Path, share: float) -> None:
    content = vae_file.read_bytes()
    vae_file.write_bytes(content[: int(share * len(content))])
    assert "cut short" in refusal(load_autoencoder, vae_file)


# --- other models -----------------------------------------------------------------------------


def test_one_kind_given_as_the_other_is_named(vae_file: Path, flux_file: Path) -> None:
    assert "got a Flux transformer; choose it as the model" in refusal(load_autoencoder, flux_file)
    assert "got a VAE; choose it as the VAE" in refusal(load_flux, vae_file)


def test_a_stable_diffusion_vae_is_refused(tmp_path: Path, stir: Callable[..., Any]) -> None:
    kl = pytest.importorskip("diffusers").AutoencoderKL
    stir(lambda: kl(block_out_channels=(32, 32), latent_channels=4,
                    down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2), 0
         ).save_pretrained(tmp_path)  # fmt: skip
    text = refusal(load_autoencoder, tmp_path)
    assert "16 latent channels, got one with 4 and a quant_conv (Stable Diffusion" in text


def test_16_channels_with_a_quant_conv_are_refused_too(vae_file: Path) -> None:
    def add(tensors: Tensors) -> None:
        tensors["quant_conv.weight"] = torch.zeros(32, 32, 1, 1)

    assert "and a quant_conv" in refusal(load_autoencoder, rewrite(vae_file, add))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["lora_unet_double_blocks_0_img_attn_proj.lora_down.weight"], "got a LoRA; load the full model first"),
        (["transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"], "got a LoRA"),
        (["decoder.something.weight"], "got another kind of VAE"),
        (["model.diffusion_model.input_blocks.0.0.weight", "first_stage_model.x"], "a full checkpoint"),
        (["conditioner.a", "conditioner.b"], "something else (conditioner.a, conditioner.b)"),
    ],
)
@pytest.mark.parametrize("load", [load_autoencoder, load_flux])
def test_other_models_are_refused_by_what_they_are(
    tmp_path: Path, load: Callable[[Path], Any], names: list[str], words: str
) -> None:
    path = tmp_path / "file.safetensors"
    save_file({name: torch.zeros(2, 2) for name in names}, path)
    assert words in refusal(load, path)


def test_weights_with_scales_are_left_to_the_host(flux_file: Path) -> None:
    def scale(tensors: Tensors) -> None:
        tensors["double_blocks.0.img_attn.qkv.scale_weight"] = torch.ones(1)

    assert describe_flux(rewrite(flux_file, scale)).quantized
    assert "take the bf16 or plain fp8 file" in refusal(load_flux, flux_file)


# --- wrong tensors ----------------------------------------------------------------------------

MISSING_VAE = [
    "encoder.conv_out.bias",
    "encoder.down.1.block.0.conv2.weight",
    "decoder.conv_in.weight",
    "encoder.down.0.block.0.conv1.weight",
    "encoder.down.2.block.0.conv1.weight",
    "decoder.up.3.block.0.norm1.bias",
    "encoder.mid.attn_1.k.bias",
]
MISSING_FLUX = [
    "final_layer.linear.bias",
    "txt_in.weight",
    "vector_in.in_layer.weight",
    "double_blocks.0.img_attn.norm.query_norm.scale",
    "double_blocks.0.img_mlp.0.weight",
    "single_blocks.1.linear1.weight",
    "single_blocks.0.norm.key_norm.scale",
]


@pytest.mark.parametrize("name", MISSING_VAE)
def test_a_missing_tensor_of_an_autoencoder_is_named(vae_file: Path, name: str) -> None:
    text = refusal(load_autoencoder, rewrite(vae_file, lambda tensors: tensors.pop(name)))
    assert name in text and "missing" in text


@pytest.mark.parametrize("name", MISSING_FLUX)
def test_a_missing_tensor_of_a_flux_is_named(flux_file: Path, name: str) -> None:
    text = refusal(load_flux, rewrite(flux_file, lambda tensors: tensors.pop(name)))
    assert name in text and "missing" in text


def test_an_encoder_without_levels_is_refused(vae_file: Path) -> None:
    def strip(tensors: Tensors) -> None:
        for name in [name for name in tensors if name.startswith("encoder.down.")]:
            del tensors[name]

    assert "encoder.down.0" in refusal(load_autoencoder, rewrite(vae_file, strip))


@pytest.mark.parametrize("load", [load_autoencoder, load_flux])
def test_an_unexpected_tensor_is_named(vae_file: Path, flux_file: Path, load: Callable[[Path], Any]) -> None:
    def add(tensors: Tensors) -> None:
        tensors["extra.thing"] = torch.zeros(1)

    text = refusal(load, rewrite(vae_file if load is load_autoencoder else flux_file, add))
    assert "1 unexpected (extra.thing)" in text


def test_a_tensor_of_another_shape_is_named_with_both_shapes(vae_file: Path, flux_file: Path) -> None:
    def bend(name: str, *shape: int) -> Callable[[Tensors], Any]:
        return lambda tensors: tensors.update({name: torch.zeros(shape)})

    text = refusal(load_autoencoder, rewrite(vae_file, bend("decoder.norm_out.weight", 9)))
    assert "1 of another shape (decoder.norm_out.weight: expected (8,), got (9,))" in text
    text = refusal(load_flux, rewrite(flux_file, bend("single_blocks.1.linear2.weight", 64, 3)))
    assert "single_blocks.1.linear2.weight: expected (64, 320), got (64, 3)" in text


def test_many_problems_are_counted_and_a_few_named(flux_file: Path) -> None:
    def change(tensors: Tensors) -> None:
        for name in [name for name in tensors if ".img_mod." in name or ".txt_mod." in name]:
            del tensors[name]
        tensors["z"] = torch.zeros(1)

    text = refusal(load_flux, rewrite(flux_file, change))
    assert "4 missing (double_blocks.0.img_mod.lin.bias, " in text and ", ...)" in text and "1 unexpected (z)" in text


def test_half_of_a_diffusers_qkv_is_named(tmp_path: Path, stir: Callable[..., Any]) -> None:
    transformer = pytest.importorskip("diffusers").FluxTransformer2DModel
    stir(
        lambda: transformer(
            num_layers=1, num_single_layers=1, attention_head_dim=32, num_attention_heads=1, joint_attention_dim=8,
            pooled_projection_dim=8, axes_dims_rope=(4, 14, 14),
        ),
        0,
    ).save_pretrained(tmp_path)  # fmt: skip
    path = tmp_path / "diffusion_pytorch_model.safetensors"
    assert load_flux(path).params.hidden_size == 32
    rewrite(path, lambda tensors: tensors.pop("transformer_blocks.0.attn.to_k.weight"))
    text = refusal(load_flux, path)
    assert "1 missing (double_blocks.0.img_attn.qkv.weight)" in text
    assert "transformer_blocks.0.attn.to_q.weight" in text


# --- wrong metadata ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("vae_stride", "two"),
        ("vae_stride", "3"),
        ("vae_stride", "2.0"),
        ("vae_shift", "yes"),
        ("vae_shift", "2"),
        ("norm_groups", ""),
        ("norm_groups", "0"),
        ("norm_groups", "-4"),
        ("norm_groups", "7"),
    ],
)
def test_wrong_numbers_in_an_autoencoders_metadata_are_refused(vae_file: Path, key: str, value: str) -> None:
    text = refusal(load_autoencoder, rewrite(vae_file, **{key: value}))
    assert key.removeprefix("vae_") in text and value in text


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rope_theta", "ten"),
        ("rope_theta", "0.5"),
        ("rope_theta", "1,2,3"),
        ("rope_theta", "nan"),
        ("sigma", "half"),
        ("sigma", "0"),
        ("sigma", "7.5"),
        ("sigma", "nan"),
        ("guidance", "strong"),
        ("guidance", "nan"),
        ("guidance", "inf"),
        ("guidance", "-1"),
        ("guidance", "1e30"),
        ("sigma", "-0.5"),
        ("sigma", "1e400"),
        ("rope_theta", "1e400"),
        ("rope_theta", "-10000"),
        ("train_tokens", "many"),
        ("train_tokens", "128.5"),
        ("train_tokens", "0"),
        ("train_tokens", "-1"),
        ("train_tokens", "1000000000"),
    ],
)
def test_wrong_numbers_in_a_fluxs_metadata_are_refused(flux_file: Path, key: str, value: str) -> None:
    text = refusal(load_flux, rewrite(flux_file, **{key: value}))
    assert key.removeprefix("rope_") in text
    assert value in text or {"1e400": "got inf", "1e30": "got 1e+30"}[value] in text


@pytest.mark.parametrize("key", ["rope_theta", "sigma", "guidance", "train_tokens", "vae_stride", "norm_groups"])
@pytest.mark.parametrize("value", ["9" * 5000, "1e" + "9" * 5000, "\x1b[2J" + "x" * 100_000])
def test_endless_numbers_in_the_metadata_are_one_short_sentence(
    vae_file: Path, flux_file: Path, key: str, value: str
) -> None:
    vae = key in ("vae_stride", "norm_groups")
    path, load = (vae_file, load_autoencoder) if vae else (flux_file, load_flux)
    text = refusal(load, rewrite(path, **{key: value}))
    assert text.isprintable() and len(text) < 700 and (text.endswith("fetch it again") or "take another" in text)


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("op4ksr.txt", (5, 25), "op4ksr.txt of (T, 24), got (5, 25)"),
        ("op4ksr.txt", (1, 5, 24), "got (1, 5, 24)"),
        ("op4ksr.txt", (0, 24), "got (0, 24)"),
        ("op4ksr.vec", (1, 12), "op4ksr.vec of (12,), got (1, 12)"),
        ("op4ksr.vec", (13,), "got (13,)"),
    ],
)
def test_a_prompt_of_another_model_is_refused(
    flux_file: Path, name: str, shape: tuple[int, ...], expected: str
) -> None:
    assert expected in refusal(
        load_flux, rewrite(flux_file, lambda tensors: tensors.update({name: torch.zeros(shape)}))
    )


def test_a_prompt_of_nan_is_refused(flux_file: Path) -> None:
    def spoil(tensors: Tensors) -> None:
        tensors["op4ksr.txt"] = torch.full((3, 24), float("nan"))

    assert "op4ksr.txt holds NaN or infinite numbers" in refusal(load_flux, rewrite(flux_file, spoil))


# --- read once --------------------------------------------------------------------------------


def test_a_header_or_a_description_loads_without_reading_the_header_again(
    vae_file: Path, flux_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vae, flux = describe_autoencoder(vae_file, shift=1), describe_flux(flux_file, theta=80.0)
    headers = read_header(vae_file), read_header(flux_file)
    plain = load_autoencoder(vae_file), load_flux(flux_file)
    monkeypatch.setattr("op4ksr_core.weights.description.read_header", None)
    for source, shift in ((vae, 1), (headers[0], 0)):
        assert load_autoencoder(source).params.shift == shift
        assert same_weights(load_autoencoder(source), plain[0])
    for source, theta in ((flux, 80.0), (headers[1], 10000.0)):
        assert load_flux(source).params.theta == (theta, theta)
        assert same_weights(load_flux(source), plain[1])
    assert describe_autoencoder(vae) is vae and describe_flux(flux) is flux


def test_an_option_wins_over_a_description_and_the_wrong_kind_is_refused(vae_file: Path, flux_file: Path) -> None:
    vae, flux = describe_autoencoder(vae_file, shift=1), describe_flux(flux_file, theta=80.0)
    assert load_autoencoder(vae, stride=1, shift=0).params.stride == 1
    assert load_flux(flux, sigma=0.9).settings.sigma == 0.9
    for load, other in ((load_autoencoder, flux), (load_flux, vae)):
        with pytest.raises(UnsupportedCheckpointError, match="expected a Flux"):
            load(other)


# --- writing ----------------------------------------------------------------------------------


def test_saving_where_no_folder_is_raises(tmp_path: Path, make_autoencoder: MakeAutoEncoder) -> None:
    path = tmp_path / "gone" / "vae.safetensors"
    with pytest.raises(OutputError, match="choose another folder") as caught:
        save_autoencoder(path, make_autoencoder())
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("kind", ["disk", "safetensors"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(
    vae_file: Path, make_autoencoder: MakeAutoEncoder, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    before = vae_file.read_bytes()

    def fail(tensors: Any, filename: str, metadata: Any) -> None:
        Path(filename).write_bytes(b"half")
        if kind == "disk":
            raise OSError(28, "No space left on device")
        raise checkpoint.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(OutputError, match="No space left on device"):
        save_autoencoder(vae_file, make_autoencoder(seed=1))
    assert vae_file.read_bytes() == before
    assert list(vae_file.parent.iterdir()) == [vae_file]


def test_saving_replaces_the_old_file(vae_file: Path, make_autoencoder: MakeAutoEncoder) -> None:
    other = make_autoencoder(seed=1)
    save_autoencoder(vae_file, other)
    assert same_weights(load_autoencoder(vae_file), other)
    assert list(vae_file.parent.iterdir()) == [vae_file]


def test_a_model_can_be_saved_over_the_file_it_came_from(vae_file: Path, make_autoencoder: MakeAutoEncoder) -> None:
    """The weights may still be mapped from it."""
    copy = vae_file.with_name("copy.safetensors")
    shutil.copy(vae_file, copy)
    save_autoencoder(copy, load_autoencoder(copy))
    assert same_weights(load_autoencoder(copy), make_autoencoder())
