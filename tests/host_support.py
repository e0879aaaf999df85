"""A real ComfyUI for the host tests: finding it, running scripts in its Python, and its server.

Looked for in $COMFYUI_PATH, then in the folder that holds this pack as custom_nodes/<pack>, then in
~/comfy/ComfyUI. Its Python is $COMFYUI_PYTHON, else the host's own .venv, else this one.
"""

from __future__ import annotations

import copy
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PACK = Path(__file__).resolve().parent.parent
SCRIPTS = Path(__file__).resolve().parent / "host" / "scripts"

#: The pack's nodes, by id.
NODES = (
    "OP4KSR_LoadF16VAE",
    "OP4KSR_ExactVAE",
    "OP4KSR_LoadFluxSR",
    "OP4KSR_ApplyRFR",
    "OP4KSR_Plan",
    "OP4KSR_OneStepUpscale",
    "OP4KSR_PeriodicityDiagnostic",
    "OP4KSR_SuppressPeriodicity",
    "OP4KSR_SamplePicture",
    "OP4KSR_OneStepSampler",
    "OP4KSR_EmptyLatent16x",
    "OP4KSR_LoadSRLoRA",
    "OP4KSR_FluxShift16x",
    "OP4KSR_SavePicture",
    "OP4KSR_SavePromptEmbedding",
    "OP4KSR_LoadPromptEmbedding",
)

#: What a Python must be able to import to run any ComfyUI.
_HOST_MODULES = ("torch", "aiohttp", "yaml", "transformers", "safetensors")

#: Kept out of a copy of the pack, where the system has no symbolic links.
_NOT_COPIED = (".git", ".venv", ".train", "runs", "demo_output", "__pycache__", ".*_cache")


# --- finding the host -------------------------------------------------------------------------


@dataclass(frozen=True)
class Host:
    root: Path
    python: Path

    @property
    def version(self) -> tuple[int, ...]:
        text = (self.root / "comfyui_version.py").read_text("utf-8")
        match = re.search(r'__version__\s*=\s*"(\d+)\.(\d+)\.(\d+)', text)
        assert match, f"{self.root}: comfyui_version.py names no version"
        return tuple(int(part) for part in match.groups())


def find_host() -> Host:
    """The host, or a skip that names every place looked in. A wrong $COMFYUI_PATH is a failure, not a skip."""
    places: list[Path] = []
    if stated := os.environ.get("COMFYUI_PATH"):
        places.append(Path(stated).expanduser())
    if PACK.parent.name == "custom_nodes":
        places.append(PACK.parent.parent)
    places.append(Path("~/comfy/ComfyUI").expanduser())
    root = next((place.resolve() for place in places if (place / "main.py").is_file()), None)
    if stated and root != places[0].resolve():
        pytest.fail(f"$COMFYUI_PATH is {stated}, but there is no ComfyUI (no main.py)")
    if root is None:
        looked = ", ".join(str(place) for place in places)
        pytest.skip(f"no ComfyUI (main.py) in {looked}; set COMFYUI_PATH to test with the host")
    return Host(root, _python_of(root))


def _python_of(root: Path) -> Path:
    if stated := os.environ.get("COMFYUI_PYTHON"):
        return Path(stated).expanduser()
    for candidate in (root / ".venv/bin/python", root / ".venv/Scripts/python.exe"):
        if candidate.is_file():
            return candidate
    question = f"import importlib.util as u; print(*[m for m in {_HOST_MODULES!r} if not u.find_spec(m)])"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True)
    if missing := answer.stdout.split():
        pytest.skip(
            f"{root} has no .venv, and {sys.executable} lacks its {', '.join(missing)}; "
            "set COMFYUI_PYTHON to the Python that runs it"
        )
    return Path(sys.executable)


# --- scripts in the host's Python -------------------------------------------------------------


class Cases(Mapping[str, Any]):
    """A module's results by case: a failed case fails the test that asks for it, and no other."""

    def __init__(self, module: str, results: dict[str, dict[str, Any]]) -> None:
        self.module, self.results = module, results

    def __getitem__(self, case: str) -> Any:
        result = self.results[case]
        if "error" in result:
            pytest.fail(f"{self.module}, case {case}:\n{result['error']}", pytrace=False)
        if "skip" in result:
            pytest.skip(result["skip"])
        return result["value"]

    def __iter__(self) -> Any:
        return iter(self.results)

    def __len__(self) -> int:
        return len(self.results)


