"""Regions as bilinear samples on a grid: RoI crop, and the RoIAlign of faster-rcnn.pytorch.

Letters: L levels, N images, C channels, R boxes.
Both read one point at each crossing of a grid laid over the box; they differ in the grid and in what lies outside the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from .level_maps import LevelMaps, as_pooled, check_rois, grid_points, of_level


def roi_crop(
    features: Sequence[Tensor], boxes: Tensor, image_inds: Tensor, levels: Tensor, scales: Sequence[float], height: int, width: int
) -> Tensor:
    """Samples of a grid whose outermost lines are the edges of the box (Spatial Transformer Networks, section 3.3).

    Args:
        features: one map a level, all of one dtype. L x [N, C, H_l, W_l]
        boxes: xyxy, pixels of the image. [R, 4]
        image_inds: which image each box is in. int64 [R]
        levels: which map each box is cut from; -1 is padding and gives zeros. int64 [R]
        scales: map pixels per image pixel. L
        height, width: points of the output.
    Returns:
        In the dtype of the features, summed in float32; pixels outside the map are 0. [R, C, height, width]
    """
    check_rois("roi_crop", features, boxes, image_inds, levels, scales)
    maps = LevelMaps(features, image_inds, levels)
    x1, y1, x2, y2 = _corners(boxes, levels, scales, maps)
    x, y = grid_points(_between(x1, x2, width), _between(y1, y2, height))
    values = maps.bilinear(x, y, x.floor().long(), y.floor().long())
    return as_pooled(values, levels, (height, width), features[0])


def legacy_roi_align(
    features: Sequence[Tensor], boxes: Tensor, image_inds: Tensor, levels: Tensor, scales: Sequence[float], height: int, width: int
) -> Tensor:
    """Averages of 2 x 2 neighbours on a grid of one more point a side, the RoIAlign of faster-rcnn.pytorch.

    The grid has steps of 1 / `width` of the box's width with the last pixel counted, so its last line lies one pixel outside. Points
    outside the map are 0; those in its last pixel's outer half follow the slope of the last two pixels.
    Arguments and result as those of `roi_crop`.
    """
    check_rois("legacy_roi_align", features, boxes, image_inds, levels, scales)
    maps = LevelMaps(features, image_inds, levels)
    x1, y1, x2, y2 = _corners(boxes, levels, scales, maps)
    x, y = grid_points(_steps(x1, x2, width), _steps(y1, y2, height))
    inside = (x >= 0) & (x < maps.widths) & (y >= 0) & (y < maps.heights)
    left = torch.minimum(x.floor().long(), maps.widths - 2)
    top = torch.minimum(y.floor().long(), maps.heights - 2)
    values = torch.where(inside[..., None], maps.bilinear(x, y, left, top), 0.0)
    samples = as_pooled(values, levels, (height + 1, width + 1), features[0])
    return F.avg_pool2d(samples, kernel_size=2, stride=1)


def _corners(boxes: Tensor, levels: Tensor, scales: Sequence[float], maps: LevelMaps) -> tuple[Tensor, ...]:
    """x1, y1, x2, y2 in map pixels, the point 0 for padding. [R, 1] each"""
    scaled = boxes.to(maps.table.dtype) * of_level([float(s) for s in scales], levels)[:, None]
    return torch.where((levels >= 0)[:, None], scaled, 0.0).split(1, dim=1)


def _between(low: Tensor, high: Tensor, points: int) -> Tensor:
    """Evenly spaced from `low` to `high`, both included; the middle for one point. [R, points]"""
    step = torch.arange(points, device=low.device, dtype=low.dtype) / max(points - 1, 1)
    return low + (high - low) * (step if points > 1 else step + 0.5)


def _steps(low: Tensor, high: Tensor, steps: int) -> Tensor:
    """From `low` on in steps of the inclusive length over `steps`. [R, steps + 1]"""
    step = (high - low + 1).clamp(min=0) / steps
    return low + step * torch.arange(steps + 1, device=low.device, dtype=low.dtype)
