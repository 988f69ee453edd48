"""PASCAL VOC: an XML file an image in `Annotations`, lists of images in `ImageSets/Main`, images in `JPEGImages`.

Masks exist for the images of `ImageSets/Segmentation`: PNGs in `SegmentationObject`, where k marks the k-th object of the XML file.
"""

from __future__ import annotations

import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from maskrcnn_bench.data.datasets.content import Content, rle_of_mask
from maskrcnn_bench.data.datasets.instance_png import read_instances
from maskrcnn_bench.data.datasets.layout import NoSplitError, read_lines
from maskrcnn_bench.data.datasets.stored import BACKGROUND, StoredDataset
from maskrcnn_bench.data.store import AnnotationStore
from maskrcnn_bench.structures.bounding_box import BoxList

VOC_CLASSES = (
    *("aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow"),
    *("diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor"),
)
# VOC names the first and the last pixel of an object: a box from a pixel to itself was a slip of the mouse.
EMPTY_EXTENT = 1.0
# Pixels around objects that belong to none.
VOID = 255


class DifficultObjects(StoredDataset):
    """A data set that knows difficult objects; sets `difficult` [A] bool and `keep_difficult` before it calls `__init__`."""

    difficult: np.ndarray
    keep_difficult: bool

    def _wanted(self) -> np.ndarray:
        return ~self.difficult | self.keep_difficult

    def _add_fields(self, target: BoxList, rows: np.ndarray) -> None:
        target.add_field("difficult", torch.from_numpy(self.difficult[rows].astype(np.uint8)))

    def map_class_id_to_class_name(self, class_id: int) -> str:
        return self.class_names[class_id]


class PascalVOCDataset(DifficultObjects):
    """One split of a folder in VOC layout.

    Coordinates count from 1 and name pixels, so a box covers [xmin - 1, xmax] x [ymin - 1, ymax].

    Args:
        data_dir: folder with `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of a list in `ImageSets/Main`, or in `ImageSets/Segmentation` with `masks`.
        use_difficult: also return objects marked difficult.
        transforms: called as (image, target) on every sample.
        remove_images_without_annotations: leave out images without a usable object.
        classes: names of the classes, in this order; () takes VOC's 20, or those found when they are others.
        masks: use the images that have masks, with their masks.
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
        masks: bool = False,
        **options: Any,
    ):
        self.image_set = split
        self.keep_difficult = use_difficult
        store, self.difficult, self.names = read_voc(Path(data_dir), split, masks)
        images = Path(data_dir) / "JPEGImages"
        super().__init__(store, str(images), remove_images_without_annotations, transforms, classes=classes, **options)

    @staticmethod
    def read_store(data_dir: str | os.PathLike, split: str, masks: bool = False) -> tuple[AnnotationStore, str]:
        """All annotations of a split, and the folder of the images."""
        return read_voc(Path(data_dir), split, masks)[0], str(Path(data_dir) / "JPEGImages")


def read_voc(folder: Path, split: str, masks: bool = False) -> tuple[AnnotationStore, np.ndarray, list[str]]:
    """All annotations of a split.

    Args:
        folder: with `Annotations`, `ImageSets` and `JPEGImages`.
        split: name of a list of images.
        masks: take the list from `ImageSets/Segmentation`, and masks from `SegmentationObject`.
    Returns:
        The store, which objects are difficult [A] bool, and the names of the images as the split lists them.
    Raises:
        FileNotFoundError: when the split or an XML file is missing.
        ValueError: when an XML file is malformed.
    """
    names = read_split(folder, split, "Segmentation" if masks else "Main")
    files = _image_files(folder / "JPEGImages", names)
    content = Content(f"{folder} ({split})", {})
    objects: list[tuple[int, dict]] = []
    for name in names:
        image, found = read_xml(folder / "Annotations" / f"{name}.xml")
        file_name, size = files.get(name, f"{name}.jpg"), (image["width"], image["height"])
        number = content.add_image(file_name, size, image["source"])
        if masks:
            found = _with_masks(content, folder / "SegmentationObject" / f"{name}.png", file_name, size, found)
        objects += [(number, entry) for entry in found]
    classes = _class_order(folder, {entry["name"] for _, entry in objects})
    content.categories = [{"id": k + 1, "name": name} for k, name in enumerate(classes)]
    for number, entry in objects:
        more = {"area": entry["area"]} if masks else {}
        content.add_object(number, classes.index(entry["name"]) + 1, entry["bbox"], entry.get("mask"), **more)
    difficult = np.array([entry["difficult"] for _, entry in objects], dtype=bool)
    return content.store(EMPTY_EXTENT, corners_from=1), difficult, names


def _image_files(images: Path, names: Sequence[str]) -> dict[str, str]:
    """The files, below `images`, in the folders of the given names; each by its name without ending."""
    folders = {Path(name).parent for name in names}
    found = [folder / entry.name for folder in folders if (images / folder).is_dir() for entry in os.scandir(images / folder)]
    return {path.with_suffix("").as_posix(): path.as_posix() for path in found}


def _with_masks(content: Content, path: Path, image: str, size: tuple[int, int], objects: list[dict]) -> list[dict]:
    """The objects of an image that have pixels in its PNG, with these; faults go into `content`."""
    pixels = read_instances(content, path, image, size)
    if pixels is None:
        return []
    masks = [pixels == k for k in range(1, len(objects) + 1)]
    for k, mask in enumerate(masks, start=1):
        if not mask.any():
            content.add_fault("drop", str(path), image, f"object {k} ({objects[k - 1]['name']}) has no pixels in this mask")
    for k in np.unique(pixels[(pixels > len(objects)) & (pixels != VOID)]).tolist():
        content.add_fault("drop", str(path), image, f"the mask has an object {k}, but the XML file only {len(objects)}")
    return [entry | {"mask": rle_of_mask(mask), "area": int(mask.sum())} for entry, mask in zip(objects, masks) if mask.any()]


def read_split(folder: Path, split: str, kind: str = "Main") -> list[str]:
    """Names of the images of a split; kind: "Main", or "Segmentation" for those that have masks."""
    path = folder / "ImageSets" / kind / f"{split}.txt"
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder}; check the path, or DATASETS.ROOT for names of the catalog")
    if not path.is_file():
        there = ", ".join(sorted(p.stem for p in path.parent.glob("*.txt"))) or "none"
        hint = "" if kind == "Main" else "; without MODEL.MASK_ON no masks are needed"
        raise FileNotFoundError(f"no list of images {path}; splits there: {there}{hint}")
    names = [_name_of(line.strip(), folder / "Annotations") for line in read_lines(path) if line.strip()]
    repeated = {name for name in names if names.count(name) > 1} if len(set(names)) < len(names) else ()
    if repeated:
        raise ValueError(f"{path}: {sorted(repeated)[0]} is listed more than once")
    return names


def _name_of(line: str, annotations: Path) -> str:
    """The image that a line of a list means; behind its name may stand whether a class is in it: 1, 0 or -1."""
    flagged = re.fullmatch(r"(.+?)\s+(-1|0|1)", line)
    # A name may itself end so.
    return flagged[1] if flagged and not (annotations / f"{line}.xml").is_file() else line


def _class_order(folder: Path, found: set[str]) -> list[str]:
    """VOC's classes in VOC's order; for other ones, those of all XML files by name, so that every split has the same."""
    if found <= set(VOC_CLASSES):
        return list(VOC_CLASSES)
    everywhere = {entry["name"] for path in (folder / "Annotations").glob("*.xml") for entry in read_xml(path)[1]}
    return sorted(found | everywhere)


def read_xml(path: Path, first: int = 1) -> tuple[dict, list[dict]]:
    """One image and its objects as COCO has them: box x, y, width, height, pixels.

    Args:
        path: the file.
        first: number of the first pixel of a row.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: when it is no XML, or lacks a name or a box.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no annotation file {path}; write one, or take {path.stem} out of the list in ImageSets/Main")
    try:
        root = ElementTree.parse(path).getroot()
        size = [float(root.findtext(f"size/{side}") or 0) for side in ("width", "height")]
        image = {"width": round(size[0]), "height": round(size[1]), "source": str(path)}
        return image, [_read_object(element, first) for element in root.iter("object")]
    except (ElementTree.ParseError, ValueError) as error:
        raise ValueError(f"{path}: malformed VOC annotation ({error}); correct the file") from None


