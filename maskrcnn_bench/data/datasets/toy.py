"""The toy data set: small photographs of lit, textured shapes, generated, with COCO annotations.

How difficult it is (each line is measured by tests/test_toy.py on generated pictures):

* 6 classes that differ in shape alone: circle, square, triangle, star, ring, cross. Colour, texture (clouds, grain,
  stripes, checks), light, ground, size and turn (triangles: up to 36 degrees either way) are drawn anew for every object
  or picture and say nothing about the class.
* 2 to 5 objects are tried a picture, 3 or more on average find a place.
* The side of an object (square root of its box's area, as if nothing hid it) is drawn evenly in logarithm from a sixth to
  a half of the picture's side: a threefold range.
* About 15 % of the objects are overlapped by another, which hides 10 to 40 % of them; no object touches a third.
* Masks and boxes show the visible part: the box is tight around the pixels of the mask.
* Pictures are 128 pixels wide and high unless asked otherwise, with soft shadows, uneven light, slight blur, sensor noise
  and JPEG of quality 95; 150 of them are held out.

Masks are polygons; those of rings are RLE, because a list of polygons has no holes. Triangles have three keypoints (apex,
left, right), in a file of their own as COCO has it for persons. A picture is a function of (seed, split, number) alone, so
asking for more pictures leaves the earlier ones as they were.

    folder/toy.json                              what was generated; written last
    folder/annotations/instances_{train,test}.json, keypoints_{train,test}.json
    folder/{train,test}/000001.jpg ...
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np

from maskrcnn_bench.data.datasets.toy_scene import CLASSES, KEYPOINT_NAMES, Shape, arrange, paint
from maskrcnn_bench.structures.mask_outline import encode_runs, outline

VERSION = 1
MARKER = "toy.json"
SPLITS = ("train", "test")
OBJECTS = (2, 5)
SIZE_RANGE = (1 / 6, 1 / 2)
OVERLAP = 0.27
TEST_IDS_BEGIN = 100_000


def scene(seed: int, split: str, number: int, size: int = 128):
    """One picture of the data set and its shapes.

    Returns:
        The picture (PIL, RGB, `size` x `size`) and its shapes, what lies below first.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), number])
    count = rng.integers(OBJECTS[0], OBJECTS[1] + 1)
    sides = size * np.exp(rng.uniform(*np.log(SIZE_RANGE), count))
    shapes = arrange(rng, size, sides, OVERLAP)
    return paint(rng, size, shapes), shapes


def generate(folder: str | os.PathLike, num_train: int = 600, num_test: int = 150, size: int = 128, seed: int = 0) -> Path:
    """Write the data set, or leave it alone when the same one is there already.

    Args:
        folder: where to; made if missing.
        num_train: pictures to train on.
        num_test: held-out pictures.
        size: side of a picture, pixels.
        seed: another seed gives other pictures.
    Returns:
        The folder.
    Raises:
        FileExistsError: when the folder holds something else than a toy data set.
    """
    folder = Path(folder)
    request = {"version": VERSION, "train": num_train, "test": num_test, "size": size, "seed": seed}
    if read_marker(folder) == request:
        return folder
    if folder.exists() and any(folder.iterdir()) and read_marker(folder) is None:
        raise FileExistsError(f"{folder} holds files that are no finished toy data set; give an empty folder, or remove it")
    marker = folder / MARKER
    marker.unlink(missing_ok=True)
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    marker.with_suffix(".partial").write_text("{}")
    for split, count in zip(SPLITS, (num_train, num_test), strict=True):
        _write_split(folder, split, count, size, seed)
    marker.with_suffix(".partial").write_text(json.dumps(request))
    os.replace(marker.with_suffix(".partial"), marker)
    return folder


def read_marker(folder: Path) -> dict | None:
    """What a folder says it was generated with: {} when generating it was interrupted, None when it is no toy data set."""
    for name in (MARKER, Path(MARKER).with_suffix(".partial")):
        if (folder / name).is_file():
            return json.loads((folder / name).read_text())
    return None


def _write_split(folder: Path, split: str, count: int, size: int, seed: int) -> None:
    (folder / split).mkdir(exist_ok=True)
    images, annotations = [], []
    first = TEST_IDS_BEGIN if split == "test" else 0
    for number in range(1, count + 1):
        picture, shapes = scene(seed, split, number, size)
        image = {"id": first + number, "file_name": f"{number:06d}.jpg", "width": size, "height": size}
        picture.save(folder / split / image["file_name"], quality=95, subsampling=0)
        images.append(image)
        annotations += [annotation(shape, image["id"], len(annotations) + 1 + k) for k, shape in enumerate(shapes)]
    _write_json(folder, "instances", split, images, [{k: v for k, v in a.items() if "keypoints" not in k} for a in annotations])
    _write_json(folder, "keypoints", split, images, [a for a in annotations if "keypoints" in a])


def _write_json(folder: Path, kind: str, split: str, images: list[dict], annotations: list[dict]) -> None:
    categories = [{"id": k + 1, "name": name, "supercategory": "shape"} for k, name in enumerate(CLASSES)]
    if kind == "keypoints":
        points = {"keypoints": KEYPOINT_NAMES, "skeleton": [[1, 2], [2, 3], [3, 1]]}
        categories = [category | points for category in categories if category["name"] == "triangle"]
    info = {"description": f"toy shapes, {split}", "version": str(VERSION)}
    content = {"info": info, "images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / f"{kind}_{split}.json").write_text(json.dumps(content, separators=(",", ":")))


def annotation(shape: Shape, image_id: int, annotation_id: int) -> dict:
    """A shape as a COCO annotation: box xywh, area and mask of the visible part, pixels."""
    rows, columns = np.flatnonzero(shape.visible.any(axis=1)), np.flatnonzero(shape.visible.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": CLASSES.index(shape.name) + 1,
        "bbox": [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y],
        "area": int(shape.visible.sum()),
        "iscrowd": 0,
        "segmentation": _segmentation(shape),
        **({} if shape.corners is None else _keypoints(shape)),
    }


def _segmentation(shape: Shape) -> dict | list[list[float]]:
    if shape.hole is not None:
        return encode_runs(shape.visible)
    rings = outline(shape.visible) if shape.hidden else [shape.outline]
    return [np.round(ring.astype(float), 2).flatten().tolist() for ring in rings]


def _keypoints(shape: Shape) -> dict:
    """Corners as COCO's x, y, v; a corner that another shape hides has v = 1."""
    inward = shape.corners + 0.08 * (shape.corners.mean(axis=0) - shape.corners)
    seen = [2 if shape.visible[int(y), int(x)] else 1 for x, y in inward]
    flat = [[round(float(x), 2), round(float(y), 2), v] for (x, y), v in zip(shape.corners, seen, strict=True)]
    return {"keypoints": sum(flat, []), "num_keypoints": len(flat)}
