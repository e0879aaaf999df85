"""The templates of public one-step weights in a running server: what is said when a file is missing, and that they run.

The files are small ones under the same names (``one_step_downloads``). Text encoders cannot be had in small: their
two nodes give way to *Load Prompt Embedding*, as the notes advise. Of PiD the host checks the graph alone.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import one_step_downloads as downloads
import pytest
from host.test_server import (  # noqa: F401 - object_info, photo and server are fixtures
    by_class,
    changed,
    finished,
    object_info,
    photo,
    read_template,
    rewired,
    server,
)
from host_support import PACK, Server, to_api

from op4ksr_core.cli.main import main
from op4ksr_core.images.io import load_image

pytestmark = pytest.mark.host

MISSING = {
    "OP4KSR_LoadFluxSR": "flux1-dev.safetensors: is not in ComfyUI's models/diffusion_models folder; fetch it (24 GB) "
    "from huggingface.co/Comfy-Org/flux1-dev into models/diffusion_models and press R, or choose another",
    "OP4KSR_LoadF16VAE": "ae.safetensors: is not in ComfyUI's models/vae folder; fetch it from the folder "
    "split_files/vae of huggingface.co/Comfy-Org/Lumina_Image_2.0_Repackaged into models/vae and press R, or choose "
    "another",
}
OMGSR = (
    "omgsr-f-1024-adapter/flux_adapter/adapter_model.safetensors: is not in ComfyUI's models/loras folder; fetch the "
    "OMGSR-F-1024 folder by the link in the README of github.com/wuer5/OMGSR into models/loras, as "
    "omgsr-f-1024-adapter and press R, or choose another"
)
FLUXSR = (
    "fluxsr.safetensors: is not in ComfyUI's models/loras folder; fetch the files of "
    "huggingface.co/mon3tr/FluxSR-private into a folder, make one of them (in this pack's folder: python -m "
    "op4ksr_core convert --sr-lora FOLDER -o fluxsr.safetensors), put it into models/loras and press R, or choose "
    "another"
)

#: Per template: our sentence of Load SR LoRA, and the host's own loaders with the file that they name.
TEMPLATES: dict[str, tuple[str, dict[str, str]]] = {
    "omgsr_4k": (OMGSR, {"DualCLIPLoader": "clip_l.safetensors"}),
    "fluxsr_4k": (FLUXSR, {}),
    "omgsr_1024_then_pid": (
        OMGSR,
        {
            "DualCLIPLoader": "clip_l.safetensors",
            "UNETLoader": "pid_flux1_1024_to_4096_4step_bf16.safetensors",
            "CLIPLoader": "gemma_2_2b_it_elm_fp8_scaled.safetensors",
        },
    ),
}


def prompt_of(name: str, info: dict[str, Any]) -> dict[str, Any]:
    template = read_template(PACK / "workflows" / f"{name}.json")
    if unknown := {node["type"] for node in template["nodes"]} - info.keys() - {"MarkdownNote"}:
        pytest.skip(f"this host has no {', '.join(sorted(unknown))}")
    return to_api(template, info)


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_missing_file_is_exactly_one_sentence(server: Server, object_info, photo, name: str) -> None:  # noqa: F811
    prompt = changed(prompt_of(name, object_info), LoadImage={"image": photo})
    refused = server.refusal(prompt)["node_errors"]
    told = {entry["class_type"]: [error["details"] for error in entry["errors"]] for entry in refused.values()}
    lora, theirs = TEMPLATES[name]
    assert told.keys() == {*MISSING, "OP4KSR_LoadSRLoRA", *theirs}
    for class_type, sentence in {**MISSING, "OP4KSR_LoadSRLoRA": lora}.items():
        (details,) = told[class_type]
        assert details.endswith(f" - {sentence}") and details.partition(" - ")[0] in input_names(prompt, class_type)
    for class_type, file in theirs.items():
        assert any(file in details for details in told[class_type])


@pytest.mark.parametrize("name", ["omgsr_4k", "omgsr_1024_then_pid"])
def test_the_empty_prompt_has_as_many_tokens_as_were_trained(object_info, name: str) -> None:  # noqa: F811
    """diffusers pads to 512, and ComfyUI by itself to 256."""
    prompt = prompt_of(name, object_info)
    (lora,), (options,) = by_class(prompt, "OP4KSR_LoadSRLoRA"), by_class(prompt, "T5TokenizerOptions")
    text = prompt[prompt[lora]["inputs"]["conditioning"][0]]
    assert text["class_type"] == "CLIPTextEncode" and text["inputs"] == {"text": "", "clip": [options, 0]}
    given = prompt[options]["inputs"]
    assert prompt[given.pop("clip")[0]]["class_type"] == "DualCLIPLoader"
    assert given == {"min_padding": 0, "min_length": 512}


def input_names(prompt: dict[str, Any], class_type: str) -> set[str]:
    (node,) = by_class(prompt, class_type)
    return set(prompt[node]["inputs"])


@pytest.mark.parametrize("name", TEMPLATES)
def test_every_loader_tells_the_browser_where_its_public_files_are(name: str) -> None:
    """``properties.models`` (name, url, directory), which the missing-model dialog reads; the note says the same."""
    template = read_template(PACK / "workflows" / f"{name}.json")
    (note,) = (node["widgets_values"][0] for node in template["nodes"] if node["type"] == "MarkdownNote")
    for node in template["nodes"]:
        files = {v for v in node.get("widgets_values", []) if isinstance(v, str) and v.endswith(".safetensors")}
        stated = {model["name"]: model for model in node["properties"].get("models", [])}
        if node["type"] == "OP4KSR_LoadSRLoRA":  # one behind a link, the other made on the user's machine
            assert not stated
            continue
        assert stated.keys() == files, node["type"]
        for file, model in stated.items():
            owner, repository = model["url"].removeprefix("https://huggingface.co/").split("/")[:2]
            assert model["url"].endswith(f"/{file}") and model.keys() == {"name", "url", "directory"}
            assert f"`{file}`" in note and f"`models/{model['directory']}`" in note
            assert f"(https://huggingface.co/{owner}/{repository})" in note


@pytest.fixture
def models(server: Server) -> Iterator[Path]:  # noqa: F811
    """ComfyUI's models folder with the downloads in small, as the notes and docs/public_weights.md say."""
    folder = server.folder / "models"
    downloads.write_flux(folder / "diffusion_models" / "flux1-dev.safetensors")
    downloads.write_autoencoder(folder / "vae" / "ae.safetensors")
    downloads.write_omgsr(folder / "loras" / "omgsr-f-1024-adapter")
    source = downloads.write_fluxsr(folder / "FluxSR")
    assert main(["convert", "--sr-lora", str(source), "-o", str(folder / "loras" / "fluxsr.safetensors")]) == 0
    downloads.write_prompt(folder / "embeddings" / "empty_prompt.safetensors")
    for empty in ("text_encoders/clip_l", "text_encoders/t5xxl_fp16"):
        (folder / empty).parent.mkdir(exist_ok=True)
        (folder / f"{empty}.safetensors").write_bytes(b"")
    yield folder
    for place in folder.iterdir():
        shutil.rmtree(place)


