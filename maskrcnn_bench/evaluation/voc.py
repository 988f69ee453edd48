"""Pascal VOC's average precision: one IoU threshold, the 11-point rule of 2007 or the area under the curve, difficult objects ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from maskrcnn_bench.structures.bounding_box import BoxList


@dataclass(frozen=True)
class ImageBoxes:
    """Boxes of one image as plain arrays.

    Attributes:
        boxes: xyxy, pixels of the original image. [n, 4]
        labels: 1 .. K-1. [n]
        scores: of detections. [n]
        difficult: of ground truth. [n] bool
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None
    difficult: np.ndarray | None = None

    @classmethod
    def from_boxlist(cls, boxlist: BoxList) -> ImageBoxes:
        def column(name: str, kind: type) -> np.ndarray | None:
            return np.asarray(boxlist.get_field(name).cpu(), dtype=kind) if boxlist.has_field(name) else None

        boxes = boxlist.convert("xyxy").bbox.detach().cpu().double().numpy()
        return cls(boxes, column("labels", np.int64), column("scores", np.float64), column("difficult", bool))


def evaluate_voc(dataset, predictions: Sequence[BoxList | None], iou_threshold: float = 0.5) -> tuple[dict, dict]:
    """VOC's numbers of a data set.

    Args:
        dataset: with `get_groundtruth(i)` -> BoxList with `labels` and `difficult`, `get_img_info(i)` and `categories`.
        predictions: one BoxList an image with `scores` and `labels`, pixels of the original image (others are rescaled); None where an
            image has none.
    Returns:
        {"mAP": area rule, "mAP07": 11-point rule}, 0 to 1, -1 without ground truth; and {class name: {"AP", "AP07", "gt", "detections"}}.
    """
    truths = [ImageBoxes.from_boxlist(dataset.get_groundtruth(i)) for i in range(len(dataset))]
    pixel = dataset.get_groundtruth(0).pixel if len(dataset) else 1
    found = [_detections(boxlist, dataset.get_img_info(i)) for i, boxlist in enumerate(predictions)]
    table = {}
    for label, name in dataset.categories.items():
        if label != 0:
            hits, misses, objects = match_class(truths, found, label, iou_threshold, pixel)
            rules = {"AP": False, "AP07": True}
            table[name] = {key: average_precision(hits, misses, objects, eleven_points) for key, eleven_points in rules.items()}
            table[name] |= {"gt": objects, "detections": int(sum((image.labels == label).sum() for image in found))}
    with_truth = [row for row in table.values() if row["gt"]]
    return {f"m{key}": float(np.mean([row[key] for row in with_truth])) if with_truth else -1.0 for key in ("AP", "AP07")}, table


def _detections(boxlist: BoxList | None, info: dict) -> ImageBoxes:
    if boxlist is None:
        return ImageBoxes(np.zeros((0, 4)), np.zeros(0, dtype=np.int64), np.zeros(0))
    size = (info["width"], info["height"])
    return ImageBoxes.from_boxlist(boxlist if tuple(boxlist.size) == size else boxlist.resize(size))


def match_class(
    truths: Sequence[ImageBoxes], found: Sequence[ImageBoxes], label: int, iou_threshold: float = 0.5, pixel: int = 1
) -> tuple[np.ndarray, np.ndarray, int]:
    """Which detections of one class find a new object, in the order of their scores.

    A detection looks at the object it overlaps most: reached and new, it is a hit; reached but taken, or not reached, a miss; reached
    and difficult, neither. Equal scores keep the order of the images.

    Args:
        truths: ground truth of each image.
        found: detections of each image.
        label: the class.
        iou_threshold: least overlap, itself included.
        pixel: what the width of a box adds to x2 - x1.
    Returns:
        Hits and misses by descending score [n] bool each, and the number of objects that are not difficult.
    """
    marks, scores, objects = [], [], 0
    for truth, image in zip(truths, found, strict=True):
        here, mine = truth.labels == label, image.labels == label
        difficult = np.zeros(len(here), dtype=bool) if truth.difficult is None else truth.difficult
        objects += int((here & ~difficult).sum())
        order = np.argsort(-image.scores[mine], kind="stable")
        overlaps = _iou(image.boxes[mine][order], truth.boxes[here], pixel)
        marks.append(_mark(overlaps, difficult[here], iou_threshold))
        scores.append(image.scores[mine][order])
    order = np.argsort(-np.concatenate([*scores, np.zeros(0)]), kind="stable")
    marks = np.concatenate([*marks, np.zeros(0, dtype=np.int64)])[order]
    return marks == 1, marks == 0, objects


def _mark(overlaps: np.ndarray, difficult: np.ndarray, iou_threshold: float) -> np.ndarray:
    """1 hit, 0 miss, -1 neither, for the detections of one image in the order of their scores. [n, objects] -> [n]"""
    marks = np.zeros(len(overlaps), dtype=np.int64)
    if not overlaps.size:
        return marks
    taken = np.zeros(len(difficult), dtype=bool)
    for row, best in enumerate(overlaps.argmax(axis=1)):
        if overlaps[row, best] < iou_threshold:
            continue
        if difficult[best]:
            marks[row] = -1
        elif not taken[best]:
            marks[row], taken[best] = 1, True
    return marks


def _iou(first: np.ndarray, second: np.ndarray, pixel: int) -> np.ndarray:
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = np.prod(np.clip(high - low + pixel, 0, None), axis=-1)
    areas = [np.prod(boxes[:, 2:] - boxes[:, :2] + pixel, axis=-1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def average_precision(hits: np.ndarray, misses: np.ndarray, objects: int, eleven_points: bool) -> float:
    """Average precision of one class; -1 when it has no objects.

    Args:
        hits, misses: by descending score; a detection that is neither counts nowhere. [n] bool
        objects: how many there are to find.
        eleven_points: the 2007 rule, mean of the best precision at recalls 0, 0.1 ... 1; else the area under the falling envelope.
    """
    if not objects:
        return -1.0
    found = np.cumsum(hits)
    recall = found / objects
    precision = found / np.maximum(found + np.cumsum(misses), 1)
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    if eleven_points:
        reached = np.searchsorted(recall, np.linspace(0, 1, 11), side="left")
        return float(np.append(envelope, 0.0)[reached].mean())
    return float(np.sum(np.diff(recall, prepend=0.0) * envelope))
