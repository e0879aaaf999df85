"""The nodes' schemas, the loaded VAE in the host's own nodes, and every file that must be refused."""

from __future__ import annotations

import copy
import inspect
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import folder_paths
import harness
import torch
from safetensors.torch import load_file, save_file
from weights import difference, noise, picture, prompt, write_flux, write_vae

import nodes
from op4ksr_core import load_autoencoder

VAE, FLUX = "good_vae.safetensors", "good_flux.safetensors"


@lru_cache
def files() -> None:
    write_vae(VAE, shift=1)
    write_flux(FLUX, settings=prompt())


def our_nodes() -> dict[str, Any]:
    return {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("OP4KSR_")}


def schemas() -> dict[str, Any]:
    """Per node: schema inputs, execute's parameters, and what has no tooltip."""
    found: dict[str, Any] = {}
    for name, cls in our_nodes().items():
        schema = cls.define_schema()
        parameters = inspect.signature(cls.execute).parameters.values()
        found[name] = {
            "inputs": [i.id for i in schema.inputs],
            "parameters": [p.name for p in parameters],
            "optional_inputs": [i.id for i in schema.inputs if i.optional],
            "optional_parameters": [p.name for p in parameters if p.default is not p.empty],
            "without_tooltip": [i.id for i in (*schema.inputs, *schema.outputs) if not i.tooltip],
            "description": schema.description,
        }
    return found


def dropdowns() -> dict[str, list[str]]:
    """Files that appear after the pack was loaded are offered, after the bundled one."""
    files()
    offered = {}
    for node, widget in (("OP4KSR_LoadF16VAE", "vae_name"), ("OP4KSR_LoadFluxSR", "model_name")):
        inputs = our_nodes()[node].define_schema().inputs
        offered[widget] = next(i.options for i in inputs if i.id == widget)
    return offered


def vae_nodes() -> dict[str, Any]:
    """VAEEncode, VAEDecode and VAEDecodeTiled against the core on the same file."""
    files()
    vae, core = harness.load_vae(VAE), load_autoencoder(harness.FOLDER / "vae" / VAE)
    image = torch.cat([picture(96, 128), picture(96, 128, seed=4)])
    (latent,) = harness.run("VAEEncode", vae, image)
    raw = {"samples": noise(2, 16, 6, 8)}
    (decoded,) = harness.run("VAEDecode", vae, raw)
    (tiled,) = harness.run("VAEDecodeTiled", vae, raw, 64, 16)
    return {
        "latent": list(latent["samples"].shape),
        "encode": difference(latent["samples"], core.encode(image.movedim(-1, 1))),
        "image": list(decoded.shape),
        "decode": difference(decoded, core.decode(raw["samples"]).movedim(1, -1)),
        "contrast": float(decoded.std()),
        "tiled": list(tiled.shape),
        "tiled_range": [float(tiled.min()), float(tiled.max())],
    }


def vae_sizes() -> dict[str, list[int]]:
    """Pixels that are no multiple of 16: the host crops to one; and tiled encoding."""
    files()
    vae = harness.load_vae(VAE)
    return {
        "136x100": list(vae.encode(torch.rand(1, 100, 136, 3)).shape),
        "tiled": list(vae.encode_tiled(torch.rand(1, 128, 160, 3), tile_x=64, tile_y=64, overlap=16).shape),
        "ratios": [vae.spacial_compression_encode(), vae.spacial_compression_decode(), vae.latent_channels],
    }


def vae_memory() -> dict[str, float]:
    """The memory estimates are positive and grow with the area."""
    files()
    vae = harness.load_vae(VAE)
    return {
        "encode": vae.memory_used_encode((1, 3, 2048, 2048), torch.float32),
        "encode_twice": vae.memory_used_encode((1, 3, 4096, 2048), torch.float32),
        "decode": vae.memory_used_decode((1, 16, 128, 128), torch.float32),
        "decode_twice": vae.memory_used_decode((1, 16, 256, 128), torch.float32),
    }


def vae_widgets() -> dict[str, bool]:
    """compression and shift, where they are set, win over the file's metadata."""
    files()
    raw = noise(1, 16, 4, 4)
    plain, unshifted = (harness.load_vae(VAE, shift=shift).decode(raw) for shift in ("auto", "0"))
    shifted = harness.load_vae(VAE, shift="1").decode(raw)
    return {
        "auto_is_of_the_file": torch.equal(plain, shifted),
        "shift_0_differs": not torch.equal(plain, unshifted),
        "8x": list(harness.load_vae(VAE, compression="8x").decode(raw).shape) == [1, 32, 32, 3],
    }


def vae_rebuild() -> dict[str, Any]:
    """The host's way to load the same VAE once more: still 16x, the same pixels, weights of its own."""
    files()
    vae = harness.load_vae(VAE)
    factory, args = vae.patcher.cached_patcher_init
    patcher = factory(*args, disable_dynamic=True)
    again = copy.copy(vae)  # as Select VAE Device does it
    again.patcher, again.first_stage_model = patcher, patcher.model
    raw, image = noise(1, 16, 4, 6), picture(64, 96)
    return {
        "same_decode": torch.equal(vae.decode(raw), again.decode(raw)),
        "same_encode": torch.equal(vae.encode(image), again.encode(image)),
        "shape": list(again.decode(raw).shape),
        "own_model": vae.first_stage_model.given is not again.first_stage_model.given,
        "in_strips": type(again.first_stage_model).__name__,
        "dynamic": bool(getattr(patcher, "is_dynamic", lambda: False)()),
    }


