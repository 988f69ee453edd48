"""Operations between boxes: overlap, suppression, concatenation, removal of small ones."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layers.nms import nms
from .bounding_box import BoxList


def box_area(boxes: Tensor, pixel: int) -> Tensor:
    """Width times height by the pixel rule. [..., 4] -> [...]"""
    return (boxes[..., 2] - boxes[..., 0] + pixel) * (boxes[..., 3] - boxes[..., 1] + pixel)


def box_iou(boxes1: Tensor, boxes2: Tensor, pixel: int) -> Tensor:
    """Intersection over union of every pair.

    Args:
        boxes1, boxes2: xyxy in the same pixels. [..., A, 4], [..., B, 4]
        pixel: what a width adds to x2 - x1.
    Returns:
        [..., A, B]; 0 where both boxes are empty.
    """
    corner1 = torch.maximum(boxes1[..., :, None, :2], boxes2[..., None, :, :2])
    corner2 = torch.minimum(boxes1[..., :, None, 2:], boxes2[..., None, :, 2:])
    side = (corner2 - corner1 + pixel).clamp(min=0)
    inter = side[..., 0] * side[..., 1]
    union = box_area(boxes1, pixel)[..., :, None] + box_area(boxes2, pixel)[..., None, :] - inter
    return torch.where(union > 0, inter / torch.where(union > 0, union, 1.0), 0.0)


def boxlist_iou(boxlist1: BoxList, boxlist2: BoxList) -> Tensor:
    """Intersection over union of two BoxLists on one image. [n, m]"""
    if boxlist1.size != boxlist2.size:
        raise ValueError(f"boxlist_iou: boxes of one image expected, got image sizes {boxlist1.size} and {boxlist2.size}")
    return box_iou(boxlist1.convert("xyxy").bbox, boxlist2.convert("xyxy").bbox, boxlist1.pixel)


def boxlist_nms(boxlist: BoxList, nms_thresh: float, max_proposals: int = -1, score_field: str = "scores") -> BoxList:
    """Keeps, by descending score, the boxes that overlap no better one by more than `nms_thresh`; at most `max_proposals` if positive."""
    if nms_thresh <= 0:
        return boxlist
    keep = nms(boxlist.convert("xyxy").bbox, boxlist.get_field(score_field), nms_thresh, pixel=boxlist.pixel)
    return boxlist[keep[:max_proposals] if max_proposals > 0 else keep]


def remove_small_boxes(boxlist: BoxList, min_size: float) -> BoxList:
    """Keeps boxes whose width and height are at least `min_size` pixels."""
    _, _, width, height = boxlist.convert("xywh").bbox.unbind(dim=1)
    return boxlist[((width >= min_size) & (height >= min_size)).nonzero().squeeze(1)]


def cat_boxlist(boxlists: Sequence[BoxList]) -> BoxList:
    """One BoxList with the boxes and fields of all; they belong to one image and have the same fields.

    Raises:
        ValueError: when sizes, modes, pixel rules or fields differ.
    """
    first = boxlists[0]
    for other in boxlists[1:]:
        for what in ("size", "mode", "pixel"):
            if getattr(other, what) != getattr(first, what):
                raise ValueError(f"cat_boxlist: {what} differs: {getattr(first, what)} and {getattr(other, what)}")
        if set(other.fields()) != set(first.fields()):
            raise ValueError(f"cat_boxlist: fields differ: {sorted(first.fields())} and {sorted(other.fields())}")
    out = BoxList(torch.cat([b.bbox for b in boxlists]), first.size, first.mode, first.pixel)
    for name in first.fields():
        out.add_field(name, torch.cat([b.get_field(name) for b in boxlists]))
    return out