def without_text_encoders(prompt: dict[str, Any]) -> dict[str, Any]:
    """*Load Prompt Embedding* in the place of OMGSR's text encoders."""
    texts = [node for node in by_class(prompt, "CLIPTextEncode") if feeds(prompt, node, "OP4KSR_LoadSRLoRA")]
    encoders = by_class(prompt, "DualCLIPLoader")
    if texts:
        embedding = {
            "class_type": "OP4KSR_LoadPromptEmbedding",
            "inputs": {"embedding_name": "empty_prompt.safetensors"},
        }
        prompt["prompt"] = embedding
        options = by_class(prompt, "T5TokenizerOptions")
        rewired(prompt, {(texts[0], 0): ["prompt", 0], (options[0], 0): [], (encoders[0], 0): []})
    return prompt


def feeds(prompt: dict[str, Any], node: str, class_type: str) -> bool:
    return any([node, 0] in prompt[to]["inputs"].values() for to in by_class(prompt, class_type))


SMALL = {"OP4KSR_OneStepUpscale": {"pixels": 192}}


@pytest.mark.parametrize("name", ["omgsr_4k", "fluxsr_4k"])
def test_the_template_runs_and_gives_the_command_lines_picture(
    server: Server,  # noqa: F811
    object_info,  # noqa: F811
    photo: str,  # noqa: F811
    models: Path,
    tmp_path: Path,
    name: str,
) -> None:
    prompt = without_text_encoders(prompt_of(name, object_info))
    changed(prompt, **SMALL, LoadImage={"image": photo})
    (saver,), (meter,) = by_class(prompt, "OP4KSR_SavePicture"), by_class(prompt, "OP4KSR_PeriodicityDiagnostic")
    run = finished(server, prompt)
    found = np.asarray(server.picture(run, saver).convert("RGB"), float)
    assert found.shape == (128, 192, 3) and run.outputs[meter]["images"] and run.outputs[meter]["text"]

    lora = models / "loras" / ("fluxsr.safetensors" if name == "fluxsr_4k" else "omgsr.safetensors")
    if name == "omgsr_4k":
        source, embedding = lora.with_name("omgsr-f-1024-adapter"), models / "embeddings" / "empty_prompt.safetensors"
        assert main(["convert", "--sr-lora", str(source), "--prompt-embedding", str(embedding), "-o", str(lora)]) == 0
    files = [
        "--model",
        str(models / "diffusion_models/flux1-dev.safetensors"),
        "--vae",
        str(models / "vae/ae.safetensors"),
    ]
    options = ["--stride", "1", "--lora", str(lora), "--color", "adain", "--fidelity", "0", "--long-edge", "192"]
    made = tmp_path / "core.png"
    assert main(["upscale", str(server.folder / "input" / photo), "-o", str(made), *files, *options]) == 0
    core = np.asarray(load_image(made).image[0].permute(1, 2, 0)) * 255
    assert np.abs(found - core).max() <= 1

    plain = finished(server, changed(prompt, OP4KSR_LoadSRLoRA={"strength": 0.0}))
    other = np.asarray(server.picture(plain, saver).convert("RGB"), float)
    assert np.abs(found - other).mean() > 2, "the LoRA does not show"


