"""Which classes are taken for which: every object and every sure detection of a data set counted once, by true and by found class."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..utils.files import write_atomically
from .evaluators import FlatDetections
from .proposals import box_iou

BACKGROUND = "background"


@dataclass(frozen=True)
class Confusion:
    """Objects and detections by class. K classes with the background, which is class 0.

    Attributes:
        matrix: row: what it is, column: what it was found to be. Row 0 has the detections that belong to no object, column 0 the
            objects that nothing found; [0, 0] is 0. [K, K] int64
        names: of the classes, background first. [K]
        ignored: detections left out because they lie on a crowd of their class.
        score: least score of the detections that count.
        iou: least IoU of a box with the box of the object it belongs to.
    """

    matrix: np.ndarray
    names: list[str]
    ignored: int
    score: float
    iou: float

    def write(self, path: str | os.PathLike) -> None:
        """Writes a CSV file: a line for each true class, a column for each found one."""
        text = io.StringIO(newline="")
        writer = csv.writer(text)
        writer.writerow(["is \\ found as", *self.names])
        writer.writerows([name, *row] for name, row in zip(self.names, self.matrix.tolist()))
        write_atomically(path, lambda file: file.write(text.getvalue().encode()))


def confusion_matrix(truth: dict, detections: FlatDetections, names: dict[int, str], score: float = 0.5, iou: float = 0.5) -> Confusion:
    """Counts which classes are taken for which.

    Detections, the surest first, take the object of their own class that they overlap most, as in the evaluation; those left over may
    then take an object of another class that is left over. So the diagonal holds what the evaluation calls right at this IoU.

    Args:
        truth: from `coco.ground_truth`; crowds are no objects.
        detections: from `coco.flatten`.
        names: COCO category id -> name, in the order of the classes.
        score: least score of a detection that counts.
        iou: least IoU of boxes that belong together.
    """
    places = {category: place for place, category in enumerate(names, start=1)}
    matrix = np.zeros((len(places) + 1, len(places) + 1), dtype=np.int64)
    ignored = 0
    for objects, crowds, rows in _images(truth, detections, score):
        found = np.array([places[category] for category in detections.category_ids[rows].tolist()], dtype=np.int64)
        taken, free = _match(objects, places, detections.boxes[rows], found, iou)
        on_crowd = (taken < 0) & _on_crowd(crowds, places, detections.boxes[rows], found, iou)
        true = np.array([places[a["category_id"]] for a in objects], dtype=np.int64)
        # The last entry stands for the background, where -1 points to.
        np.add.at(matrix, (np.append(true, 0)[taken[~on_crowd]], found[~on_crowd]), 1)
        np.add.at(matrix, (true[free], 0), 1)
        ignored += int(on_crowd.sum())
    return Confusion(matrix, [BACKGROUND, *names.values()], ignored, score, iou)


def _images(truth: dict, detections: FlatDetections, score: float) -> Iterator[tuple[list[dict], list[dict], np.ndarray]]:
    """Objects, crowds, and the rows of the detections that count by descending score, image by image."""
    objects: dict[int, tuple[list[dict], list[dict]]] = {image["id"]: ([], []) for image in truth["images"]}
    for annotation in truth["annotations"]:
        objects[annotation["image_id"]][bool(annotation["iscrowd"])].append(annotation)
    kept = np.flatnonzero(detections.scores >= score)
    kept = kept[np.lexsort((-detections.scores[kept], detections.image_ids[kept]))]
    images = detections.image_ids[kept]
    for image_id, (single, crowds) in objects.items():
        yield single, crowds, kept[np.searchsorted(images, image_id) : np.searchsorted(images, image_id, side="right")]


def _match(objects: list[dict], places: dict[int, int], boxes: np.ndarray, found: np.ndarray, iou: float) -> tuple[np.ndarray, np.ndarray]:
    """The object that each detection takes, -1 for none [n], and which objects nobody takes [objects] bool."""
    true = np.array([places[a["category_id"]] for a in objects], dtype=np.int64)
    overlaps = box_iou(boxes, np.array([a["bbox"] for a in objects], dtype=np.float64).reshape(-1, 4))
    taken, free = np.full(len(boxes), -1), np.ones(len(objects), dtype=bool)
    for allowed in (found[:, None] == true[None], np.ones_like(overlaps, dtype=bool)):
        for row in np.flatnonzero(taken < 0):
            here = np.where(allowed[row] & free, overlaps[row], -1.0)
            if here.max(initial=-1.0) >= iou:
                taken[row] = here.argmax()
                free[taken[row]] = False
    return taken, free


def _on_crowd(crowds: list[dict], places: dict[int, int], boxes: np.ndarray, found: np.ndarray, iou: float) -> np.ndarray:
    """Which detections lie, with the share `iou` of their area, on a crowd of their class. [n] bool"""
    on = np.zeros(len(boxes), dtype=bool)
    areas = np.maximum(np.prod(boxes[:, 2:], axis=1), 1e-12)
    for crowd in crowds:
        x, y, w, h = crowd["bbox"]
        shared = np.minimum(boxes[:, :2] + boxes[:, 2:], (x + w, y + h)) - np.maximum(boxes[:, :2], (x, y))
        on |= (found == places[crowd["category_id"]]) & (np.prod(np.clip(shared, 0, None), axis=1) / areas >= iou)
    return on
