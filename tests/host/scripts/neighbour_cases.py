"""The packs that our users run beside ours, themselves, in one graph with our nodes."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import harness
import torch
from foreign_cases import fresh, rfr, sampled, sr_lora, told
from model_cases import FLUX, PE_EMBEDDER, core_flux, lora, models, needs_a_host_that_detects_sizes, result
from neighbours import NEEDS, neighbour
from safetensors.torch import save_file
from torch import Tensor
from weights import difference, picture, prompt, write_flux, write_omgsr, write_vae

# --- DyPE -------------------------------------------------------------------------------------


def dype(model: Any, **changes: Any) -> Any:
    """As it comes, for a model made for 256 px, so that it has something to extrapolate."""
    neighbour("ComfyUI-DyPE")
    widgets: dict[str, Any] = {
        "width": 4096,
        "height": 4096,
        "model_type": "auto",
        "method": "vision_yarn",
        "yarn_alt_scaling": False,
        "enable_dype": True,
        "base_resolution": 256,
        "dype_start_sigma": 1.0,
    }
    return harness.run("DyPE_FLUX", model, **{**widgets, **changes})[0]


def long(model: Any, **widgets: Any) -> Tensor:
    """66 tokens in a row."""
    return result(model, picture(16, 1056), **widgets)


def dype_order() -> dict[str, Any]:
    model = fresh()
    plain, ours, theirs = long(model), long(rfr(model)), long(dype(model))
    dype_last, warning = told(dype(rfr(model)), long)
    rfr_last, silence = told(rfr(dype(model)), long)
    own, report = harness.run("OP4KSR_ApplyRFR", dype(fresh()), "checkpoint", 80.0, 80.0)
    return {
        "rfr_shows": difference(plain, ours),
        "dype_shows": difference(plain, theirs),
        "differ": difference(ours, theirs),
        "dype_last": torch.equal(dype_last, theirs),
        "rfr_last": torch.equal(rfr_last, ours),
        "own_theta": torch.equal(long(own), plain),
        "theta_found": dype(fresh()).get_model_object(PE_EMBEDDER).theta,
        "warning": warning,
        "sampler_warning": told(dype(rfr(model)), sampled)[1],
        "silence": silence,
        "report": report,
    }


def dype_schedule() -> dict[str, Any]:
    """What of DyPE stays where Apply RFR comes after it: the shift of the schedule, which one step does not have."""
    models()
    write_flux("dype_dev.safetensors", settings=prompt(sigma=0.3), guidance_embed=True)
    model = harness.load_model("dype_dev.safetensors")
    ours, both = rfr(model), rfr(dype(model, max_shift=2.0))
    return {
        "shifts": [part.get_model_object("model_sampling").shift for part in (ours, both)],
        "one_step": difference(result(ours), result(both)),
        "many_steps": difference(sampled(ours), sampled(both)),
    }


# --- ComfyUI-GGUF -----------------------------------------------------------------------------


@lru_cache
def half_weights() -> dict[str, Tensor]:
    """The tiny model's weights as fp16 has them, also written as safetensors."""
    models()
    state = {name: tensor.half().contiguous() for name, tensor in core_flux().state_dict().items()}
    save_file(state, harness.FOLDER / "diffusion_models" / "half.safetensors")
    return state


def gguf_model(kind: str) -> Any:
    """Written as ComfyUI-GGUF's own converter does it, 1-D tensors in fp32; opened by its Unet loader."""
    import gguf

    kinds = gguf.GGMLQuantizationType
    name = f"{kind}.gguf"
    writer = gguf.GGUFWriter(harness.FOLDER / "diffusion_models" / name, "flux")
    for key, tensor in half_weights().items():
        chosen = kinds[kind] if tensor.ndim > 1 else kinds.F32
        writer.add_tensor(key, gguf.quants.quantize(tensor.float().numpy(), chosen), raw_dtype=chosen)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return harness.run("UnetLoaderGGUF", name)[0]


def half_model() -> Any:
    half_weights()
    needs_a_host_that_detects_sizes()
    return harness.run("UNETLoader", "half.safetensors", "default")[0]


def prompted(model: Any) -> Tensor:
    """For a MODEL from another pack's loader, which brings no prompt and no sigma."""
    return result(model, conditioning=harness.run("OP4KSR_LoadFluxSR", FLUX)[1], sigma=0.3)


def one_lora(model: Any) -> Any:
    lora()
    return harness.run("LoraLoaderModelOnly", model, "kohya.safetensors", 1.0)[0]


@lru_cache
def omgsr_files() -> tuple[str, Any, Any]:
    """A folder of OMGSR-F's, the 8x VAE and the prompt that belong to it."""
    vae = harness.load_vae(write_vae("omgsr_vae.safetensors", stride=1), compression="8x")
    return write_omgsr("OMGSR", stride=1), vae, harness.run("OP4KSR_LoadFluxSR", FLUX)[1]


def omgsr(model: Any) -> Tensor:
    name, vae, conditioning = omgsr_files()
    patched, _, vae = harness.run("OP4KSR_LoadSRLoRA", model, name, 1.0, vae=vae, conditioning=conditioning)
    return harness.upscale_node(picture(48, 64), patched, vae)[0]


