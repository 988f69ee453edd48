"""LabelMe: a JSON file beside each image with its outlines; folders `train` and `val` where there are splits."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from maskrcnn_bench.data.datasets.content import Content, box_of_points
from maskrcnn_bench.data.datasets.layout import IMAGE_SUFFIXES, NO_SPLITS, TEST_SPLITS, TRAIN_SPLITS, NoSplitError, every_fifth, splits
from maskrcnn_bench.data.datasets.stored import StoredDataset
from maskrcnn_bench.data.store import AnnotationStore
from maskrcnn_bench.structures.keypoint import PersonKeypoints

FILES_LOOKED_INTO = 20
CIRCLE_CORNERS = 64
_OVERLAY = "_det"
_NUMBER = re.compile(r"_\d+$")
_KEYS = re.compile(rb'"(shapes|imagePath|imageData)"\s*:')


class LabelMeDataset(StoredDataset):
    """Images and their JSON files, in the order of the images' names. Shapes of one label and one `group_id` are one object.

    Points of that group are its keypoints, named by their labels.

    Args:
        folder: images, and NAME.json for an image NAME.
        split: "train" or "test" takes a part, as `layout.every_fifth` has it; "all" takes all.
        class_dirs: folders whose files name the classes, so that every split has the same; () takes `folder`.
        keypoints: read points too.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        split: str = "all",
        class_dirs: Sequence[str | os.PathLike] = (),
        keypoints: bool = False,
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        store, root = self.read_store(folder, split, class_dirs, keypoints, options.get("on_exif", "auto"))
        super().__init__(store, root, remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(
        folder: str | os.PathLike,
        split: str = "all",
        class_dirs: Sequence[str | os.PathLike] = (),
        keypoints: bool = False,
        on_exif: str = "auto",
    ) -> tuple[AnnotationStore, str]:
        """All annotations of a split, and the folder of the images."""
        images = sorted(path for path in Path(folder).iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        stems = {path.stem for path in images}
        images = [path for path in images if not _is_overlay(path, stems)]
        if not images:
            raise ValueError(f"{folder}: LabelMe's files but no image; each JSON file must lie beside its image, NAME.json beside NAME.jpg")
        files = [path for one in (class_dirs or [folder]) for path in sorted(Path(one).glob("*.json"))]
        known = [(_is_point(shape), _label(shape)) for path in files for shape in _shapes(path)[0]]
        names = sorted({label for is_point, label in known if not is_point})
        points = _in_order([label for is_point, label in known if is_point and keypoints])
        content = Content(f"{folder} ({split})", dict(enumerate(names, start=1)), on_exif)
        for category in content.categories if points else ():
            category["keypoints"] = points
        for k in every_fifth(len(images), split):
            _read_image(content, images[k], names, points)
        for path in sorted(Path(folder).glob("*.json")):
            if path.stem not in stems:
                content.add_fault("drop", str(path), "", "no image belongs to this file")
        return content.store(), os.fspath(folder)


def _is_overlay(path: Path, stems: Collection[str]) -> bool:
    """Whether a picture is one that `predict --beside` made of another, named in `stems`, and has no annotations of its own."""
    name = path.stem.removesuffix(_OVERLAY)
    # Where two images have one name, the picture of the second is numbered.
    of_another = name != path.stem and (name in stems or _NUMBER.sub("", name) in stems)
    return of_another and not path.with_suffix(".json").is_file()


def _shapes(path: Path) -> tuple[list[dict], str]:
    """The shapes of a file, or what is wrong with it."""
    try:
        shapes = json.loads(path.read_bytes())["shapes"]
        if isinstance(shapes, list) and all(isinstance(shape, dict) for shape in shapes):
            return shapes, ""
        return [], "`shapes` is no list of objects"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"not a file of LabelMe ({type(error).__name__}: {error}); save it again, or take it away"


def _is_point(shape: dict) -> bool:
    return shape.get("shape_type") == "point"


def _label(shape: dict) -> str:
    return str(shape.get("label", ""))


def _group(shape: dict) -> str:
    """What the shapes of one object share; "" for a shape on its own."""
    return "" if shape.get("group_id") is None else str(shape["group_id"])


def _in_order(labels: Sequence[str]) -> list[str]:
    """Names of points as they first come; COCO's persons in COCO's order."""
    names = list(dict.fromkeys(labels))
    return list(PersonKeypoints.NAMES) if set(names) == set(PersonKeypoints.NAMES) else names


def _read_image(content: Content, image: Path, names: Sequence[str], point_names: Sequence[str]) -> None:
    path = image.with_suffix(".json")
    number = content.add_image(image.name, content.image_size(str(image), image.name), str(path))
    if not path.is_file():
        content.add_fault("note", str(path), image.name, "there is no such file: the image counts as one without objects")
        return
    shapes, fault = _shapes(path)
    if fault:
        content.add_fault("stop", str(path), image.name, fault)
    objects: dict[tuple[str, str | int], tuple[str, str, list[list[float]]]] = {}
    points: dict[str, dict[str, list[float]]] = {}
    groups = {_group(shape) for shape in shapes if not _is_point(shape)}
    for place, shape in enumerate(shapes):
        label, group = _label(shape), _group(shape)
        try:
            if _is_point(shape):
                points.setdefault(group, {})[label] = _point(shape, groups)
            else:
                ring, key = _outline(shape), (label, group or place)
                objects.setdefault(key, (label, group, []))[2].append(ring)
        except (ValueError, TypeError, KeyError) as error:
            content.add_fault("drop", str(path), image.name, f"shape {place + 1} ({shape.get('label')}): {error}")
    for label, group, rings in objects.values():
        values = [value for ring in rings for value in ring]
        mine = points.get(group, {})
        more = {"keypoints": [v for name in point_names for v in mine.get(name, (0, 0, 0))]} if point_names and mine else {}
        content.add_object(number, names.index(label) + 1, box_of_points(values[::2], values[1::2]), rings, **more)


def _point(shape: dict, groups: Collection[str]) -> list[float]:
    """A keypoint as COCO writes it: x, y, pixels, and 2, which is visible."""
    if not _group(shape) or _group(shape) not in groups:
        raise ValueError("a point of no object; give it and the outline of its object the same group_id")
    ((x, y),) = shape["points"]
    return [float(x), float(y), 2]


def _outline(shape: dict) -> list[float]:
    """The corners of a shape, x and y in turn, pixels."""
    kind, points = shape.get("shape_type", "polygon"), [(float(x), float(y)) for x, y in shape["points"]]
    if kind == "rectangle" and len(points) >= 2:
        x, y, width, height = box_of_points(*zip(*points))
        points = [(x, y), (x + width, y), (x + width, y + height), (x, y + height)]
    elif kind == "circle" and len(points) == 2:
        (x, y), radius = points[0], math.dist(*points)
        angles = [2 * math.pi * k / CIRCLE_CORNERS for k in range(CIRCLE_CORNERS)]
        points = [(x + radius * math.cos(angle), y + radius * math.sin(angle)) for angle in angles]
    elif kind != "polygon" or len(points) < 3:
        raise ValueError(f"a {kind} of {len(points)} points has no area; polygon, rectangle and circle have one")
    return [value for point in points for value in point]


# ------------------------------------------------------------------------------------------------------- recognition


def find_labelme(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder of images and LabelMe's files, and words for it; None when it is none.

    Raises:
        NoSplitError: when there are folders of splits but none of the wanted one.
    """
    parts = {split: folder / split for split in (*TRAIN_SPLITS, *TEST_SPLITS) if _has_files(folder / split)}
    if parts:
        split = next((split for split in splits(is_train) if split in parts), None)
        if split is None:
            raise NoSplitError(f"{folder}: LabelMe's files; expected a folder {' or '.join(splits(is_train))}, found {', '.join(parts)}")
        arguments = {"folder": str(parts[split]), "split": "all", "class_dirs": [str(part) for part in parts.values()]}
        return arguments, f"LabelMe's JSON files, all images of the folder {split} are for {'training' if is_train else 'testing'}"
    if not _has_files(folder):
        return None
    return {"folder": str(folder), "split": "train" if is_train else "test", "class_dirs": []}, f"LabelMe's JSON files, {NO_SPLITS}"


def _has_files(folder: Path) -> bool:
    return any(is_labelme(path) for path in islice(folder.glob("*.json"), FILES_LOOKED_INTO))


def is_labelme(path: Path) -> bool:
    """Whether a JSON file is one of LabelMe's, by its head."""
    with open(path, "rb") as file:
        return _KEYS.search(file.read(2000)) is not None
