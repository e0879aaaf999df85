"""A LoRA on a VAE's encoder: what it adds to each of our tensors.

Names are diffusers', relative to the encoder, as PEFT writes them for a model that is the encoder alone
(``base_model.model.down_blocks.0.resnets.0.conv1.lora_A.weight``), or ours. A convolution's change is B A with A
(rank, in, k, k) and B (out, rank, 1, 1); the attention's is a matrix for diffusers and a 1x1 convolution for us.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from ..errors import UnsupportedCheckpointError
from ..plain_text import plain
from .header import ENCODER_PREFIX, Header
from .layouts import Shape, diffusers_autoencoder_layout
from .lora_parts import LoraContents, LoraModule, lora_contents
from .shards import some_names

if TYPE_CHECKING:
    from .sr_lora import SrLora

_HALF = "encoder."

#: Our names of an encoder's modules, whatever its size.
_OURS = re.compile(r"encoder\.(conv_in|conv_out|down\.\d+(\.\w+)+|mid(\.\w+)+)")


def encoder_changes(found: SrLora | Header, shapes: Mapping[str, Shape]) -> dict[str, Tensor]:
    """{our tensor, ``encoder.down.0.block.0.conv1.weight``: its change, float32, of its shape}, alpha / rank applied.

    found: a one-step LoRA, of which the encoder's half is taken (nothing where it has none), or that half's header.
    shapes: an autoencoder's tensors, by our names. Raises UnsupportedCheckpointError where a tensor of the file finds
    no place or one of another shape, for other kinds than LoRA, and for NaN or infinite numbers.
    """
    header = found if isinstance(found, Header) else found.encoder
    if header is None:
        return {}
    contents = encoder_contents(header)
    places = encoder_places(contents, shapes)
    tensors = contents.read()
    changes: dict[str, Tensor] = {}
    for base, name in places.items():
        product = contents.modules[base].product(tensors[base].__getitem__)
        changes[name] = (contents.scales[base] * product).view(shapes[name])
    return changes


def encoder_contents(header: Header) -> LoraContents:
    """The modules that the file changes, checked without an autoencoder: LoRA alone, and nothing else beside it.

    Raises UnsupportedCheckpointError as ``lora_contents`` does, for other kinds, and for tensors of no kind.
    """
    contents = lora_contents(header)
    if other := sorted([*contents.unknown, *contents.left_out]):
        raise UnsupportedCheckpointError(
            header.path,
            f"holds {len(other)} tensors that are no LoRA of a VAE's encoder ({some_names(other)}); take the file as "
            "its trainer wrote it",
        )
    if other := sorted(base for base in contents.modules if not _OURS.fullmatch(encoder_module(base))):
        raise UnsupportedCheckpointError(
            header.path,
            f"changes {len(other)} modules that no VAE's encoder has ({some_names(other)}); take the file that belongs "
            "to the encoder",
        )
    for base, module in contents.modules.items():
        if module.kinds != ("LoRA",):
            raise UnsupportedCheckpointError(
                header.path,
                f"is {module.kind} ({plain(base)}), which is not applied to a VAE's encoder, where only LoRA is; "
                "choose another LoRA",
            )
    return contents


def encoder_module(base: str) -> str:
    """A module's name -> our name of it in an autoencoder: ``encoder.mid.attn_1.q``."""
    name = _HALF + base.removeprefix(ENCODER_PREFIX).removeprefix(_HALF)
    (ours,) = diffusers_autoencoder_layout([f"{name}.weight"])
    return ours.removesuffix(".weight")


def encoder_places(contents: LoraContents, shapes: Mapping[str, Shape]) -> dict[str, str]:
    """{module: our tensor that it changes}, of the right shape each, and none of them twice.

    Raises UnsupportedCheckpointError, in words for the file.
    """
    places = {base: f"{encoder_module(base)}.weight" for base in contents.modules}
    path = contents.header.path
    if left := sorted(base for base, name in places.items() if len(shapes.get(name, ())) < 2):
        raise UnsupportedCheckpointError(
            path,
            f"{len(left)} of its {len(places)} modules are none of this VAE's encoder ({some_names(left)}); it is for "
            "another VAE: take the one that it was trained on",
        )
    seen: dict[str, str] = {}
    for base, name in places.items():
        if (other := seen.setdefault(name, base)) != base:
            raise UnsupportedCheckpointError(
                path, f"changes one module under two names ({some_names([other, base])}); fetch it again"
            )
        _check_shape(contents.header, contents.modules[base], shapes[name])
    return places


def _check_shape(header: Header, module: LoraModule, weight: Shape) -> None:
    """Refuse factors whose product would have to be cut up otherwise than the weight is."""
    down, rows = module.shapes["down"], module.shapes["up"][0]
    columns = (down[1], 1, 1) if len(down) == 2 and weight[2:] == (1, 1) else down[1:]
    if (rows, *columns) != weight or math.prod(module.shapes["up"][2:]) != 1:
        raise UnsupportedCheckpointError(
            header.path,
            f"is for a VAE of another size: {plain(module.base)} changes {(rows, *columns)}, here it is {weight}; take "
            "the VAE that it was trained on",
        )
