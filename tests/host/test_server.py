"""The pack in a running ComfyUI server: prompts, cache, cancelling, errors, and the templates."""

from __future__ import annotations

import io
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from host_support import (
    NODES,
    NOTES,
    PACK,
    Run,
    Server,
    choices,
    find_host,
    input_specs,
    png,
    to_api,
    widgets_of,
    without,
)
from PIL import Image
from safetensors.torch import save_file

pytestmark = pytest.mark.host

TEMPLATES = sorted((PACK / "workflows").glob("*.json"))
STEP = "4"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(find_host(), tmp_path_factory.mktemp("server"))
    try:
        running.wait_until_up()
        yield running
    finally:
        running.stop()


@pytest.fixture(scope="module")
def object_info(server: Server) -> dict[str, Any]:
    return server.get("/object_info")


@pytest.fixture(scope="module")
def photo(server: Server) -> str:
    """A 96x64 px picture in the server's input folder."""
    return server.upload("small.png", png(96, 64))


def upscale_prompt(photo: str, **changes: Any) -> dict[str, Any]:
    """LoadImage and the bundled weights into the one-step node (x4) and SaveImage."""
    widgets: dict[str, Any] = {
        "target": "factor",
        "pixels": 4096,
        "factor": 4.0,
        "megapixels": 16.0,
        "color_fix": "wavelet",
        "fidelity": 1.0,
        "vae_only": False,
        "sigma": 0.0,
        "guidance": -1.0,
        "max_megapixels": 67.2,
    }
    vae = {"vae_name": "bundled: op4ksr_small_f16_vae.safetensors", "compression": "auto", "shift": "auto"}
    model = {"model_name": "bundled: op4ksr_small_flux.safetensors", "weight_dtype": "default"}
    links = {"image": ["1", 0], "model": ["3", 0], "vae": ["2", 0], "mask": ["1", 1]}
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "OP4KSR_LoadF16VAE", "inputs": vae},
        "3": {"class_type": "OP4KSR_LoadFluxSR", "inputs": model},
        STEP: {"class_type": "OP4KSR_OneStepUpscale", "inputs": {**links, **widgets, **changes}},
        "5": {"class_type": "SaveImage", "inputs": {"images": [STEP, 0], "filename_prefix": "op4ksr"}},
    }


def finished(server: Server, prompt: dict[str, Any]) -> Run:
    run = server.finish(server.queue(prompt))
    assert run.status == "success", run.messages
    return run


def test_save_picture_shows_what_it_wrote_and_the_prompt_is_in_it(server: Server, photo: str) -> None:
    save = {"images": ["1", 0], "filename_prefix": "ours/deep", "bits": "16", "mask": ["1", 1], "compression": "fast"}
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {"class_type": "OP4KSR_SavePicture", "inputs": save},
    }
    run = finished(server, prompt)
    picture: Any = server.picture(run, "2")
    told = json.loads(picture.text["prompt"])  # the host notes there whether a file has changed, too
    assert picture.size == (96, 64) and {key: told[key]["inputs"] for key in told} == {
        key: node["inputs"] for key, node in prompt.items()
    }
    (shown,) = run.outputs["2"]["images"]
    assert (shown["subfolder"], shown["type"]) == ("ours", "output")
    address = "/view?filename={filename}&subfolder={subfolder}&type={type}".format(**shown)
    assert server.get_bytes(address)[24:26] == bytes([16, 2])  # of the header: bits, and RGB: nothing is transparent


