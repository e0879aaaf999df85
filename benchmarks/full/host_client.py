"""A running ComfyUI server from outside, by the standard library alone: prompts, seconds, memory.

Seconds of a run are the server's own, from its history; those of a node are from the messages that its browser
window would get, which say when the next node begins (RFC 6455; only what such a listener needs of it).
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from dataclasses import dataclass, field
from http.client import HTTPException
from typing import Any

from op4ksr_core.errors import OptionError

#: Seconds between two looks at the memory. A peak between them is not seen.
POLL = 0.05

#: Whatever proxy the environment names is not for a ComfyUI of one's own.
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class RunFailedError(Exception):
    """A run that ended in an error; the text is ComfyUI's."""


@dataclass
class Run:
    """A finished run: its seconds, those of its nodes by class, and the device's bytes in use at their highest."""

    seconds: float
    nodes: dict[str, float] = field(default_factory=dict[str, float])
    most_bytes: int = 0
    most_torch_bytes: int = 0


class HostClient:
    """One ComfyUI, at ``http://address:port``."""

    def __init__(self, server: str, timeout: float = 600.0) -> None:
        self.server, self.timeout, self.client_id = server.rstrip("/"), timeout, uuid.uuid4().hex

    def stats(self) -> dict[str, Any]:
        """/system_stats: versions, flags, devices and their memory. Raises OptionError where no ComfyUI answers."""
        found = self._ask("/system_stats")
        if "system" not in found or not found.get("devices"):
            raise self._another("no system and devices in /system_stats")
        return found

    def in_use(self) -> tuple[int, int]:
        """Bytes taken on the first device by anybody, and by this server's PyTorch for tensors."""
        device = self.stats()["devices"][0]
        torch_bytes = device.get("torch_vram_total", 0) - device.get("torch_vram_free", 0)
        if device["type"] == "cpu":  # there it says the machine's once more
            torch_bytes = 0
        return device["vram_total"] - device["vram_free"], torch_bytes

    def free(self) -> None:
        """Ask the server to forget models and results, so that the next run begins anew."""
        self._ask("/free", json.dumps({"unload_models": True, "free_memory": True}).encode())
        time.sleep(2)  # it does so when its worker wakes up

    def upload(self, name: str, content: bytes) -> str:
        """Into the server's input folder; the name that LoadImage takes."""
        boundary = uuid.uuid4().hex
        parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'.encode()]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{name}"\r\n\r\n'
        parts += [head.encode(), content, f"\r\n--{boundary}--\r\n".encode()]
        return self._ask("/upload/image", b"".join(parts), f"multipart/form-data; boundary={boundary}")["name"]

    def run(self, graph: dict[str, Any]) -> Run:
        """Queue a graph (API format) and wait for its end, the memory watched.

        Raises OptionError (no ComfyUI there, the graph refused, no end in ``timeout`` seconds) and RunFailedError.
        """
        with _NodeClock(self.server, self.client_id) as clock:
            body = json.dumps({"prompt": graph, "client_id": self.client_id}).encode()
            answer = self._ask("/prompt", body)
            if answer.get("error") or answer.get("node_errors"):
                raise OptionError(
                    f"{self.server}: ComfyUI refuses the graph ({_refusal(answer)}); "
                    "install this pack there, and name files that it lists"
                )
            run = self._wait(answer["prompt_id"])
            time.sleep(POLL)  # the last message may come after the history
        classes = {node: spec["class_type"] for node, spec in graph.items()}
        run.nodes = {classes[node]: seconds for node, seconds in clock.seconds(answer["prompt_id"]).items()}
        return run

    def _wait(self, prompt_id: str) -> Run:
        end, most = time.monotonic() + self.timeout, (0, 0)
        while time.monotonic() < end:
            most = tuple(map(max, most, self.in_use()))
            entry = self._ask(f"/history/{prompt_id}").get(prompt_id)
            if entry:
                return Run(_seconds(entry), most_bytes=most[0], most_torch_bytes=most[1])
            time.sleep(POLL)
        raise OptionError(
            f"{self.server}: no end after {self.timeout:.0f} s; raise --timeout, or look into ComfyUI's log"
        )

    def _ask(self, path: str, body: bytes | None = None, kind: str = "application/json") -> dict[str, Any]:
        """The answer's JSON; a refusal's (HTTP 400) too."""
        try:
            request = urllib.request.Request(self.server + path, body, {"Content-Type": kind})
            with _DIRECT.open(request, timeout=60) as response:
                content = response.read()
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise self._another(f"HTTP {error.code} for {path}") from error
            content = error.read()
        except (OSError, HTTPException, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise OptionError(
                f"{self.server}: no ComfyUI answers there ({reason}); start it, or name its address with --server"
            ) from error
        try:
            found = json.loads(content or b"{}")
        except ValueError as error:
            raise self._another(f"no JSON for {path}") from error
        return found if isinstance(found, dict) else {}

    def _another(self, why: str) -> OptionError:
        return OptionError(f"{self.server}: answers, but not as ComfyUI does ({why}); name its address with --server")


def _seconds(entry: dict[str, Any]) -> float:
    """Of a run in the history, by the server's clock (ms). Raises RunFailedError with ComfyUI's sentence."""
    messages: dict[str, Any] = {name: content for name, content in entry["status"]["messages"]}
    if entry["status"]["status_str"] != "success":
        error = messages.get("execution_error", {})
        what = f"{error.get('node_type', '?')}: {error.get('exception_message', 'interrupted')}"
        raise RunFailedError(" ".join(what.split()))
    ends = messages["execution_success"]["timestamp"], messages["execution_start"]["timestamp"]
    return (ends[0] - ends[1]) / 1000


def _refusal(answer: dict[str, Any]) -> str:
    """The first thing that is wrong with a graph, in ComfyUI's words."""
    for node in (answer.get("node_errors") or {}).values():
        for error in node.get("errors", []):
            return f"{node.get('class_type')}: {error.get('message')}: {error.get('details')}"
    error = answer.get("error", {})
    return str(error.get("message") or error) if isinstance(error, dict) else str(error)


# --- which node runs --------------------------------------------------------------------------


class _NodeClock:
    """Listens to the server's messages while in a ``with``; where it cannot, there are no seconds of nodes."""

    def __init__(self, server: str, client_id: str) -> None:
        self.server, self.client_id = server, client_id
        self._begun: list[tuple[float, str, str | None]] = []
        self._socket: socket.socket | None = None
        self._thread = threading.Thread(target=self._listen, daemon=True)

    def __enter__(self) -> _NodeClock:
        try:
            self._socket = _open(self.server, self.client_id)
            self._thread.start()
        except (OSError, ValueError):
            self._socket = None
        return self

    def __exit__(self, *error: object) -> None:
        if self._socket is not None:
            with contextlib.suppress(OSError):  # wakes the thread that reads, as closing alone does not
                self._socket.shutdown(socket.SHUT_RDWR)
            self._socket.close()
            self._thread.join(5)

    def seconds(self, prompt_id: str) -> dict[str, float]:
        """By node id, of one run: until the next node began, or the run ended."""
        own = [(at, node) for at, prompt, node in self._begun if prompt == prompt_id]
        found: dict[str, float] = {}
        for (at, node), (until, _) in zip(own, own[1:], strict=False):
            if node is not None:
                found[node] = found.get(node, 0.0) + until - at
        return found

    def _listen(self) -> None:
        assert self._socket is not None
        try:
            while (text := _message(self._socket)) is not None:
                if '"executing"' in text:
                    data = json.loads(text)["data"]
                    self._begun.append((time.perf_counter(), data.get("prompt_id", ""), data.get("node")))
        except (OSError, ValueError, KeyError):
            return  # closed, by us or by the server


def _open(server: str, client_id: str) -> socket.socket:
    """A WebSocket to /ws; raises OSError or ValueError where there is none."""
    place = urllib.parse.urlsplit(server)
    opened = socket.create_connection((place.hostname or "", place.port or 80), 10)
    key = base64.b64encode(os.urandom(16)).decode()
    lines = [f"GET /ws?clientId={client_id} HTTP/1.1", f"Host: {place.netloc}", "Upgrade: websocket"]
    lines += ["Connection: Upgrade", f"Sec-WebSocket-Key: {key}", "Sec-WebSocket-Version: 13", "", ""]
    opened.sendall("\r\n".join(lines).encode())
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += _exactly(opened, 1)
    if b" 101 " not in head.split(b"\r\n")[0]:
        opened.close()
        raise ValueError("no WebSocket")
    opened.settimeout(None)
    return opened


def _message(opened: socket.socket) -> str | None:
    """The next text message ("" for one of another kind); None when the server closes."""
    text, kind, last = b"", 0, False
    while not last:
        first, second = _exactly(opened, 2)
        last, opcode, length = bool(first & 0x80), first & 0x0F, second & 0x7F
        if length > 125:
            length = int.from_bytes(_exactly(opened, 2 if length == 126 else 8), "big")
        content = _exactly(opened, length)
        if opcode == 8:
            return None
        if opcode < 8:  # not a ping or a pong in between
            text, kind = text + content, opcode or kind
        elif not text:
            return ""
    return text.decode("utf-8", "replace") if kind == 1 else ""


def _exactly(opened: socket.socket, count: int) -> bytes:
    content = b""
    while len(content) < count:
        part = opened.recv(count - len(content))
        if not part:
            raise OSError("closed")
        content += part
    return content
