"""What the browser is told about each node of ours."""

from __future__ import annotations

from typing import Any

import nodes


def object_info() -> dict[str, dict[str, Any]]:
    """As /object_info has it, by node id."""
    ours = {name: cls for name, cls in nodes.NODE_CLASS_MAPPINGS.items() if name.startswith("OP4KSR_")}
    return {name: {**cls.GET_NODE_INFO_V1(), "output_name": output_names(cls)} for name, cls in ours.items()}


def output_names(cls: Any) -> list[str]:
    """What the schema calls them; 0.3 shows an output's type in its stead."""
    return [output.display_name or output.id for output in cls.define_schema().outputs]


CASES = [object_info]