@pytest.mark.parametrize("prefix", ["a\ud800b", "../\ud800/a", "\0\x1b[2J/\udc80", "x" * 100_000, "d/" * 5000])
def test_no_name_stops_the_server(server: Server, photo: str, prefix: str) -> None:
    """ComfyUI's worker ends with an error that its log cannot write: then it would run no prompt any more."""
    prompt = {
        "1": {"class_type": "LoadImage", "inputs": {"image": photo}},
        "2": {
            "class_type": "OP4KSR_SavePicture",
            "inputs": {"images": ["1", 0], "filename_prefix": prefix, "bits": "8"},
        },
    }
    answer = server.post("/prompt", json.dumps({"prompt": prompt}).encode())
    if "prompt_id" in answer:
        (shown,) = server.finish(answer["prompt_id"], 30).outputs["2"]["images"]
        assert f"{shown['subfolder']}{shown['filename']}".isprintable() and len(shown["filename"]) <= 255
    else:
        (error,) = answer["node_errors"]["2"]["errors"]
        assert error["details"].startswith("filename_prefix - filename_prefix: ") and error["details"].isprintable()
    prompt["2"]["inputs"]["filename_prefix"] = "good"
    finished(server, prompt)


# --- what the browser is told -----------------------------------------------------------------


@pytest.mark.parametrize("node", NODES)
def test_every_input_and_output_has_a_tooltip(object_info: dict[str, Any], node: str) -> None:
    info = object_info[node]
    assert info["python_module"] == "custom_nodes.op4ksr"
    assert [name for name, (_, options) in input_specs(info).items() if not options.get("tooltip")] == []
    assert len(info["output_tooltips"]) == len(info["output"]) and all(info["output_tooltips"])


@pytest.mark.parametrize("node", NODES)
def test_help_pages_are_served_where_the_help_panel_looks(server: Server, node: str) -> None:
    """/extensions/<folder>/docs/<node>/<language>.md, then <node>.md; pictures relative to docs/."""
    docs = PACK / "web" / "docs"
    for name in (f"{node}/en.md", f"{node}/zh.md", f"{node}.md"):
        page = server.get_bytes(f"/extensions/op4ksr/docs/{name}").decode("utf-8")
        assert page == (docs / name).read_text("utf-8")
        for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", page):
            assert server.get_bytes(f"/extensions/op4ksr/docs/{picture}") == (docs / picture).read_bytes()


def test_translations_are_served(server: Server) -> None:
    served = server.get("/i18n")["zh"]
    assert served["nodeDefs"] == json.loads((PACK / "locales" / "zh" / "nodeDefs.json").read_text("utf-8"))
    assert served["nodeCategories"]["analysis"]


def test_nothing_of_ours_runs_in_the_browser(server: Server) -> None:
    assert [path for path in server.get("/extensions") if "op4ksr" in path] == []


# --- prompts ----------------------------------------------------------------------------------


def test_upscale_prompt(server: Server, photo: str) -> None:
    """The picture is 4 times as large and, shrunk again, the one that was sent (fidelity 1)."""
    picture = server.picture(finished(server, upscale_prompt(photo)), "5")
    assert picture.size == (384, 256)
    shrunk = np.asarray(picture.convert("RGB").resize((96, 64), Image.Resampling.BICUBIC), float)
    sent = np.asarray(Image.open(io.BytesIO(png(96, 64))), float)
    assert np.abs(shrunk - sent).mean() < 3


def test_plan_and_exact_vae_prompt(server: Server, photo: str) -> None:
    """The plan shows in its node; Exact VAE decodes what VAE Encode made of the picture."""
    prompt = upscale_prompt(photo)
    plan = {"model": ["3", 0], "vae": ["7", 0], "image": ["1", 0], "width": 64, "height": 64, "vae_only": False}
    plan |= {"target": "factor", "pixels": 4096, "factor": 4.0, "megapixels": 16.0, "max_megapixels": 64.0}
    prompt |= {
        "7": {"class_type": "OP4KSR_ExactVAE", "inputs": {"vae": ["2", 0], "memory": "tiny"}},
        "8": {"class_type": "OP4KSR_Plan", "inputs": plan},
        "9": {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["7", 0]}},
        "10": {"class_type": "VAEDecode", "inputs": {"samples": ["9", 0], "vae": ["7", 0]}},
        "11": {"class_type": "SaveImage", "inputs": {"images": ["10", 0], "filename_prefix": "exact"}},
    }
    del prompt[STEP], prompt["5"]
    run = finished(server, prompt)
    (text,) = run.outputs["8"]["text"]
    assert text.startswith("96x64 -> 384x256 px") and "tiny" in text and "fits" in text
    assert server.picture(run, "11").size == (96, 64)