def run_cases(host: Host, module: str, folder: Path, timeout: float = 400) -> Cases:
    """Run the cases of a module of ``host_scripts`` in the host's Python; ``folder`` receives its files."""
    command = [str(host.python), str(SCRIPTS / "run_cases.py"), module]
    command += [str(host.root), str(PACK), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", timeout=timeout)
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        pytest.fail(f"{module} ended with {done.returncode}:\n{done.stderr[-6000:]}", pytrace=False)
    return Cases(module, json.loads(lines[-1]))


# --- the server -------------------------------------------------------------------------------


class Server:
    """A ComfyUI server of our own, on a free port, with folders of its own and only this pack installed."""

    def __init__(self, host: Host, folder: Path) -> None:
        for name in ("custom_nodes", "input", "output", "models"):
            (folder / name).mkdir()
        install_pack(folder / "custom_nodes" / "op4ksr")
        self.folder, self.log = folder, folder / "server.log"
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        command = [str(host.python), "main.py", "--cpu", "--port", str(port), "--disable-api-nodes"]
        command += ["--base-directory", str(folder), "--database-url", "sqlite:///:memory:"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=host.root, stdout=log, stderr=subprocess.STDOUT)

    def wait_until_up(self, timeout: float = 180) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end and self.process.poll() is None:
            try:
                self.get("/system_stats")
                return
            except OSError:
                time.sleep(0.3)
        if re.search(r"comfyui_workflow_templates.templates' does not exist", self.log_tail()):
            pytest.skip("this ComfyUI's server needs the older comfyui-workflow-templates of its requirements.txt")
        pytest.fail(f"the server did not come up:\n{self.log_tail()}", pytrace=False)

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def log_tail(self) -> str:
        return self.log.read_text("utf-8", errors="replace")[-6000:]

    def get_bytes(self, path: str) -> bytes:
        with urllib.request.urlopen(self.url + path, timeout=60) as response:
            return response.read()

    def get(self, path: str) -> Any:
        return json.loads(self.get_bytes(path))

    def post(self, path: str, body: bytes, content_type: str = "application/json") -> Any:
        """The answer's JSON, {} for an empty one; an HTTP error's JSON too, with its ``status``."""
        request = urllib.request.Request(self.url + path, body, {"Content-Type": content_type})
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.loads(response.read() or b"{}")
        except urllib.error.HTTPError as error:
            return {**json.loads(error.read() or b"{}"), "status": error.code}

    def upload(self, name: str, content: bytes) -> str:
        """Into the server's input folder, as the browser does it; the name under which LoadImage finds it."""
        boundary = uuid.uuid4().hex
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
        return self.post("/upload/image", body, f"multipart/form-data; boundary={boundary}")["name"]

    def queue(self, prompt: dict[str, Any]) -> str:
        answer = self.post("/prompt", json.dumps({"prompt": prompt}).encode())
        assert "prompt_id" in answer and not answer["node_errors"], answer
        return answer["prompt_id"]

    def refusal(self, prompt: dict[str, Any]) -> dict[str, Any]:
        """The answer to a prompt that the server must refuse."""
        answer = self.post("/prompt", json.dumps({"prompt": prompt}).encode())
        assert answer.get("status") == 400, answer
        return answer

    def finish(self, prompt_id: str, timeout: float = 240) -> Run:
        """Wait until the prompt is in the history, whichever way it ended."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if entry := self.get(f"/history/{prompt_id}").get(prompt_id):
                return Run(entry)
            assert self.process.poll() is None, f"the server died:\n{self.log_tail()}"
            time.sleep(0.2)
        pytest.fail(f"no end after {timeout:.0f} s:\n{self.log_tail()}", pytrace=False)

    def wait_until_running(self, prompt_id: str, timeout: float = 60) -> None:
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            if any(item[1] == prompt_id for item in self.get("/queue")["queue_running"]):
                return
            time.sleep(0.1)
        pytest.fail(f"the prompt did not start:\n{self.log_tail()}", pytrace=False)

    def picture(self, run: Run, node: str) -> Image.Image:
        """The first picture that a SaveImage node of a finished run wrote."""
        found = run.outputs[node]["images"][0]
        path = f"/view?filename={found['filename']}&subfolder={found['subfolder']}&type={found['type']}"
        return Image.open(io.BytesIO(self.get_bytes(path)))


class Run:
    """A finished prompt, as the server's history has it."""

    def __init__(self, entry: dict[str, Any]) -> None:
        self.outputs: dict[str, Any] = entry["outputs"]
        self.status: str = entry["status"]["status_str"]
        self.messages: list[tuple[str, dict[str, Any]]] = entry["status"]["messages"]

    def message(self, kind: str) -> dict[str, Any]:
        """The content of a status message, such as execution_error."""
        found = [content for name, content in self.messages if name == kind]
        assert found, f"no {kind} among {self.messages}"
        return found[0]


def install_pack(place: Path) -> None:
    """A link to this repository, or, where links need rights that we lack, a copy."""
    try:
        place.symlink_to(PACK, target_is_directory=True)
    except OSError:
        shutil.copytree(PACK, place, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def png(width: int, height: int, seed: int = 0) -> bytes:
    """A small picture: smooth colours and some noise."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:height, 0:width]
    smooth = np.stack([rows * 255 / height, columns * 255 / width, (rows + columns) % 256], axis=-1)
    pixels = (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


# --- workflows --------------------------------------------------------------------------------

#: Nodes that exist in the browser alone.
NOTES = ("Note", "MarkdownNote")
#: Inputs that are a drawing in the node, with nothing to save.
_DRAWN_TYPES = ("IMAGECOMPARE",)
_WIDGET_TYPES = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


def input_specs(info: dict[str, Any]) -> dict[str, tuple[Any, dict[str, Any]]]:
    """A node's inputs, from /object_info, in the order of its widgets: name -> (type, options)."""
    specs: dict[str, tuple[Any, dict[str, Any]]] = {}
    for group in ("required", "optional"):
        for name in info["input_order"].get(group, []):
            kind, *rest = info["input"][group][name]
            specs[name] = (kind, rest[0] if rest else {})
    return specs


def choices(spec: tuple[Any, dict[str, Any]]) -> list[Any] | None:
    """A dropdown's values (both of the host's spellings), None for another input."""
    kind, options = spec
    return kind if isinstance(kind, list) else options.get("options") if kind == "COMBO" else None


def widgets_of(node: dict[str, Any], info: dict[str, Any]) -> dict[str, Any]:
    """The node's positional widgets_values by name. Fails unless they fit the schema exactly."""
    values, named = list(node.get("widgets_values") or []), {}
    for name, (kind, options) in input_specs(info).items():
        if not (isinstance(kind, list) or kind in _WIDGET_TYPES) or options.get("forceInput"):
            continue
        assert values, f"{node['type']}: no value for widget {name}"
        named[name] = values.pop(0)
        if options.get("control_after_generate") or (options.get("image_upload") and values):
            values.pop(0)  # the browser's own widget beside it: "fixed", "image"
    assert not values, f"{node['type']}: values {values} belong to no widget"
    return named


def without(workflow: dict[str, Any], kind: str) -> dict[str, Any]:
    """A workflow as the browser saves it after the nodes of that type were deleted."""
    gone = {node["id"] for node in workflow["nodes"] if node["type"] == kind}
    links = [link for link in workflow["links"] if not {link[1], link[3]} & gone]
    kept = {link[0] for link in links}
    nodes = copy.deepcopy([node for node in workflow["nodes"] if node["id"] not in gone])
    for output in (output for node in nodes for output in node.get("outputs", [])):
        output["links"] = [link for link in output["links"] or [] if link in kept]
    return {**workflow, "nodes": nodes, "links": links}


def to_api(workflow: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A workflow as the browser saves it (no subgraphs, nothing bypassed) -> what /prompt takes."""
    sources = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt: dict[str, Any] = {}
    for node in workflow["nodes"]:
        if node["type"] in NOTES:
            continue
        assert node.get("mode", 0) == 0, f"node {node['id']} is muted or bypassed"
        inputs = widgets_of(node, object_info[node["type"]])
        linked = {i["name"]: sources[i["link"]] for i in node.get("inputs", []) if i.get("link") is not None}
        drawn = {name: {} for name, (kind, _) in input_specs(object_info[node["type"]]).items() if kind in _DRAWN_TYPES}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": drawn | inputs | linked}
    return prompt
