"""Drives a real Chromium against a real ComfyUI server; runs in a Python that has Playwright.

python driver.py URL CHROMIUM TASK.json: prints one JSON object, what was seen. pytest never imports this file.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright
from playwright.sync_api import TimeoutError as PlaywrightTimeout

#: In the page: what the server tells while a prompt runs.
LISTEN = """() => {
  window.seen = {progress: [], executed: [], ended: null, error: null};
  const api = window.app.api;
  api.addEventListener('progress_state', e => { for (const n of Object.values(e.detail.nodes))
    window.seen.progress.push([n.display_node_id ?? n.node_id, n.value, n.max]); });
  api.addEventListener('progress', e => window.seen.progress.push([e.detail.node, e.detail.value, e.detail.max]));
  api.addEventListener('executed', e => window.seen.executed.push(e.detail.display_node ?? e.detail.node));
  for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
    api.addEventListener(kind, e => { window.seen.ended = kind; window.seen.error = e.detail.exception_message; });
}"""

LOAD = """async (name) => {
  const answer = await fetch(`/api/workflow_templates/op4ksr/${name}.json`);
  await window.app.loadGraphData(await answer.json());
  window.seen.progress.length = window.seen.executed.length = 0;
  window.seen.ended = null;
  return window.app.graph.nodes.filter(n => n.has_errors || !window.LiteGraph.registered_node_types[n.type])
    .map(n => n.type);
}"""

SET = """(changes) => { for (const [type, widgets] of Object.entries(changes))
  for (const node of window.app.graph.nodes.filter(n => n.type === type))
    for (const [name, value] of Object.entries(widgets)) {
      const widget = node.widgets.find(w => w.name === name);
      if (!widget) throw new Error(`${type} has no widget ${name}`);
      widget.value = value;
      widget.callback?.(value);
    }
}"""

REMOVE = """(types) => { for (const node of [...window.app.graph.nodes].filter(n => types.includes(n.type)))
  window.app.graph.remove(node);
}"""

#: Which nodes show something of a finished run: text, or pictures, which must really load.
SHOWN = """async () => {
  const loads = async image => {
    const answer = await fetch(window.app.api.apiURL('/view?' + new URLSearchParams(image)));
    return answer.ok && (await createImageBitmap(await answer.blob())).width > 0;
  };
  const found = {};
  for (const [id, out] of Object.entries(window.app.nodeOutputs)) {
    const images = [...(out.images ?? []), ...(out.a_images ?? []), ...(out.b_images ?? [])];
    found[`${window.app.graph.getNodeById(id)?.type} ${id}`] = {
      text: out.text ?? null, images: images.length, loaded: (await Promise.all(images.map(loads))).every(Boolean)};
  }
  return found;
}"""

#: What the server said to a prompt that it refused, by node type.
REFUSED = """() => Object.fromEntries(Object.values(window.app.lastNodeErrors)
  .map(e => [e.class_type, e.errors.map(x => `${x.message} ${x.details}`).join('; ')]))"""

#: Pictures that the browser itself has drawn inside nodes: on the canvas, and as elements (Nodes 2.0).
DRAWN = """() => window.app.graph.nodes.flatMap(node => {
  const own = [...document.querySelectorAll(`[data-node-id="${node.id}"] img`)];
  return [...(node.imgs ?? []), ...own].filter(i => i.naturalWidth > 0).map(() => `${node.type} ${node.id}`);
})"""

EMPTY = """async () => { await window.app.loadGraphData(
  {last_node_id: 0, last_link_id: 0, nodes: [], links: [], groups: [], config: {}, extra: {}, version: 0.4}); }"""

RESULTS = "() => [...document.querySelectorAll('[role=option], [data-testid*=result]')].map(e => e.innerText)"

#: The search's results are there, and have been the same for a second.
SETTLED = f"""() => {{ const now = JSON.stringify(({RESULTS})());
  if (window.lastResults !== now) [window.lastResults, window.lastChange] = [now, performance.now()];
  return now !== '[]' && performance.now() - window.lastChange > 1000; }}"""

INFO = "[data-testid=info-button]"
HELP_PICTURE = "img[src*='/extensions/op4ksr/docs/']"


def open_page(page: Page, url: str) -> None:
    page.goto(url, wait_until="domcontentloaded")
    ready = "() => window.LiteGraph?.registered_node_types?.['OP4KSR_OneStepUpscale'] && window.app?.api?.clientId"
    page.wait_for_function(ready, timeout=120_000)
    page.wait_for_timeout(2500)
    page.evaluate(LISTEN)
    dismiss(page)


def dismiss(page: Page) -> None:
    """A new user's dialogs (templates) are in the way of the canvas."""
    for _ in range(3):
        page.keyboard.press("Escape")
        page.wait_for_timeout(300)