def test_the_same_prompt_again_is_served_from_cache(server: Server, photo: str) -> None:
    finished(server, upscale_prompt(photo, fidelity=0.9))
    again = finished(server, upscale_prompt(photo, fidelity=0.9))
    assert sorted(again.message("execution_cached")["nodes"]) == ["1", "2", "3", STEP, "5"]


def test_a_changed_option_runs_the_step_but_keeps_the_models(server: Server, photo: str) -> None:
    finished(server, upscale_prompt(photo, fidelity=0.8))
    changed = finished(server, upscale_prompt(photo, fidelity=0.7))
    cached = changed.message("execution_cached")["nodes"]
    assert {"1", "2", "3"} <= set(cached) and STEP not in cached


def test_transparency_goes_round(server: Server) -> None:
    """RGBA in, RGBA out: the left third stays transparent, through LoadImage's and the host's masks."""
    picture = Image.open(io.BytesIO(png(96, 64))).convert("RGBA")
    alpha = np.full((64, 96), 255, np.uint8)
    alpha[:, :32] = 0
    picture.putalpha(Image.fromarray(alpha))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    prompt = upscale_prompt(server.upload("transparent.png", buffer.getvalue()))
    join = {"image": [STEP, 0], "alpha": [STEP, 1]}
    prompt["6"] = {"class_type": "JoinImageWithAlpha", "inputs": join}
    prompt["5"]["inputs"]["images"] = ["6", 0]
    enlarged = server.picture(finished(server, prompt), "5")
    assert enlarged.mode == "RGBA" and enlarged.size == (384, 256)
    opacity = np.asarray(enlarged)[..., 3]
    assert opacity[:, :120].max() <= 2 and opacity[:, 140:].min() >= 253


# --- cancelling and errors --------------------------------------------------------------------


def test_interrupt_stops_the_step_and_the_queue_goes_on(server: Server) -> None:
    """Cancelled inside the one-step node, long before the 4096 px that it would take minutes for."""
    large = server.upload("large.png", png(256, 256))
    prompt_id = server.queue(upscale_prompt(large, target="long edge"))
    server.wait_until_running(prompt_id)
    time.sleep(3)
    assert not server.get(f"/history/{prompt_id}"), "the run was over before it could be cancelled"
    server.post("/interrupt", b"{}")
    start = time.monotonic()
    run = server.finish(prompt_id, timeout=60)
    assert time.monotonic() - start < 15
    assert run.status == "error" and not run.outputs
    assert run.message("execution_interrupted")["node_type"] == "OP4KSR_OneStepUpscale"
    assert server.picture(finished(server, upscale_prompt(large, factor=1.5)), "5").size == (384, 384)


def test_an_error_is_our_sentence_and_the_server_goes_on(server: Server, photo: str) -> None:
    run = server.finish(server.queue(upscale_prompt(photo, factor=16.0, max_megapixels=0.5)))
    error = run.message("execution_error")
    assert run.status == "error"
    assert error["node_type"] == "OP4KSR_OneStepUpscale"
    assert error["exception_type"].endswith("OptionError")
    assert error["exception_message"].strip() == (
        "target: 96x64 px x 16 is 1536x1024 px = 1.5 MP, above the ceiling of 0.5 MP; "
        "ask for less, or raise the ceiling"
    )
    assert server.picture(finished(server, upscale_prompt(photo, factor=2.0)), "5").size == (192, 128)


