"""What was found as annotations: a COCO file that `--data` and labelling tools read, to be corrected or trained on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def coco_annotations(images: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], class_names: Sequence[str], folder: str) -> str:
    """The text of a COCO file.

    Args:
        images: `id`, `path`, `width` and `height` of each image, also of those where nothing was found.
        rows: detections in the form of COCO's results; those of other images are left out.
        class_names: by label, background first.
        folder: where the file will be; paths of images are relative to it.
    """
    listed = [
        {"id": one["id"], "file_name": _relative(one["path"], folder), "width": one["width"], "height": one["height"]} for one in images
    ]
    known = {image["id"] for image in listed}
    mine = [row for row in rows if row["image_id"] in known]
    annotations = [_annotation(row, number) for number, row in enumerate(mine, start=1)]
    categories = [{"id": label, "name": name} for label, name in enumerate(class_names) if label]
    return json.dumps({"images": listed, "annotations": annotations, "categories": categories}, ensure_ascii=False)


def _relative(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder)).as_posix()


def _annotation(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A detection as an annotation; its score stays, for tools that sort by it."""
    out = {"id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
    out |= {key: row[key] for key in ("image_id", "category_id", "bbox", "score", "segmentation", "keypoints") if key in row}
    if "segmentation" in row:
        from pycocotools import mask as coco_mask

        out["area"] = float(coco_mask.area(row["segmentation"]))
    if "keypoints" in row:
        out["num_keypoints"] = sum(value > 0 for value in row["keypoints"][2::3])
    return out
