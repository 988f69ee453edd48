"""Operators and small layers; importing this package makes `torch.ops.maskrcnn_bench` exist."""

from .mask_targets import bitmap_targets, polygon_targets
from .nms import batched_nms_keep, nms
from .roi_align import ROIAlign, roi_align

__all__ = ["ROIAlign", "batched_nms_keep", "bitmap_targets", "nms", "polygon_targets", "roi_align"]