@pytest.mark.parametrize(
    ("node", "widget", "value"),
    [
        (STEP, "fidelity", 1.5),
        (STEP, "color_fix", "sepia"),
        (STEP, "pixels", 0),
        ("2", "vae_name", "no_such_file.safetensors"),
        ("3", "weight_dtype", "int1"),
    ],
)
def test_the_host_refuses_values_out_of_range(server: Server, photo: str, node: str, widget: str, value: Any) -> None:
    """The schema's own limits are checked before the run; where the host is too old for it, by the node."""
    prompt = upscale_prompt(photo)
    prompt[node]["inputs"][widget] = value
    if value in ("sepia", "int1") and find_host().version < (0, 4):  # which checks no dropdown of a V3 node
        error = server.finish(server.queue(prompt)).message("execution_error")
        assert error["exception_message"].startswith(f"{widget}: expected one of ")
        return
    errors = server.refusal(prompt)["node_errors"][node]["errors"]
    assert errors[0]["extra_info"]["input_name"] == widget


# --- templates --------------------------------------------------------------------------------


def read_template(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


@pytest.fixture(params=TEMPLATES, ids=lambda path: path.stem)
def template(request: pytest.FixtureRequest) -> dict[str, Any]:
    return read_template(request.param)


def test_templates_are_listed_and_served(server: Server) -> None:
    listed = server.get("/workflow_templates")["op4ksr"]
    assert sorted(listed) == [path.stem for path in TEMPLATES]
    for path in TEMPLATES:
        assert server.get(f"/api/workflow_templates/op4ksr/{path.name}") == read_template(path)


@pytest.fixture
def runnable(template: dict[str, Any], object_info: dict[str, Any]) -> dict[str, Any]:
    """A template for this host; less the nodes that old hosts lack, as its note says, or a skip where all need them."""
    if "PiDConditioning" not in object_info and any(node["type"] == "PiDConditioning" for node in template["nodes"]):
        assert "ComfyUI of May 2026 or newer" in template_note(template)
        pytest.skip("this host has no PiD")
    if "ImageCompare" not in object_info and any(node["type"] == "ImageCompare" for node in template["nodes"]):
        assert "came after 0.8: on older versions delete the two nodes" in template_note(template)
        return without(template, "ImageCompare")
    return template


def test_template_nodes_exist(object_info: dict[str, Any], runnable: dict[str, Any]) -> None:
    types = {node["type"] for node in runnable["nodes"]} - set(NOTES)
    assert types & set(NODES), "a template without a node of ours"
    assert types <= object_info.keys()


def test_template_has_a_note_and_a_thumbnail(template: dict[str, Any], request: pytest.FixtureRequest) -> None:
    """The note says whether it runs as shipped; else which file goes where."""
    note = template_note(template)
    assert "**Runs as shipped" in note or ("**Needs" in note and "models/" in note)
    (path,) = (path for path in TEMPLATES if path.stem in request.node.name.partition("[")[2].rstrip("]").split("-"))
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size < 60_000 and min(Image.open(thumbnail).size) >= 240


def test_thumbnails_are_served(server: Server) -> None:
    for path in TEMPLATES:
        thumbnail = path.with_suffix(".jpg")
        assert server.get_bytes(f"/api/workflow_templates/op4ksr/{thumbnail.name}") == thumbnail.read_bytes()


def test_template_widgets_fit_the_schemas(object_info: dict[str, Any], runnable: dict[str, Any]) -> None:
    """One value per widget, and each of ours within its dropdown or its range."""
    for node in runnable["nodes"]:
        if node["type"] in NOTES:
            continue
        info = object_info[node["type"]]
        for name, value in widgets_of(node, info).items():
            if node["type"] in NODES and not is_download(runnable, value):
                assert_allowed(input_specs(info)[name], value, f"{node['type']}.{name}")


def is_download(template: dict[str, Any], value: Any) -> bool:
    """A file that is not bundled: then the template's note says where it is from, and into which folder it goes."""
    if not (isinstance(value, str) and value.endswith(".safetensors")) or value.startswith("bundled: "):
        return False
    note = template_note(template)
    return value.split("/")[0] in note and "models/" in note and "https://" in note


def template_note(template: dict[str, Any]) -> str:
    (note,) = (node for node in template["nodes"] if node["type"] == "MarkdownNote")
    return note["widgets_values"][0]


def assert_allowed(spec: tuple[Any, dict[str, Any]], value: Any, what: str) -> None:
    kind, options = spec
    allowed = choices(spec)
    if allowed is not None:
        assert value in allowed, what
    elif kind in ("INT", "FLOAT"):
        assert options["min"] <= value <= options["max"], what
    elif kind == "BOOLEAN":
        assert isinstance(value, bool), what


def test_template_links_are_consistent(object_info: dict[str, Any], runnable: dict[str, Any]) -> None:
    """Every link is known at both of its ends, and the types are those of the nodes."""
    nodes = {node["id"]: node for node in runnable["nodes"]}
    assert len(nodes) == len(runnable["nodes"]) and runnable["last_node_id"] >= max(nodes)
    ends: list[tuple[int, str]] = []
    for link_id, source, out_slot, target, in_slot, kind in runnable["links"]:
        output, entry = nodes[source]["outputs"][out_slot], nodes[target]["inputs"][in_slot]
        assert link_id in output["links"] and entry["link"] == link_id
        assert output["type"] == entry["type"] == kind
        assert object_info[nodes[source]["type"]]["output"][out_slot] == kind
        assert input_specs(object_info[nodes[target]["type"]])[entry["name"]][0] == kind
        ends += [(link_id, "out"), (link_id, "in")]
    stated = [(i, "out") for n in nodes.values() for o in n.get("outputs", []) for i in o["links"] or []]
    stated += [(i["link"], "in") for n in nodes.values() for i in n.get("inputs", []) if i.get("link") is not None]
    assert sorted(stated) == sorted(ends) and len(set(ends)) == len(ends)


def test_template_required_inputs_are_connected(object_info: dict[str, Any], runnable: dict[str, Any]) -> None:
    prompt = to_api(runnable, object_info)
    for node in prompt.values():
        missing = set(object_info[node["class_type"]]["input"].get("required", {})) - node["inputs"].keys()
        assert not missing, f"{node['class_type']} lacks {missing}"


def test_upscale_template_runs_as_shipped(server: Server, object_info: dict[str, Any], photo: str) -> None:
    """With the user's picture, at 256 px for the CPU's sake; nothing else is changed."""
    prompt = to_api(read_template(PACK / "workflows" / "upscale_4k.json"), object_info)
    by_type = {node["class_type"]: (node_id, node["inputs"]) for node_id, node in prompt.items()}
    by_type["LoadImage"][1]["image"] = photo
    step = by_type["OP4KSR_OneStepUpscale"][1]
    assert (step["target"], step["pixels"]) == ("long edge", 4096)
    step["pixels"] = 256
    assert server.picture(finished(server, prompt), by_type["SaveImage"][0]).size == (256, 171)


def test_diagnose_and_suppress_template_runs_as_shipped(server: Server, object_info: dict[str, Any]) -> None:
    """Nothing is changed: the sample's grid is found and taken out, and the report shows in both nodes."""
    prompt = to_api(read_template(PACK / "workflows" / "diagnose_and_suppress.json"), object_info)
    run = finished(server, prompt)
    verdicts = [run.outputs[n]["text"][0] for n in prompt if prompt[n]["class_type"] == "OP4KSR_PeriodicityDiagnostic"]
    assert "every 32 px (1 token)" in verdicts[0]
    assert verdicts[1].startswith("No periodic artifact found")
    assert all(run.outputs[n]["images"] for n in prompt if prompt[n]["class_type"] == "OP4KSR_PeriodicityDiagnostic")
    (remover,) = (n for n in prompt if prompt[n]["class_type"] == "OP4KSR_SuppressPeriodicity")
    assert run.outputs[remover]["text"][0].startswith("Took out ")
    (saver,) = (n for n in prompt if prompt[n]["class_type"] == "SaveImage")
    assert server.picture(run, saver).size == (640, 480)


def test_compare_positions_template_runs_as_shipped(server: Server, object_info: dict[str, Any]) -> None:
    """At 256 px, beyond 4 trained tokens instead of 128: five policies, each with the meter's score under it."""
    prompt = to_api(read_template(PACK / "workflows" / "compare_positions.json"), object_info)
    steps = by_class(prompt, "OP4KSR_OneStepUpscale")
    assert {prompt[node]["inputs"]["pixels"] for node in steps} == {6144}  # 192 tokens
    policies = [prompt[node]["inputs"]["policy"] for node in by_class(prompt, "OP4KSR_ApplyRFR")]
    assert policies == ["checkpoint", "ntk", "interpolate", "ultraflux", "parts"]
    small = {"x": 0, "y": 0, "width": 128, "height": 64}
    changed(prompt, **SMALL, ImageCrop=small, OP4KSR_ApplyRFR={"train_tokens": 4})
    run = finished(server, prompt)
    meters = by_class(prompt, "OP4KSR_PeriodicityDiagnostic")
    assert len(meters) == 5 and all(run.outputs[node]["images"] and run.outputs[node]["text"] for node in meters)
    reports = [run.outputs[node]["text"][0] for node in by_class(prompt, "OP4KSR_ApplyRFR")]
    assert [report.split()[1].strip(":") for report in reports] == policies
    assert server.picture(run, by_class(prompt, "PreviewImage")[0]).size == (5 * 128 + 4 * 8, 64)


def changed(prompt: dict[str, Any], **widgets: dict[str, Any]) -> dict[str, Any]:
    """The prompt with other widget values, by class: small ones, for the CPU's sake."""
    for node in prompt.values():
        node["inputs"] |= widgets.get(node["class_type"], {})
    return prompt


def by_class(prompt: dict[str, Any], class_type: str) -> list[str]:
    return [node for node in prompt if prompt[node]["class_type"] == class_type]


SMALL: dict[str, Any] = {"OP4KSR_OneStepUpscale": {"pixels": 256}, "ImageScale": {"width": 256}}


def test_compare_template_shows_three_side_by_side(server: Server, object_info: dict[str, Any]) -> None:
    template = read_template(PACK / "workflows" / "compare.json")
    if "ImageCompare" not in object_info:  # as its note says
        template = without(template, "ImageCompare")
    crop = {"ImageCrop": {"width": 64, "height": 64, "x": 560, "y": 320}}
    larger = {"OP4KSR_OneStepUpscale": {"pixels": 1152}, "ImageScale": {"width": 1152}}  # what shrinks, no network sees
    prompt = changed(to_api(template, object_info), **larger, **crop)
    run = finished(server, prompt)
    (preview,) = by_class(prompt, "PreviewImage")
    strip = np.asarray(server.picture(run, preview).convert("RGB"), float)
    assert strip.shape[:2] == (64, 3 * 64 + 2 * 8)
    bicubic, with_rfr, without_rfr = (strip[:, left : left + 64] for left in (0, 72, 144))
    assert np.abs(with_rfr - bicubic).mean() > 1
    assert np.abs(with_rfr - without_rfr).max() <= 1  # the bundled transformer adds next to nothing at either theta
    (report,) = [run.outputs[node]["text"][0] for node in by_class(prompt, "OP4KSR_ApplyRFR")]
    assert "10000" in report
    for slider in by_class(prompt, "ImageCompare"):
        assert run.outputs[slider]["a_images"] and run.outputs[slider]["b_images"]


def test_batch_template_saves_every_picture(server: Server, object_info: dict[str, Any]) -> None:
    prompt = changed(to_api(read_template(PACK / "workflows" / "batch_of_stills.json"), object_info), **SMALL)
    (saver,) = by_class(prompt, "SaveImage")
    saved = finished(server, prompt).outputs[saver]["images"]
    assert len(saved) == 2


def test_a_folder_of_pictures_runs_each_in_its_own_size(server: Server, object_info: dict[str, Any]) -> None:
    """What the note of batch_of_stills advises."""
    if "LoadImageDataSetFromFolder" not in object_info:
        pytest.skip("this host has no Load Image (from Folder)")
    folder = server.folder / "input" / "stills"
    folder.mkdir()
    for number, size in enumerate(((96, 64), (64, 80))):
        (folder / f"{number}.png").write_bytes(png(*size))
    prompt = upscale_prompt("unused", factor=2.0)
    prompt["1"] = {"class_type": "LoadImageDataSetFromFolder", "inputs": {"folder": "stills"}}
    del prompt[STEP]["inputs"]["mask"]
    sizes = set()
    for found in finished(server, prompt).outputs["5"]["images"]:
        path = f"/view?filename={found['filename']}&subfolder={found['subfolder']}&type={found['type']}"
        sizes.add(Image.open(io.BytesIO(server.get_bytes(path))).size)
    assert sizes == {(192, 128), (128, 160)}


def rewired(prompt: dict[str, Any], changes: dict[tuple[str, int], list[Any]]) -> dict[str, Any]:
    """The prompt with other sources in place of some outputs, and without the nodes that these belong to."""
    for node in prompt.values():
        for name, value in node["inputs"].items():
            if isinstance(value, list):
                node["inputs"][name] = changes.get((value[0], value[1]), value)
    for gone, _ in changes:
        prompt.pop(gone, None)
    return prompt


def test_generate_graph_runs_with_small_weights(server: Server, object_info: dict[str, Any]) -> None:
    """The bundled model in the checkpoint's place, its prompt in the text encoder's, 2 steps."""
    prompt = to_api(read_template(PACK / "workflows" / "generate_then_upscale_4k.json"), object_info)
    changed(prompt, **SMALL, KSampler={"steps": 2}, EmptyLatentImage={"width": 128, "height": 64})
    (model,), (vae,) = by_class(prompt, "OP4KSR_LoadFluxSR"), by_class(prompt, "OP4KSR_LoadF16VAE")
    (checkpoint,) = by_class(prompt, "CheckpointLoaderSimple")
    replaced = {(text, 0): [model, 1] for text in by_class(prompt, "CLIPTextEncode")}
    rewired(prompt, replaced | {(checkpoint, 0): [model, 0], (checkpoint, 2): [vae, 0]})
    (saver,) = by_class(prompt, "SaveImage")
    assert server.picture(finished(server, prompt), saver).size == (256, 128)


@pytest.fixture
def upscaler(server: Server) -> Iterator[str]:
    """A small x4 network in the place of the download, of Real-ESRGAN's compact kind, which every host reads."""
    path, width = server.folder / "models" / "upscale_models" / "RealESRGAN_x4plus.safetensors", 4
    generator = torch.Generator().manual_seed(3)
    shapes = {"body.0": (width, 3), "body.2": (width, width), "body.4": (3 * 4**2, width)}
    state = {f"{name}.weight": 0.2 * torch.randn(*s, 3, 3, generator=generator) for name, s in shapes.items()}
    state |= {f"{name}.bias": torch.zeros(s[0]) for name, s in shapes.items()}
    state |= {f"body.{place}.weight": torch.full((width,), 0.25) for place in (1, 3)}  # of PReLU
    path.parent.mkdir(exist_ok=True)
    save_file(state, path)
    yield path.name
    path.unlink()


def test_own_upscaler_first_template_runs_with_a_small_network(
    server: Server, object_info: dict[str, Any], photo: str, upscaler: str
) -> None:
    """As shipped; then at detail 0 and fidelity 0 beside the host's own node: the same file."""
    template = read_template(PACK / "workflows" / "own_upscaler_first.json")
    (note,) = (node["widgets_values"][0] for node in template["nodes"] if node["type"] == "MarkdownNote")
    (loader,) = (node for node in template["nodes"] if node["type"] == "UpscaleModelLoader")
    (download,) = loader["properties"]["models"]
    assert download["name"] == upscaler and download["url"].endswith(f"/{upscaler}")
    assert f"`{upscaler}`" in note and f"`models/{download['directory']}`" in note
    prompt = changed(to_api(template, object_info), LoadImage={"image": photo}, OP4KSR_OneStepUpscale={"pixels": 384})
    (saver,), (model,), (image,) = (by_class(prompt, t) for t in ("SaveImage", "UpscaleModelLoader", "LoadImage"))
    whole = np.asarray(server.picture(finished(server, prompt), saver), float)
    assert whole.shape == (256, 384, 3)
    changed(prompt, OP4KSR_OneStepUpscale={"detail": 0.0, "fidelity": 0.0})
    prompt["host"] = {
        "class_type": "ImageUpscaleWithModel",
        "inputs": {"upscale_model": [model, 0], "image": [image, 0]},
    }
    prompt["saved"] = {"class_type": "SaveImage", "inputs": {"images": ["host", 0], "filename_prefix": "host"}}
    run = finished(server, prompt)
    ours, theirs = (np.asarray(server.picture(run, node), float) for node in (saver, "saved"))
    assert np.abs(ours - theirs).max() <= 1 and np.abs(ours - whole).max() > 5


ULTRAFLUX = ["ultraflux_4k_text_to_image", "ultraflux_4k_refine"]


@pytest.mark.parametrize("name", ULTRAFLUX)
def test_a_missing_download_is_one_sentence(server: Server, object_info: dict[str, Any], name: str) -> None:
    """Refused before anything runs: which file, from where, into which folder."""
    prompt = to_api(read_template(PACK / "workflows" / f"{name}.json"), object_info)
    errors = server.refusal(prompt)["node_errors"]
    for class_type, kind, part in (
        ("OP4KSR_LoadFluxSR", "diffusion_models", "transformer"),
        ("OP4KSR_LoadF16VAE", "vae", "vae"),
    ):
        (found,) = (errors[node]["errors"][0]["details"] for node in by_class(prompt, class_type) if node in errors)
        assert f"folder {part} of huggingface.co/Owen777/UltraFlux-v1 into models/{kind}/UltraFlux-v1" in found


@pytest.mark.parametrize("name", ULTRAFLUX)
def test_ultraflux_graph_runs_with_small_weights(server: Server, object_info: dict[str, Any], name: str) -> None:
    """The bundled weights in place of the downloads, their prompt in place of the text encoders', 2 steps, 256 px."""
    prompt = to_api(read_template(PACK / "workflows" / f"{name}.json"), object_info)
    widgets = {"KSampler": {"steps": 2}, "OP4KSR_EmptyLatent16x": {"width": 256, "height": 192}}
    widgets |= {"OP4KSR_LoadFluxSR": {"model_name": "bundled: op4ksr_small_flux.safetensors"}}
    widgets |= {"OP4KSR_LoadF16VAE": {"vae_name": "bundled: op4ksr_small_f16_vae.safetensors"}}
    changed(prompt, **SMALL, **widgets)
    (sampler,) = by_class(prompt, "KSampler")
    (text,) = by_class(prompt, "CLIPTextEncode")
    loader = by_class(prompt, "OP4KSR_LoadFluxSR")[0]
    (encoders,), (options,) = by_class(prompt, "DualCLIPLoader"), by_class(prompt, "T5TokenizerOptions")
    padding = {"clip": [encoders, 0], "min_padding": 0, "min_length": 512}  # as published; ComfyUI alone has 256
    assert prompt[options]["inputs"] == padding and prompt[text]["inputs"]["clip"] == [options, 0]
    rewired(prompt, {(text, 0): [loader, 1], (options, 0): [], (encoders, 0): []})
    (saver,) = by_class(prompt, "SaveImage")
    assert server.picture(finished(server, prompt), saver).size == (256, 192)
    assert prompt[sampler]["inputs"]["scheduler"] == "simple" and prompt[sampler]["inputs"]["cfg"] == 1.0
