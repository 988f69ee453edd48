"""Cascade Mask R-CNN as in mmdetection: each stage of the cascade has a mask head of its own, and of their masks the mean counts."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...structures.bounding_box import BoxListBatch
from ..poolers import RoIs, is_static
from .cascade import CascadeBoxHead
from .mask_head import MaskLoss, ROIMaskHead, add_masks
from .roi_heads import CombinedROIHeads


class CascadeMaskHead(nn.Module):
    """Mask heads, one a stage.

    Args:
        stages: the heads.
        loss_weights: factors of their losses.
        static_shapes: "auto", True or False.
    """

    share_box_features = False

    def __init__(self, stages: Sequence[ROIMaskHead], loss_weights: Sequence[float], static_shapes: str | bool):
        super().__init__()
        self.stages = nn.ModuleList(stages)
        self.loss_weights = list(loss_weights)
        self.static_shapes = static_shapes

    @property
    def loss(self) -> MaskLoss:
        """The loss, the same in every stage."""
        return self.stages[0].loss

    def losses(
        self, features: list[Tensor], samples: Sequence[BoxListBatch], positive_slots: Sequence[int], targets: BoxListBatch
    ) -> dict[str, Tensor]:
        """The loss of each stage over the positives among its samples; arguments as those of ROIMaskHead, `samples` and `positive_slots`
        with one entry a stage.
        """
        out = {}
        for k, (head, drawn, slots) in enumerate(zip(self.stages, samples, positive_slots, strict=True)):
            out[f"loss_mask_stage{k}"] = self.loss_weights[k] * head.losses(features, drawn, slots, targets)["loss_mask"]
        return out

    def forward(self, features: list[Tensor], detections: BoxListBatch) -> BoxListBatch:
        """Detections with the field `mask`, the mean of the stages' probabilities. [N, D, 1, S, S]"""
        rois = RoIs.flatten(detections, is_static(self.static_shapes, detections.boxes.device))
        labels = rois.take(detections.get_field("labels"))
        masks = torch.stack([head.probabilities(features, rois, labels) for head in self.stages]).mean(dim=0)
        return add_masks(detections, rois, masks)


class CascadeROIHeads(CombinedROIHeads):
    """A cascade of boxes whose stages have masks as well.

    Args:
        box: the box heads.
        mask: the mask heads.
    """

    box: CascadeBoxHead
    mask: CascadeMaskHead

    def forward(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, BoxListBatch, dict[str, Tensor]]:
        """As CombinedROIHeads; features and samples are those of the first stage."""
        if targets is None:
            return super().forward(features, proposals)
        x, samples, losses = self.box.learn(features, proposals, targets, keys)
        slots = [self.box.targets.positive_slots(drawn) for drawn in samples]
        return x, samples[0], losses | self.mask.losses(features, samples, slots, targets)
