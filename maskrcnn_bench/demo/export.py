"""What was found as annotations, to be corrected or trained on: a COCO file, or LabelMe's files; `--data` reads both."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..utils.files import write_atomically
from .files import encoded

if TYPE_CHECKING:
    import numpy as np

    from ..structures.keypoint import Keypoints
    from .images import Found

VISIBLE = 2
"""COCO's word for a point that is seen; a model does not tell hidden ones apart."""
CORRECTED = "is there already and may have somebody's corrections"


# ------------------------------------------------------------------------------------------------------- places


def require_folder(option: str, folder: str) -> None:
    """Raises NotADirectoryError where a folder cannot be made because a file is in its place or above it."""
    wrong = next((one for one in (Path(folder), *Path(folder).parents) if one.exists() and not one.is_dir()), None)
    if wrong is not None:
        raise NotADirectoryError(f"{option}: expected a folder, but {wrong} is a file; name another folder")


def require_new_file(option: str, path: str) -> None:
    """Raises OSError when a file that is to be written is there, or cannot be made; "" stands for none."""
    if not path:
        return
    if os.path.isdir(path):
        raise IsADirectoryError(f"{option}: expected a file, such as {Path(path, 'instances_train.json')}, but {path} is a folder")
    if os.path.exists(path):
        raise FileExistsError(f"{option}: {path} {CORRECTED}; name another file")
    require_folder(option, os.path.dirname(path))


def labelme_paths(images: Sequence[tuple[int, Found]], folder: str) -> dict[int, str]:
    """LabelMe's file for each image: beside it where it is in `folder`, else in `folder`, with the folders of its name.

    Args:
        images: with their place in the list of all files.
        folder: "" asks for no files.
    Returns:
        Paths, by `id` of the image.
    Raises:
        OSError: when one is there already, or cannot be made.
        ValueError: when two images would have the same one.
    """
    paths: dict[int, str] = {}
    owners: dict[str, str] = {}
    if not folder:
        return paths
    require_folder("--labelme", folder)
    for index, found in images:
        path = _labelme_path(found, folder)
        # File systems may take upper and lower case for the same.
        other = owners.setdefault(os.path.abspath(path).lower(), found.path)
        if other != found.path:
            raise ValueError(f"--labelme: {other} and {found.path} would both have {path}; rename one, or take two runs and two folders")
        if os.path.exists(path):
            raise FileExistsError(f"--labelme: {path} {CORRECTED}; name another folder")
        paths[index + 1] = path
    for place in {os.path.dirname(path) for path in paths.values()}:
        require_folder("--labelme", place)
    return paths


def _labelme_path(found: Found, folder: str) -> str:
    inside = Path(os.path.abspath(found.path)).is_relative_to(os.path.abspath(folder))
    return str(Path(found.path if inside else os.path.join(folder, found.name)).with_suffix(".json"))


def write_annotations(
    path: str, images: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], class_names: Sequence[str], points: Keypoints | None
) -> None:
    """Writes a COCO file, with the arguments of `coco_annotations`."""
    text = coco_annotations(images, rows, class_names, os.path.dirname(path), points)
    write_atomically(path, lambda file: file.write(encoded(text)))


def write_labelme(
    paths: Mapping[int, str], images: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], points: Keypoints | None
) -> None:
    """Writes LabelMe's file of each image that was read, where `labelme_paths` says."""
    of_image: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of_image.setdefault(row["image_id"], []).append(row)
    for image in images:
        path = paths[image["id"]]
        text = labelme_annotations(image, of_image.get(image["id"], []), os.path.dirname(path), points)
        write_atomically(path, lambda file, text=text: file.write(encoded(text)))


# ------------------------------------------------------------------------------------------------------- COCO


def coco_annotations(
    images: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]], class_names: Sequence[str], folder: str, points: Keypoints | None
) -> str:
    """The text of a COCO file.

    Args:
        images: `id`, `path`, `width` and `height` of each image, also of those where nothing was found.
        rows: detections in the form of COCO's results; those of other images are left out.
        class_names: by label, background first.
        folder: where the file will be; paths of images are relative to it.
        points: what kind of keypoints the objects of the model have; None without.
    """
    listed = [
        {"id": one["id"], "file_name": _relative(one["path"], folder), "width": one["width"], "height": one["height"]} for one in images
    ]
    known = {image["id"] for image in listed}
    mine = [row for row in rows if row["image_id"] in known]
    annotations = [_annotation(row, number) for number, row in enumerate(mine, start=1)]
    # COCO counts points from 1.
    more = {"keypoints": [*points.names], "skeleton": [[a + 1, b + 1] for a, b in points.joined()]} if points is not None else {}
    categories = [{"id": label, "name": name} | more for label, name in enumerate(class_names) if label]
    return json.dumps({"images": listed, "annotations": annotations, "categories": categories}, ensure_ascii=False)