def test_pid_gets_the_latent_of_the_picture_in_the_size_it_was_trained_for(
    server: Server,  # noqa: F811
    object_info,  # noqa: F811
    photo: str,  # noqa: F811
    models: Path,
) -> None:
    """The host takes the whole graph; and up to PiD's own models, of which there are none in small, it runs."""
    prompt = without_text_encoders(prompt_of("omgsr_1024_then_pid", object_info))
    changed(prompt, **SMALL, LoadImage={"image": photo})
    for place, file in (("diffusion_models", "UNETLoader"), ("text_encoders", "CLIPLoader")):
        (models / place / TEMPLATES["omgsr_1024_then_pid"][1][file]).write_bytes(b"")
    failed = server.finish(server.queue(prompt))  # which the host takes only where every value and link fits
    assert failed.message("execution_error")["node_type"] in ("UNETLoader", "CLIPLoader")

    (sampler,), (latent,) = by_class(prompt, "SamplerCustom"), by_class(prompt, "VAEEncode")
    (empty,) = by_class(prompt, "EmptyChromaRadianceLatentImage")
    assert prompt[prompt[latent]["inputs"]["vae"][0]]["class_type"] == "OP4KSR_LoadF16VAE", "not the LoRA's"
    vaes = {latent: prompt[latent]["inputs"]["vae"], empty: ["pixels", 0]}
    prompt["pixels"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    for node, vae in vaes.items():
        prompt[f"decode{node}"] = {"class_type": "VAEDecode", "inputs": {"samples": [node, 0], "vae": vae}}
        inputs = {"images": [f"decode{node}", 0], "filename_prefix": "pid"}
        prompt[f"save{node}"] = {"class_type": "SaveImage", "inputs": inputs}
    kept = {node: entry for node, entry in prompt.items() if not needs(prompt, node, sampler)}
    run = finished(server, kept)
    assert [server.picture(run, f"save{node}").size for node in vaes] == [(192, 128), (768, 512)]


def needs(prompt: dict[str, Any], node: str, other: str) -> bool:
    """Whether a node takes anything, over any number of others, from another."""
    links = [value[0] for value in prompt[node]["inputs"].values() if isinstance(value, list)]
    return node == other or any(needs(prompt, link, other) for link in links)