def spoil(kind: str, name: str, content: bytes) -> str:
    (harness.FOLDER / kind / name).write_bytes(content)
    return name


def pickled(name: str) -> bytes:
    path = Path(harness.FOLDER / name)
    torch.save({"weight": torch.zeros(2)}, path)
    return path.read_bytes()


def refused_vaes() -> dict[str, Any]:
    files()
    good = (harness.FOLDER / "vae" / VAE).read_bytes()
    names = {
        "f8": write_vae("f8.safetensors", stride=1),
        "four_channels": write_vae("four.safetensors", latent_channels=4),
        "flux": spoil("vae", "flux.safetensors", (harness.FOLDER / "diffusion_models" / FLUX).read_bytes()),
        "truncated": spoil("vae", "truncated.safetensors", good[: len(good) // 2]),
        "header_truncated": spoil("vae", "header.safetensors", good[:100]),
        "empty": spoil("vae", "empty.safetensors", b""),
        "pickle": spoil("vae", "pickle.pt", pickled("pickle.tmp")),
        "pickle_in_disguise": spoil("vae", "disguise.safetensors", pickled("pickle.tmp")),
        "missing": "no_such_file.safetensors",
    }
    return {case: harness.refusal(lambda name=name: harness.load_vae(name)) for case, name in names.items()}


def refused_models() -> dict[str, Any]:
    files()
    good = (harness.FOLDER / "diffusion_models" / FLUX).read_bytes()
    names = {
        "vae": spoil("diffusion_models", "vae.safetensors", (harness.FOLDER / "vae" / VAE).read_bytes()),
        "truncated": spoil("diffusion_models", "truncated.safetensors", good[: len(good) // 2]),
        "pickle": spoil("diffusion_models", "pickle.safetensors", pickled("pickle.tmp")),
        "missing": "no_such_file.safetensors",
    }
    return {case: harness.refusal(lambda name=name: harness.load_model(name)) for case, name in names.items()}


def doubtful_vae() -> dict[str, Any]:
    """A file that does not say its stride, and whose round trip speaks for 8x; 16x, where it is insisted on."""
    name = write_vae("doubtful.safetensors", widths=(32, 32), norm_groups=32)
    path = harness.FOLDER / "vae" / name
    save_file(load_file(path), path)  # without its metadata
    loader = sys.modules[our_nodes()["OP4KSR_LoadF16VAE"].__module__].load_vae
    probe = sys.modules[sys.modules[loader.__module__].doubt.__module__]
    verdict, probe.verdict = probe.verdict, lambda fits: next(fit for fit in fits if fit.stride == 1)
    try:
        found = harness.refusal(lambda: harness.load_vae(name))
        return {**found, "insisted": harness.load_vae(name, compression="16x").spacial_compression_encode()}
    finally:
        probe.verdict = verdict


def foreign_choices() -> dict[str, Any]:
    """Every dropdown of every node with a value that it does not offer, as a string from another node may be."""
    files()
    given = {"model": harness.load_model(FLUX), "vae": harness.load_vae(VAE)} | dict.fromkeys(
        ("image", "images"), picture(32, 32)
    )
    files_of = {"vae_name": VAE, "model_name": FLUX}
    files_of |= dict.fromkeys(("lora_name", "embedding_name"), "no_such_file.safetensors")
    found: dict[str, Any] = {}
    for name, cls in our_nodes().items():
        inputs = cls.define_schema().inputs
        typed = {i.id: i.default for i in inputs if getattr(i, "default", None) is not None}
        known = typed | {i.id: (files_of | given)[i.id] for i in inputs if i.id in files_of | given}
        for widget in (i.id for i in inputs if i.get_io_type() == "COMBO" and i.id not in files_of):
            values = known | {widget: "sepia"}
            found[f"{name} {widget}"] = harness.refusal(lambda name=name, values=values: harness.run(name, **values))
    return found


def linked_files() -> dict[str, Any]:
    """A file's name from another node: the host's check of the prompt hands None to ``validate_inputs``."""
    names = {"OP4KSR_LoadF16VAE": "vae_name", "OP4KSR_LoadFluxSR": "model_name", "OP4KSR_LoadSRLoRA": "lora_name"}
    names |= {"OP4KSR_LoadPromptEmbedding": "embedding_name"}
    nodes = our_nodes()
    return {
        name: [nodes[name].validate_inputs(**given) for given in ({widget: None}, {})] for name, widget in names.items()
    }


def removed_file() -> dict[str, Any]:
    """A file that was in the dropdown and is gone when the prompt runs."""
    name = write_vae("soon_gone.safetensors")
    assert name in folder_paths.get_filename_list("vae")
    (harness.FOLDER / "vae" / name).unlink()
    return harness.refusal(lambda: harness.load_vae(name))


CASES = (
    schemas,
    dropdowns,
    vae_nodes,
    vae_sizes,
    vae_memory,
    vae_widgets,
    vae_rebuild,
    refused_vaes,
    refused_models,
    doubtful_vae,
    foreign_choices,
    linked_files,
    removed_file,
)