def _relative(path: str, folder: str) -> str:
    return Path(os.path.relpath(path, folder or ".")).as_posix()


def _annotation(row: dict[str, Any], number: int) -> dict[str, Any]:
    """A detection as an annotation; its score stays, for tools that sort by it."""
    out = {"id": number, "iscrowd": 0, "area": row["bbox"][2] * row["bbox"][3]}
    out |= {key: row[key] for key in ("image_id", "category_id", "bbox", "score", "segmentation", "keypoints") if key in row}
    if "segmentation" in row:
        from pycocotools import mask as coco_mask

        out["area"] = float(coco_mask.area(row["segmentation"]))
    if "keypoints" in row:
        # Results have the points' scores there.
        out["keypoints"] = [VISIBLE if k % 3 == 2 else value for k, value in enumerate(row["keypoints"])]
        out["num_keypoints"] = len(row["keypoints"]) // 3
    return out


# ------------------------------------------------------------------------------------------------------- LabelMe


def labelme_annotations(image: dict[str, Any], rows: Sequence[dict[str, Any]], folder: str, points: Keypoints | None) -> str:
    """The text of LabelMe's file of one image: polygons, or rectangles where there are no masks, and keypoints as points.

    Args:
        image: `path`, `width` and `height`.
        rows: its detections in the form of COCO's results, with `category_name`.
        folder: where the file will be; the path of the image is relative to it.
        points: what kind of keypoints the objects of the model have; None without.
    """
    names = () if points is None else points.names
    shapes = [shape for number, row in enumerate(rows, start=1) for shape in _shapes(row, number, names)]
    out = {"version": "5.0.0", "flags": {}, "shapes": shapes, "imagePath": _relative(image["path"], folder), "imageData": None}
    return json.dumps(out | {"imageHeight": image["height"], "imageWidth": image["width"]}, ensure_ascii=False)


def _shapes(row: dict[str, Any], number: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """A detection as shapes; those of an object of several have its number as their group."""
    x, y, width, height = row["bbox"]
    outlines, kind = [[[x, y], [x + width, y + height]]], "rectangle"
    if "segmentation" in row:
        outlines, kind = _polygons(row["segmentation"]), "polygon"
    values = row.get("keypoints", [])
    points = dict(zip(names, zip(values[::3], values[1::3]))) if outlines else {}
    group = number if len(outlines) + len(points) > 1 else None
    common = {"group_id": group, "flags": {}, "description": f"score {row['score']:.3f}"}
    shapes = [common | {"label": row["category_name"], "shape_type": kind, "points": outline} for outline in outlines]
    return shapes + [common | {"label": name, "shape_type": "point", "points": [list(point)]} for name, point in points.items()]


def _polygons(mask: dict[str, Any]) -> list[list[list[float]]]:
    """The outlines of run lengths, pixels. A hole is joined to the outline around it by a cut of no width, so that it stays one."""
    import numpy as np

    from ..structures.mask_outline import decode_crop, outline, signed_area

    x0, y0, pixels = decode_crop(mask)
    rings = [ring.astype(np.float64) for ring in outline(pixels)]
    outer = sorted((ring for ring in rings if signed_area(ring) > 0), key=signed_area)
    joined = list(outer)
    for hole in (ring for ring in rings if signed_area(ring) < 0):
        around = next(k for k, ring in enumerate(outer) if _encloses(ring, hole))
        joined[around] = _cut_open(joined[around], hole)
    return [(ring + (x0, y0)).tolist() for ring in joined]


def _encloses(ring: np.ndarray, hole: np.ndarray) -> bool:
    """Whether a ring along pixel edges has a hole in it. Both: corners, xy. [n, 2]"""
    import numpy as np

    # The pixel at the upper end of the hole's left edge belongs to the hole.
    x, y = min(hole.tolist())
    ends = np.roll(ring[:, 1], -1)
    passed = (ring[:, 0] <= x) & ((ring[:, 1] <= y) != (ends <= y))
    return bool(passed.sum() % 2)


def _cut_open(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """A ring that goes over to a hole where both are nearest, around it, and back the same way. Both: corners, xy. [n, 2]"""
    import numpy as np

    distances = np.square(ring[:, None] - hole[None]).sum(axis=2)
    here, there = np.unravel_index(distances.argmin(), distances.shape)
    return np.concatenate([ring[: here + 1], hole[there:], hole[: there + 1], ring[here:]])
