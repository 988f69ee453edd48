"""The RoI heads together: boxes first, then whatever else a model says of an object."""

from __future__ import annotations

from torch import Tensor, nn

from ...structures.bounding_box import BoxListBatch
from ..poolers import RoIs, is_static
from .box_head import ROIBoxHead
from .mask_head import ROIMaskHead


class CombinedROIHeads(nn.Module):
    """Box head and, where the model has one, mask head.

    Args:
        box: the box head.
        mask: the mask head, or None.
    """

    def __init__(self, box: ROIBoxHead, mask: ROIMaskHead | None = None):
        super().__init__()
        self.box = box
        if mask is not None:
            self.mask = mask
        self.has_mask = mask is not None

    def forward(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, BoxListBatch, dict[str, Tensor]]:
        """The box head's features, samples or detections, and losses; without targets detections and no losses."""
        x, boxes, losses = self.box(features, proposals, targets, keys)
        if not self.has_mask:
            return x, boxes, losses
        if targets is None:
            return x, self.mask(features, boxes), losses
        shared = None
        if self.mask.share_box_features:
            shared = RoIs.flatten(boxes, is_static(self.box.static_shapes, boxes.boxes.device)).scatter(x)
        losses.update(self.mask.losses(features, boxes, self.box.targets.positive_slots(boxes), targets, shared))
        return x, boxes, losses
