"""Operators and small layers; importing this package makes `torch.ops.maskrcnn_bench` exist."""

from .decode_boxes import decode_boxes
from .deform_psroi_pool import DeformPSROIPool
from .mask_targets import bitmap_targets, polygon_targets
from .match import match
from .nms import batched_nms_keep, nms
from .roi_align import ROIAlign, roi_align
from .roi_pool import ROIPool
from .sigmoid_focal_loss import SigmoidFocalLoss, sigmoid_focal_loss

__all__ = [
    "DeformPSROIPool",
    "ROIAlign",
    "ROIPool",
    "SigmoidFocalLoss",
    "batched_nms_keep",
    "bitmap_targets",
    "decode_boxes",
    "match",
    "nms",
    "polygon_targets",
    "roi_align",
    "sigmoid_focal_loss",
]
