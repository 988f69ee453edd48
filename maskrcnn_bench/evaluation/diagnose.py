"""Why AP is near zero: looks for the usual mistakes in the numbers themselves and says in words what was found."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .evaluators import FlatDetections
from .proposals import box_iou

LOW_AP = 0.01
"""AP (0 to 1) below which an evaluation is diagnosed."""

GOOD_IOU = 0.5
SHARE_FOUND = 0.3
"""Share of the objects that a reading of the boxes has to cover to count as an explanation."""


def _xywh_as_corners(b: np.ndarray) -> np.ndarray:
    # The detections came out as (x, y, x2 - x, y2 - y) of what was x, y, width, height.
    return np.column_stack((b[:, :2], b[:, 2:] + b[:, :2]))


def _corners_as_xywh(b: np.ndarray) -> np.ndarray:
    return np.column_stack((b[:, :2], b[:, 2:] - b[:, :2]))


READINGS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "boxes given as x, y, width, height are read as two corners; use BoxList(..., mode='xywh')": _xywh_as_corners,
    "boxes given as two corners are read as x, y, width, height; use BoxList(..., mode='xyxy')": _corners_as_xywh,
    "x and y of the boxes are exchanged": lambda b: b[:, [1, 0, 3, 2]],
}
"""Diagnosis -> what the boxes (xywh, pixels) would be without that mistake."""


def diagnose(ground_truth: dict, detections: FlatDetections) -> list[str]:
    """A report on an evaluation that found next to nothing.

    Args:
        ground_truth: in the form of COCO's JSON, from `coco.ground_truth`.
        detections: from `coco.flatten`.
    Returns:
        Lines to print: what was detected, then one or more that begin with "diagnosis:".
    """
    objects = [a for a in ground_truth["annotations"] if not a["iscrowd"]]
    if not objects:
        return ["diagnosis: the data set has no ground truth; check its annotation file and DATASETS.CLASSES"]
    if not len(detections):
        return ["diagnosis: there is no detection at all; the score threshold is too high, or the model is not trained"]
    pairs = _Pairs(ground_truth, objects, detections)
    causes = [f"diagnosis: {line}" for line in _causes(ground_truth, detections, pairs)]
    return _description(ground_truth, objects, detections, pairs) + causes


class _Pairs:
    """Objects and detections, image by image.

    Args:
        objects: annotations that are no crowds.
    """

    def __init__(self, ground_truth: dict, objects: list[dict], detections: FlatDetections):
        boxes = np.array([a["bbox"] for a in objects], dtype=np.float64)
        classes = np.array([a["category_id"] for a in objects])
        owners = np.array([a["image_id"] for a in objects])
        self.images = []
        for image in ground_truth["images"]:
            mine, found = np.flatnonzero(owners == image["id"]), np.flatnonzero(detections.image_ids == image["id"])
            if len(mine):
                self.images.append((boxes[mine], classes[mine], found))
        self.detections = detections
        self.num_objects = len(objects)

    def best_ious(self, change: Callable[[np.ndarray], np.ndarray] = np.asarray, same_class: bool = False) -> np.ndarray:
        """Largest IoU of each object with a detection of its image, the detections' boxes changed first. [objects]"""
        best = []
        for boxes, classes, found in self.images:
            overlaps = box_iou(boxes, np.clip(change(self.detections.boxes[found]), -1e7, 1e7))
            if same_class:
                overlaps = overlaps * (classes[:, None] == self.detections.category_ids[found][None])
            best.append(overlaps.max(axis=1, initial=0.0))
        return np.concatenate(best)

    def share_found(self, *args, **kwargs) -> float:
        return float(np.mean(self.best_ious(*args, **kwargs) >= GOOD_IOU))

    def confusions(self) -> dict[int, dict[int, int]]:
        """Category of objects -> category of the best detections on them -> how often."""
        counts: dict[int, dict[int, int]] = {}
        for boxes, classes, found in self.images:
            overlaps = box_iou(boxes, self.detections.boxes[found])
            for row in np.flatnonzero(overlaps.max(axis=1, initial=0.0) >= GOOD_IOU):
                called = int(self.detections.category_ids[found[overlaps[row].argmax()]])
                of_class = counts.setdefault(int(classes[row]), {})
                of_class[called] = of_class.get(called, 0) + 1
        return counts


