"""The periodicity meter and the suppressor as nodes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ..op4ksr_core.periodicity.drawing import colours
from ..op4ksr_core.periodicity.meter import measure_each
from ..op4ksr_core.periodicity.report import PeriodicityReport
from ..op4ksr_core.periodicity.report_picture import draw_report
from ..op4ksr_core.periodicity.suppress import for_8_bit, suppress_with_report
from ..op4ksr_core.periodicity.thresholds import ALARM_RATE
from ..op4ksr_core.plain_text import plain_logger
from .host.inputs import checked
from .host.schema import advanced, schema
from .host.stages import image_to_core, image_to_host

log = plain_logger(__name__)


def _inputs(image: str, own: io.Input) -> list[Any]:
    """What both nodes take, around an input of a node's own. image: that input's tooltip."""
    return [
        io.Image.Input("image", tooltip=image),
        io.Image.Input(
            "reference",
            optional=True,
            tooltip="What the picture was made from (the small one before upscaling): what is in it already "
            "is not blamed.",
        ),
        own,
        advanced(
            io.Float.Input(
                "alarm_rate",
                default=ALARM_RATE,
                min=0.0001,
                max=0.5,
                step=0.001,
                round=False,
                tooltip="Alarm where fewer than this share of clean pictures would look as periodic: "
                "0.01 is one in 100.",
            )
        ),
    ]


class PeriodicityDiagnostic(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_PeriodicityDiagnostic",
            display_name="Is There a Grid? (OP4KSR)",
            found_as="Grid, Stripes, Banding: Is There One? (OP4KSR)",
            category="image/analysis",
            description="Measures whether a picture has a periodic artifact (grid, mesh, stripes), where, how strong "
            "and of which period, with a false-alarm rate. For any picture from any model.",
            search_aliases=["grid", "mesh", "stripes", "banding", "periodic", "artifact", "pattern", "autocorrelation"],
            is_output_node=True,
            inputs=_inputs(
                "The picture(s) to look at.",
                io.Int.Input(
                    "token_size",
                    default=32,
                    min=0,
                    max=256,
                    tooltip="Pixels per token, to give the period in tokens: 32 with a 16x VAE, 16 with an 8x one; "
                    "0: unknown. It does not change what is found.",
                ),
            ),
            outputs=[
                io.Image.Output("REPORT", tooltip="One picture that says it all; it shows in the node too."),
                io.Image.Output("HEATMAP", tooltip="Where: dark is clean, bright is periodic; of the picture's size."),
                io.Mask.Output("MASK", tooltip="The affected area, 0 to 1."),
                io.Float.Output("SCORE", tooltip="0 and up; 2 is what one clean picture in 100 reaches. Of the worst."),
                io.Float.Output("PERIOD", tooltip="In px, of the worst picture; 0 where none was found."),
                io.String.Output("VERDICT", tooltip="One sentence per picture."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, image: Tensor, token_size: int = 32, reference: Tensor | None = None, alarm_rate: float = ALARM_RATE
    ) -> io.NodeOutput:
        pictures, before = image_to_core(image), None if reference is None else image_to_core(reference)
        reports = measure_each(pictures, before, alarm_rate=alarm_rate, token=token_size or None)
        sheets = _stacked([_to_tensor(draw_report(pictures, report, before)) for report in reports])
        heat = torch.cat([_heat(report, pictures.shape[-2:]) for report in reports])
        coloured = torch.stack([_to_tensor(colours(one[0])) for one in heat])
        worst = max(reports, key=lambda report: report.score)
        verdict = "\n".join(report.verdict for report in reports)
        for report in reports:
            log.info("%s", report.verdict)
        shown = {**ui.PreviewImage(sheets, cls=cls).as_dict(), **ui.PreviewText(verdict).as_dict()}
        period = max((length for length in worst.period if length), default=0.0)
        return io.NodeOutput(sheets, coloured, heat[:, 0], worst.score, period, verdict, ui=shown)


class SuppressPeriodicity(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return schema(
            node_id="OP4KSR_SuppressPeriodicity",
            display_name="Remove the Grid (OP4KSR)",
            found_as="Remove Grid, Stripes, Banding (OP4KSR)",
            category="image/postprocessing",
            description="Takes a periodic artifact (grid, mesh, stripes) out of a picture again, where it is, without "
            "a model. Leaves clean pictures as they are, and says so.",
            search_aliases=["remove grid", "mesh", "stripes", "banding", "descreen", "moire", "periodic", "artifact"],
            is_output_node=True,
            inputs=_inputs(
                "The picture(s) to clean.",
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of what was found that is taken out; 0 changes nothing.",
                ),
            ),
            outputs=[
                io.Image.Output("IMAGE", tooltip="The cleaned picture(s); the same where nothing was found."),
                io.Mask.Output("MASK", tooltip="Where something was changed; 1 from one grey level on."),
                io.String.Output("NOTE", tooltip="What was done, or why nothing was."),
            ],
        )

    @classmethod
    @checked
    def execute(
        cls, image: Tensor, strength: float = 1.0, reference: Tensor | None = None, alarm_rate: float = ALARM_RATE
    ) -> io.NodeOutput:
        before = None if reference is None else image_to_core(reference)
        done = suppress_with_report(image_to_core(image), before, strength, alarm_rate=alarm_rate)
        for line in done.note.splitlines():
            log.info("%s", line)
        cleaned = image_to_host(for_8_bit(done.image, image_to_core(image))) if done.acted else image[..., :3]
        if image.shape[-1] == 4:
            cleaned = torch.cat((cleaned, image[..., 3:]), dim=-1)
        return io.NodeOutput(cleaned, done.mask[:, 0], done.note, ui=ui.PreviewText(done.note))


def _to_tensor(picture: Image.Image) -> Tensor:
    """Pillow -> (H, W, 3) in [0, 1]."""
    return torch.from_numpy(np.asarray(picture.convert("RGB"), dtype=np.float32) / 255)


def _stacked(sheets: list[Tensor]) -> Tensor:
    """Report pictures of one width as a batch; white below the lower ones."""
    height = max(sheet.shape[0] for sheet in sheets)
    return torch.stack([F.pad(sheet, (0, 0, 0, 0, 0, height - sheet.shape[0]), value=1.0) for sheet in sheets])


def _heat(report: PeriodicityReport, size: tuple[int, int]) -> Tensor:
    """(1, 1, H, W) of the picture's size."""
    return F.interpolate(report.heatmap, size, mode="bilinear", align_corners=False).clamp(0, 1)
