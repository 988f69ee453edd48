"""Greedy non-maximum suppression.

Letters: B independent rows (images, levels, classes), R boxes a row, n boxes of one image.
"""

import math

import torch
from torch import Tensor

from . import _ops

_BLOCK = 256  # boxes whose overlaps with all later ones the plain implementation holds at once


def move_apart(boxes: Tensor, valid: Tensor) -> Tensor:
    """Boxes of each group beyond all boxes of the groups before it, as implementations do that suppress all groups in one list.

    The distance rounds coordinates, which decides between boxes that overlap by almost the threshold.

    Args:
        boxes: xyxy, of at least 0. [N, G, R, 4]
        valid: which are in use. [N, G, R]
    Returns:
        [N, G, R, 4]
    """
    step = torch.where(valid[..., None], boxes, 0.0).amax(dim=(1, 2, 3)) + 1
    group = torch.arange(boxes.shape[1], device=boxes.device, dtype=boxes.dtype)
    return boxes + (group * step[:, None])[:, :, None, None]


def batched_nms_keep(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int = -1) -> Tensor:
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


def _nms_torch(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int) -> Tensor:
    order = torch.where(valid, scores.float(), -math.inf).sort(dim=1, descending=True, stable=True).indices
    # Valid boxes may have a score of -inf as well; a second stable sort brings them before the padding.
    order = order.gather(1, valid.gather(1, order).sort(dim=1, descending=True, stable=True).indices)
    sorted_boxes = boxes.float().gather(1, order[:, :, None].expand(-1, -1, 4))
    kept = _greedy(sorted_boxes, valid.gather(1, order), _float_below(threshold), pixel)
    if max_keep >= 0:
        kept &= kept.cumsum(1) <= max_keep
    return torch.zeros_like(valid).scatter(1, order, kept)


def _greedy(boxes: Tensor, valid: Tensor, threshold: float, pixel: float) -> Tensor:
    """boxes [B, R, 4] and valid [B, R] by descending score -> kept [B, R]. R steps of fixed shape, no wait."""
    kept = valid.clone()
    for begin in range(0, boxes.shape[1], _BLOCK):  # in blocks: the whole matrix of overlaps would be R x R
        rest = kept[:, begin:]
        drops = overlaps(boxes[:, begin : begin + _BLOCK, None], boxes[:, None, begin:], pixel) > threshold
        drops = drops.triu(diagonal=1)
        for i in range(drops.shape[1]):
            rest.masked_fill_(drops[:, i] & rest[:, i, None], False)
    return kept


def overlaps(a: Tensor, b: Tensor, pixel: float) -> Tensor:
    """Overlaps of boxes whose shapes broadcast; 0 where the union isn't positive. [..., 4], [..., 4] -> [...]"""
    sides = (torch.minimum(a[..., 2:], b[..., 2:]) - torch.maximum(a[..., :2], b[..., :2]) + pixel).clamp(min=0)
    intersections = sides[..., 0] * sides[..., 1]
    unions = _areas(a, pixel) + _areas(b, pixel) - intersections
    return torch.where(unions > 0, intersections / unions, 0)


def _areas(boxes: Tensor, pixel: float) -> Tensor:
    sides = boxes[..., 2:] - boxes[..., :2] + pixel
    return sides[..., 0] * sides[..., 1]


def _nms_torchvision(boxes: Tensor, scores: Tensor, valid: Tensor, threshold: float, pixel: float, max_keep: int) -> Tensor:
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
