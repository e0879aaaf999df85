"""Widgets that several nodes share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from comfy_api.latest import io

from ...op4ksr_core.base import CHOICES
from ...op4ksr_core.errors import OptionError
from ...op4ksr_core.images.resize import DEFAULT_CEILING_MEGAPIXELS, Target
from ...op4ksr_core.models.latent import PATCH
from ...op4ksr_core.pieces import DEFAULT_OVERLAP_PX, Pieces
from ...op4ksr_core.plain_text import plain
from .schema import advanced
from .values import SHOWN

#: Pixels per latent row or column of a 16x VAE.
RATIO = 16

Chosen = TypeVar("Chosen")

_TARGETS = ("long edge", "short edge", "factor", "megapixels")


def check_choice(widget: str, value: str, options: Iterable[str]) -> None:
    """Raise OptionError for a dropdown's value that it does not offer.

    The host checks only typed values, and 0.3 not even those: a string from another node comes through.
    """
    if value not in options:
        raise OptionError(f"{widget}: expected one of {', '.join(options)}; got '{plain(value, SHOWN)}'")


def chosen(widget: str, value: str, options: Mapping[str, Chosen]) -> Chosen:
    """What a dropdown's value stands for. Raises OptionError for one that it does not offer."""
    check_choice(widget, value, options)
    return options[value]


def target_of(kind: str, pixels: int, factor: float, megapixels: float, ceiling: float) -> Target:
    """The node's four widgets -> ``Target``."""
    check_choice("target", kind, _TARGETS)
    return Target(
        scale=factor if kind == "factor" else None,
        long_edge=pixels if kind == "long edge" else None,
        short_edge=pixels if kind == "short edge" else None,
        megapixels=megapixels if kind == "megapixels" else None,
        ceiling_megapixels=ceiling,
    )


def size_widgets() -> list[Any]:
    """How large the output shall be."""
    return [
        io.Combo.Input(
            "target", options=list(_TARGETS), default="long edge", tooltip="How the output's size is given."
        ),
        io.Int.Input(
            "pixels",
            default=4096,
            min=16,
            max=32768,
            step=16,
            tooltip="Length of the long or short edge of the output, in px.",
        ),
        io.Float.Input("factor", default=4.0, min=0.1, max=64.0, step=0.1, tooltip="Enlargement, for target factor."),
        io.Float.Input(
            "megapixels",
            default=16.0,
            min=0.01,
            max=1024.0,
            step=0.5,
            tooltip="Area of the output, for target megapixels; 1 MP = 1024 x 1024 px.",
        ),
    ]


def ceiling_widget(tooltip: str) -> Any:
    """How large an output may be at most, in megapixels."""
    return advanced(
        io.Float.Input(
            "max_megapixels", default=DEFAULT_CEILING_MEGAPIXELS, min=0.1, max=1024.0, step=0.1, tooltip=tooltip
        )
    )


def pieces_widgets() -> list[Any]:
    """The windows that the transformer runs over, in px of the output; 0: the whole picture at once."""
    return [
        advanced(
            io.Int.Input(
                "pieces",
                optional=True,
                default=0,
                min=0,
                max=32768,
                step=16,
                tooltip="0: the whole picture in one pass. Else the transformer runs over overlapping windows of so "
                "many px of the output, blended (public 8x weights: 1024); the VAE stays whole and seamless.",
            )
        ),
        advanced(
            io.Int.Input(
                "pieces_overlap",
                optional=True,
                default=DEFAULT_OVERLAP_PX,
                min=0,
                max=32752,
                step=16,
                tooltip="How many px neighbouring windows share, for pieces; half of pieces is usual.",
            )
        ),
    ]


def pieces_of(pieces: int, overlap: int) -> Pieces | None:
    """The two widgets -> ``Pieces``; None for the whole picture. Raises OptionError."""
    return Pieces(pieces, overlap) if pieces else None


def base_widgets() -> list[Any]:
    """What enlarges the picture before the one step."""
    return [
        io.UpscaleModel.Input(
            "upscale_model",
            optional=True,
            tooltip="Your own upscaler (Load Upscale Model: ESRGAN, SPAN, DAT ...) enlarges the picture first, in "
            "strips, and the one step goes on from there. Where one is connected, enlarger does not count.",
        ),
        advanced(
            io.Combo.Input(
                "enlarger",
                optional=True,
                options=list(CHOICES),
                default="auto",
                tooltip="What enlarges the picture before the one step. bundled: the small network that comes with "
                "the pack. auto: bundled for models that add detail, bicubic for all others.",
            )
        ),
    ]


def detail_widget(tooltip: str) -> Any:
    """How much of what the model makes is laid over the enlarged picture."""
    return io.Float.Input("detail", optional=True, default=1.0, min=0.0, max=2.0, step=0.05, tooltip=tooltip)


def repair_widget(tooltip: str) -> Any:
    """How much damage to undo; below 0 leaves it to the model (``asked``)."""
    return io.Float.Input("repair", optional=True, default=-1.0, min=-1.0, max=1.0, step=0.05, tooltip=tooltip)


def asked(value: float) -> float | None:
    """What a widget asks for whose numbers below 0 leave it to the model."""
    return value if value >= 0 else None


def side_widgets(tooltip: str) -> list[Any]:
    """Width and height, in px and whole tokens, of what a 16x VAE makes. "{}" in the tooltip is the side's name."""
    token = RATIO * PATCH
    return [
        io.Int.Input(side, default=4096, min=token, max=32768, step=token, tooltip=tooltip.format(side))
        for side in ("width", "height")
    ]


def sigma_widget() -> Any:
    """The point of the flow; 0 leaves it to the model."""
    return io.Float.Input(
        "sigma",
        default=0.0,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="0: the model's own. Else the point of the flow at which the picture enters.",
    )
