"""Exact VAE over the host's own VAEs: the same numbers in strips, what happens out of memory, what is refused."""

from __future__ import annotations

import copy
import gc
import weakref
from functools import lru_cache
from pathlib import Path
from typing import Any

import comfy.ldm.models.autoencoder as engines
import comfy.model_management
import comfy.sd
import harness
import torch
from weights import autoencoder, difference, noise, picture, seeded, write_flux, write_vae

from benchmarks.tiles import three_passes

#: Picture side in px: the host's engines are of full width, whatever the weights.
SIDE = 128


def _state(kind: str) -> dict[str, Any]:
    """Seeded weights of one of the host's VAEs, loud enough for differences to show."""
    config: dict[str, Any] = {"double_z": True, "z_channels": 16, "resolution": 256, "in_channels": 3, "out_ch": 3}
    config |= {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": [], "dropout": 0.0}

    def engine(decoder: str, **changes: Any) -> Any:
        module, params = "comfy.ldm.modules", {**config, **changes}
        return engines.AutoencodingEngine(
            regularizer_config={"target": "comfy.ldm.models.autoencoder.DiagonalGaussianRegularizer"},
            encoder_config={"target": f"{module}.diffusionmodules.model.Encoder", "params": params},
            decoder_config={"target": f"{module}.{decoder}", "params": params},
        )

    def build() -> Any:
        if kind == "flux":
            return engine("diffusionmodules.model.Decoder")
        if kind == "video":  # Stable Video Diffusion: the same blocks, and time between them
            return engine("temporal_ae.VideoDecoder", z_channels=4, video_kernel_size=[3, 1, 1], alpha=0.0)
        if kind == "sdxl":
            return engines.AutoencoderKL(ddconfig={**config, "z_channels": 4}, embed_dim=4)
        return engines.AutoencoderKL(ddconfig={**config, "z_channels": 32, "batch_norm_latent": True}, embed_dim=32)

    model = seeded(lambda: _initialised(build()), 5)
    return {name: tensor for name, tensor in model.state_dict().items() if "num_batches" not in name}


def _initialised(model: Any) -> Any:
    """The host's layers come with whatever was in memory."""
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.kaiming_uniform_(parameter, a=1.5)
        else:
            torch.nn.init.constant_(parameter, float("norm" in name and name.endswith("weight")))
    return model


@lru_cache
def host_vae(kind: str) -> Any:
    if kind == "flux2" and "batch_norm_latent" not in Path(engines.__file__).read_text("utf-8"):
        raise harness.LackingError("this version of the host has no Flux 2 VAE")
    vae = comfy.sd.VAE(sd=_state(kind), dtype=torch.float32)
    vae.throw_exception_if_invalid()
    return vae


def exact_of(vae: Any, memory: str = "auto") -> Any:
    return harness.run("OP4KSR_ExactVAE", vae, memory)[0]


def latent_of(vae: Any, pictures: int = 1) -> Any:
    side = SIDE // vae.spacial_compression_decode()
    return noise(pictures, vae.latent_channels, side, side // 2 + 1)


def _same(kind: str) -> dict[str, Any]:
    vae = host_vae(kind)
    image = picture(SIDE + 3, SIDE - 30).repeat(2, 1, 1, 1)
    latent = latent_of(vae, 2)
    plain = vae.encode(image), vae.decode(latent)
    found: dict[str, Any] = {"latent_std": float(plain[0].std()), "image_std": float(plain[1].std())}
    for memory in ("auto", "tiny"):
        exact = exact_of(vae, memory)
        found[memory] = [difference(plain[0], exact.encode(image)), difference(plain[1], exact.decode(latent))]
    found["given_is_left_alone"] = torch.equal(plain[1], vae.decode(latent)) and type(vae) is comfy.sd.VAE
    found["weights_are_shared"] = exact.patcher is vae.patcher
    found["saves_the_same_file"] = set(exact.get_sd()) == set(vae.get_sd())
    shape = (1, vae.latent_channels, 64, 64)
    found["asks_for"] = exact.memory_used_decode(shape, vae.vae_dtype) / vae.memory_used_decode(shape, vae.vae_dtype)
    return found


def same_flux() -> dict[str, Any]:
    found = _same("flux")
    vae, latent = host_vae("flux"), latent_of(host_vae("flux"))
    tiled = vae.decode_tiled(latent, tile_x=8, tile_y=8, overlap=2)
    found["tiles"] = difference(vae.decode(latent), tiled)
    return found


def same_sdxl() -> dict[str, Any]:
    return _same("sdxl")


def same_flux2() -> dict[str, Any]:
    return _same("flux2")


class Failing:
    """The tensor library's convolution, failing ``times`` times with out of memory."""

    def __init__(self, times: int) -> None:
        self.times, self.works = times, torch.nn.functional.batch_norm

    def __enter__(self) -> Failing:
        torch.nn.functional.batch_norm = self._fail
        return self

    def __exit__(self, *_: Any) -> None:
        torch.nn.functional.batch_norm = self.works

    def _fail(self, *args: Any, **kwargs: Any) -> Any:
        if self.times > 0:
            self.times -= 1
            raise torch.OutOfMemoryError("simulated")
        return self.works(*args, **kwargs)


@lru_cache
def small_vae() -> Any:
    return harness.load_vae(write_vae("exact.safetensors"))


def out_of_memory() -> dict[str, Any]:
    """Inside the strips: leaner, the same picture; when nothing helps, or elsewhere: a sentence, never tiles."""
    vae, image, raw = small_vae(), picture(96, 128), noise(1, 16, 6, 8)
    plain = vae.encode(image), vae.decode(raw)
    found: dict[str, Any] = {}
    with Failing(2):
        found["encode"] = difference(plain[0], vae.encode(image))
    with Failing(2):
        found["decode"] = difference(plain[1], vae.decode(raw))
    host, asked = getattr(comfy.model_management, "is_oom", None), list[BaseException]()
    comfy.model_management.is_oom = lambda error: asked.append(error) or False
    try:
        with Failing(1):
            vae.decode(raw)
    finally:
        comfy.model_management.is_oom = host
    found["host_is_asked"] = [type(error).__name__ for error in asked]
    with Failing(10**6):
        found["nothing_helps"] = harness.refusal(lambda: vae.decode(raw))
        found["nothing_helps_encode"] = harness.refusal(lambda: vae.encode(image))
    load = comfy.model_management.load_models_gpu

    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("simulated")

    comfy.model_management.load_models_gpu = full
    try:
        found["elsewhere"] = harness.refusal(lambda: vae.decode(raw))
        found["elsewhere_encode"] = harness.refusal(lambda: vae.encode(image))
    finally:
        comfy.model_management.load_models_gpu = load
    found["next_run"] = difference(plain[1], vae.decode(raw))
    found["tiles_on_request"] = list(vae.decode_tiled(raw, tile_x=4, tile_y=4, overlap=1).shape)
    return found


def cancel() -> dict[str, Any]:
    """An interrupt while strips run ends the run at the next one."""
    vae, raw = small_vae(), noise(1, 16, 6, 8)
    strips: list[int] = []
    check = comfy.model_management.throw_exception_if_processing_interrupted

    def interrupted() -> None:
        strips.append(1)
        if len(strips) == 5:
            raise comfy.model_management.InterruptProcessingException()

    comfy.model_management.throw_exception_if_processing_interrupted = interrupted
    try:
        vae.decode(raw)
        ended = "it ran on"
    except comfy.model_management.InterruptProcessingException:
        ended = "interrupted"
    finally:
        comfy.model_management.throw_exception_if_processing_interrupted = check
    return {"ended": ended, "strips": len(strips)}


def one_step_is_exact() -> dict[str, Any]:
    """The one-step node runs even a plain 8x VAE in strips: no whole pass through its encoder and decoder."""
    vae, model = host_vae("flux"), harness.load_model(write_flux("exact_flux.safetensors"))
    calls: list[str] = []
    parts = [type(getattr(vae.first_stage_model, name)) for name in ("encoder", "decoder")]
    forwards = [part.forward for part in parts]
    small = picture(32, 48)
    try:
        for part in parts:
            part.forward = lambda *_, name=part.__name__: calls.append(name)
        result = harness.upscale_node(small, model, vae)[0]
    finally:
        for part, forward in zip(parts, forwards, strict=True):
            part.forward = forward
    tiny = harness.upscale_node(small, model, exact_of(vae, "tiny"))[0]
    return {"shape": list(result.shape), "whole_passes": calls, "difference": difference(result, tiny)}


def tiles() -> dict[str, float]:
    """The tiles that the benchmark compares with, against the host's own, on the same weights."""
    vae, model = small_vae(), autoencoder()
    raw, image = noise(1, 16, 20, 27), picture(320, 432)
    decoded = three_passes(raw, model.decode_pixels, 8, 2, 16)
    encoded = three_passes(image.movedim(-1, 1) * 2 - 1, model.encode_pixels, 128, 32, 1 / 16)
    theirs = vae.decode_tiled(raw, tile_x=8, tile_y=8, overlap=2)
    return {
        "decode": difference(((decoded + 1) / 2).clamp(0, 1).movedim(1, -1), theirs),
        "encode": difference(encoded, vae.encode_tiled(image, tile_x=128, tile_y=128, overlap=32)),
        "whole": difference(vae.decode(raw), theirs),
    }


def weights_are_let_go() -> bool:
    """The last reference gone, the model goes at once, without the garbage collector."""
    vae = harness.load_vae(write_vae("let_go.safetensors"))
    model = weakref.ref(vae.first_stage_model.given.decoder.conv_in)
    gc.collect()
    gc.disable()
    try:
        del vae
        return model() is None
    finally:
        gc.enable()


def refused() -> dict[str, Any]:
    pixel = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    with_attention = host_vae("flux")
    level = with_attention.first_stage_model.decoder.up[0]
    level.attn.append(torch.nn.Identity())
    try:
        attention = harness.refusal(lambda: exact_of(with_attention))
    finally:
        del level.attn[0]
    found = {"pixel": harness.refusal(lambda: exact_of(pixel)), "attention": attention}
    found["video"] = harness.refusal(lambda: exact_of(comfy.sd.VAE(sd=_state("video"), dtype=torch.float32)))
    changed = harness.load_vae(write_vae("changed.safetensors"))
    for module in changed.first_stage_model.modules():  # as packs for seamless tiling do it
        if isinstance(module, torch.nn.Conv2d):
            module.padding_mode = "circular"
    found["changed"] = harness.refusal(lambda: changed.decode(noise(1, 16, 2, 2)))
    found["too_small"] = harness.refusal(lambda: exact_of(host_vae("flux")).encode(torch.rand(1, 4, 41, 3)))
    return found


def copies() -> dict[str, Any]:
    """A deep copy has weights of its own; a part put into the engine is the part that runs, or is refused."""
    vae, raw = harness.load_vae(write_vae("copied.safetensors")), noise(1, 16, 2, 3)
    before = vae.decode(raw)
    other = copy.deepcopy(vae)
    same = difference(before, other.decode(raw))
    for parameter in other.first_stage_model.given.decoder.conv_in.parameters():
        parameter.mul_(2)
    found = {"same": same, "own": difference(before, other.decode(raw)), "kept": difference(before, vae.decode(raw))}
    other.first_stage_model.decoder = vae.first_stage_model.given.decoder
    found["part"] = difference(before, other.decode(raw))
    engine = other.first_stage_model
    found["refused"] = harness.refusal(lambda: setattr(engine, "decoder", torch.nn.Identity()))["classes"][0]
    return found


CASES = (
    same_flux,
    same_sdxl,
    same_flux2,
    out_of_memory,
    cancel,
    one_step_is_exact,
    tiles,
    copies,
    weights_are_let_go,
    refused,
)
