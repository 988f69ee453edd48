"""An RPN head that scores background and object apart, as the original Faster R-CNN does."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.blocks import init_normal


class TwoWayRPNHead(nn.Module):
    """One 3x3 convolution, then two scores and the box regression of every anchor.

    The softmax over a pair of scores is the sigmoid of their difference, and so are both losses; the gradients of the two scores differ
    only in sign. What this head answers is the difference.

    Args:
        in_channels: channels of the features.
        num_anchors: anchors at one location.
        conv_channels: channels of the convolution.
    """

    def __init__(self, in_channels: int, num_anchors: int, conv_channels: int):
        super().__init__()
        self.conv = init_normal(nn.Conv2d(in_channels, conv_channels, 3, padding=1), 0.01)
        self.cls_logits = init_normal(nn.Conv2d(conv_channels, num_anchors * 2, 1), 0.01)
        self.bbox_pred = init_normal(nn.Conv2d(conv_channels, num_anchors * 4, 1), 0.01)

    def forward(self, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Features to objectness logits L x [N, A_l, H, W] and regression L x [N, 4 A_l, H, W]."""
        hidden = self._hidden(features)
        scores = [self.cls_logits(h).float().chunk(2, dim=1) for h in hidden]
        return [foreground - background for background, foreground in scores], [self.bbox_pred(h) for h in hidden]

    def scores(self, features: list[Tensor]) -> list[Tensor]:
        """Both scores of every anchor, those of the background first. L x [N, 2 A_l, H, W]"""
        return [self.cls_logits(h) for h in self._hidden(features)]

    def _hidden(self, features: list[Tensor]) -> list[Tensor]:
        return [F.relu_(self.conv(f)) for f in features]
