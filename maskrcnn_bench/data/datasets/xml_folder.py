"""Images with XML files of VOC's kind but no lists of them, as labelling tools write: in two folders or side by side.

Folders named like splits (`train`, `val`, ...) are splits, wherever they stand: `train/images`, `images/train`, or `train` with everything.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from maskrcnn_bench.data.datasets.content import Content
from maskrcnn_bench.data.datasets.layout import IMAGE_SUFFIXES, NO_SPLITS, TEST_SPLITS, TRAIN_SPLITS, NoSplitError, every_fifth, splits
from maskrcnn_bench.data.datasets.voc import EMPTY_EXTENT, DifficultObjects, read_xml
from maskrcnn_bench.data.store import AnnotationStore

# Where images and XML files may stand below a folder; "." is the folder itself.
IMAGES, XMLS = ("JPEGImages", "images", "."), ("Annotations", "annotations", ".")
_VOC = re.compile(rb"<annotation[\s>]")
FILES_LOOKED_INTO = 20


class XMLFolderDataset(DifficultObjects):
    """Images and their XML files, in the order of the images' names; coordinates as in VOC.

    Args:
        img_dir: folder of the images.
        xml_dir: folder of the XML files, NAME.xml for an image NAME.
        split: "train" or "test" takes a part, as `layout.every_fifth` has it; "all" takes all.
        class_dirs: folders whose XML files name the classes, so that every split has the same; () takes `xml_dir`.
        use_difficult: also return objects marked difficult.
        remove_images_without_annotations: leave out images without a usable object.
        transforms: called as (image, target) on every sample.
        options: `pixel`, `on_fault`, `on_exif`, `classes` of StoredDataset.
    """

    def __init__(
        self,
        img_dir: str | os.PathLike,
        xml_dir: str | os.PathLike,
        split: str = "all",
        class_dirs: Sequence[str | os.PathLike] = (),
        use_difficult: bool = False,
        remove_images_without_annotations: bool = False,
        transforms: Callable | None = None,
        **options: Any,
    ):
        self.keep_difficult = use_difficult
        store, self.difficult = read_folder(Path(img_dir), Path(xml_dir), split, [Path(one) for one in class_dirs])
        super().__init__(store, os.fspath(img_dir), remove_images_without_annotations, transforms, **options)

    @staticmethod
    def read_store(
        img_dir: str | os.PathLike, xml_dir: str | os.PathLike, split: str = "all", class_dirs: Sequence[str | os.PathLike] = ()
    ) -> tuple[AnnotationStore, str]:
        """All annotations of a split, and the folder of the images."""
        return read_folder(Path(img_dir), Path(xml_dir), split, [Path(one) for one in class_dirs])[0], os.fspath(img_dir)


def read_folder(img_dir: Path, xml_dir: Path, split: str, class_dirs: Sequence[Path]) -> tuple[AnnotationStore, np.ndarray]:
    """All annotations of a split, with the faults of its files, and which objects are difficult. [A] bool"""
    images = _images(img_dir)
    content = Content(f"{img_dir} ({split})", {})
    objects: list[tuple[int, dict]] = []
    for k in every_fifth(len(images), split):
        path = xml_dir / f"{images[k].stem}.xml"
        image, found = _read(content, path, images[k].name)
        number = content.add_image(images[k].name, (image.get("width", 0), image.get("height", 0)), str(path))
        objects += [(number, entry) for entry in found]
    stems = {path.stem for path in images}
    for path in sorted(xml_dir.glob("*.xml")):
        if path.stem not in stems:
            content.add_fault("drop", str(path), "", f"no image in {img_dir} belongs to this XML file")
    names = sorted(_class_names(class_dirs or [xml_dir]))
    content.categories = [{"id": k, "name": name} for k, name in enumerate(names, start=1)]
    for number, entry in objects:
        content.add_object(number, names.index(entry["name"]) + 1, entry["bbox"])
    return content.store(EMPTY_EXTENT, corners_from=1), np.array([entry["difficult"] for _, entry in objects], dtype=bool)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)


def _read(content: Content, path: Path, image: str) -> tuple[dict, list[dict]]:
    """An image and its objects as `read_xml` gives them; without any, and with a fault, where the file is missing or broken."""
    if not path.is_file():
        content.add_fault("note", str(path), image, "there is no such XML file: the image counts as one without objects")
        return {}, []
    try:
        return read_xml(path)
    except ValueError as error:
        content.add_fault("stop", str(path), image, str(error).removeprefix(f"{path}: "))
        return {}, []


def _class_names(folders: Sequence[Path]) -> set[str]:
    """The names in all XML files of folders; what cannot be read is told where its objects are."""
    names = set()
    for path in (path for folder in folders for path in folder.glob("*.xml")):
        try:
            names |= {entry["name"] for entry in read_xml(path)[1]}
        except ValueError:
            continue
    return names


# ------------------------------------------------------------------------------------------------------- recognition


def find_xml_folder(folder: Path, is_train: bool, masks: bool) -> tuple[dict[str, Any], str] | None:
    """Arguments for a folder of images and XML files, at most two levels below, and words for it; None when it holds none.

    Raises:
        NoSplitError: when there are folders of splits but none of the wanted one.
    """
    kind = "VOC's XML files without ImageSets"
    for root in (folder, *sorted(folder.glob("*/")), *sorted(folder.glob("*/*/"))):
        parts = {split: pair for split in (*TRAIN_SPLITS, *TEST_SPLITS) if (pair := _pair(root / split) or _pair(root, split))}
        if parts:
            split = next((split for split in splits(is_train) if split in parts), None)
            if split is None:
                raise NoSplitError(f"{root}: {kind}; expected a folder {' or '.join(splits(is_train))}, found {', '.join(parts)}")
            arguments = _arguments(parts[split], "all", [xmls for _, xmls in parts.values()])
            purpose = "training" if is_train else "testing"
            return arguments, f"{kind}, {_words(parts[split], folder)}: all images of the folder {split} are for {purpose}"
        pair = _pair(root)
        if pair:
            return _arguments(pair, "train" if is_train else "test", ()), f"{kind}, {_words(pair, folder)}, {NO_SPLITS}"
    return None


def _pair(root: Path, split: str = "") -> tuple[Path, Path] | None:
    """The folders of images and of XML files below a folder."""
    for images in (root / name / split for name in IMAGES):
        for xmls in (root / name / split for name in XMLS):
            if images.is_dir() and xmls.is_dir() and _has_voc(xmls) and _has_images(images):
                return images, xmls
    return None


def _has_voc(folder: Path) -> bool:
    for path in islice(folder.glob("*.xml"), FILES_LOOKED_INTO):
        with open(path, "rb") as file:
            if _VOC.search(file.read(2000)):
                return True
    return False


def _has_images(folder: Path) -> bool:
    return any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir())


def _arguments(pair: tuple[Path, Path], split: str, class_dirs: Sequence[Path]) -> dict[str, Any]:
    return {"img_dir": str(pair[0]), "xml_dir": str(pair[1]), "split": split, "class_dirs": [str(one) for one in class_dirs]}


def _words(pair: tuple[Path, Path], folder: Path) -> str:
    places = (path.relative_to(folder).as_posix() for path in pair)
    images, xmls = (f"in {place}" if place != "." else "in the folder itself" for place in places)
    return f"images and XML files side by side {images}" if images == xmls else f"images {images}, XML files {xmls}"
