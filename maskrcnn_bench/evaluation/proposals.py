"""Recall of box proposals, classes ignored: AR at 100 and 1000 proposals, over all objects and by size.

Unlike COCO's evaluation this matches the best-covered object first, as maskrcnn-benchmark and detectron2 do; crowds don't count.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from maskrcnn_bench.structures.bounding_box import BoxList

from .coco import ground_truth, image_ids

AREAS = {"": (0.0, 1e10), "s": (0.0, 32.0**2), "m": (32.0**2, 96.0**2), "l": (96.0**2, 1e10)}
"""Suffix -> smallest and largest area of an object, pixels squared, both included."""

IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)


def evaluate_proposals(dataset, predictions: Sequence[BoxList | None], limits: Sequence[int] = (100, 1000)) -> dict[str, float]:
    """Average recall of proposals over IoU 0.50 to 0.95.

    Args:
        dataset: as for `coco.ground_truth`.
        predictions: proposals of each image in pixels of the original image (others are rescaled), with a field `objectness` (or
            `scores`); None where there are none.
        limits: how many of the best proposals of an image count.
    Returns:
        "AR@100", "ARs@100", "ARm@100", "ARl@100", "AR@1000" ... 0 to 1; -1 where there is no object of that size.
    """
    truth, objects = ground_truth(dataset), {}
    for annotation in truth["annotations"]:
        if not annotation["iscrowd"]:
            objects.setdefault(annotation["image_id"], []).append((*annotation["bbox"], annotation["area"]))
    numbers = {}
    images = [
        (np.array(objects[image_id]), _ranked(boxlist, (image["width"], image["height"])))
        for image_id, boxlist, image in zip(image_ids(dataset), predictions, truth["images"])
        if image_id in objects
    ]
    for limit in limits:
        for suffix, area in AREAS.items():
            covers = [_best_covers(found[:limit], _of_size(rows, area)) for rows, found in images]
            covers = np.concatenate(covers) if covers else np.zeros(0)
            recalls = [np.mean(covers >= threshold) for threshold in IOU_THRESHOLDS] if len(covers) else [-1.0]
            numbers[f"AR{suffix}@{limit}"] = float(np.mean(recalls))
    return numbers


def _ranked(boxlist: BoxList | None, size: tuple[int, int]) -> np.ndarray:
    """Proposals by descending score, xywh, pixels of the original image. [n, 4]"""
    if boxlist is None:
        return np.zeros((0, 4))
    if tuple(boxlist.size) != size:
        boxlist = boxlist.resize(size)
    scores = boxlist.get_field("objectness" if boxlist.has_field("objectness") else "scores")
    order = np.argsort(-scores.detach().cpu().numpy(), kind="stable")
    return boxlist.convert("xywh").bbox.detach().cpu().double().numpy()[order]


def _of_size(rows: np.ndarray, area: tuple[float, float]) -> np.ndarray:
    return rows[(rows[:, 4] >= area[0]) & (rows[:, 4] <= area[1]), :4]


def _best_covers(found: np.ndarray, objects: np.ndarray) -> np.ndarray:
    """Overlap that each object gets when, again and again, the best pair of an object and a proposal is taken away. [objects]"""
    covers = np.zeros(len(objects))
    overlaps = box_iou(found, objects)
    for step in range(min(len(found), len(objects))):
        best = np.unravel_index(overlaps.argmax(), overlaps.shape)
        covers[step] = overlaps[best]
        overlaps[best[0], :] = -1
        overlaps[:, best[1]] = -1
    return covers


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """IoU of boxes given as xywh, whatever the pixel rule was that made their widths. [n, 4], [m, 4] -> [n, m]"""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    shared = np.prod(np.clip(high - low, 0, None), axis=-1)
    areas = np.prod(first[:, 2:], axis=-1)[:, None] + np.prod(second[:, 2:], axis=-1)[None]
    return shared / np.maximum(areas - shared, 1e-12)
