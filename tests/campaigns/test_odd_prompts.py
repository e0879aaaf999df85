"""Odd prompts to one real ComfyUI server: each ends right or in one sentence, and the server goes on.

Every node of the pack gets odd values typed and by links, odd names and odd metadata. $OP4KSR_ODD_PROMPTS: how many,
$OP4KSR_ODD_SEED: which.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from campaigns.odd_pack_values import MAY_PASS, ODD_VALUES
from campaigns.outcomes import HANG, Tally
from host_support import Server, find_host, input_specs, png
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

pytestmark = [pytest.mark.host, pytest.mark.slow]

COUNT = int(os.environ.get("OP4KSR_ODD_PROMPTS", "1200"))
SEED = int(os.environ.get("OP4KSR_ODD_SEED", "17"))

#: Prompts that wait in the server's queue at a time; after so many comes one with a known result.
BLOCK = 40

#: A message that is one sentence, on one line, of visible characters; ComfyUI adds the empty line at its end.
SENTENCE = re.compile(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff\u2028-\u202e]{10,2100}\n*")

_ERRORS = ("OptionError", "ImageError", "OutputError", "UnsupportedCheckpointError", "OutOfMemoryError", "Op4ksrError")

WIDGETS = {"target": "factor", "pixels": 64, "factor": 2.0, "megapixels": 0.01}
VAE_FILE, MODEL_FILE = "bundled: op4ksr_small_f16_vae.safetensors", "bundled: op4ksr_small_flux.safetensors"

#: What every prompt can draw on.
PARTS: dict[str, Any] = {
    "in": {"class_type": "LoadImage", "inputs": {"image": "odd.png"}},
    "vae": {
        "class_type": "OP4KSR_LoadF16VAE",
        "inputs": {"vae_name": VAE_FILE, "compression": "auto", "shift": "auto"},
    },
    "model": {"class_type": "OP4KSR_LoadFluxSR", "inputs": {"model_name": MODEL_FILE, "weight_dtype": "default"}},
    "latent": {"class_type": "OP4KSR_EmptyLatent16x", "inputs": {"width": 32, "height": 32, "batch_size": 1}},
    "steps": {"class_type": "OP4KSR_OneStepSampler", "inputs": {"model": ["model", 0], "sigma": 0.0}},
    "guider": {"class_type": "BasicGuider", "inputs": {"model": ["model", 0], "conditioning": ["model", 1]}},
    "quiet": {"class_type": "DisableNoise", "inputs": {}},
}
IMAGE, MASK, MODEL, VAE = ["in", 0], ["in", 1], ["model", 0], ["vae", 0]

#: Node -> inputs with which it runs. The host's own, at the end, run what ours made.
GOOD: dict[str, dict[str, Any]] = {
    "OP4KSR_LoadF16VAE": {"vae_name": VAE_FILE, "compression": "auto", "shift": "auto", "memory": "auto"},
    "OP4KSR_ExactVAE": {"vae": VAE, "memory": "auto"},
    "OP4KSR_LoadFluxSR": {"model_name": MODEL_FILE, "weight_dtype": "default"},
    "OP4KSR_LoadSRLoRA": {
        **{"model": MODEL, "lora_name": "none.safetensors", "strength": 1.0, "vae": VAE},
        **{"conditioning": ["model", 1]},
    },
    "OP4KSR_ApplyRFR": {
        **{"model": MODEL, "policy": "theta", "theta_rows": 100.0, "theta_columns": 100.0, "turns": 0.5},
        **{"tokens_rows": 8, "tokens_columns": 8, "train_tokens": 64},
    },
    "OP4KSR_Plan": {
        **{"model": MODEL, "vae": VAE, "image": IMAGE, "width": 16, "height": 12, **WIDGETS},
        **{"vae_only": False, "max_megapixels": 4.0},
    },
    "OP4KSR_OneStepUpscale": {
        **{"image": IMAGE, "model": MODEL, "vae": VAE, "conditioning": ["model", 1], "mask": MASK, **WIDGETS},
        **{"color_fix": "wavelet", "fidelity": 1.0, "vae_only": False, "sigma": 0.0, "guidance": -1.0},
        **{"max_megapixels": 4.0, "enlarger": "auto", "detail": 1.0, "repair": -1.0},
    },
    "OP4KSR_PeriodicityDiagnostic": {"image": IMAGE, "reference": IMAGE, "token_size": 32, "alarm_rate": 0.01},
    "OP4KSR_SuppressPeriodicity": {"image": IMAGE, "reference": IMAGE, "strength": 1.0, "alarm_rate": 0.01},
    "OP4KSR_SamplePicture": {"picture": "photo"},
    "OP4KSR_OneStepSampler": {"model": MODEL, "sigma": 0.0},
    "OP4KSR_EmptyLatent16x": {"width": 32, "height": 32, "batch_size": 1},
    "OP4KSR_FluxShift16x": {
        **{"model": MODEL, "mode": "by tokens", "shift": 3.0, "width": 64, "height": 64},
        **{"base_shift": 0.5, "max_shift": 1.15},
    },
    "OP4KSR_SavePicture": {
        **{"images": IMAGE, "filename_prefix": "odd", "bits": "8", "mask": MASK, "compression": "fast"},
    },
    "OP4KSR_SavePromptEmbedding": {"conditioning": ["model", 1], "filename_prefix": "odd"},
    "OP4KSR_LoadPromptEmbedding": {"embedding_name": "none.safetensors", "guidance": -1.0},
    "VAEDecode": {"samples": ["latent", 0], "vae": VAE},
    "VAEDecodeTiled": {
        **{"samples": ["latent", 0], "vae": VAE, "tile_size": 512, "overlap": 64},
        **{"temporal_size": 64, "temporal_overlap": 8},
    },
    "VAEEncode": {"pixels": IMAGE, "vae": VAE},
    "SamplerCustomAdvanced": {
        **{"noise": ["quiet", 0], "guider": ["guider", 0], "sampler": ["steps", 0], "sigmas": ["steps", 1]},
        **{"latent_image": ["latent", 0]},
    },
}

#: Values as a prompt can hold them.
TYPED: list[Any] = [
    *(None, True, False, 0, -1, -(2**63), 2**31, 2**63, 1e308, float("nan"), float("inf"), 0.5, 3.7, "", "sepia"),
    *("64", "nan", "-inf", "1" * 400, "a\ud800b", "a\0b", "\x1b[2J\x1b]0;owned\x07", "x" * 200_000, "../../etc/passwd"),
    *({}, {"a": [1]}, {"__value__": [1, 2, 3]}, {"__value__": {"a": 1}}, {"__value__": None}, [], [None], [1, 2, 3]),
    *({"samples": []}, {"__value__": "\ud800"}, "C:\\con", "/dev/zero", "/etc/passwd"),
]

#: Pieces of names.
PIECES = [
    *("a", "/", "/", "..", "../", "\\", "\0", "\x1b[2J", "\ud800", "\udc80", "CON", "aux.txt", ".", " ", "~", "$HOME"),
    *(
        "%date:yyyy%",
        "%date%",
        "%date:" + "y" * 300 + "%",
        "%width%",
        "%height%",
        "%batch_num%",
        "%KSampler.seed%",
        "%",
    ),
    *("x" * 300, "\u00e9" * 130, "\u9ad8" * 90, "\U0001f600" * 70, "\u202e", "\u2028", "\n", "\r", "\t", "\x7f"),
    *(
        '*?<>|":',
        "C:",
        "//server/share",
        "d/" * 200,
        "d/" * 5000,
        "." * 50,
        "%date:" * 40,
        "x" * 1_000_000,
        "-",
        "_00001_",
    ),
]

#: A workflow's metadata, as a client may send it.
METADATA: list[Any] = [
    *([], [1], "text", 5, True, float("nan"), {}, {"workflow": float("nan")}, {"": 1}, {"k" * 100: 1}, {"\u00e9": 1}),
    *({"\u9ad8": 1}, {"\ud800": 1}, {"a\0b": 1}, {"a\nb": 1}, {" a ": 1}, {"workflow": "\ud800"}, {"prompt": "mine"}),
    *({"workflow": "x" * 3_000_000}, {"workflow": [[[[]]]]}, {f"k{i}": i for i in range(2000)}, {"workflow": None}),
]


@dataclass(frozen=True)
class Case:
    """refused: whether it must not pass. named: what a refusal of a wrong kind of value names."""

    what: str
    prompt: dict[str, Any]
    extra: dict[str, Any] = field(default_factory=dict)
    refused: bool = False
    named: str = ""


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Odd]:
    running = Odd(tmp_path_factory)
    try:
        yield running
    finally:
        running.server.stop()


class Odd:
    """A server with the pack of odd values; started anew where it runs no prompt any more."""

    def __init__(self, folders: pytest.TempPathFactory) -> None:
        self.folders = folders
        self.start()

    def start(self) -> None:
        folder = self.folders.mktemp("odd")
        shutil.copytree(Path(__file__).parent / "odd_pack", folder / "odd_pack")
        self.server = Server(find_host(), folder)
        (folder / "odd_pack").rename(folder / "custom_nodes" / "odd_pack")
        self.server.wait_until_up()
        self.server.upload("odd.png", png(16, 12))
        self.info = self.server.get("/object_info")
        self.places = sorted(path.name for path in folder.iterdir())
        assert "OddValue" in self.info, self.server.log_tail()

    def send(self, case: Case) -> dict[str, Any]:
        body = {"prompt": case.prompt, "extra_data": case.extra}
        return self.server.post("/prompt", json.dumps(body).encode())

    def entry(self, prompt_id: str, limit: float = HANG) -> dict[str, Any] | None:
        end = time.monotonic() + limit
        while time.monotonic() < end and self.server.process.poll() is None:
            if found := self.server.get(f"/history/{prompt_id}").get(prompt_id):
                return found
            time.sleep(0.01)
        return None

    def files(self) -> Iterator[str]:
        """What is wrong with the files that were saved, which are then removed."""
        output = self.server.folder / "output"
        for path in sorted(output.rglob("*")):
            if not SENTENCE.fullmatch(str(path)):
                yield f"a file named {str(path)!a}"
            if path.is_file() and not (whole_embedding if path.suffix == ".safetensors" else whole_png)(path):
                yield f"{path.name!a} is not whole"
        if (places := sorted(path.name for path in self.server.folder.iterdir())) != self.places:
            yield f"files outside of the output folder: {places}"
        shutil.rmtree(output)
        output.mkdir()


def whole_png(path: Path) -> bool:
    try:
        with Image.open(path) as picture:
            picture.load()
            return picture.format == "PNG"
    except (OSError, ValueError):
        return False


def whole_embedding(path: Path) -> bool:
    """Whether it is what Save Prompt Embedding writes."""
    try:
        return set(load_file(path)) == {"op4ksr.txt", "op4ksr.vec"}
    except (OSError, SafetensorError):
        return False


def with_parts(subject: str, inputs: dict[str, Any], info: dict[str, Any], **more: Any) -> dict[str, Any]:
    """The node, what it needs, and a sink at each of its outputs."""
    prompt: dict[str, Any] = {**more, "subject": {"class_type": subject, "inputs": inputs}}
    for slot in range(len(info[subject]["output"])):
        prompt[f"sink{slot}"] = {"class_type": "OddSink", "inputs": {"value": ["subject", slot]}}
    wanted = [value for node in prompt.values() for value in node["inputs"].values()]
    while wanted:
        link = wanted.pop()
        if isinstance(link, list) and link and isinstance(link[0], str) and link[0] in PARTS and link[0] not in prompt:
            prompt[link[0]] = PARTS[link[0]]
            wanted += PARTS[link[0]]["inputs"].values()
    return prompt


def kind_of(spec: tuple[Any, dict[str, Any]]) -> str:
    return "COMBO" if isinstance(spec[0], list) else spec[0]


def linked(node: str, name: str, value: str, info: dict[str, Any]) -> Case:
    """The value by a link from a node that hands on anything."""
    spec = input_specs(info[node])[name]
    may = MAY_PASS.get(kind_of(spec), frozenset())
    optional = name in info[node]["input"].get("optional", {})
    ours = node.startswith("OP4KSR")
    by_name = name in ("vae_name", "model_name", "lora_name", "embedding_name")  # told by the name that was given
    refused = ours and value not in may and not (optional and value == "none")
    odd = {"class_type": "OddValue", "inputs": {"name": value}}
    inputs = {**GOOD[node], name: ["odd", 0]}
    return Case(
        f"{node}.{name} <- {value}",
        with_parts(node, inputs, info, odd=odd),
        {},
        refused,
        name if ours and not by_name else "",
    )


def typed(node: str, name: str, value: Any, info: dict[str, Any]) -> Case:
    socket = kind_of(input_specs(info[node])[name]) in ("IMAGE", "MASK", "MODEL", "VAE", "CONDITIONING", "LATENT")
    optional = name in info[node]["input"].get("optional", {})
    refused = node.startswith("OP4KSR") and socket and not (optional and value in (None, {"__value__": None}))
    prompt = with_parts(node, {**GOOD[node], name: value}, info)
    return Case(f"{node}.{name} = {value!a:.80}", prompt, {}, refused)


def named(prefix: str, extra: dict[str, Any], info: dict[str, Any]) -> Case:
    prompt = with_parts("OP4KSR_SavePicture", {**GOOD["OP4KSR_SavePicture"], "filename_prefix": prefix}, info)
    return Case(f"prefix {prefix!a:.120}, extra {json.dumps(extra):.80}", prompt, extra)


def cases(info: dict[str, Any], count: int) -> list[Case]:
    """Half of them values by links, the others typed values, names and metadata."""
    draw = random.Random(SEED)
    taken = ("samples", "pixels", "latent_image", "sigmas")  # by the host's nodes, on to what is ours
    inputs = [
        (node, name)
        for node, good in GOOD.items()
        for name in good
        if name in input_specs(info[node]) and (node.startswith("OP4KSR") or name in taken)
    ]
    links = [linked(node, name, value, info) for node, name in inputs for value in ODD_VALUES]
    values = [typed(node, name, value, info) for node, name in inputs for value in TYPED]
    first = [named(piece, {}, info) for piece in PIECES] + [named("m", {"extra_pnginfo": m}, info) for m in METADATA]
    made = [named("".join(draw.choices(PIECES, k=draw.randint(2, 6))), {}, info) for _ in range(count // 8)]
    rest = max(0, count - len(first) - len(made))
    found = (
        first + made + draw.sample(links, min(len(links), rest * 2 // 3)) + draw.sample(values, rest - rest * 2 // 3)
    )
    draw.shuffle(found)
    return found[:count]


def judged(case: Case, answer: dict[str, Any], entry: dict[str, Any] | None) -> tuple[str, str]:
    """("right" | "sentence" | "the host's" | "fault", what it was)."""
    if "prompt_id" not in answer or answer["node_errors"]:
        return of_refusal(answer)
    if entry is None:
        return "fault", "hangs"
    if entry["status"]["status_str"] == "success":
        return ("fault", "passed") if case.refused else ("right", shown_wrong(entry))
    (error,) = (content for name, content in entry["status"]["messages"] if name == "execution_error")
    kind, message = error["exception_type"].rsplit(".", 1)[-1], error["exception_message"]
    if "op4ksr" not in "".join(error["traceback"]) + error["exception_type"]:
        return "the host's", message
    if kind not in _ERRORS:
        return "fault", f"{kind}: {message:.300}"
    if not SENTENCE.fullmatch(message):
        return "fault", f"no sentence of one line: {message!a:.300}"
    if case.named and case.refused and case.named.lower() not in message.lower():
        return "fault", f"does not name {case.named}: {message:.300}"
    return "sentence", message


def of_refusal(answer: dict[str, Any]) -> tuple[str, str]:
    errors = [e for node in answer.get("node_errors", {}).values() for e in node["errors"]]
    if any("op4ksr" in "".join(e.get("extra_info", {}).get("traceback", [])) for e in errors):
        return "fault", f"exception in validation: {errors!a:.300}"
    ours = [e["details"] for e in errors if e["type"] == "custom_validation_failed"]
    if wrong := [text for text in ours if not SENTENCE.fullmatch(text)]:
        return "fault", f"no sentence of one line: {wrong[0]!a:.300}"
    return "sentence", json.dumps(errors or answer)[:300]


def shown_wrong(entry: dict[str, Any]) -> str:
    """ "" or what a sink saw that no picture should have."""
    came = [one for output in entry["outputs"].values() for one in output.get("came", [])]
    return next((str(one) for one in came if one.get("finite") is False), "")


def good_prompt(number: int, info: dict[str, Any]) -> Case:
    """Computed anew each time: the ceiling is another one, the picture the same."""
    inputs = {**GOOD["OP4KSR_OneStepUpscale"], "max_megapixels": 5.0 + number * 0.1}
    return Case("the good prompt", with_parts("OP4KSR_OneStepUpscale", inputs, info))


def test_odd_prompts(host: Odd) -> None:
    tally, known = Tally("odd prompts"), ""
    waiting = cases(host.info, COUNT)
    number = 0
    while waiting:
        block, waiting = waiting[:BLOCK], waiting[BLOCK:]
        answers = [host.send(case) for case in block]
        for place, (case, answer) in enumerate(zip(block, answers, strict=True)):
            entry = host.entry(answer["prompt_id"]) if "prompt_id" in answer else None
            kind, what = judged(case, answer, entry)
            if kind == "right" and what:
                kind = "fault"
            if kind == "fault":
                tally.fault(case.what, what)
                print(f"fault: {case.what}: {what}", flush=True)
            else:
                tally.counts[kind] += 1
            if what == "hangs":
                host.server.stop()
                host.start()
                waiting = block[place + 1 :] + waiting
                break
        number += 1
        good = host.send(good_prompt(number, host.info))
        assert "prompt_id" in good, good
        entry = host.entry(good["prompt_id"])
        came = "" if entry is None else json.dumps(entry["outputs"].get("sink0", {}).get("came"))
        known = known or came
        if not came or came != known:
            tally.fault("the good prompt", f"gave {came:.200} after {[case.what for case in block][-1]}")
        for wrong in host.files():
            tally.fault("files", wrong)
    for block in host.server.log.read_text("utf-8", "replace").split("--- Logging error ---")[1:]:
        if "custom_nodes/op4ksr" in (stack := block.partition("Message: ")[0]):
            tally.fault("the log", f"an error while logging: {stack[-300:]}")
    tally.close()
