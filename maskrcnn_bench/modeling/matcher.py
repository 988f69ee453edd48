"""Matcher: which object each box (anchor or proposal) belongs to, by overlap."""

from __future__ import annotations

from torch import Tensor

from ..layers.match import BELOW, BETWEEN, match


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

    BELOW_LOW_THRESHOLD = BELOW
    BETWEEN_THRESHOLDS = BETWEEN

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
        """Matches, in memory that does not grow with the number of objects times that of boxes.

        Args:
            objects: ground truth, xyxy, pixels. [N, M, 4]
            valid: which slots of `objects` are in use. [N, M]
            boxes: xyxy, same pixels. [N, A, 4] or, the same for all images, [A, 4]
            pixel: what a width adds to x2 - x1.
            rivals: boxes among which the best of an object is looked for; None for all. [N, A]
        Returns:
            Index of the object, or BELOW_LOW_THRESHOLD, or BETWEEN_THRESHOLDS. [N, A]
        """
        rule = (self.high_threshold, self.low_threshold, self.allow_low_quality_matches, self.least_overlap, self.to_best_object)
        return match(objects, valid, boxes, rivals, pixel, *rule)
