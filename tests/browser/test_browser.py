"""The templates in a real browser: headless Chromium, the host's own frontend, a real server.

Needs Playwright in this Python or in the one that $OP4KSR_BROWSER_PYTHON names (it needs nothing else), and a
Chromium or Chrome: $CHROMIUM, or on the PATH. Playwright's own browsers are not needed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from host_support import PACK, Server, find_host, png

pytestmark = [pytest.mark.host, pytest.mark.slow]

DRIVER = Path(__file__).with_name("driver.py")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")

#: Older frontends ask here for the makers of a workflow's nodes when one is missing; the server forbids it.
REGISTRY = "https://api.comfy.org/comfy-nodes/"

STEP = "OP4KSR_OneStepUpscale"
#: Small sizes for the CPU's sake; and the template's nodes that must show something at the end.
SMALL = {STEP: {"pixels": 256}}
RUNS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "upscale_4k": (SMALL, {"SaveImage"}),
    "compare": (SMALL | {"ImageScale": {"width": 256}}, {"PreviewImage", "ImageCompare", "OP4KSR_ApplyRFR"}),
    "diagnose_and_suppress": ({}, {"SaveImage", "OP4KSR_PeriodicityDiagnostic", "OP4KSR_SuppressPeriodicity"}),
    "compare_positions": (
        SMALL | {"ImageCrop": {"width": 128, "height": 64, "x": 0, "y": 0}},
        {"PreviewImage", "OP4KSR_ApplyRFR", "OP4KSR_PeriodicityDiagnostic"},
    ),
    "batch_of_stills": (SMALL, {"SaveImage"}),
}
ONE_STEP = {"OP4KSR_LoadFluxSR", "OP4KSR_LoadF16VAE", "OP4KSR_LoadSRLoRA"}
#: Which need files that are not bundled: their loaders are marked, and nothing else is missing.
NEED_DOWNLOADS = {
    "generate_then_upscale_4k": {"CheckpointLoaderSimple"},
    "own_upscaler_first": {"UpscaleModelLoader"},
    "ultraflux_4k_text_to_image": {"OP4KSR_LoadFluxSR", "OP4KSR_LoadF16VAE", "DualCLIPLoader"},
    "ultraflux_4k_refine": {"OP4KSR_LoadFluxSR", "OP4KSR_LoadF16VAE", "DualCLIPLoader"},
    "omgsr_4k": ONE_STEP | {"DualCLIPLoader"},
    "omgsr_1024_then_pid": ONE_STEP | {"DualCLIPLoader", "UNETLoader", "CLIPLoader"},
    "fluxsr_4k": ONE_STEP,
}


def browser_python() -> str:
    if stated := os.environ.get("OP4KSR_BROWSER_PYTHON"):
        return stated
    if importlib.util.find_spec("playwright") is None:
        pytest.skip(f"no Playwright in {sys.executable}, and $OP4KSR_BROWSER_PYTHON is not set")
    return sys.executable


def chromium() -> str:
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, BROWSERS)), None)
    if not found:
        pytest.skip(f"no browser: $CHROMIUM is not set, and none of {', '.join(BROWSERS)} is on the PATH")
    return found


@pytest.fixture(scope="module")
def tools() -> tuple[str, str]:
    return browser_python(), chromium()


@pytest.fixture(scope="module")
def server(tools: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(find_host(), tmp_path_factory.mktemp("browser_server"))
    try:
        running.wait_until_up()
        running.post("/settings/Comfy.TutorialCompleted", b"true")  # no welcome in the way of the canvas
        running.upload("example.png", png(96, 64))  # ComfyUI's own example, which upscale_4k starts with
        yield running
    finally:
        running.stop()


Drive = Callable[..., dict[str, Any]]


@pytest.fixture
def drive(server: Server, tools: tuple[str, str], tmp_path: Path) -> Drive:
    """drive(*tasks, locale="en-US") -> results of the tasks, in a browser of their own, and console errors of ours."""

    def run(*tasks: dict[str, Any], locale: str = "en-US") -> dict[str, Any]:
        file = tmp_path / "tasks.json"
        file.write_text(json.dumps({"tasks": tasks, "locale": locale}), "utf-8")
        command = [tools[0], str(DRIVER), server.url, tools[1], str(file)]
        done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=590)
        assert done.returncode == 0, done.stderr[-4000:]
        found = json.loads(done.stdout.splitlines()[-1])
        assert [error for error in found["errors"] if "op4ksr" in error.lower() and REGISTRY not in error] == []
        return found

    return run


def test_every_template_is_tried_here() -> None:
    assert set(RUNS) | set(NEED_DOWNLOADS) == {path.stem for path in (PACK / "workflows").glob("*.json")}


@pytest.mark.parametrize("name", RUNS)
def test_template_opens_runs_and_shows_its_result(drive: Drive, server: Server, name: str) -> None:
    changes, shows = RUNS[name]
    #: Of the host's nodes; deleted, as the template's note says.
    lacking = sorted(kind for kind in shows if not server.get(f"/object_info/{kind}"))
    vue = "ImageCompare" in shows - set(lacking)  # which draws with Nodes 2.0 alone
    task = {"kind": "template", "name": name, "set": changes, "vue": vue, "remove": lacking}
    found = drive(task)["results"][0]
    assert sorted(set(found["missing"])) == lacking
    assert found["ended"] == "execution_success", found["error"]
    shown = {entry.split()[0]: output for entry, output in found["shown"].items()}
    assert shows - set(lacking) <= {kind for kind, output in shown.items() if output["text"] or output["images"]}
    assert all(output["loaded"] for output in shown.values())
    assert {entry.split()[0] for entry in found["drawn"]} & {"SaveImage", "PreviewImage"}
    moved = [value / total for _, value, total in found["seen"]["progress"] if total > 1]
    assert name == "diagnose_and_suppress" or (len(set(moved)) > 3 and max(moved) == 1)


def test_cancel_cancels(drive: Drive) -> None:
    """The template at its full 4096 px: cancelled by the keyboard as soon as the bar moves."""
    task = {"kind": "template", "name": "upscale_4k", "cancel": STEP, "seconds": 60}
    found = drive(task)["results"][0]
    assert found["ended"] == "execution_interrupted"
    assert not any(entry.startswith("SaveImage") for entry in found["shown"])
    assert max(value / total for _, value, total in found["seen"]["progress"] if total > 1) < 1


@pytest.mark.parametrize("name", NEED_DOWNLOADS)
def test_template_that_needs_downloads_opens_and_lacks_only_those(drive: Drive, name: str) -> None:
    """Newer frontends mark the loaders on opening, all refuse to run, and ours say which file goes where."""
    found = drive({"kind": "template", "name": name, "refused": True})["results"][0]
    assert set(found["missing"]) in (NEED_DOWNLOADS[name], set())
    assert found["refused"].keys() == NEED_DOWNLOADS[name]
    for kind, sentence in found["refused"].items():
        assert not kind.startswith("OP4KSR_") or ("; fetch " in sentence and " into models/" in sentence)


def test_node_search_finds_us(drive: Drive, server: Server) -> None:
    wanted = {
        "super resolution": STEP,
        "no seams": "OP4KSR_ExactVAE",
        "banding": "OP4KSR_PeriodicityDiagnostic",
        "rope": "OP4KSR_ApplyRFR",
        "4k": STEP,
    }
    found = drive({"kind": "search", "words": list(wanted)})["results"][0]
    for words, node in wanted.items():
        name = server.get(f"/object_info/{node}")[node]["display_name"]
        assert any(name in entry.replace("\xa0", " ") for entry in found[words]), f"{words}: {found[words]}"


def test_names_are_chinese_in_a_chinese_browser(drive: Drive) -> None:
    found = drive({"kind": "template", "name": "upscale_4k", "only_open": True}, locale="zh-CN")["results"][0]
    names = json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    assert names[STEP]["display_name"] in found["titles"]


def test_help_panel_shows_the_page_with_its_picture(drive: Drive) -> None:
    found = drive({"kind": "help", "name": "upscale_4k", "type": STEP})["results"][0]
    assert "in one forward pass" in found["text"] and "Errors and remedies" in found["text"]
    assert found["pictures"] and all(width > 0 for width in found["pictures"])