def gguf_files() -> dict[str, Any]:
    """GGUF against safetensors with the same weights: plain, Apply RFR, and a LoRA on either side of it."""
    neighbour("ComfyUI-GGUF")
    same = half_model()
    graphs: dict[str, Callable[[Any], Tensor]] = {
        "plain": prompted,
        "rfr": lambda model: prompted(rfr(model)),
        "lora, rfr": lambda model: prompted(rfr(one_lora(model))),
        "rfr, lora": lambda model: prompted(one_lora(rfr(model))),
        "sr lora": lambda model: result(sr_lora(model)),
        "omgsr": omgsr,
    }
    found: dict[str, Any] = {kind: {} for kind in ("F16", "Q8_0")}
    for graph, run in graphs.items():
        reference = run(same)
        for kind, differences in found.items():
            apart = (run(gguf_model(kind)) - reference).abs()
            differences[graph] = {"largest": float(apart.max()), "mean": float(apart.mean())}
    return found | {
        "rfr_shows": difference(prompted(rfr(same)), prompted(same)),
        "lora_shows": difference(prompted(one_lora(same)), prompted(same)),
        "omgsr_shows": difference(
            omgsr(same), harness.upscale_node(picture(48, 64), same, omgsr_files()[1], conditioning=omgsr_files()[2])[0]
        ),
        "sr_lora_shows": difference(result(sr_lora(same)), prompted(same)),
    }


# --- KJNodes ----------------------------------------------------------------------------------


def compiled(model: Any, whole: bool = False) -> Any:
    neighbour("ComfyUI-KJNodes")
    if not any(map(shutil.which, ("g++", "clang++", "cl"))):
        raise harness.LackingError("no C++ compiler (g++, clang++ or cl), which torch.compile needs on a CPU")
    widgets: dict[str, Any] = {
        "backend": "inductor",
        "fullgraph": False,
        "mode": "default",
        "dynamic": "false",
        "compile_transformer_blocks_only": not whole,
        "dynamo_cache_size_limit": 64,
        "debug_compile_keys": False,
    }
    return harness.run("TorchCompileModelAdvanced", model, **widgets)[0]


def kj_compile() -> dict[str, Any]:
    model = models()[0]
    once, ours, plain = compiled(model), result(rfr(model)), result(model)
    return {
        "rfr_shows": difference(ours, plain),
        "before": difference(result(rfr(once)), ours),
        "after": difference(result(compiled(rfr(model))), ours),
        "other_branch": difference(result(once), plain),
        "whole_model": difference(result(compiled(rfr(model), whole=True)), ours),
    }


def kj_sage() -> dict[str, Any]:
    """Without SageAttention the node says so; with it, a CPU gets as far as SageAttention's own refusal."""
    neighbour("ComfyUI-KJNodes")
    model = models()[0]

    def sage(model: Any, mode: str = "auto") -> Any:
        return harness.run("PathchSageAttentionKJ", model, mode)[0]

    return {
        "disabled": difference(result(rfr(sage(model, "disabled"))), result(rfr(model))),
        "before": harness.refusal(lambda: result(rfr(sage(model))))["message"],
        "after": harness.refusal(lambda: result(sage(rfr(model))))["message"],
    }


# --- rgthree ----------------------------------------------------------------------------------


def power_loras(model: Any) -> Any:
    neighbour("rgthree-comfy")
    lora()
    rows = {
        "lora_1": {"on": True, "lora": "kohya.safetensors", "strength": 0.7},
        "lora_2": {"on": True, "lora": "peft.safetensors", "strength": 0.5},
        "lora_3": {"on": False, "lora": "peft.safetensors", "strength": 9.0},
    }
    return harness.run("Power Lora Loader (rgthree)", model=model, **rows)[0]


def power_lora() -> dict[str, Any]:
    """Against the host's own loader twice in a row; on either side of Apply RFR and of Load SR LoRA."""
    model = models()[0]

    def two(model: Any) -> Any:
        (once,) = harness.run("LoraLoaderModelOnly", model, "kohya.safetensors", 0.7)
        return harness.run("LoraLoaderModelOnly", once, "peft.safetensors", 0.5)[0]

    found: dict[str, Any] = {"plain": difference(result(power_loras(model)), result(two(model)))}
    for name, ours in {"rfr": rfr, "sr_lora": sr_lora}.items():
        reference = result(ours(two(model)))
        found[name] = {
            "before": difference(result(ours(power_loras(model))), reference),
            "after": difference(result(power_loras(ours(model))), reference),
            "loras_show": difference(reference, result(ours(model))),
        }
    return found


# --- all of them ------------------------------------------------------------------------------


def one_graph() -> dict[str, Any]:
    """GGUF > Power LoRA > DyPE > Apply RFR > compile > One-Step Upscale, against safetensors, LoRAs and Apply RFR."""
    for name in NEEDS:
        neighbour(name)
    reference = prompted(rfr(power_loras(half_model())))
    chain = rfr(dype(power_loras(gguf_model("F16"))))
    return {
        "difference": difference(prompted(compiled(chain)), reference),
        "loras_show": difference(prompted(rfr(half_model())), reference),
        "dype_would_show": difference(prompted(dype(power_loras(half_model()))), reference),
    }


CASES = (dype_order, dype_schedule, gguf_files, kj_compile, kj_sage, power_lora, one_graph)
