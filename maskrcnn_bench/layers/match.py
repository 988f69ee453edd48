"""Which object each box belongs to, by overlap, without the matrix of all overlaps.

Letters: N images, M object slots of an image, A boxes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from . import _ops
from .nms import overlaps

BELOW = -1
"""Of a box that overlaps every object by less than the low threshold."""
BETWEEN = -2
"""Of a box between the two thresholds."""
_CHUNK = 16  # objects whose overlaps with all boxes the plain implementation holds at once


def match(
    objects: Tensor,
    valid: Tensor,
    boxes: Tensor,
    rivals: Tensor | None,
    pixel: float,
    high: float,
    low: float,
    low_quality: bool,
    least_overlap: float = 0.0,
    to_best: bool = True,
) -> Tensor:
    """Matches boxes to objects; memory grows with M + A and not with M * A.

    Args:
        objects: ground truth, xyxy, pixels. [N, M, 4]
        valid: which slots of `objects` are in use. [N, M]
        boxes: xyxy, same pixels. [N, A, 4] or, the same for all images, [A, 4]
        rivals: boxes among which the best of an object is looked for; None for all. [N, A]
        pixel: what a width adds to x2 - x1.
        high: from this overlap on, a box belongs to the object it overlaps most; the first of several.
        low: below it, a box belongs to none; between the two it is undecided.
        low_quality: boxes with the largest overlap that an object has with any rival, ties included, belong to an object too,
        least_overlap: unless that overlap is smaller than this;
        to_best: to the object which the box overlaps most; otherwise to the last of those whose best it is.
    Returns:
        Index of the object, BELOW or BETWEEN. int64 [N, A]
    """
    _ops.check_shape("match", "objects", objects, "N", "M", 4)
    _ops.check_shape("match", "valid", valid, *objects.shape[:2])
    _ops.check_shape("match", "boxes", boxes, *(() if boxes.dim() == 2 else objects.shape[:1]), "A", 4)
    if rivals is not None:
        _ops.check_shape("match", "rivals", rivals, objects.shape[0], boxes.shape[-2])
    # The order of the operator, whose second argument is a tensor wherever it runs.
    return torch.ops.maskrcnn_bench.match(objects, valid, boxes, rivals, pixel, high, low, low_quality, least_overlap, to_best)


def _match_torch(objects, valid, boxes, rivals, pixel, high, low, low_quality, least_overlap, to_best) -> Tensor:
    shape = (len(objects), boxes.shape[-2])
    best = torch.full(shape, -1.0, device=boxes.device)
    matches = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
    if not shape[1]:
        return matches
    best_of_object = []
    for start in range(0, objects.shape[1], _CHUNK):
        iou = _overlap(objects, valid, boxes, pixel, start)
        if low_quality:
            best_of_object.append(_only(rivals, iou).amax(dim=1))
        chunk_best, chunk_inds = iou.max(dim=2)
        better = chunk_best > best
        best = torch.where(better, chunk_best, best)
        matches = torch.where(better, chunk_inds + start, matches)
    out = torch.where(best < high, BETWEEN, matches)
    out = torch.where(best < low, BELOW, out)
    if not low_quality:
        return out
    owner = _owner(objects, valid, boxes, pixel, best_of_object, rivals, least_overlap)
    return torch.where(owner >= 0, matches if to_best else owner, out)


def _overlap(objects: Tensor, valid: Tensor, boxes: Tensor, pixel: float, start: int) -> Tensor:
    """Overlaps of all boxes with one chunk of objects; -1 for unused slots. [N, A, <=_CHUNK]"""
    part = slice(start, start + _CHUNK)
    iou = overlaps(boxes.float()[..., :, None, :], objects.float()[:, None, part], pixel)
    return torch.where(valid[:, None, part], iou, -1.0)


def _owner(
    objects: Tensor, valid: Tensor, boxes: Tensor, pixel: float, best_of_object: list[Tensor], rivals: Tensor | None, least_overlap: float
) -> Tensor:
    """The last object that has its largest overlap with a box; -1 for none. [N, A]"""
    out = torch.full((len(objects), boxes.shape[-2]), -1, device=boxes.device)
    for i, best in enumerate(best_of_object):
        iou = _only(rivals, _overlap(objects, valid, boxes, pixel, i * _CHUNK))
        holds = (iou == best[:, None]) & (iou >= least_overlap)
        number = torch.arange(i * _CHUNK, i * _CHUNK + iou.shape[2], device=boxes.device)
        out = torch.maximum(out, torch.where(holds, number, -1).amax(dim=2))
    return out


def _only(rivals: Tensor | None, iou: Tensor) -> Tensor:
    """Overlaps of the rivals, -1 for the others. rivals [N, A], iou [N, A, M]"""
    return iou if rivals is None else torch.where(rivals[..., None], iou, -1.0)


def _fake(objects, valid, boxes, *rest) -> Tensor:
    return torch.empty((objects.shape[0], boxes.shape[-2]), dtype=torch.int64, device=boxes.device)


_ops.register("match", _fake, float32=True, torch=_match_torch)
