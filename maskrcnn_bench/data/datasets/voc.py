"""PASCAL VOC: an XML file an image in `Annotations`, lists of images in `ImageSets/Main`, images in `JPEGImages`."""

from __future__ import annotations

import os
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_bench.data.datasets.stored import BACKGROUND, StoredDataset
from maskrcnn_bench.data.store import AnnotationStore
from maskrcnn_bench.structures.bounding_box import BoxList

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# VOC names the first and the last pixel of an object: a box from a pixel to itself was a slip of the mouse.
EMPTY_EXTENT = 1.0


class PascalVOCDataset(StoredDataset):
    """One split of a folder in VOC layout.

    Coordinates count from 1 and name pixels, so a box covers [xmin - 1, xmax] x [ymin - 1, ymax].

    Args:
        data_dir: folder with `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of a list in `ImageSets/Main`.
        use_difficult: also return objects marked difficult.
        transforms: called as (image, target) on every sample.
        remove_images_without_annotations: leave out images without a usable object.
        classes: names of the classes, in this order; () takes VOC's 20, or those found when they are others.
        options: `pixel`, `on_fault`, `on_exif` of StoredDataset.
    """

    CLASSES = (BACKGROUND, *VOC_CLASSES)

    def __init__(
        self,
        data_dir: str | os.PathLike,
        split: str,
        use_difficult: bool = False,
        transforms: Callable | None = None,
        remove_images_without_annotations: bool = False,
        *,
        classes: Sequence[str] = (),
        **options: Any,
    ):
        self.image_set = split
        self.keep_difficult = use_difficult
        store, self.difficult, self.names = read_voc(Path(data_dir), split)
        images = Path(data_dir) / "JPEGImages"
        super().__init__(store, str(images), remove_images_without_annotations, transforms, classes=classes, **options)

    def _wanted(self) -> np.ndarray:
        return ~self.difficult | self.keep_difficult

    def _add_fields(self, target: BoxList, rows: np.ndarray) -> None:
        target.add_field("difficult", torch.from_numpy(self.difficult[rows].astype(np.uint8)))

    def map_class_id_to_class_name(self, class_id: int) -> str:
        return self.class_names[class_id]


def read_voc(folder: Path, split: str) -> tuple[AnnotationStore, np.ndarray, list[str]]:
    """All annotations of a split.

    Returns:
        The store, which objects are difficult [A] bool, and the names of the images as the split lists them.
    Raises:
        FileNotFoundError: when the split or an XML file is missing.
        ValueError: when an XML file is malformed.
    """
    names = read_split(folder, split)
    files = {Path(entry.name).stem: entry.name for entry in os.scandir(folder / "JPEGImages")} if (folder / "JPEGImages").is_dir() else {}
    images, objects = [], []
    for number, name in enumerate(names, start=1):
        image, found = read_xml(folder / "Annotations" / f"{name}.xml")
        images.append(image | {"id": number, "file_name": files.get(name, f"{name}.jpg")})
        objects += [entry | {"image_id": number, "id": len(objects) + 1 + k} for k, entry in enumerate(found)]
    classes = _class_order(folder, {entry["name"] for entry in objects})
    for entry in objects:
        entry["category_id"] = classes.index(entry["name"]) + 1
    categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    difficult = np.array([entry["difficult"] for entry in objects], dtype=bool)
    content = {"images": images, "categories": categories, "annotations": objects}
    return AnnotationStore(f"{folder} ({split})", content, EMPTY_EXTENT), difficult, names


def read_split(folder: Path, split: str) -> list[str]:
    """Names of the images of a split."""
    path = folder / "ImageSets" / "Main" / f"{split}.txt"
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        raise FileNotFoundError(f"no list of images {path}; splits there: {there}")
    names = [line.split()[0] for line in path.read_text().splitlines() if line.strip()]
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if repeated:
        raise ValueError(f"{path}: {sorted(repeated)[0]} is listed more than once")
    return names


def _class_order(folder: Path, found: set[str]) -> list[str]:
    """VOC's classes in VOC's order; for other ones, those of all XML files by name, so that every split has the same."""
    if found <= set(VOC_CLASSES):
        return list(VOC_CLASSES)
    everywhere = {entry["name"] for path in (folder / "Annotations").glob("*.xml") for entry in read_xml(path)[1]}
    return sorted(found | everywhere)


def read_xml(path: Path) -> tuple[dict, list[dict]]:
    """One image and its objects as COCO has them: box x, y, width, height, pixels.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no XML, or lacks a name or a box.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; write one, or take {path.stem} out of the list in ImageSets/Main")
    try:
        root = ElementTree.parse(path).getroot()
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        return {"width": round(size[0]), "height": round(size[1]), "source": str(path)}, [_read_object(o) for o in root.iter("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: malformed VOC annotation ({error}); correct the file") from None


def _read_object(element: ElementTree.Element) -> dict:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    corners = {}
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{corner}")
        if text is None:
            raise ValueError(f"object {name!r} has no bndbox/{corner}")
        corners[corner] = float(text)
    x, y = corners["xmin"] - 1, corners["ymin"] - 1
    box = [x, y, corners["xmax"] - x, corners["ymax"] - y]
    return {"name": name, "bbox": box, "difficult": int(element.findtext("difficult") or 0)}
