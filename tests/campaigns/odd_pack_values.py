"""Which odd values of ``odd_pack`` exist, and which of them an input may take."""

from __future__ import annotations

import re
from pathlib import Path

#: The names, read without PyTorch.
ODD_VALUES = re.findall(
    r'^    "(\w+)": ', (Path(__file__).parent / "odd_pack" / "__init__.py").read_text("utf-8"), re.M
)

_TEXTS = {"empty_text", "text", "number_as_text", "surrogate", "escape", "nul", "long_text"}
_PICTURES = {
    "image",
    "image_half",
    "image_grey",
    "image_rgba",
    "image_of_one_pixel",
    "image_below_zero",
    "image_255",
    "image_double",
    "image_transposed",
}

#: An input's type -> values that may pass, where its range and its use allow them; all others must be refused.
MAY_PASS: dict[str, frozenset[str]] = {
    "INT": frozenset({"zero", "minus_one", "numpy_int"}),
    "FLOAT": frozenset({"zero", "minus_one", "numpy_int", "half", "fraction"}),
    "STRING": frozenset(_TEXTS),
    "BOOLEAN": frozenset({"true", "zero"}),
    "IMAGE": frozenset({*_PICTURES, "mask_last_channel"}),
    "MASK": frozenset({"mask", "mask_2d", "mask_4d", "image_3d", "image_of_one_pixel"}),
    "CONDITIONING": frozenset({"conditioning_guidance_none"}),
}
