"""Mask head: a small mask for each object (Mask R-CNN)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...layers.mask_targets import bitmap_targets, polygon_targets
from ...structures.bounding_box import BoxListBatch
from ...structures.segmentation_mask import PackedMasks
from ..losses import binary_cross_entropy, count
from ..poolers import RoIs, is_static
from .positives import PositivesHead, init_fan_out, require_side


class MaskDeconvPredictor(nn.Module):
    """Doubles the size with a transposed convolution, then one mask a class.

    Args:
        in_channels: channels of the features.
        hidden: channels after the transposed convolution.
        num_classes: K, background included; 2 when masks don't depend on the class.
    """

    def __init__(self, in_channels: int, hidden: int, num_classes: int):
        super().__init__()
        self.conv5_mask = nn.ConvTranspose2d(in_channels, hidden, 2, 2)
        self.mask_fcn_logits = nn.Conv2d(hidden, num_classes, 1)
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, h, w] to logits [R, K, 2h, 2w]"""
        return self.mask_fcn_logits(F.relu_(self.conv5_mask(x)))


class MaskConv1x1Predictor(nn.Module):
    """One mask a class at the size of the features."""

    def __init__(self, in_channels: int, num_classes: int):
        super().__init__()
        self.mask_fcn_logits = nn.Conv2d(in_channels, num_classes, 1)
        init_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        """[R, C, h, w] to logits [R, K, h, w]"""
        return self.mask_fcn_logits(x)


def clamped_frames(boxes: Tensor, sizes: Tensor, resolution: int) -> Tensor:
    """Where polygons move: the box cut to the image, at least one pixel large (Detectron's habit).

    Args:
        boxes: xyxy, pixels. [R, 4]
        sizes: (width, height) of each box's image. [R, 2]
        resolution: side of the target mask.
    Returns:
        (x0, y0, scale_x, scale_y): vertex to ((x - x0) * scale_x, (y - y0) * scale_y). [R, 4]
    """
    low = torch.minimum(boxes[:, :2].clamp(min=0), sizes - 1)
    high = torch.minimum(boxes[:, 2:].clamp(min=0), sizes)
    return torch.cat([low, resolution / (high - low).clamp(min=1)], dim=1)


def exact_frames(boxes: Tensor, sizes: Tensor, resolution: int) -> Tensor:
    """Where polygons move: the box as it is, at least a tenth of a pixel large. Arguments and result as `clamped_frames`."""
    return torch.cat([boxes[:, :2], resolution / (boxes[:, 2:] - boxes[:, :2]).clamp(min=0.1)], dim=1)


@dataclass(frozen=True)
class PolygonTarget:
    """Targets drawn from polygons that move into the box's frame; objects that are bitmaps are resampled there, half covered or more.

    Args:
        frames: where polygons move, (boxes [R, 4], sizes [R, 2], resolution) -> [R, 4].
    """

    frames: Callable[[Tensor, Tensor, int], Tensor]

    def __call__(self, masks: PackedMasks, boxes: Tensor, sizes: Tensor, objects: Tensor, resolution: int) -> Tensor:
        frames = self.frames(boxes, sizes, resolution)
        out = polygon_targets(masks.vertices, masks.ring_offsets, masks.object_offsets, frames, objects, resolution).float()
        return out if masks.bitmaps is None else torch.maximum(out, half_covered(masks, boxes, sizes, objects, resolution))


def half_covered(masks: PackedMasks, boxes: Tensor, sizes: Tensor, objects: Tensor, resolution: int) -> Tensor:
    """Targets resampled from bitmaps: 1 where at least half of the cell is covered."""
    return (bitmap_targets(*_bitmaps(masks), boxes, objects, resolution) >= 0.5).float()


def soft_cover(masks: PackedMasks, boxes: Tensor, sizes: Tensor, objects: Tensor, resolution: int) -> Tensor:
    """Targets resampled from bitmaps half a pixel further, at least a pixel large: how much of the cell is covered, 0 to 1."""
    high = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    return bitmap_targets(*_bitmaps(masks), torch.cat([boxes[:, :2], high], dim=1) + 0.5, objects, resolution)


