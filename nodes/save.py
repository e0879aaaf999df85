"""Saving pictures: rounded, 8 or 16 bits per colour, as fast as all cores compress; the workflow is in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import comfy.cli_args
import comfy.model_management
from comfy_api.latest import io, ui
from torch import Tensor

from ..op4ksr_core.errors import OptionError
from ..op4ksr_core.images.io import Picture, save_image
from ..op4ksr_core.plain_text import plain
from .host.inputs import checked
from .host.names import check_prefix, choose_place, claimed
from .host.schema import advanced, schema
from .host.stages import image_to_core
from .host.values import refusal
from .upscale import enlarge_mask, own_mask

_BITS = {"8": 8, "16": 16}

#: The dropdown's values -> zlib's level; None: run lengths alone.
_COMPRESSION: dict[str, int | None] = {"fast": None, **{str(level): level for level in range(10)}}


class SavePicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_SavePicture",
            display_name="Save Picture, 8 or 16 Bit (OP4KSR)",
            found_as="Save Picture, 16 bit PNG (OP4KSR)",
            category="image",
            description="Saves PNG files as Save Image does, workflow included, but compressed by all cores at once "
            "(4096 x 4096 px in a fraction of the time), rounded and not cut off, in 16 bits per colour if you like, "
            "and with transparency.",
            search_aliases=["save", "save image", "png", "16 bit", "export", "transparency", "alpha"],
            inputs=[
                io.Image.Input("images", tooltip="The picture(s) to save."),
                io.String.Input(
                    "filename_prefix",
                    default="ComfyUI",
                    tooltip="As in Save Image: a name, folders before it if you like, and %date:yyyy-MM-dd%, %width%, "
                    "%height% or %batch_num%; not other nodes' values.",
                ),
                io.Combo.Input(
                    "bits",
                    options=list(_BITS),
                    default="8",
                    tooltip="Per colour. 16 keeps what editing afterwards needs; the file is larger.",
                ),
                io.Mask.Input(
                    "mask",
                    optional=True,
                    tooltip="Transparency (1 = transparent), as One-Step Upscale gives it; left out of the file where "
                    "nothing is transparent.",
                ),
                advanced(
                    io.Combo.Input(
                        "compression",
                        optional=True,
                        options=list(_COMPRESSION),
                        default="fast",
                        tooltip="fast: run lengths alone; photos are as small as with 6. 0 to 9: zlib's levels, for "
                        "drawings, screenshots, and pictures of 8 bits saved in 16.",
                    )
                ),
            ],
            outputs=[],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo],
            is_output_node=True,
        )

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        return check_prefix(filename_prefix)

    @classmethod
    @checked
    def execute(
        cls, images: Tensor, filename_prefix: str, bits: str, mask: Tensor | None = None, compression: str = "fast"
    ) -> io.NodeOutput:
        texts = _texts(cls.hidden)
        mask = own_mask(images) if mask is None else mask
        height, width = images.shape[1:3]
        place = choose_place(filename_prefix, width, height)
        counter, saved = place.counter, list[Any]()
        for index, picture in enumerate(_pictures(image_to_core(images), mask)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            start = place.start.replace("%batch_num%", str(index))
            with claimed(place.folder, start, counter + index) as (path, number):
                save_image(path, picture, _BITS[bits], _COMPRESSION[compression], texts)
            counter = number - index
            saved.append(ui.SavedResult(path.name, place.subfolder, io.FolderType.output))
        return io.NodeOutput(ui=ui.SavedImages(saved))


def _pictures(colors: Tensor, mask: Tensor | None) -> Iterator[Picture]:
    """One by one; the last mask counts for the pictures that have none of their own."""
    alphas = None if mask is None else 1 - enlarge_mask(mask, colors)
    for index, one in enumerate(colors.split(1)):
        alpha = None if alphas is None else alphas[min(index, len(alphas) - 1)][None, None]
        yield Picture(one, None if alpha is None or bool((alpha >= 1).all()) else alpha)


#: Bytes of all texts in a file. Our choice: half of what Pillow, and with it ComfyUI, reads again.
_TEXT_BYTES = 32_000_000

#: What PNG takes for a keyword: 1 to 79 visible characters of Latin-1, no space around them and no two together.
_KEYWORD = re.compile(r"(?=.{1,79}$)[!-~\xa1-\xff]+( [!-~\xa1-\xff]+)*")


def _texts(hidden: Any) -> dict[str, str]:
    """What Save Image writes into a file, so that it opens as a workflow; nothing with --disable-metadata.

    Raises OptionError for what a client sent in its place.
    """
    if comfy.cli_args.args.disable_metadata or hidden is None:
        return {}
    extra = hidden.extra_pnginfo or {}
    if not isinstance(extra, dict):
        raise refusal("extra_pnginfo", "an object of names and values, as ComfyUI's page sends it", extra)
    values = {**({"prompt": hidden.prompt} if hidden.prompt else {}), **extra}
    texts = {_keyword(key): _json(key, value) for key, value in values.items()}
    if (size := sum(map(len, texts.values()))) > _TEXT_BYTES:
        raise OptionError(
            f"extra_pnginfo: {size:,} bytes with the prompt, at most {_TEXT_BYTES:,} are written into a file; "
            "shorten the texts of the workflow, or start ComfyUI with --disable-metadata"
        )
    return texts


def _keyword(key: Any) -> str:
    if not isinstance(key, str) or not _KEYWORD.fullmatch(key):
        raise refusal("extra_pnginfo", "names that a PNG takes (1 to 79 characters of Latin-1)", key)
    return key


def _json(key: str, value: Any) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:  # bytes, a circle, thousands of levels
        raise OptionError(
            f"extra_pnginfo: '{key}' cannot be written as JSON ({plain(error, 80)}); send another"
        ) from error
