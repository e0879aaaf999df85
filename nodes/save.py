"""Saving pictures: rounded, 8 or 16 bits per colour, as fast as all cores compress; the workflow is in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import comfy.cli_args
import comfy.model_management
import folder_paths
from comfy_api.latest import io, ui
from torch import Tensor

from ..op4ksr_core.images.io import Picture, save_image
from ..op4ksr_core.one_step import check_image
from .host.schema import advanced, schema
from .host.stages import image_to_core
from .host.widgets import chosen
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
    def execute(
        cls, images: Tensor, filename_prefix: str, bits: str, mask: Tensor | None = None, compression: str = "fast"
    ) -> io.NodeOutput:
        depth, level = chosen("bits", bits, _BITS), chosen("compression", compression, _COMPRESSION)
        colors = image_to_core(images)
        check_image(colors)
        mask = own_mask(images) if mask is None else mask
        height, width = colors.shape[-2:]
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(
            dated(filename_prefix, datetime.now()), folder_paths.get_output_directory(), width, height
        )
        saved: list[Any] = []
        texts = _texts(cls.hidden)
        for index, picture in enumerate(_pictures(colors, mask)):
            comfy.model_management.throw_exception_if_processing_interrupted()
            start = name.replace("%batch_num%", str(index))
            while (Path(folder) / (file := f"{start}_{counter + index:05}_.png")).exists():
                counter += 1  # the host looks for names with %batch_num% as it is, and counts none
            save_image(Path(folder) / file, picture, depth, level, texts)
            saved.append(ui.SavedResult(file, subfolder, io.FolderType.output))
        return io.NodeOutput(ui=ui.SavedImages(saved))


#: %date:FORMAT%, or %date% alone; and what stands for a part of the date, as ComfyUI's page has it.
_DATE, _PART = re.compile(r"%date(?::([^%]*))?%"), re.compile(r"yyyy|yy|MM?|dd?|hh?|mm?|ss?")


def dated(prefix: str, now: datetime) -> str:
    """The prefix with its dates filled in, which ComfyUI's page does for Save Image alone."""
    values = {"y": now.year, "M": now.month, "d": now.day, "h": now.hour, "m": now.minute, "s": now.second}

    def part(found: re.Match[str]) -> str:
        word, value = found.group(), values[found.group()[0]]
        return f"{value % 100:02}" if word == "yy" else f"{value:0{len(word)}}"

    return _DATE.sub(lambda found: _PART.sub(part, found.group(1) or "yyyyMMddhhmmss"), prefix)


def _pictures(colors: Tensor, mask: Tensor | None) -> Iterator[Picture]:
    """One by one; the last mask counts for the pictures that have none of their own."""
    alphas = None if mask is None else 1 - enlarge_mask(mask, colors)
    for index, one in enumerate(colors.split(1)):
        alpha = None if alphas is None else alphas[min(index, len(alphas) - 1)][None, None]
        yield Picture(one, None if alpha is None or bool((alpha >= 1).all()) else alpha)


def _texts(hidden: Any) -> dict[str, str]:
    """What Save Image writes into a file, so that it opens as a workflow; nothing with --disable-metadata."""
    if comfy.cli_args.args.disable_metadata or hidden is None:
        return {}
    texts = {"prompt": hidden.prompt} if hidden.prompt else {}
    return {key: json.dumps(value) for key, value in {**texts, **(hidden.extra_pnginfo or {})}.items()}
