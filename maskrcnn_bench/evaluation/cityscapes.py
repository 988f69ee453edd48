"""Cityscapes' average precision of instances: masks only, ten IoU thresholds, the area under the precision-recall polygon.

Of several detections that overlap an object by more than the threshold, the surest is right and the others are wrong. A detection on
no object is ignored when more than the threshold's share of it lies on void, on groups of its class, or on objects too small to count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from .evaluators import FlatDetections

THRESHOLDS = np.arange(0.5, 1.0, 0.05)
# Objects with fewer pixels do not count.
MIN_PIXELS = 100


@dataclass(frozen=True)
class Overlaps:
    """The detections and objects of one class in one image. D detections, G objects.

    Attributes:
        scores: [D]
        areas: pixels of the detections, all above 0. [D]
        shared: pixels that a detection and an object share. [D, G]
        object_areas: pixels of the objects. [G]
        groups: which objects are groups. [G] bool
        void: pixels of the detections where the image is not evaluated. [D]
    """

    scores: np.ndarray
    areas: np.ndarray
    shared: np.ndarray
    object_areas: np.ndarray
    groups: np.ndarray
    void: np.ndarray


def evaluate_cityscapes(
    truth: dict, detections: FlatDetections, void_pixels: Callable[[int], np.ndarray] | None = None
) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Average precision of masks.

    Args:
        truth: a COCO dict whose crowds are groups.
        detections: with segmentations.
        void_pixels: the pixels of an image, by its place in `truth`, that are not evaluated [H, W] bool; None when there are none.
    Returns:
        AP and AP50 over all classes, and by class; 0 to 1, -1 where there is no object.
    """
    tables = {category["id"]: [] for category in truth["categories"]}
    objects = {image["id"]: [] for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]].append(annotation)
    for place, image in enumerate(truth["images"]):
        void = void_pixels(place) if void_pixels else None
        for category, overlaps in _overlaps(objects[image["id"]], detections, image, void).items():
            tables[category].append(overlaps)
    rows = [[average_precision(tables[c["id"]], threshold) for threshold in THRESHOLDS] for c in truth["categories"]]
    curves = np.array(rows).reshape(-1, len(THRESHOLDS))
    per_class = {c["name"]: {"AP": _mean(row), "AP50": _mean(row[:1])} for c, row in zip(truth["categories"], curves)}
    return {"AP": _mean(curves), "AP50": _mean(curves[:, 0])}, per_class


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else -1.0


def _overlaps(objects: Sequence[dict], detections: FlatDetections, image: dict, void: np.ndarray | None) -> dict[int, Overlaps]:
    """What overlaps in one image, by category."""
    from pycocotools import mask as coco_mask

    shape = (image["height"], image["width"])
    object_masks = [_rle(a["segmentation"], shape) for a in objects]
    rows = np.flatnonzero(detections.image_ids == image["id"])
    masks = [_rle(detections.segmentations[row], shape) for row in rows]
    areas = np.array([coco_mask.area(mask) for mask in masks], dtype=np.int64)
    void_masks = [] if void is None else [coco_mask.encode(np.asfortranarray(void, dtype=np.uint8))]
    found = {}
    for category in {a["category_id"] for a in objects} | set(detections.category_ids[rows].tolist()):
        mine = np.flatnonzero((detections.category_ids[rows] == category) & (areas > 0))
        theirs = [k for k, a in enumerate(objects) if a["category_id"] == category]
        chosen = [masks[k] for k in mine]
        found[category] = Overlaps(
            detections.scores[rows[mine]],
            areas[mine],
            _shared(chosen, [object_masks[k] for k in theirs], areas[mine]),
            np.array([coco_mask.area(object_masks[k]) for k in theirs], dtype=np.int64),
            np.array([bool(objects[k].get("iscrowd")) for k in theirs], dtype=bool),
            _shared(chosen, void_masks, areas[mine]).sum(axis=1),
        )
    return found


def _rle(mask: dict | list, shape: tuple[int, int]) -> dict:
    from pycocotools import mask as coco_mask

    if isinstance(mask, list):
        return coco_mask.merge(coco_mask.frPyObjects(mask, *shape))
    return coco_mask.frPyObjects(mask, *shape) if isinstance(mask["counts"], list) else mask


def _shared(first: Sequence[dict], second: Sequence[dict], areas: np.ndarray) -> np.ndarray:
    """Pixels that the masks of two lists share; areas: of the first ones. [D, G] int64"""
    from pycocotools import mask as coco_mask

    if not first or not second:
        return np.zeros((len(first), len(second)), dtype=np.int64)
    # As a crowd, the second mask makes it the share of the first one that is covered.
    share = coco_mask.iou(list(first), list(second), [1] * len(second))
    return np.rint(share * areas[:, None]).astype(np.int64)


def average_precision(images: Sequence[Overlaps], threshold: float) -> float:
    """The average precision of one class at one IoU threshold; NaN when it has no object."""
    marks, scores, missed, objects, found = [], [], 0, 0, 0
    for overlaps in images:
        hits, image_scores, lost = _judge(overlaps, threshold)
        marks += hits
        scores += image_scores
        missed += lost
        objects += int(_counts(overlaps).sum())
        found += len(overlaps.scores)
    if not objects:
        return float("nan")
    return _area(np.array(marks, dtype=bool), np.array(scores), missed) if found and scores else 0.0


def _counts(overlaps: Overlaps) -> np.ndarray:
    """Which objects are to be found. [G] bool"""
    return ~overlaps.groups & (overlaps.object_areas >= MIN_PIXELS)


def _judge(overlaps: Overlaps, threshold: float) -> tuple[list[bool], list[float], int]:
    """Hits and misses with their scores, and how many objects nobody found."""
    union = overlaps.areas[:, None] + overlaps.object_areas[None] - overlaps.shared
    reached = overlaps.shared / union > threshold
    marks, scores, missed = [], [], 0
    for g in np.flatnonzero(_counts(overlaps)):
        mine = np.sort(overlaps.scores[reached[:, g]])[::-1].tolist()
        marks += [True] * bool(mine) + [False] * (len(mine) - 1)
        scores += mine
        missed += not mine
    # A small group counts twice, as in the original.
    ignored = overlaps.void + overlaps.shared[:, overlaps.groups].sum(axis=1)
    ignored = ignored + overlaps.shared[:, overlaps.object_areas < MIN_PIXELS].sum(axis=1)
    wrong = ~reached.any(axis=1) & (ignored / overlaps.areas <= threshold)
    return marks + [False] * int(wrong.sum()), scores + overlaps.scores[wrong].tolist(), missed


def _area(hits: np.ndarray, scores: np.ndarray, missed: int) -> float:
    """The area under precision over recall, by trapezia in recall, from the least sure detection to none at all.

    Args:
        hits: which detections are right. [n] bool
        scores: [n]
        missed: objects that no detection found.
    """
    order = np.argsort(scores, kind="stable")
    first_of_score = np.unique(scores[order], return_index=True)[1]
    below = np.concatenate([[0], np.cumsum(hits[order])])[first_of_score]
    right = hits.sum() - below
    precision = np.append(right / (len(hits) - first_of_score), 1.0)
    recall = np.append(right / max(hits.sum() + missed, 1), 0.0)
    ends = np.concatenate([recall[:1], recall, [0.0]])
    return float(precision @ ((ends[:-2] - ends[2:]) / 2))
