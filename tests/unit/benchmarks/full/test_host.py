"""``benchmark host``: against a real ComfyUI with random weights of the small geometry; its errors."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from host_support import Server, find_host, free_port

from benchmarks.commands import main as cli
from benchmarks.full.files import write_random
from benchmarks.full.host import HostRuns, HostSettings, graph, host_tables, measure_host
from benchmarks.full.host_client import HostClient, Run, RunFailedError, _NodeClock
from op4ksr_core import OptionError
from op4ksr_core.planning.geometries import GEOMETRIES

SETTINGS = HostSettings("model.safetensors", "vae.safetensors", sides=(64,), repeats=1)
STATS: dict[str, Any] = {
    "system": {"comfyui_version": "0.33.0", "argv": ["main.py", "--lowvram"], "pytorch_version": "2.11"},
    "devices": [{"name": "card", "type": "cuda", "vram_total": 100, "vram_free": 40}],
}


# --- the graph and the tables -----------------------------------------------------------------


def test_the_graph_runs_anew_each_turn_and_saves_nothing() -> None:
    first, second = (graph(SETTINGS, "photo.png", 64, turn) for turn in (1, 2))
    assert [node for node in first if first[node] != second[node]] == ["5"]
    assert "SaveImage" not in {node["class_type"] for node in first.values()}
    compiled = graph(HostSettings("m", "v", compiled=True), "photo.png", 64, 1)
    assert compiled["5"]["inputs"]["model"] == ["4", 0] and compiled["4"]["class_type"] == "TorchCompileModel"


def test_the_transformers_seconds_are_the_difference_and_bytes_are_above_those_before() -> None:
    gigabyte = 10**9
    loaded = [Run(s, {"OP4KSR_OneStepUpscale": s}, 11 * gigabyte, 9 * gigabyte) for s in (3.0, 2.0, 4.0)]
    own = HostRuns(4096, gigabyte, Run(30.0, {}, 10 * gigabyte), loaded, [Run(1.0, {}, 5 * gigabyte)])
    tables = host_tables(STATS, SETTINGS, [own, HostRuns(8192, 0, failed="out of memory: x")])
    row, failed = tables["By the output's side"]
    assert (row["s"], row["min"], row["max"], row["transformer s"], row["first s"]) == (3, 2, 4, 2, 30)
    assert (row["GB"], row["torch GB"]) == (10, 9) and list(failed) == list(row) and failed["s"] == failed["GB"] == ""
    fp8, offloaded = tables["Aims in memory, 1024 -> 4096 px with 12 B"]
    assert fp8["verdict"] == "within" and offloaded["verdict"] == "25% above"
    told = {line["setting"]: line["value"] for line in tables["Settings"]}
    assert told["flags"] == "--lowvram" and "RAM" not in told["GB"]


def test_on_a_cpu_host_the_memory_is_ram() -> None:
    stats = {**STATS, "devices": [{**STATS["devices"][0], "type": "cpu"}]}
    told = {line["setting"]: line["value"] for line in host_tables(stats, SETTINGS, [])["Settings"]}
    assert "has no VRAM" in told["GB"]


# --- errors -----------------------------------------------------------------------------------

Answers = dict[str, tuple[int, Any]]


@pytest.fixture
def stand_in() -> Iterator[Callable[[Answers], str]]:
    """stand_in({path's beginning: (status, JSON or text)}) -> the address of a server that answers so."""
    running: list[ThreadingHTTPServer] = []

    def start(answers: Answers) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                known = (answer for start, answer in answers.items() if self.path.startswith(start))
                status, content = next(known, (404, ""))
                self.send_response(status)
                self.end_headers()
                self.wfile.write((content if isinstance(content, str) else json.dumps(content)).encode())

            do_POST = do_GET  # noqa: N815

            def log_message(self, *args: Any) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        running.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


ACCEPTED: Answers = {"/system_stats": (200, STATS), "/prompt": (200, {"prompt_id": "p", "node_errors": {}})}
ACCEPTED |= {"/upload/image": (200, {"name": "x.png"}), "/free": (200, "")}


def ended(status: str, *messages: tuple[str, dict[str, Any]]) -> Answers:
    return ACCEPTED | {"/history": (200, {"p": {"status": {"status_str": status, "messages": messages}}})}


def test_no_server_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["host", "--model", "m", "--vae", "v", "-o", str(tmp_path)]
    assert cli.main([*command, "--server", f"http://127.0.0.1:{free_port()}"]) == 1
    error = capsys.readouterr().err
    assert "no ComfyUI answers there (" in error and "start it, or name its address with --server" in error
    assert cli.main([*command, "--server", "nonsense"]) == 1
    assert "no ComfyUI answers there" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [(200, {}), (200, "<html>"), (404, ""), (500, "")])
def test_another_server_is_one_sentence(stand_in: Callable[[Answers], str], answer: tuple[int, Any]) -> None:
    with pytest.raises(OptionError, match="answers, but not as ComfyUI does"):
        HostClient(stand_in({"/system_stats": answer})).stats()


def test_a_refused_graph_is_one_sentence(stand_in: Callable[[Answers], str]) -> None:
    detail = {"class_type": "OP4KSR_LoadFluxSR", "errors": [{"message": "not valid", "details": "m is not there"}]}
    refused: Answers = ACCEPTED | {"/prompt": (400, {"error": {"message": "x"}, "node_errors": {"3": detail}})}
    with pytest.raises(OptionError, match=r"the graph \(OP4KSR_LoadFluxSR: not valid: m is not there\); install"):
        HostClient(stand_in(refused)).run({})
    missing: Answers = ACCEPTED | {"/prompt": (400, {"error": {"message": "no such node"}, "node_errors": {}})}
    with pytest.raises(OptionError, match=r"refuses the graph \(no such node\)"):
        HostClient(stand_in(missing)).run({})


def test_a_run_without_an_end_is_one_sentence(stand_in: Callable[[Answers], str]) -> None:
    with pytest.raises(OptionError, match="no end after 0 s; raise --timeout"):
        HostClient(stand_in(ACCEPTED | {"/history": (200, {})}), timeout=0.2).run({})


def test_the_seconds_are_the_servers(stand_in: Callable[[Answers], str]) -> None:
    messages = ("execution_start", {"timestamp": 1000}), ("execution_success", {"timestamp": 3500})
    run = HostClient(stand_in(ended("success", *messages))).run({})
    assert (run.seconds, run.nodes, run.most_bytes) == (2.5, {}, 60)  # no WebSocket there: no nodes' seconds


def test_out_of_memory_is_a_row_and_any_other_failure_the_end(
    stand_in: Callable[[Answers], str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: Any
) -> None:
    monkeypatch.setattr("benchmarks.full.host_client.time.sleep", lambda seconds: None)
    error = {"node_type": "OP4KSR_OneStepUpscale", "exception_message": "VAE decode: out of memory\n"}
    client = HostClient(stand_in(ended("error", ("execution_error", error))))
    with pytest.raises(RunFailedError, match="OP4KSR_OneStepUpscale: VAE decode: out of memory$"):
        client.run({})
    told: list[int] = []
    (own,) = measure_host(client, SETTINGS, lambda runs: told.append(len(runs)))
    assert own.failed.startswith("out of memory") and not own.all() and told == [1]
    for reason in ("no such picture", "CUDA error: an illegal memory access was encountered"):
        broken = stand_in(ended("error", ("execution_error", {**error, "exception_message": reason})))
        command = ["host", "--model", "m", "--vae", "v", "--sides", "64", "--server", broken]
        assert cli.main([*command, "-o", str(tmp_path / reason[:4])]) == 1
        assert f"the run of 64 px failed in OP4KSR_OneStepUpscale: {reason}; see" in capsys.readouterr().err
        assert (tmp_path / reason[:4] / "host.json").is_file()  # what there was until then


def test_listening_ends_at_once() -> None:
    """A server that shakes hands and then says nothing keeps nobody waiting."""
    listening = socket.create_server(("127.0.0.1", 0))

    def greet() -> None:
        connection, _ = listening.accept()
        connection.recv(4096)
        connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")
        held.append(connection)

    held: list[socket.socket] = []
    threading.Thread(target=greet, daemon=True).start()
    began = time.monotonic()
    clock = _NodeClock(f"http://127.0.0.1:{listening.getsockname()[1]}", "client")
    with clock:
        assert clock._socket is not None
    assert time.monotonic() - began < 3 and not clock._thread.is_alive()
    listening.close()


def test_sides_that_are_too_small_are_refused() -> None:
    with pytest.raises(OptionError, match="expected sides from 4 px up, got 0"):
        HostSettings("m", "v", sides=(0,))


# --- a real one -------------------------------------------------------------------------------


@pytest.mark.host
def test_a_real_comfyui_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The small geometry's files on a CPU host: every kind of row there is, from the command itself."""
    folder = tmp_path / "server"
    folder.mkdir()
    server = Server(find_host(), folder)
    try:
        server.wait_until_up()
        files = write_random(tmp_path / "files", "small", GEOMETRIES["small"], ("bf16", "fp8"), torch.device("cpu"))
        for file, kind in zip(files, ("vae", "diffusion_models", "diffusion_models"), strict=True):
            (folder / "models" / kind).mkdir(exist_ok=True)
            file.rename(folder / "models" / kind / file.name)
        vae, half, small = (file.name for file in files)
        for model, dtype in ((half, "default"), (small, "fp8_e4m3fn")):
            check_real(server, tmp_path / dtype, ["--model", model, "--vae", vae, "--weight-dtype", dtype])
        capsys.readouterr()
        command = ["host", "--server", server.url, "--model", "none.safetensors", "--vae", vae]
        assert cli.main([*command, "--sides", "64", "-o", str(tmp_path)]) == 1
        assert "refuses the graph (OP4KSR_LoadFluxSR: " in capsys.readouterr().err
    finally:
        server.stop()


def check_real(server: Server, output: Path, names: list[str]) -> None:
    command = ["host", "--server", server.url, *names, "--sides", "128", "--repeats", "1"]
    assert cli.main([*command, "-o", str(output)]) == 0, server.log_tail()
    tables = json.loads((output / "host.json").read_text("utf-8"))["tables"]
    told = {row["setting"]: row["value"] for row in tables["Settings"]}
    assert told["ComfyUI"].startswith(str(find_host().version[0])) and "--cpu" in told["flags"]
    assert "has no VRAM" in told["GB"] and names[1] in told["model file"]
    (row,) = tables["By the output's side"]
    assert row["outcome"] == "done" and row["first s"] > 0 and row["s"] > 0 and row["VAE only s"] > 0
    nodes = {(row["runs"], row["node"]): row["s"] for row in tables["Seconds by node"]}
    assert {"LoadImage", "OP4KSR_LoadF16VAE", "OP4KSR_LoadFluxSR", "OP4KSR_OneStepUpscale"} <= {n for _, n in nodes}
    assert ("loaded", "OP4KSR_OneStepUpscale") in nodes and ("loaded", "OP4KSR_LoadFluxSR") not in nodes