def _description(ground_truth: dict, objects: list[dict], detections: FlatDetections, pairs: _Pairs) -> list[str]:
    images = len(ground_truth["images"])
    edges = np.linspace(0, 1, 11)
    histogram = np.histogram(np.clip(detections.scores, 0, 1), edges)[0]
    true_classes, found_classes = {a["category_id"] for a in objects}, set(detections.category_ids.tolist())
    return [
        f"{len(detections)} detections and {len(objects)} objects in {images} images: "
        f"{len(detections) / images:.1f} and {len(objects) / images:.1f} an image",
        "scores in tenths from 0 to 1: " + " ".join(str(count) for count in histogram),
        f"classes: {len(true_classes)} among the objects, {len(found_classes)} among the detections, "
        f"{len(true_classes & found_classes)} in both",
        f"objects covered with IoU >= {GOOD_IOU}: {pairs.share_found(same_class=True):.0%} by a detection of their class, "
        f"{pairs.share_found():.0%} by any; mean of the best IoU {pairs.best_ious().mean():.2f}",
    ]


def _causes(ground_truth: dict, detections: FlatDetections, pairs: _Pairs) -> list[str]:
    """The mistakes that explain the numbers; at least one line."""
    any_class = pairs.share_found()
    if any_class >= SHARE_FOUND:
        return [_wrong_classes(ground_truth, pairs) if pairs.share_found(same_class=True) < any_class / 2 else _poor_scores(any_class)]
    changes = {**READINGS, **_scales(ground_truth, detections, pairs)}
    shares = {line: pairs.share_found(change) for line, change in changes.items()}
    line = max(shares, key=shares.get)
    if shares[line] >= max(SHARE_FOUND, 2 * any_class):
        return [f"{line} ({shares[line]:.0%} of the objects would be covered, {any_class:.0%} are)"]
    return [
        "boxes and scores look like those of an untrained model: were the weights loaded (see the loading report), and with the channel "
        "order and pixel mean they were trained with?"
    ]


def _wrong_classes(ground_truth: dict, pairs: _Pairs) -> str:
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    counts = pairs.confusions()
    usual = {true: max(called, key=called.get) for true, called in counts.items()}
    wrong = [(true, called) for true, called in usual.items() if true != called]
    examples = ", ".join(f"{names[true]} is called {names.get(called, called)}" for true, called in wrong[:4])
    remedy = "compare the class list of the weights with that of the data set"
    return f"the boxes fit but the classes do not: {examples}; {remedy}" if examples else f"the boxes fit but the classes do not; {remedy}"


def _poor_scores(share: float) -> str:
    return (
        f"{share:.0%} of the objects are covered by a detection, so boxes and classes are read correctly; too many false detections score "
        "higher than the right ones (short training, or scores in the wrong order)"
    )


def _scales(ground_truth: dict, detections: FlatDetections, pairs: _Pairs) -> dict[str, Callable[[np.ndarray], np.ndarray]]:
    """Readings of the boxes with another unit: relative to the image, or pixels of an image resized for the network."""
    sizes = {image["id"]: (image["width"], image["height"]) for image in ground_truth["images"]}
    if np.abs(detections.boxes).max() <= 2:
        width, height = np.median(np.array(list(sizes.values()), dtype=np.float64), axis=0)
        return {"boxes are fractions of the image's size; multiply them by width and height": lambda b: b * (width, height, width, height)}
    factor = _median_side(detections.boxes) / max(_median_side(np.concatenate([boxes for boxes, _, _ in pairs.images])), 1e-6)
    line = f"boxes are about {factor:.2f} times as large as objects: they are pixels of the resized, not of the original image"
    return {line: lambda b: b / max(factor, 1e-6)}


def _median_side(boxes: np.ndarray) -> float:
    """Median of the square root of the boxes' areas, pixels."""
    return float(np.median(np.sqrt(np.clip(np.prod(boxes[:, 2:], axis=1), 0, None))))
