"""Greedy non-maximum suppression.

Letters: B independent rows (images, levels, classes), R boxes a row, n boxes of one image.
"""

import math

import torch
from torch import Tensor

from . import _ops


def batched_nms_keep(
    boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int = -1
) -> Tensor:
    """Suppresses within each row; fixed shapes, no wait for the device.

    Args:
        boxes: xyxy, pixels. [B, R, 4]
        scores: any order; of equal scores the lower index comes first. [B, R]
        valid: False for padding, which neither is kept nor drops others. [B, R]
        threshold: a box is dropped when its IoU with a kept box is above this.
        pixel: what the width of a box adds to x2 - x1 (1 or 0).
        max_keep: stop a row after so many; negative: no limit.

    Returns:
        Whether each box is kept. bool [B, R]
    """
    _ops.check_shape("nms", "scores", scores, "B", "R")
    rows, size = scores.shape
    _ops.check_shape("nms", "boxes", boxes, rows, size, 4)
    _ops.check_shape("nms", "valid", valid, rows, size)
    return torch.ops.maskrcnn_bench.nms(boxes, scores, valid, threshold, pixel, max_keep)


def nms(boxes: Tensor, scores: Tensor, threshold: float, pixel: float = 1) -> Tensor:
    """Suppresses boxes of one image that overlap a better one.

    Args:
        boxes: xyxy, pixels. [n, 4]
        scores: [n]
        threshold: largest IoU that two kept boxes may have.
        pixel: what the width of a box adds to x2 - x1 (1 or 0).

    Returns:
        Indices of the kept boxes by descending score. int64 [kept]
    """
    _ops.check_shape("nms", "boxes", boxes, "n", 4)
    _ops.check_shape("nms", "scores", scores, boxes.shape[0])
    valid = torch.ones_like(scores, dtype=torch.bool)
    keep = batched_nms_keep(boxes[None], scores[None], valid[None], threshold, pixel)[0]
    kept = keep.nonzero()[:, 0]
    return kept[scores[kept].sort(descending=True, stable=True).indices]


def _float_below(threshold: float) -> float:
    """The largest float32 that is not above a double: comparing float32 numbers with it decides as with the double."""
    nearest = torch.tensor(threshold, dtype=torch.float32)
    if nearest.item() > threshold:
        nearest = torch.nextafter(nearest, torch.tensor(-math.inf))
    return nearest.item()


def _nms_torch(
    boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int
) -> Tensor:
    keep = torch.zeros_like(valid)
    order = torch.where(valid, scores.float(), -math.inf).sort(dim=1, descending=True, stable=True).indices
    # Valid boxes may have a score of -inf as well; a second stable sort brings them before the padding.
    order = order.gather(1, valid.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    # One row at a time: the matrix of overlaps is what costs memory.
    for row in range(scores.shape[0]):
        places = order[row]
        kept = _greedy(boxes[row, places].float(), valid[row, places], _float_below(threshold), pixel)
        if max_keep >= 0:
            kept &= kept.cumsum(0) <= max_keep
        keep[row, places] = kept
    return keep


def _greedy(boxes: Tensor, alive: Tensor, threshold: float, pixel: float) -> Tensor:
    """boxes [R, 4] and alive [R] by descending score -> kept [R]; R steps of fixed shape."""
    kept = alive.clone()
    sizes = boxes[:, 2:] - boxes[:, :2] + pixel
    areas = sizes[:, 0] * sizes[:, 1]
    for i in range(boxes.shape[0]):
        later = slice(i + 1, None)
        corners = torch.minimum(boxes[i, 2:], boxes[later, 2:]) - torch.maximum(boxes[i, :2], boxes[later, :2])
        sides = (corners + pixel).clamp(min=0)
        intersections = sides[:, 0] * sides[:, 1]
        unions = areas[i] + areas[later] - intersections
        ious = torch.where(unions > 0, intersections / unions, 0)
        kept[later] &= ~((ious > threshold) & kept[i])
    return kept


def _nms_torchvision(
    boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int
) -> Tensor:
    if not boxes.is_cpu:  # torchvision answers with a list whose length the host must wait for
        return _nms_torch(boxes, scores, valid, threshold, pixel, max_keep)
    from torchvision.ops import nms as torchvision_nms

    keep = torch.zeros_like(valid)
    wide = boxes.float() + boxes.new_tensor([0, 0, pixel, pixel], dtype=torch.float32)
    for row in range(scores.shape[0]):
        inds = valid[row].nonzero()[:, 0]
        kept = torchvision_nms(wide[row, inds], scores[row, inds].float(), threshold)
        keep[row, inds[kept[: max_keep if max_keep >= 0 else None]]] = True
    return keep


def _fake(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int) -> Tensor:
    return torch.empty_like(valid, memory_format=torch.contiguous_format)


_ops.register("nms", _fake, float32=True, torchvision=_nms_torchvision, torch=_nms_torch)
