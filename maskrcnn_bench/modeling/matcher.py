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
        allow_low_quality_matches: boxes with the largest overlap that an object has with any box, ties included, belong to an object,
            however small that overlap is.
        least_overlap: unless it is smaller than this.
        to_best_object: such a box belongs to the object which *it* overlaps most; otherwise to the object whose best it is, the last of
            several.
    """

    BELOW_LOW_THRESHOLD = -1
    BETWEEN_THRESHOLDS = -2

    def __init__(
        self,
        high_threshold: float,
        low_threshold: float,
        allow_low_quality_matches: bool = False,
        least_overlap: float = 0.0,
        to_best_object: bool = True,
    ):
        if low_threshold > high_threshold:
            raise ValueError(f"matcher: the low threshold {low_threshold} is above the high one {high_threshold}")
        self.high_threshold = high_threshold
        self.low_threshold = low_threshold
        self.allow_low_quality_matches = allow_low_quality_matches
        self.least_overlap = least_overlap
        self.to_best_object = to_best_object

    def __call__(self, objects: Tensor, valid: Tensor, boxes: Tensor, pixel: int, rivals: Tensor | None = None) -> Tensor:
        """Matches in chunks over the objects, so that memory does not grow with their number.

        Args:
            objects: ground truth, xyxy, pixels. [N, M, 4]
            valid: which slots of `objects` are in use. [N, M]
            boxes: xyxy, same pixels. [N, A, 4] or, the same for all images, [A, 4]
            pixel: what a width adds to x2 - x1.
            rivals: boxes among which the best of an object is looked for; None for all. [N, A]
        Returns:
            Index of the object, or BELOW_LOW_THRESHOLD, or BETWEEN_THRESHOLDS. [N, A]
        """
        shape = (len(objects), boxes.shape[-2])
        best = torch.full(shape, -1.0, device=boxes.device)
        matches = torch.zeros(shape, dtype=torch.int64, device=boxes.device)
        best_of_object = []
        for start in range(0, objects.shape[1], CHUNK):
            iou = self._overlap(objects, valid, boxes, pixel, start)
            if self.allow_low_quality_matches:
                best_of_object.append(_only(rivals, iou).amax(dim=1))
            chunk_best, chunk_inds = iou.max(dim=2)
            better = chunk_best > best
            best = torch.where(better, chunk_best, best)
            matches = torch.where(better, chunk_inds + start, matches)
        out = torch.where(best < self.high_threshold, self.BETWEEN_THRESHOLDS, matches)
        out = torch.where(best < self.low_threshold, self.BELOW_LOW_THRESHOLD, out)
        if not self.allow_low_quality_matches:
            return out
        owner = self._owner(objects, valid, boxes, pixel, best_of_object, rivals)
        return torch.where(owner >= 0, matches if self.to_best_object else owner, out)

    @staticmethod
    def _overlap(objects: Tensor, valid: Tensor, boxes: Tensor, pixel: int, start: int) -> Tensor:
        """IoU of all boxes with one chunk of objects; -1 for unused slots. [N, A, <=CHUNK]"""
        part = slice(start, start + CHUNK)
        iou = box_iou(boxes, objects[:, part], pixel)
        return torch.where(valid[:, None, part], iou, -1.0)

    def _owner(
        self, objects: Tensor, valid: Tensor, boxes: Tensor, pixel: int, best_of_object: list[Tensor], rivals: Tensor | None
    ) -> Tensor:
        """The last object that has its largest overlap with a box; -1 for none. [N, A]"""
        out = torch.full((len(objects), boxes.shape[-2]), -1, device=boxes.device)
        for i, best in enumerate(best_of_object):
            iou = _only(rivals, self._overlap(objects, valid, boxes, pixel, i * CHUNK))
            holds = (iou == best[:, None]) & (iou >= self.least_overlap)
            number = torch.arange(i * CHUNK, i * CHUNK + iou.shape[2], device=boxes.device)
            out = torch.maximum(out, torch.where(holds, number, -1).amax(dim=2))
        return out


def _only(rivals: Tensor | None, iou: Tensor) -> Tensor:
    """Overlaps of the rivals, -1 for the others. rivals [N, A], iou [N, A, M]"""
    return iou if rivals is None else torch.where(rivals[..., None], iou, -1.0)
