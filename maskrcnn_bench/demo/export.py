"""What was found as annotations, to be corrected or trained on: a COCO file, or LabelMe's files; `--data` reads both."""

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


def labelme_annotations(image: dict[str, Any], rows: Sequence[dict[str, Any]], folder: str) -> str:
    """The text of LabelMe's file of one image: polygons, or rectangles where there are no masks.

    Args:
        image: `path`, `width` and `height`.
        rows: its detections in the form of COCO's results, with `category_name`.
        folder: where the file will be; the path of the image is relative to it.
    """
    shapes = [shape for number, row in enumerate(rows, start=1) for shape in _shapes(row, number)]
    out = {"version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": _relative(image["path"], folder), "imageData": None}
    return json.dumps(out | {"imageHeight": image["height"], "imageWidth": image["width"]}, ensure_ascii=False)


def _shapes(row: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """A detection as shapes; those of an object in several parts have its number as their group."""
    x, y, width, height = row["bbox"]
    rings, kind = [[[x, y], [x + width, y + height]]], "rectangle"
    if "segmentation" in row:
        from ..structures.segmentation_mask import SegmentationMask

        size = tuple(reversed(row["segmentation"]["size"]))
        polygons = SegmentationMask([row["segmentation"]], size, mode="poly").instances[0].rings
        rings, kind = [ring.tolist() for ring in polygons if len(ring) >= 3], "polygon"
    group = number if len(rings) > 1 else None
    common = {"label": row["category_name"], "group_id": group, "shape_type": kind, "flags": {}, "description": f"score {row['score']:.3f}"}
    return [common | {"points": points} for points in rings]
