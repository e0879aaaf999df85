"""What the browser is told about each node of ours."""

from __future__ import annotations

from typing import Any

import nodes


def object_info() -> dict[str, dict[str, Any]]:
    """As /object_info has it, by node id."""
    ours = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("OP4KSR_")}
    return {name: cls.GET_NODE_INFO_V1() for name, cls in ours.items()}


CASES = [object_info]
