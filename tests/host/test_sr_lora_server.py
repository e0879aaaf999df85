"""OMGSR-F's folder in a running ComfyUI server: both branches in one graph, the cache, several prompts, a cancel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from host_support import Run, Server, find_host, png

pytestmark = pytest.mark.host

LOADERS = {"2", "3", "4", "5"}
WITH, WITHOUT = "6", "7"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    for module in ("diffusers", "peft"):
        pytest.importorskip(module)
    import one_step_weights as public

    running = Server(find_host(), tmp_path_factory.mktemp("server"))
    models = running.folder / "models"
    for kind in ("diffusion_models", "loras", "embeddings"):
        (models / kind).mkdir(exist_ok=True)
    public.save_base(models / "diffusion_models")
    (models / "diffusion_models" / "vae").rename(models / "vae")
    public.save_omgsr(models / "loras" / "OMGSR")
    public.save_prompt(models / "embeddings" / "empty.safetensors")
    try:
        running.wait_until_up()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def photo(server: Server) -> str:
    return server.upload("small.png", png(64, 48))


def graph(photo: str, factor: float = 2.0, **changes: Any) -> dict[str, Any]:
    """One MODEL and one VAE with the LoRA and without it."""
    widgets: dict[str, Any] = {"target": "factor", "pixels": 4096, "factor": factor, "megapixels": 16.0}
    widgets |= {"color_fix": "none", "fidelity": 0.0, "vae_only": False, "sigma": 0.0, "guidance": -1.0}
    widgets |= {"max_megapixels": 67.2, "image": ["1", 0], **changes}
    file = "diffusion_pytorch_model.safetensors"
    lora = {"model": ["2", 0], "lora_name": "OMGSR/flux_adapter/adapter_model.safetensors", "strength": 1.0}
    ours = {"model": ["5", 0], "vae": ["5", 2], "conditioning": ["5", 1]}
    plain = {"model": ["2", 0], "vae": ["3", 0], "conditioning": ["4", 0], "sigma": 0.5}
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "1": ("LoadImage", {"image": photo}),
        "2": ("OP4KSR_LoadFluxSR", {"model_name": f"transformer/{file}", "weight_dtype": "default"}),
        "3": ("OP4KSR_LoadF16VAE", {"vae_name": file, "compression": "8x", "shift": "auto"}),
        "4": ("OP4KSR_LoadPromptEmbedding", {"embedding_name": "empty.safetensors"}),
        "5": ("OP4KSR_LoadSRLoRA", {**lora, "vae": ["3", 0], "conditioning": ["4", 0]}),
        WITH: ("OP4KSR_OneStepUpscale", {**widgets, **ours}),
        WITHOUT: ("OP4KSR_OneStepUpscale", {**widgets, **plain}),
        "8": ("SaveImage", {"images": [WITH, 0], "filename_prefix": "with"}),
        "9": ("SaveImage", {"images": [WITHOUT, 0], "filename_prefix": "without"}),
    }
    return {name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in nodes.items()}


def finished(server: Server, prompt: dict[str, Any]) -> Run:
    run = server.finish(server.queue(prompt))
    assert run.status == "success", run.messages
    return run


def pictures(server: Server, run: Run) -> tuple[Any, Any]:
    with_lora, without = (np.asarray(server.picture(run, node)).astype(int) for node in ("8", "9"))
    return with_lora, without


def test_branches_prompts_and_cache(server: Server, photo: str) -> None:
    """The second prompt loads nothing again; the third's pictures are the first's."""
    first = finished(server, graph(photo))
    second = finished(server, graph(photo, seed=1))
    third = finished(server, graph(photo))
    (one, plain), (other, plain_again), (again, plain_last) = (pictures(server, run) for run in (first, second, third))
    for run in (second, third):
        assert set(run.message("execution_cached")["nodes"]) >= LOADERS
    assert abs(one - plain).max() > 20 and abs(one - other).max() > 20
    assert (one == again).all() and (plain == plain_again).all() and (plain == plain_last).all()


def test_a_cancelled_prompt_leaves_no_lora_behind(server: Server, photo: str) -> None:
    before = pictures(server, finished(server, graph(photo, color_fix="adain")))
    running = server.queue(graph(photo, factor=24.0))
    server.wait_until_running(running)
    server.post("/interrupt", b"")
    assert server.finish(running).status == "error"
    after = pictures(server, finished(server, graph(photo, color_fix="adain")))
    assert all((a == b).all() for a, b in zip(before, after, strict=True))


def test_a_missing_vae_is_one_sentence(server: Server, photo: str) -> None:
    prompt = graph(photo)
    del prompt["5"]["inputs"]["vae"]
    run = server.finish(server.queue(prompt))
    message = run.message("execution_error")["exception_message"]
    assert "also changes the VAE's encoder, and no VAE is connected; connect Flux's own" in message
