"""One schema for all hosts: what an older host's V3 API does not know is left out, not fatal."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from comfy_api.latest import io

AnyInput = TypeVar("AnyInput", bound=io.Input)

_KNOWN = {field.name for field in fields(io.Schema)}


def schema(*, search_aliases: list[str], description: str, **values: Any) -> io.Schema:
    """``io.Schema``; where the host knows no search aliases, the words go into the description."""
    if "search_aliases" in _KNOWN:
        values["search_aliases"] = search_aliases
    else:
        description = f"{description} ({', '.join(search_aliases)})"
    return io.Schema(description=description, **values)


def advanced(widget: AnyInput) -> AnyInput:
    """Fold the widget away under "advanced" where the host can (0.8 and newer)."""
    extra = getattr(widget, "extra_dict", None)
    if extra is not None:
        extra["advanced"] = True
    return widget