def wait_end(page: Page, seconds: float) -> str | None:
    end = time.monotonic() + seconds
    while time.monotonic() < end and not page.evaluate("() => window.seen.ended"):
        page.wait_for_timeout(200)
    return page.evaluate("() => window.seen.ended")


def fit(page: Page) -> None:
    page.evaluate("() => { document.activeElement?.blur?.(); window.app.canvas.canvas.focus?.(); }")
    page.keyboard.press(".")  # fit view
    page.wait_for_timeout(900)


def run_template(page: Page, task: dict[str, Any]) -> dict[str, Any]:
    """Open, change what the test asks for, Run by the keyboard; for ``cancel_after`` cancel as soon as it moves."""
    if task.get("vue"):  # Nodes 2.0
        page.evaluate("() => window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', true)")
    missing = page.evaluate(LOAD, task["name"])
    page.wait_for_timeout(800)
    page.evaluate(REMOVE, task.get("remove", []))
    page.evaluate(SET, task.get("set", {}))
    if task.get("opened"):
        fit(page)
        page.screenshot(path=task["opened"])
    titles = page.evaluate("() => app.graph.nodes.map(n => n.title)")
    found: dict[str, Any] = {"missing": missing, "titles": titles}
    if task.get("only_open"):
        return found
    page.keyboard.press("Control+Enter")
    if task.get("refused"):
        page.wait_for_function("() => Object.keys(window.app.lastNodeErrors ?? {}).length", timeout=30_000)
        return found | {"refused": page.evaluate(REFUSED)}
    if task.get("cancel"):
        moved = "(type) => seen.progress.some(([id, v]) => v > 0 && app.graph.getNodeById(id)?.type === type)"
        page.wait_for_function(moved, arg=task["cancel"], timeout=120_000)
        page.keyboard.press("Control+Alt+Enter")
    found["ended"] = wait_end(page, task.get("seconds", 300))
    found["error"] = page.evaluate("() => window.seen.error")
    fit(page)
    page.wait_for_timeout(1000)
    found |= {"shown": page.evaluate(SHOWN), "drawn": page.evaluate(DRAWN), "seen": page.evaluate("() => window.seen")}
    if task.get("finished"):
        page.screenshot(path=task["finished"])
    if task.get("vue"):
        page.evaluate("() => window.app.ui.settings.setSettingValueAsync('Comfy.VueNodes.Enabled', false)")
    return found


def show_help(page: Page, task: dict[str, Any]) -> dict[str, Any]:
    """What the help panel shows of a node of type ``type``: its text, and the widths of its pictures."""
    page.evaluate(LOAD, task["name"])
    page.wait_for_timeout(800)
    page.evaluate("(type) => app.canvas.selectNode(app.graph.nodes.find(n => n.type === type))", task["type"])
    page.click(INFO)
    page.wait_for_selector(HELP_PICTURE, timeout=20_000)
    page.wait_for_timeout(1000)
    if task.get("shot"):
        page.screenshot(path=task["shot"])
    return page.evaluate(
        "(picture) => { const panel = document.querySelector(picture).closest('.markdown-content') ?? document.body;"
        " return {text: panel.innerText, pictures: [...panel.querySelectorAll('img')].map(i => i.naturalWidth)}; }",
        HELP_PICTURE,
    )


def search(page: Page, task: dict[str, Any]) -> dict[str, list[str]]:
    """The names that the node search offers for each of ``words``; opened by a double click on the empty canvas."""
    found: dict[str, list[str]] = {}
    page.evaluate(EMPTY)
    page.wait_for_timeout(500)
    for words in task["words"]:
        for _ in range(3):  # a busy machine misses a double click
            page.mouse.dblclick(800, 500)
            page.wait_for_timeout(700)
            page.keyboard.type(words, delay=30)
            try:
                page.wait_for_function(SETTLED, timeout=10_000)
                break
            except PlaywrightTimeout:
                page.keyboard.press("Escape")
        found[words] = page.evaluate(RESULTS)
        if task.get("shot"):
            page.screenshot(path=task["shot"])
        page.keyboard.press("Escape")
        page.wait_for_timeout(600)
        page.mouse.click(1100, 700)  # away from the search box, should it still be open
        page.wait_for_timeout(400)
    return found


def main() -> None:
    url, chromium, task_file = sys.argv[1:4]
    tasks = json.loads(Path(task_file).read_text("utf-8"))
    kinds: dict[str, Callable[[Page, dict[str, Any]], Any]] = {
        "template": run_template,
        "search": search,
        "help": show_help,
    }
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1600, "height": 1000}, locale=tasks.get("locale", "en-US"))
        errors: list[str] = []
        page.on("console", lambda m: errors.append(f"{m.text} ({m.location['url']})") if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        open_page(page, url)
        results = [kinds[task["kind"]](page, task) for task in tasks["tasks"]]
        browser.close()
    print(json.dumps({"results": results, "errors": errors}))


if __name__ == "__main__":
    main()
