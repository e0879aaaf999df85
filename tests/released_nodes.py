"""What a released node must keep: its id, and its inputs and outputs in their order.

python tests/released_nodes.py writes tests/data/released_nodes.json anew from the schemas (it needs a ComfyUI). A
release adds to that file; it never takes away, so a change that breaks a promise is refused here too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from host_support import find_host, input_specs, run_cases

RELEASED = Path(__file__).resolve().parent / "data" / "released_nodes.json"

#: inputs and outputs of a node: [name, type] each.
Slots = dict[str, list[list[str]]]


def slots(info: dict[str, Any]) -> Slots:
    """A node as /object_info has it -> its inputs in the order of its widgets, and its outputs."""
    inputs = [[name, "COMBO" if isinstance(kind, list) else kind] for name, (kind, _) in input_specs(info).items()]
    outputs = [list(pair) for pair in zip(info["output_name"], info["output"], strict=True)]
    return {"inputs": inputs, "outputs": outputs}


def broken(released: dict[str, Slots], now: dict[str, Slots]) -> list[str]:
    """Promises that are not kept, in words; new nodes and what is appended to a node are none."""
    found = [f"{node} is gone" for node in released if node not in now]
    for node in released.keys() & now.keys():
        for kind in ("inputs", "outputs"):
            old, new = released[node][kind], now[node][kind]
            if new[: len(old)] != old:
                found.append(f"{node}: its {kind} were {old}, and now begin with {new[: len(old)]}")
    return sorted(found)


def appended(released: dict[str, Slots], now: dict[str, Slots]) -> list[tuple[str, str]]:
    """(node, input) of each input that came after the release."""
    return [
        (node, name)
        for node in released.keys() & now.keys()
        for name, _ in now[node]["inputs"][len(released[node]["inputs"]) :]
    ]


def read() -> dict[str, Slots]:
    return json.loads(RELEASED.read_text("utf-8"))


def written(released: dict[str, Slots]) -> str:
    """The file's text: one line for each input and output, so that a change reads well."""
    nodes: list[str] = []
    for node, parts in sorted(released.items()):
        lists = [
            f'"{kind}": [' + ",".join(f"\n   {json.dumps(p)}" for p in pairs) + "]" for kind, pairs in parts.items()
        ]
        nodes.append(f'"{node}": {{\n  ' + ",\n  ".join(lists) + "}")
    return "{\n " + ",\n ".join(nodes) + "\n}\n"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        info = run_cases(find_host(), "info_cases", Path(folder))["object_info"]
    now = {node: slots(found) for node, found in info.items()}
    if RELEASED.exists() and (found := broken(read(), now)):
        raise SystemExit("\n".join(found))
    RELEASED.write_text(written(now), "utf-8")


if __name__ == "__main__":
    main()