def _read_object(element: ElementTree.Element, first: int) -> dict:
    name = (element.findtext("name") or "").strip()
    if not name:
        raise ValueError("an object has no name")
    corners = {}
    for corner in ("xmin", "ymin", "xmax", "ymax"):
        text = element.findtext(f"bndbox/{corner}")
        if text is None:
            raise ValueError(f"object {name!r} has no bndbox/{corner}")
        corners[corner] = float(text)
    x, y = corners["xmin"] - first, corners["ymin"] - first
    box = [x, y, corners["xmax"] + 1 - first - x, corners["ymax"] + 1 - first - y]
    return {"name": name, "bbox": box, "difficult": int(element.findtext("difficult") or 0)}


def find_voc(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder that holds VOC's layout, at most two levels below, and words for it; None when it holds none.

    Raises:
        NoSplitError: when the wanted split is missing.
    """
    root = _voc_root(folder)
    if root is None:
        return None
    kind = "Segmentation" if masks else "Main"
    split = _voc_split(root, is_train, kind)
    return {"data_dir": str(root), "split": split, "masks": masks}, f"VOC layout, ImageSets/{kind}/{split}.txt"


def _voc_root(folder: Path) -> Path | None:
    candidates = [folder, *sorted(folder.glob("*")), *sorted(folder.glob("*/*"))]
    return next((p for p in candidates if (p / "Annotations").is_dir() and (p / "ImageSets" / "Main").is_dir()), None)


def _voc_split(voc: Path, is_train: bool, kind: str) -> str:
    """With a list `test`, `trainval` is trained on and `test` is tested; without, `train` and `val`."""
    there = {p.stem for p in (voc / "ImageSets" / kind).glob("*.txt")}
    order = ("trainval", "train") if "test" in there else ("train", "trainval")
    for split in order if is_train else ("test", "val"):
        if split in there:
            return split
    expected = " or ".join(order if is_train else ("test", "val"))
    hint = "" if kind == "Main" else "; without MODEL.MASK_ON no masks are needed"
    raise NoSplitError(f"{voc / 'ImageSets' / kind}: expected a list {expected}, found {sorted(there)}{hint}")
