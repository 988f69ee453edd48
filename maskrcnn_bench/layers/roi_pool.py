"""RoI max pooling (Fast R-CNN, section 2.1) over all levels of a feature pyramid.

Letters: L levels, N images, C channels, R boxes.
The corners of a box are rounded to map pixels, which both belong to it; its bins are cut at whole pixels and may overlap by one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from . import _ops
from .level_maps import check_rois


def roi_pool(
    features: Sequence[Tensor], boxes: Tensor, image_inds: Tensor, levels: Tensor, scales: Sequence[float], height: int, width: int
) -> Tensor:
    """The maximum of each bin of each box, on the level that the box belongs to.

    Args:
        features: one map a level, all of one dtype. L x [N, C, H_l, W_l]
        boxes: xyxy, pixels of the image. [R, 4]
        image_inds: which image each box is in. int64 [R]
        levels: which map each box is cut from; -1 is padding and gives zeros. int64 [R]
        scales: map pixels per image pixel. L
        height, width: bins of the output.
    Returns:
        In the dtype of the features; 0 for a bin outside the map. [R, C, height, width]
    """
    import torchvision  # noqa: F401  (defines torch.ops.torchvision)

    check_rois("roi_pool", features, boxes, image_inds, levels, scales)
    wide = torch.float64 if features[0].dtype == torch.float64 else torch.float32
    rois = torch.cat([image_inds[:, None].to(wide), boxes.to(wide)], dim=1)
    out = 0.0
    for level, (feature, scale) in enumerate(zip(features, scales, strict=True)):
        chosen = levels == level
        # Boxes of other levels become one pixel, so that they cost next to nothing.
        own = torch.where(chosen[:, None], rois, 0.0)
        pooled = torch.ops.torchvision.roi_pool(feature.to(wide).contiguous(), own, scale, height, width)[0]
        out = out + torch.where(chosen[:, None, None, None], pooled, 0.0)
    return out.to(features[0].dtype)


class ROIPool(nn.Module):
    """RoI max pooling of one map, with the arguments of maskrcnn-benchmark's layer.

    Args:
        output_size: bins, (height, width).
        spatial_scale: map pixels per image pixel.
    """

    def __init__(self, output_size: tuple[int, int], spatial_scale: float):
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale

    def forward(self, input: Tensor, rois: Tensor) -> Tensor:
        """Map [N, C, H, W] and (image index, x1, y1, x2, y2) [R, 5], pixels of the image, to [R, C, height, width]."""
        _ops.check_shape("ROIPool", "rois", rois, "R", 5)
        image_inds = rois[:, 0].long()
        return roi_pool([input], rois[:, 1:], image_inds, torch.zeros_like(image_inds), [self.spatial_scale], *self.output_size)

    def extra_repr(self) -> str:
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}"
