"""The RoI heads together: boxes first, then whatever else a model says of an object."""

from __future__ import annotations

from torch import Tensor, nn

from ...structures.bounding_box import BoxListBatch
from ..poolers import RoIs, is_static
from .box_head import ROIBoxHead
from .keypoint_head import ROIKeypointHead
from .mask_head import ROIMaskHead


class CombinedROIHeads(nn.Module):
    """Box head and, where the model has them, mask and keypoint head.

    Args:
        box: the box head.
        mask: the mask head, or None.
        keypoint: the keypoint head, or None.
    """

    def __init__(self, box: ROIBoxHead, mask: ROIMaskHead | None = None, keypoint: ROIKeypointHead | None = None):
        super().__init__()
        self.box = box
        further = {"mask": mask, "keypoint": keypoint}
        self.has_mask = mask is not None
        self.further = [name for name, head in further.items() if head is not None]
        for name in self.further:
            self.add_module(name, further[name])

    def forward(
        self, features: list[Tensor], proposals: BoxListBatch, targets: BoxListBatch | None = None, keys: Tensor | None = None
    ) -> tuple[Tensor, BoxListBatch, dict[str, Tensor]]:
        """The box head's features, samples or detections, and losses; without targets detections and no losses."""
        x, boxes, losses = self.box(features, proposals, targets, keys)
        heads = [getattr(self, name) for name in self.further]
        if targets is None:
            for head in heads:
                boxes = head(features, boxes)
            return x, boxes, losses
        shared = None
        if any(head.share_box_features for head in heads):
            shared = RoIs.flatten(boxes, is_static(self.box.static_shapes, boxes.boxes.device)).scatter(x)
        for head in heads:
            losses.update(head.losses(features, boxes, self.box.targets.positive_slots(boxes), targets, shared))
        return x, boxes, losses