def _bitmaps(masks: PackedMasks) -> tuple[Tensor, Tensor]:
    if masks.bitmaps is None:
        raise ValueError("these mask targets need ground truth as bitmaps: convert('mask') the SegmentationMasks before they are batched")
    return masks.bitmaps, masks.geometry


MaskTarget = Callable[[PackedMasks, Tensor, Tensor, Tensor, int], Tensor]
MASK_TARGETS: dict[str, MaskTarget] = {
    "clamped": PolygonTarget(clamped_frames),
    "exact": PolygonTarget(exact_frames),
    "half_covered": half_covered,
    "soft_cover": soft_cover,
}
"""How the target of a mask is made: (masks, boxes xyxy pixels [R, 4], image sizes [R, 2], objects [R] or -1, S) -> [R, S, S]."""


def own_masks(logits: Tensor, labels: Tensor) -> Tensor:
    """The mask of each box's class; where there are only two, the second is that of objects of any class. [R, K, S, S] -> [R, S, S]"""
    if logits.shape[1] == 2:
        labels = labels.clamp(max=1)
    return logits[torch.arange(len(logits), device=logits.device), labels]


class MaskLoss:
    """Binary cross-entropy of the mask of the object's class, over positives.

    Args:
        resolution: side S of the masks.
        make_targets: a function of MASK_TARGETS.
    """

    def __init__(self, resolution: int, make_targets: MaskTarget):
        self.resolution = resolution
        self.make_targets = make_targets

    def __call__(self, logits: Tensor, rois: RoIs, samples: BoxListBatch, targets: BoxListBatch) -> dict[str, Tensor]:
        """The loss, divided by positives and pixels.

        Args:
            logits: [R, K, S, S]
            rois: the positive samples in one list.
            samples: with fields `labels` and `matched_inds`.
            targets: ground truth with masks.
        Raises:
            ValueError: when the ground truth has no masks, or the logits are not as large as its targets.
        """
        require_side(logits, self.resolution, "MODEL.ROI_MASK_HEAD.RESOLUTION")
        wanted = self.targets(rois, rois.take(samples.get_field("matched_inds")), targets)
        own = own_masks(logits, rois.take(samples.get_field("labels")))
        loss = binary_cross_entropy(own, wanted, rois.valid)
        return {"loss_mask": loss / (count(rois.valid) * self.resolution**2)}

    @torch.no_grad()
    def targets(self, rois: RoIs, matched_inds: Tensor, targets: BoxListBatch) -> Tensor:
        """The object's mask in each RoI, 0 to 1. [R, S, S]

        Raises:
            ValueError: when the ground truth has no masks.
        """
        masks = targets.packed_masks
        if masks is None:
            raise ValueError("the mask head needs ground truth with masks; set MODEL.MASK_ON False for a data set without them")
        objects = torch.where(rois.valid, rois.image_inds * targets.valid.shape[1] + matched_inds, -1)
        return self.make_targets(masks, rois.boxes, targets.sizes[rois.image_inds], objects, self.resolution)


class ROIMaskHead(PositivesHead):
    """The mask head."""

    def forward(self, features: list[Tensor], detections: BoxListBatch) -> BoxListBatch:
        """Detections with the field `mask`: probabilities of the mask of their class. [N, D, 1, S, S]"""
        rois = RoIs.flatten(detections, is_static(self.static_shapes, detections.boxes.device))
        return add_masks(detections, rois, self.probabilities(features, rois, rois.take(detections.get_field("labels"))))

    def probabilities(self, features: list[Tensor], rois: RoIs, labels: Tensor) -> Tensor:
        """The mask of each RoI for its label [R]. [R, S, S]"""
        logits = self.predictor(self.feature_extractor(features, rois))
        return own_masks(logits, labels).float().sigmoid()


def add_masks(detections: BoxListBatch, rois: RoIs, probabilities: Tensor) -> BoxListBatch:
    """Detections with the field `mask` [N, D, 1, S, S] from the masks of their RoIs [R, S, S]."""
    probabilities = torch.where(rois.valid[:, None, None, None], probabilities[:, None], 0.0)
    detections.add_field("mask", rois.scatter(probabilities))
    return detections
