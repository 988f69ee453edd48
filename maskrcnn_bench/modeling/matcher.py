"""Matcher: which object each box (anchor or proposal) belongs to, by overlap."""

from __future__ import annotations

import torch
from torch import Tensor

from ..structures.boxlist_ops import box_iou

CHUNK = 16


class Matcher:
    """Assigns an object, background or neither to each box (Faster R-CNN, section 3.1.2).

    Args:
        high_threshold: from this overlap on, a box belongs to the object it overlaps most.
        low_threshold: below it, a box is background; between the two it is neither.
        allow_low_quality_matches: boxes with the largest overlap that an object has with any box, ties included, belong to the object which
            *they* overlap most, however small that overlap is.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(self, high_threshold: float, low_threshold: float, allow_low_quality_matches: bool = False):
        if low_threshold > high_threshold:
            raise ValueError(f"matcher: the low threshold {low_threshold} is above the high one {high_threshold}")
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches

    def __call__(self, objects: Tensor, valid: Tensor, boxes: Tensor, pixel: int) -> Tensor:
        """Matches in chunks over the objects, so that memory does not grow with their number.

        Args:
            objects: ground truth, xyxy, pixels. [N, M, 4]
            valid: which slots of `objects` are in use. [N, M]
            boxes: xyxy, same pixels. [N, A, 4] or, the same for all images, [A, 4]
            pixel: what a width adds to x2 - x1.
        Returns:
            Index of the object, or BELOW_LOW_THRESHOLD, or BETWEEN_THRESHOLDS. [N, A]
        """
        shape = (len(objects), boxes.shape[-2])
        best = torch.full(shape, -1.0, device=boxes.device)
        matches = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
        best_of_object = []
        for start in range(0, objects.shape[1], CHUNK):
            iou = self._overlap(objects, valid, boxes, pixel, start)
            best_of_object.append(iou.amax(dim=1))
            chunk_best, chunk_inds = iou.max(dim=2)
            better = chunk_best > best
            best = torch.where(better, chunk_best, best)
            matches = torch.where(better, chunk_inds + start, matches)
        out = torch.where(best < self.high_threshold, self.BETWEEN_THRESHOLDS, matches)
        out = torch.where(best < self.low_threshold, self.BELOW_LOW_THRESHOLD, out)
        if not self.allow_low_quality_matches:
            return out
        return torch.where(self._holds_a_best(objects, valid, boxes, pixel, best_of_object), matches, out)

    @staticmethod
    def _overlap(objects: Tensor, valid: Tensor, boxes: Tensor, pixel: int, start: int) -> Tensor:
        """IoU of all boxes with one chunk of objects; -1 for unused slots. [N, A, <=CHUNK]"""
        part = slice(start, start + CHUNK)
        iou = box_iou(boxes, objects[:, part], pixel)
        return torch.where(valid[:, None, part], iou, -1.0)

    def _holds_a_best(self, objects: Tensor, valid: Tensor, boxes: Tensor, pixel: int, best_of_object: list[Tensor]) -> Tensor:
        """Whether a box has the largest overlap of any object. [N, A]"""
        out = torch.zeros((len(objects), boxes.shape[-2]), dtype=torch.bool, device=boxes.device)
        for i, best in enumerate(best_of_object):
            iou = self._overlap(objects, valid, boxes, pixel, i * CHUNK)
            out = out | ((iou == best[:, None]) & (iou >= 0)).any(dim=2)
        return out
