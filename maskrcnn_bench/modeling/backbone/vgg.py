"""VGG-16 (Simonyan and Zisserman 2015): the trunk up to conv5_3, and its two fully connected layers as a box head."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import init_normal
from ...layers.linear import Linear
from ...utils.counter import stage_number, uniform
from ..poolers import Pooler, RoIs

_CONVS = (2, 2, 3, 3, 3)  # of each block
_WIDTHS = (1, 2, 4, 8, 8)  # of each block, in channels of the first


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions in five blocks, with pooling between the blocks: a sixteenth of the image's size.

    The layers have the numbers of torchvision's `vgg16().features`.

    Args:
        channels: of the first block; 64 in the paper.
        freeze_at: this many blocks, from the first, are not trained.
    """

    def __init__(self, channels: int = 64, freeze_at: int = 0):
        super().__init__()
        layers: list[nn.Module] = []
        in_channels = 3
        for block, (convs, width) in enumerate(zip(_CONVS, _WIDTHS, strict=True)):
            layers += [nn.MaxPool2d(2)] if block else []
            for _ in range(convs):
                layers += [_conv(in_channels, channels * width, block >= freeze_at), nn.ReLU(inplace=True)]
                in_channels = channels * width
        self.features = nn.Sequential(*layers)
        self.out_channels = in_channels

    def forward(self, x: Tensor) -> list[Tensor]:
        """Images [N, 3, H, W] to one feature map [N, C, H / 16, W / 16]."""
        return [self.features(x)]


def _conv(in_channels: int, out_channels: int, trained: bool) -> nn.Conv2d:
    layer = nn.Conv2d(in_channels, out_channels, 3, padding=1)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    nn.init.zeros_(layer.bias)
    return layer.requires_grad_(trained)


class VGGFeatureExtractor(nn.Module):
    """Pooled features through fc6 and fc7, each with dropout in training.

    Args:
        pooler: pools the RoIs.
        in_channels: channels of the features.
        hidden: width of both layers; 4096 in the paper.
        dropout: probability of a dropped number.
    """

    def __init__(self, pooler: Pooler, in_channels: int, hidden: int, dropout: float = 0.5):
        super().__init__()
        self.pooler = pooler
        self.fc6 = init_normal(Linear(in_channels * pooler.output_size**2, hidden), 0.01)
        self.fc7 = init_normal(Linear(hidden, hidden), 0.01)
        self.dropout = dropout
        self.out_channels = hidden

    def forward(self, features: list[Tensor], rois: RoIs) -> Tensor:
        """[R, hidden]"""
        x = self._dropped(F.relu(self.fc6(self.pooler(features, rois).flatten(1))), rois, "fc6")
        return self._dropped(F.relu(self.fc7(x)), rois, "fc7")

    def _dropped(self, x: Tensor, rois: RoIs, stage: str) -> Tensor:
        """Dropout whose choice depends on image, slot and iteration alone, never on a generator."""
        if rois.keys is None or not self.training:
            return x
        chance = uniform(rois.keys, stage_number(stage), rois.shape[1] * x.shape[1])
        kept = chance.view(-1, x.shape[1])[rois.slots] >= self.dropout
        return torch.where(kept, x / (1 - self.dropout), 0.0)
