"""A small evaluation with known result, to try an evaluator before its numbers are believed: crowds, ties, all sizes, misses.

Masks of the ground truth are hexagons in the boxes, those of the detections fill their boxes.
"""

from __future__ import annotations

import numpy as np

from maskrcnn_bench.structures.mask_paste import encode_counts

from .evaluators import FlatDetections

WIDTH, HEIGHT = 240, 200
IMAGES = (3, 7, 9)
CATEGORIES = (1, 4)

TRUTH = (
    # image, category, x, y, w, h, crowd
    (3, 1, 10, 10, 20, 20, 0),
    (3, 1, 30, 20, 50, 40, 0),
    (3, 4, 40, 5, 110, 110, 0),
    (3, 1, 0, 60, 70, 50, 1),
    (7, 1, 20, 20, 24, 24, 0),
    (7, 1, 26, 22, 24, 24, 0),
    (7, 4, 60, 50, 60, 50, 0),
    (7, 4, 10, 90, 100, 105, 0),
)

DETECTIONS = (
    # image, category, x, y, w, h, score
    (3, 1, 11, 10, 19, 19, 0.9),
    (3, 1, 32, 22, 50, 40, 0.8),
    (3, 1, 30, 20, 46, 40, 0.8),
    (3, 4, 45, 5, 100, 110, 0.7),
    (3, 1, 5, 65, 20, 20, 0.6),
    (3, 1, 25, 70, 20, 20, 0.6),
    (7, 1, 22, 21, 25, 24, 0.8),
    (7, 1, 22, 21, 25, 24, 0.8),
    (7, 4, 58, 52, 60, 50, 0.9),
    (7, 4, 0, 0, 30, 20, 0.95),
    (7, 4, 10, 90, 97, 108, 0.7),
    (9, 4, 10, 10, 40, 40, 0.5),
)

EXPECTED = {
    "bbox": (
        *(0.6333333333333333, 0.8254950495049505, 0.7202970297029703, 0.6336633663366337, 0.8, 0.9),
        *(0.3375, 0.7833333333333333, 0.7833333333333333, 0.6333333333333333, 0.85, 0.9),
    ),
    "segm": (
        *(0.4147689768976897, 0.8254950495049505, 0.26732673267326723, 0.43366336633663366, 0.525, 0.600990099009901),
        *(0.24166666666666664, 0.5208333333333333, 0.5208333333333333, 0.4333333333333333, 0.55, 0.6),
    ),
}
"""The 12 numbers of pycocotools 2.0.11: AP, AP50, AP75, APs, APm, APl, AR1, AR10, AR100, ARs, ARm, ARl."""


def ground_truth() -> dict:
    """The example's ground truth in the form of COCO's JSON."""
    annotations = [
        {
            "id": number,
            "image_id": image,
            "category_id": category,
            "bbox": [x, y, w, h],
            "area": w * h,
            "iscrowd": crowd,
            "segmentation": [[x, y + h / 2, x + w / 4, y, x + 3 * w / 4, y, x + w, y + h / 2, x + 3 * w / 4, y + h, x + w / 4, y + h]],
        }
        for number, (image, category, x, y, w, h, crowd) in enumerate(TRUTH, start=1)
    ]
    images = [{"id": image, "width": WIDTH, "height": HEIGHT} for image in IMAGES]
    return {"images": images, "categories": [{"id": k, "name": str(k)} for k in CATEGORIES], "annotations": annotations}


def detections() -> FlatDetections:
    """The example's detections."""
    rows = np.array(DETECTIONS)
    boxes = rows[:, 2:6]
    texts = encode_counts([_filled(*box) for box in boxes.astype(np.int64)])
    masks = [{"size": [HEIGHT, WIDTH], "counts": text} for text in texts]
    return FlatDetections(rows[:, 0].astype(np.int64), rows[:, 1].astype(np.int64), boxes, rows[:, 6], masks)


def _filled(x: int, y: int, w: int, h: int) -> np.ndarray:
    """Run lengths of a filled box."""
    runs = np.tile([HEIGHT - h, h], w)
    runs[0] = x * HEIGHT + y
    return np.append(runs, WIDTH * HEIGHT - runs.sum())
