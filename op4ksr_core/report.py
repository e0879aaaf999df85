"""stub"""

from __future__ import annotations

from PIL import Image
from torch import Tensor

from .periodicity import PeriodicityReport


def draw_report(image: Tensor, report: PeriodicityReport, reference: Tensor | None = None) -> Image.Image:
    raise NotImplementedError
