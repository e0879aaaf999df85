"""Small seeded upscale models, as files that the host's Load Upscale Model reads, and as what other packs may give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import folder_paths
import harness
import torch
from safetensors.torch import save_file
from spandrel.architectures.Compact import Compact
from spandrel.architectures.DnCNN import DnCNN
from spandrel.architectures.ESRGAN import ESRGAN
from spandrel.architectures.SPAN import SPAN
from spandrel.architectures.SwinIR import SwinIR
from torch import Tensor, nn

FOLDER = harness.FOLDER / "upscale_models"
FOLDER.mkdir()
folder_paths.add_model_folder_path("upscale_models", str(FOLDER))

_SWIN: dict[str, Any] = {
    "embed_dim": 12,
    "depths": [2],
    "num_heads": [2],
    "window_size": 8,
    "upsampler": "pixelshuffle",
}

#: By name, how each is made.
MAKERS: dict[str, Callable[[], nn.Module]] = {
    "esrgan_x4": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=4),
    "esrgan_x2": lambda: ESRGAN(num_filters=8, num_blocks=1, scale=2),
    "span_x4": lambda: SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4),
    "compact_x2": lambda: Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=2),
    "compact_x1": lambda: Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=1),
    "compact_x8": lambda: Compact(num_in_ch=3, num_out_ch=3, num_feat=8, num_conv=2, upscale=8),
    "grey_x2": lambda: Compact(num_in_ch=1, num_out_ch=1, num_feat=8, num_conv=2, upscale=2),
    "four_x2": lambda: Compact(num_in_ch=4, num_out_ch=4, num_feat=8, num_conv=2, upscale=2),
    "swinir_x2": lambda: SwinIR(upscale=2, **_SWIN),
    "dncnn_grey": lambda: DnCNN(in_nc=1, out_nc=1, nc=8, nb=8, act_mode="R"),
}


def made(name: str, seed: int = 0) -> nn.Module:
    """Of a strength that shows, and mostly stays within 0 to 1."""
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False), torch.no_grad():
        torch.manual_seed(seed)
        model = MAKERS[name]().eval().requires_grad_(False)
        if isinstance(model, SPAN):
            model.upsampler[0].weight.mul_(0.01)
            model.upsampler[0].bias.add_(0.5)
        if isinstance(model, ESRGAN):
            model.model[-1].weight.mul_(3)
            model.model[-1].bias.add_(0.4)
        return model


def load(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """A model of the host's, read from a file that was written for it."""
    file = f"{name}_{str(dtype)[6:]}.safetensors"
    if not (FOLDER / file).exists():
        state = {key: tensor.to(dtype).contiguous() for key, tensor in made(name).state_dict().items()}
        save_file(state, FOLDER / file)
    return harness.run("UpscaleModelLoader", file)[0]


def by_host(upscale_model: Any, image: Tensor) -> Tensor:
    """The host's own Upscale Image (using Model)."""
    return harness.run("ImageUpscaleWithModel", upscale_model, image)[0].float()


class Foreign:
    """What another pack may give in place of the host's: a function and its factor, and no more than is asked of it."""

    def __init__(self, scale: Any, works: Callable[[Tensor], Any], model: nn.Module | None = None) -> None:
        self.scale, self.works, self.model = scale, works, model or nn.Identity()
        self.moves: list[str] = []

    def to(self, device: Any) -> Foreign:
        self.moves.append(str(device))
        return self

    def __call__(self, picture: Tensor) -> Any:
        return self.works(picture)
