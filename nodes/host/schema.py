"""One schema for all hosts: what an older host's V3 API does not know is left out, not fatal."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from comfy_api.latest import io

AnyInput = TypeVar("AnyInput", bound=io.Input)

_KNOWN = {field.name for field in fields(io.Schema)}


def schema(*, search_aliases: list[str], found_as: str | None = None, **values: Any) -> io.Schema:
    """``io.Schema``, found by what people type.

    A host without search aliases (before 0.9 or so) searches the first 30 characters of names alone, so the
    node is called ``found_as`` there.
    """
    if "search_aliases" in _KNOWN:
        values["search_aliases"] = search_aliases
    elif found_as is not None:
        values["display_name"] = found_as
    return io.Schema(**values)


def advanced(widget: AnyInput) -> AnyInput:
    """Fold the widget away under "advanced" where the host can (0.8 and newer)."""
    extra = getattr(widget, "extra_dict", None)
    if extra is not None:
        extra["advanced"] = True
    return widget
