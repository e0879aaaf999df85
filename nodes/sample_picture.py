"""The bundled pictures as a node, so that a template runs with nothing to upload."""

from __future__ import annotations

from comfy_api.latest import io

from ..op4ksr_core.bundled import SAMPLES
from ..op4ksr_core.images.io import load_image
from .host.inputs import checked
from .host.schema import schema
from .host.stages import image_to_host
from .host.widgets import chosen


class SamplePicture(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_SamplePicture",
            display_name="Sample Picture (OP4KSR)",
            category="image",
            description="A picture that comes with the pack, to try things out: a photo, or another with a "
            "32 px grid that was put in on purpose.",
            search_aliases=["sample", "example", "test image", "demo"],
            inputs=[io.Combo.Input("picture", options=list(SAMPLES), tooltip="Which one.")],
            outputs=[io.Image.Output("IMAGE", tooltip="The picture, 1024 x 768 px; with the grid, 640 x 480 px.")],
        )

    @classmethod
    @checked
    def execute(cls, picture: str) -> io.NodeOutput:
        return io.NodeOutput(image_to_host(load_image(chosen("picture", picture, SAMPLES)).image))
